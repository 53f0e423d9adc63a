"""`rssl export` as a person runs it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from helpers import Here, refuse, rssl
from PIL import Image

from rsslcli.commands.export import export
from rsslcli.core.config import Config
from rsslcli.core.data.shapes import draw_shapes
from rsslcli.core.evaluation.calibration import Calibration
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights import export as core
from rsslcli.core.weights.checkpoint import Checkpoint, save_checkpoint
from rsslcli.core.weights.model_card import evaluation_of


@pytest.fixture
def exported(home: Path, here: Here) -> Path:
    """A run `carded` with random weights."""
    torch.manual_seed(1)
    network = WideResNet(10, 1)
    network.train()(torch.rand(16, 3, 32, 32))
    classes = tuple(sorted(draw_shapes(10, 0, "test")[2]))
    optimizer = torch.optim.SGD(network.parameters()).state_dict()
    save_checkpoint(
        home / "carded" / "checkpoint.pt",
        Checkpoint(
            config=Config(dataset="mine", depth=10, width=1, seed=7), classes=classes, step=3,
            classifier=network.state_dict(), heads={}, optimizer=optimizer, lambdas=torch.ones(0),
            excluded=(), train_data="t", validation_data="",
        ),
    )  # fmt: skip
    return home / "carded"


def scores_of_onnx(path: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    pytest.importorskip("onnx")
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return session.run(None, {name: images})[0], session.get_modelmeta().custom_metadata_map


def scores_of_pt2(path: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    described = {"rssl.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path, extra_files=described).module()
    return program(torch.from_numpy(images)).detach().numpy(), json.loads(described["rssl.json"])


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_photograph_is_classified_with_what_the_exported_file_says_alone(
    exported: Path, here: Here, suffix: str
) -> None:
    """As by `rssl predict`; this code knows neither the classes nor the size, layout and range."""
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    photograph = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    here.succeed(f"export carded --output carded.{suffix}")
    path = exported.with_name(f"carded.{suffix}")
    run = {"onnx": scores_of_onnx, "pt2": scores_of_pt2}[suffix]
    _, described = run(path, np.zeros((1, 3, 32, 32), np.float32))
    how: dict[str, Any] = json.loads(described["preprocessing"])
    assert (how["fit"], how["layout"]) == ("the center square, scaled with antialiasing (Lanczos)", "NCHW")
    image = Image.open(photograph).convert(how["channels"])
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    size = how["size"][::-1]
    pixels = image.resize(size, Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    low, high = how["range"]
    x = (low + (high - low) * np.asarray(pixels) / 255).astype(how["dtype"]).transpose(2, 0, 1)[None]
    scores, _ = run(path, x)
    found = json.loads(described["classes"])[int(scores.argmax())]
    line = here.succeed(f"predict carded {photograph}").splitlines()[1]
    assert found == line.split(",")[1]


def test_the_card_has_the_numbers_of_the_run_and_says_what_is_unknown(exported: Path, here: Here) -> None:
    safetensors = pytest.importorskip("safetensors")
    card, page = (exported.with_name(f"carded.safetensors.{suffix}") for suffix in ("json", "md"))

    def export_again() -> tuple[dict[str, Any], str]:
        here.succeed("export carded --output carded.safetensors")
        return json.loads(card.read_text()), page.read_text()

    content, text = export_again()
    assert (content["evaluation"], content["temperature"], content["license"]) == (None, None, None)
    assert "unknown: no whole evaluation of these weights" in text
    assert "the probabilities are not calibrated" in text
    assert "license: to be filled in" in text
    assert (content["training"]["settings"]["seed"], content["training"]["train_data"]) == (7, "t")
    here.succeed("eval-c carded --corruptions fog")
    assert export_again()[0]["evaluation"] is None  # that was a part
    here.succeed("eval-c carded")
    weights = json.loads((exported / "eval-c.json").read_text())["weights"]
    Calibration(1.5, 8, "drawn", weights).save(exported / "checkpoint.pt")
    card.write_text(json.dumps({"license": "CC0"}))
    content, text = export_again()
    whole = json.loads((exported / "eval-c.json").read_text())
    for key in ("accuracy", "mean_accuracy", "clean_accuracy", "images", "mean_ece"):
        assert content["evaluation"][key] == whole[key]
    assert (content["temperature"], content["license"]) == (1.5, "CC0")
    assert "temperature 1.5" in text
    with safetensors.safe_open(card.with_suffix(""), framework="pt") as file:
        assert file.metadata()["temperature"] == "1.5"
    assert f"- mean of 19: {100 * whole['mean_accuracy']:.2f} %" in text
    assert "origin of the corrupted set: generated" in text
    (exported / "eval-c.json").write_text(json.dumps(whole | {"weights": "other"}))
    assert export_again()[0]["evaluation"] is None


@pytest.mark.parametrize("accuracy", [{"fog": [2.0] * 5}, {"fog": [0.5]}, {"mist": [0.5] * 5}, {}, 3])
def test_a_damaged_evaluation_is_left_out_of_the_card(tmp_path: Path, accuracy: object) -> None:
    path = tmp_path / "eval-c.json"
    good = {"accuracy": {"fog": [0.5] * 5}, "clean_accuracy": 0.9, "images": 10, "excluded": [], "step": 3}
    path.write_text(json.dumps(good))
    found = evaluation_of(path, "w", 3)
    assert found is not None
    assert found.coverage.startswith("1 of 19")
    path.write_text(json.dumps(good | {"accuracy": accuracy}))
    assert evaluation_of(path, "w", 3) is None


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of public weights, through the installed command and, where ONNX is not checked, as a function."""
    network = WideResNet(10, 1, 4).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    result = rssl("export w.pt --output model.pt2 --normalization none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == (
        "note: model card: model.pt2.json and model.pt2.md; fill in the license\n"
        'next, in Python: torch.export.load("model.pt2").module()(images)\n'
    )
    assert (
        "written to model.pt2: images (N, 3, 32, 32) in [0, 1] → scores (N, 4); run and compared"
        in result.stdout
    )
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        scores = torch.export.load(tmp_path / "model.pt2").module()(images)
        torch.testing.assert_close(scores, network((images + 1) / 2))

    monkeypatch.setattr(core, "_onnx", lambda network, size, described: (b"a program", None))
    monkeypatch.setattr(core, "_installed", lambda name: name != "onnxruntime")
    export(tmp_path / "w.pt", tmp_path / "model.onnx")
    said = capsys.readouterr()
    assert "not run here, since onnxruntime is not installed" in said.err
    assert "does not say how its input is normalized" in said.err
    assert "compared" not in said.out
    assert (tmp_path / "model.onnx").read_bytes() == b"a program"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("none.pt", "Missing option '--output'"),
        ("none.pt --output model.h5", r"must end in \.onnx, \.pt2 or \.safetensors"),
        ("none.pt --output model.pt2", "no checkpoint at none.pt"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: str, match: str) -> None:
    refuse(f"export {arguments}", cwd=tmp_path, match=match)
    assert not list(tmp_path.iterdir())


def test_the_file_that_is_read_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.save(WideResNet(10, 1).state_dict(), path)
    before = path.read_bytes()
    refuse(
        "export model.pt2 --output model.pt2",
        cwd=tmp_path,
        match="is the file that is read: choose another name",
    )
    assert path.read_bytes() == before
