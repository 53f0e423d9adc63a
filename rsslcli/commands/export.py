"""`rssl export`: a classifier as an ONNX file, a torch.export program or safetensors, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands.console import check_checkpoints, err, note, out, waiting
from rsslcli.commands.options import Checkpoint, Network, Normalization
from rsslcli.core.errors import UserError
from rsslcli.core.files import checkpoint_path
from rsslcli.core.networks.normalization import parse_normalization


def export(
    checkpoint: Checkpoint,
    output: Annotated[
        Path,
        typer.Option(
            help="The file to write: ONNX if it ends in .onnx, torch.export if in .pt2, the weights alone if "
            "in .safetensors."
        ),
    ],
    network: Network = None,
    normalization: Normalization = None,
) -> None:
    """Write a classifier as a program that runs without rssl, or its weights, with a model card.

    rssl export runs/first --output model.onnx
    # for torch.export.load, without another package
    rssl export runs/first --output model.pt2
    # the weights alone, in a file that cannot hold code
    rssl export runs/first --output model.safetensors
    """
    if output.suffix not in (".onnx", ".pt2", ".safetensors"):
        raise UserError(f"--output {output}: the name must end in .onnx, .pt2 or .safetensors")
    if normalization is not None:
        parse_normalization(normalization)
    check_checkpoints(checkpoint)
    if output.exists() and output.samefile(checkpoint_path(checkpoint)):
        raise UserError(f"--output {output} is the file that is read: choose another name")

    with waiting():
        from rsslcli.core.version import __version__
        from rsslcli.core.weights.checkpoint import load_classifier
        from rsslcli.core.weights.export import check_export, export_classifier
        from rsslcli.core.weights.model_card import describe_model, write_card

        check_export(output)
    notes: list[str] = []
    classifier, trained = load_classifier(
        checkpoint, network=network, normalization=normalization, note=notes.append
    )
    about = {"rssl": __version__} | ({"dataset": trained.config.dataset} if trained else {})
    card, result = describe_model(output, classifier, checkpoint_path(checkpoint), trained)
    about |= {} if card["temperature"] is None else {"temperature": repr(card["temperature"])}
    done = export_classifier(classifier, output, classes=classifier.classes or None, about=about)
    cards = write_card(output, card, result)
    for text in notes:
        note(text)
    if done.difference is None:
        note("the program was not run here, since onnxruntime is not installed: pip install onnxruntime")
    checked = ""
    if done.difference is not None:
        most = f"differ by at most {done.difference:.0e} of the largest"
        verdict = most if done.difference else "are identical"
        checked = f"; run and compared with the checkpoint: the scores {verdict}"
    size = done.image_size
    shapes = f"images (N, 3, {size}, {size}) in [0, 1] → scores (N, {classifier.fc.out_features})"
    out.print(f"written to {output}: {shapes}{checked}")
    note(f"model card: {' and '.join(map(str, cards))}; fill in the license")
    place = json.dumps(str(output), ensure_ascii=False)
    loads = {
        ".onnx": f"onnxruntime.InferenceSession({place})",
        ".pt2": f"torch.export.load({place}).module()(images)",
        ".safetensors": f"rsslcli.load_classifier({place})",
    }
    err.print(f"next, in Python: {loads[output.suffix]}")
