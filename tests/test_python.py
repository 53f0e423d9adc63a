"""`rsslcli` from Python: what docs/python.md shows runs and is typed, and the rest of what it promises."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import rsslcli
from rsslcli.core.data import loading, shapes
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = _BLOCK.findall(TEXT)
README_BLOCKS = _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to be in, with a small embedded data set."""
    folder = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RSSL_DATA_DIR", str(folder / "data"))
        patch.setattr(shapes, "TRAIN_SIZE", 200)
        patch.setattr(shapes, "TEST_SIZE", 60)
        patch.setattr(loading, "EMBEDDED_LIMIT", 20)
        state = {f"module.{name}": value for name, value in WideResNet(10, 1).state_dict().items()}
        torch.save({"state_dict": state}, folder / "augmix.pt")
        for name in ("photo.jpg", "scan.png"):
            Image.new("RGB", (40, 30), "red").save(folder / name)
        yield folder


@pytest.fixture(scope="module")
def documented(place: Path) -> dict[str, Any]:
    """What the program of the document leaves behind."""
    names: dict[str, Any] = {"__name__": "documented"}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
    return names


def test_the_document_runs(documented: dict[str, Any], place: Path) -> None:
    assert len(BLOCKS) == 11
    result, classifier, found = (documented[name] for name in ("result", "classifier", "found"))
    assert sorted(result.lambdas) == ["ir", "rotation"]
    assert len(classifier.excluded) == 10
    assert classifier.excluded == load_checkpoint(place / "runs" / "first").excluded
    assert set(documented["names"]) <= set(classifier.classes)
    assert documented["features"].shape == (5, 64)
    assert documented["probabilities"].shape == (2, 10)
    assert (found.images, documented["ours"].images) == (20, 10)
    assert documented["theirs"].excluded == classifier.excluded
    assert (place / "theirs.csv").read_text().startswith("corruption,severity,accuracy,images\n")
    for run in ("first", "baseline", "paused"):
        assert load_checkpoint(place / "runs" / run).step == 6


def test_the_blocks_of_the_readme_run(documented: dict[str, Any], place: Path) -> None:
    """On the embedded data set, and with a network and a number of epochs that suit a test."""
    names = {"images": torch.rand(2, 3, 32, 32), "my_model": WideResNet(10, 1)}
    for block in README_BLOCKS:
        small = block.replace('"cifar10")', '"shapes", classes_by_position=True)')
        small = small.replace('"cifar10"', '"shapes"').replace(
            'weighting="automl"', 'weighting="automl", depth=10, width=1, epochs=1, warmup_epochs=0'
        )
        exec(compile(small, "README.md", "exec"), names)
    assert len(README_BLOCKS) == 1
    assert names["scores"].shape == (2, 10)
    assert load_checkpoint(place / "runs" / "mine").config.tasks == ("rotation", "bir", "color", "ir")
    assert names["found"].images == 20


def test_the_document_is_typed(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None or not (ROOT / ".mypy_cache").exists():
        pytest.skip("mypy has not been run here")
    (tmp_path / "program.py").write_text("\n".join(BLOCKS), encoding="utf-8")
    wrong = "import rsslcli\n\nx: int = rsslcli.evaluate\nrsslcli.evaluat\nrsslcli.train('cifar10', 'runs')\n"
    (tmp_path / "wrong.py").write_text(wrong)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        str(tmp_path / "program.py"),
        str(tmp_path / "wrong.py"),
    ]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"(\w+)\.py:(\d+): error", checked.stdout)
    assert found == [("wrong", "3"), ("wrong", "4"), ("wrong", "5")], checked.stdout + checked.stderr


