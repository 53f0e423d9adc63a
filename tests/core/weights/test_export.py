"""Exported programs compute what the checkpoint computes, and nothing half-written stays."""

from __future__ import annotations

import copy
import json
import math
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.transforms import Normalize

import rsslcli
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights import export
from rsslcli.core.weights.export import DESCRIPTION, export_classifier

CLASSES = ["cat", "Ölpfütze", '"'] + [str(i) for i in range(7)]


@pytest.fixture(scope="module")
def network() -> WideResNet:
    """A network whose statistics and normalization are not the initial ones."""
    torch.manual_seed(0)
    network = WideResNet(10, 1)
    network.set_normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    network.train()(torch.rand(16, 3, 32, 32))
    return network.eval()


def test_torch_export(network: WideResNet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "model.pt2"
    done = export_classifier(network, path, classes=CLASSES, about={"dataset": "mine"})
    assert done.difference is not None
    assert done.difference < 1e-5
    described = {DESCRIPTION: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path, extra_files=described).module()
    description = json.loads(described[DESCRIPTION])
    assert (json.loads(description["classes"]), description["dataset"]) == (CLASSES, "mine")
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32)
        torch.testing.assert_close(program(images), network(images), rtol=1e-5, atol=1e-5)
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]
    assert capfd.readouterr() == ("", "")


def test_a_classifier_is_exported_with_the_names_it_carries(tmp_path: Path) -> None:
    classifier = rsslcli.Classifier(WideResNet(10, 1, 3), ("cat", "dog", "ship"))
    for model in (classifier, classifier.network):
        export_classifier(model, tmp_path / "model.pt2")
        described = {DESCRIPTION: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.load(tmp_path / "model.pt2", extra_files=described)
        assert json.loads(json.loads(described[DESCRIPTION])["classes"]) == ["cat", "dog", "ship"]
    with pytest.raises(
        UserError, match="the classifier gives 3 scores, and its class names are 'cat', 'dog'"
    ):
        export_classifier(classifier, tmp_path / "other.pt2", classes=["cat", "dog"])
    assert not (tmp_path / "other.pt2").exists()


def test_onnx(network: WideResNet, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    done = export_classifier(network, path, classes=CLASSES)
    assert capfd.readouterr() == ("", "")
    assert done.difference is not None
    assert done.difference < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == CLASSES
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(float)", [3, 32, 32])
    assert (found.name, found.shape[1:]) == ("scores", [10])
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32)
        scores = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        torch.testing.assert_close(scores, network(images), rtol=1e-4, atol=1e-4)


def test_safetensors_are_read_again_with_their_names_and_normalization(
    network: WideResNet, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    images = torch.rand(3, 3, 32, 32)
    for model in (network, WideResNet(10, 1)):
        done = export_classifier(model, path, classes=CLASSES)
        assert done.difference is not None
        assert done.difference < 1e-5
        with pytest.warns(UserWarning, match="its input is normalized as the file says"):
            again = rsslcli.load_classifier(path)
        assert list(again.classes) == CLASSES
        torch.testing.assert_close(again(images), model(images), rtol=1e-5, atol=1e-5)
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["preprocessing"])["range"] == [0, 1]
    assert again.image_size == 32
    wrapped = nn.Sequential(network, nn.Linear(10, 10))
    with pytest.raises(UserError, match="holds one WideResNet of rssl and nothing else"):
        export_classifier(wrapped, path)


def test_a_classifier_of_larger_images_is_exported_at_their_size(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    classifier = WideResNet(10, 1)
    classifier.image_size = 64
    export_classifier(classifier, tmp_path / "model.pt2")
    described = {DESCRIPTION: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(tmp_path / "model.pt2", extra_files=described).module()
    description = json.loads(described[DESCRIPTION])
    assert json.loads(description["preprocessing"])["size"] == [64, 64]
    assert "(N, 3, 64, 64)" in description["input"]
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(program(images), classifier(images), rtol=1e-5, atol=1e-5)
    export_classifier(classifier, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match="its input is normalized as the file says"):
        assert rsslcli.load_classifier(tmp_path / "model.safetensors").image_size == 64


@pytest.mark.parametrize(
    "classes", ["[", "{}", "[1, 2, 3]", '["a", "a", "b"]', '["a"]', "[" * 100_000, "null"]
)
def test_damaged_names_in_safetensors_are_no_names(classes: str, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "model.safetensors"
    save_file(
        WideResNet(10, 1, 3).state_dict(), path, metadata={"classes": classes, "preprocessing": classes}
    )
    with pytest.warns(UserWarning, match="does not say how its input is normalized"):
        found = rsslcli.load_classifier(path)
    assert (found.classes, found.image_size) == ((), None)


class Forgetful(nn.Module):
    """Gives other scores once it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.linear(images.flatten(1))
        return scores * 1.01 if torch.compiler.is_exporting() else scores


class Unexportable(Forgetful):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) if float(images.sum()) > 0 else images


@pytest.mark.parametrize(
    ("model", "message"),
    [(Forgetful(), "not written: its scores are off by 0.01"), (Unexportable(), "be made: ")],
)
def test_a_program_that_is_not_the_network_is_not_written(
    model: nn.Module, message: str, tmp_path: Path
) -> None:
    (tmp_path / "model.pt2").write_text("the old one")
    with pytest.raises(RsslError, match=message) as caught:
        export_classifier(model, tmp_path / "model.pt2")
    assert len(str(caught.value).splitlines()) == 1
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.pt2", "the old one")]


def test_what_is_missing_is_named(
    network: WideResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_installed", lambda name: name == "onnx")
    with pytest.raises(UserError, match=r"needs the package onnxscript: pip install 'rsslcli\[onnx\]'"):
        export_classifier(network, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"must end in \.onnx, \.pt2 or \.safetensors"):
        export_classifier(network, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_is_named_in_one_line(tmp_path: Path) -> None:
    network = nn.Sequential(Normalize([0.5] * 3, [0.5] * 3), nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with pytest.raises(RsslError, match=r"GuardOnData.*in normalize\): .*keep its state_dict") as caught:
        export_classifier(network, tmp_path / "model.pt2")
    assert str(caught.value).isprintable()


def test_the_network_of_ones_own_in_the_guide_is_exported(tmp_path: Path) -> None:
    """Also as it is, where its argument has another name than `images`."""
    script = Path(__file__).parents[3] / "docs" / "examples" / "small_network.py"
    network = runpy.run_path(str(script))["small"]()
    assert export_classifier(network, tmp_path / "small.pt2").difference is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_is_exported_as_a_copy(
    network: WideResNet, tmp_path: Path, dtype: torch.dtype
) -> None:
    other = copy.deepcopy(network).to(dtype)
    done = export_classifier(other, tmp_path / "model.pt2")
    assert done.difference is not None
    assert done.difference < 1e-5
    assert next(other.parameters()).dtype == dtype


def test_scores_that_are_not_numbers_are_not_exported(tmp_path: Path) -> None:
    class Broken(WideResNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * math.nan

    with pytest.raises(RsslError, match="is not written: its scores are off by inf"):
        export_classifier(Broken(10, 1), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
