"""`rssl export`: a classifier as an ONNX file or a torch.export program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands.console import check_checkpoints, err, note, out, waiting
from rsslcli.commands.options import Checkpoint, Network, Normalization
from rsslcli.core.errors import UserError
from rsslcli.core.networks.normalization import parse_normalization


def export(
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Option(help="The file to write: ONNX if it ends in .onnx, torch.export if in .pt2."),
    ],
    network: Network = None,
    normalization: Normalization = None,
) -> None:
    """Write a classifier as a program that runs without rssl, checked against the checkpoint.

    rssl export runs/first --output model.onnx
    # for torch.export.load, without another package
    rssl export runs/first --output model.pt2
    """
    if output.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--output {output}: the name must end in .onnx or .pt2")
    if normalization is not None:
        parse_normalization(normalization)
    check_checkpoints(checkpoint)

    with waiting():
        from rsslcli.core.version import __version__
        from rsslcli.core.weights.checkpoint import load_classifier
        from rsslcli.core.weights.export import check_export, export_classifier

        check_export(output)
    notes: list[str] = []
    classifier, trained = load_classifier(
        checkpoint, network=network, normalization=normalization, note=notes.append
    )
    about = {"rssl": __version__} | ({"dataset": trained.config.dataset} if trained else {})
    done = export_classifier(classifier, output, classes=trained.classes if trained else None, about=about)
    for text in notes:
        note(text)
    if done.difference is None:
        note("not run here, since onnxruntime is not installed: pip install onnxruntime")
    checked = ""
    if done.difference is not None:
        most = f"by at most {done.difference:.0e} of the largest" if done.difference else "in nothing"
        checked = f"; run and compared with the checkpoint: the scores differ {most}"
    size = done.image_size
    shapes = f"images (N, 3, {size}, {size}) in [0, 1] → scores (N, {classifier.fc.out_features})"
    out.print(f"written to {output}: {shapes}{checked}")
    place = json.dumps(str(output), ensure_ascii=False)
    loads = {
        ".onnx": f"onnxruntime.InferenceSession({place})",
        ".pt2": f"torch.export.load({place}).module()(images)",
    }
    err.print(f"next, in Python: {loads[output.suffix]}")
