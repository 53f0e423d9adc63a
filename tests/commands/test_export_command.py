"""`rssl export` as a person runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import refuse, rssl

from rsslcli.commands.export import export
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights import export as core


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of public weights, through the installed command and, where ONNX is not checked, as a function."""
    network = WideResNet(10, 1, 4).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    result = rssl("export w.pt --output model.pt2 --normalization none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == 'next, in Python: torch.export.load("model.pt2").module()(images)\n'
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
        ("none.pt --output model.h5", r"must end in \.onnx or \.pt2"),
        ("none.pt --output model.pt2", "no checkpoint at none.pt"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: str, match: str) -> None:
    refuse(f"export {arguments}", cwd=tmp_path, match=match)
    assert not list(tmp_path.iterdir())