def test_importing_is_cheap_and_every_name_is_there() -> None:
    code = (
        "import sys, rsslcli; assert not {'torch', 'numpy', 'typer'} & set(sys.modules); print(dir(rsslcli))"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in rsslcli.__all__:
        assert getattr(rsslcli, name) is not None
        assert f"'{name}'" in listed
    assert {name for names in rsslcli._EXPORTS.values() for name in names} == set(rsslcli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        rsslcli.trian  # type: ignore[attr-defined]  # noqa: B018
    assert (Path(rsslcli.__file__).parent / "py.typed").exists()


class Odd(nn.Module):
    """Scores of another shape."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> Any:
        return self.make(images)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Odd(lambda x: (x.flatten(1)[:, :10], x)), {}, "must give scores (N, classes); for 1 image it"),
        (Odd(lambda x: x.mean(1)), {}, "for 1 image it gave (1, 32, 32)"),
        (Odd(lambda x: {"logits": x.flatten(1)[:, :10]}), {}, "for 1 image it gave a dict: wrap it"),
        (Odd(lambda x: x.flatten(1)[:, :10].repeat(2, 1)), {}, "for 1 image it gave (2, 10), float32"),
        (Odd(lambda x: x.flatten(1)[:, :10].long()), {}, "for 1 image it gave (1, 10), int64"),
        (Odd(lambda x: x.flatten(1)[:, :99] @ torch.ones(7, 10)), {}, "fails on one image (1, 3, 32, 32)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, device="meta")), {}, "in evaluation mode on meta: "),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, device="meta")), {"device": "cpu"}, "mode on cpu: "),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), {"device": "gpu"}, "on gpu: RuntimeError: "),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).half(), {"precision": "bfloat16"}, "is float16: "),
        (Odd(lambda x: x.flatten(1)[:, :100]), {}, "has 100 outputs but 'shapes' has 10 classes: "),
        (None, {"severities": [0, 5]}, "severities: expected some of 1 to 5, got [0, 5]"),
        (None, {"severities": []}, "severities: expected some of 1 to 5, got []"),
        (None, {"corruptions": ["fogg"]}, "unknown corruption 'fogg': did you mean 'fog'?"),
        ("runs/mine", {}, "model: expected an nn.Module such as load_classifier(RUN), got 'runs/mine'"),
        (None, {"severities": 3}, "severities: expected a list, got 3"),
        (None, {"corruptions": "fog"}, "corruptions: expected a list, got 'fog'"),
        (rsslcli.adapt(WideResNet(10, 1)), {}, "model: it adapts already: pass the classifier itself"),
        (Odd(lambda x: torch.autograd.grad(x.requires_grad_().sum(), x)[0]), {}, "fails on one image"),
        (None, {"limit": 0}, "limit: expected at least 1"),
        (None, {"excluded": [-1]}, "excluded: expected indices from 0 to 59, got -1"),
        (None, {"excluded": [60]}, "excluded: expected indices from 0 to 59, got 60"),
        (None, {"excluded": [1.9]}, "excluded: expected indices from 0 to 59, got 1.9"),
        (None, {"excluded": np.array([False, True])}, "excluded: expected indices from 0 to 59, got "),
        (None, {"precision": "tf32"}, "precision: expected float32 or bfloat16, got 'tf32'"),
    ],
)  # fmt: skip
def test_evaluate_refuses(place: Path, model: Any, options: dict[str, Any], message: str) -> None:
    model = model or Odd(lambda x: x.flatten(1)[:, :10])
    with pytest.raises(rsslcli.UserError, match=re.escape(message)):
        rsslcli.evaluate(model, "shapes", classes_by_position=True, **options)


def test_what_a_failing_model_raised_is_the_cause(place: Path) -> None:
    with pytest.raises(rsslcli.UserError, match="RuntimeError: mat1 and mat2") as caught:
        rsslcli.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(3, 10)), "shapes")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_evaluate_takes_a_model_in_its_own_dtype(place: Path, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10)).to(dtype)
    options: dict[str, Any] = {"corruptions": ["fog"], "severities": [5], "classes_by_position": True}
    found = rsslcli.evaluate(model, "shapes", **options)
    assert found.about["precision"] == str(dtype).removeprefix("torch.")
    assert next(model.parameters()).dtype is dtype


def test_evaluate_takes_an_exported_program_and_no_autocast_of_the_caller(place: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10)).eval()
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (torch.rand(2, 3, 32, 32),), dynamic_shapes=(batch,)).module()
    options: dict[str, Any] = {"corruptions": ["fog"], "severities": [5], "classes_by_position": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = rsslcli.evaluate(model, "shapes", **options)
        assert rsslcli.evaluate(exported, "shapes", **options).accuracy == expected.accuracy
        with torch.autocast("cpu", torch.bfloat16):
            assert rsslcli.evaluate(model, "shapes", **options).confidence == expected.confidence


def test_evaluate_leaves_the_model_in_its_modes(place: Path) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"corruptions": ["fog"], "severities": [5], "classes_by_position": True}
    first = rsslcli.evaluate(model, "shapes", **options)
    assert first == rsslcli.evaluate(model, "shapes", **options)
    rounded = rsslcli.evaluate(model, "shapes", precision="bfloat16", **options)
    assert (first.about["precision"], rounded.about["precision"]) == ("float32", "bfloat16")
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_evaluate_has_moved_can_still_be_trained(place: Path) -> None:
    class Moving(nn.Sequential):
        """Copies its weights, as a move from the CPU to CUDA does."""

        def to(self, *_: Any, **__: Any) -> Any:
            return self._apply(torch.clone)

    model = Moving(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    rsslcli.evaluate(model, "shapes", corruptions=["fog"], severities=[5], classes_by_position=True)
    assert not any(value.is_inference() for value in model.state_dict().values())
    model(torch.rand(4, 3, 32, 32)).sum().backward()


def test_notes_on_public_weights_are_warnings(place: Path) -> None:
    torch.save(WideResNet(10, 1).state_dict() | {"rot_pred.weight": torch.ones(4, 64)}, place / "w.pt")
    with pytest.warns(UserWarning, match="w.pt") as caught:
        classifier = rsslcli.load_classifier("w.pt")
    assert len(caught) == 2
    assert {os.path.basename(warning.filename) for warning in caught} == {Path(__file__).name}  # noqa: PTH119
    assert (classifier.classes, classifier.excluded, classifier.training) == ((), (), False)


def test_a_model_near_chance_is_a_warning_and_a_note(place: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    nn.init.zeros_(model[1].weight)
    with pytest.warns(UserWarning, match="is near that of guessing") as caught:
        found = rsslcli.evaluate(
            model, "shapes", classes_by_position=True, corruptions=["fog"], severities=[5]
        )
    assert [str(warning.message) for warning in caught] == list(found.notes)
    assert Path(caught[0].filename).name == Path(__file__).name
    state = WideResNet(10, 1).state_dict()
    torch.save(state | {"fc.weight": torch.zeros(10, 64)}, place / "w.pt")
    public = rsslcli.load_classifier("w.pt", normalization="half")
    with pytest.warns(UserWarning, match="is near that of guessing"):
        rsslcli.evaluate(public, "shapes", classes_by_position=True, corruptions=["fog"], severities=[5])


def test_input_that_is_normalized_twice_is_noted(place: Path) -> None:
    ours = WideResNet(10, 1)
    options: dict[str, Any] = {"corruptions": ["fog"], "severities": [5], "classes_by_position": True}
    for wrapper, is_told in ((nn.Identity(), False), (Odd(lambda x: x * 2 - 1), True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            notes = rsslcli.evaluate(nn.Sequential(wrapper, ours), "shapes", **options).notes
        assert (
            any("values from -1.00 to 1.00 in place of images in [0, 1]" in note for note in notes) is is_told
        )
    assert not ours._forward_pre_hooks


def test_train_without_data(place: Path) -> None:
    with pytest.raises(rsslcli.UserError, match="no prepared data set 'cifar10'"):
        rsslcli.train(rsslcli.Config(), place / "none")
    assert not (place / "none").exists()
