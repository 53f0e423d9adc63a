"""`rssl eval-c`: accuracy on the clean and the corrupted test set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rsslcli.commands.console import (
    DEFAULT_DATA_DIR,
    DataDir,
    DatasetName,
    Device,
    err,
    out,
    parse_severities,
    percent,
    progress_bar,
    split_names,
)
from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.errors import UserError

if TYPE_CHECKING:
    from rsslcli.core.evaluation import Evaluation


def eval_c(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, a run directory, or a WideResNet state dict.")
    ],
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    limit: Annotated[int | None, typer.Option(help="Evaluate only so many source images.")] = None,
    corruptions: Annotated[
        str | None, typer.Option(help="Evaluate only these corruptions, separated by commas.")
    ] = None,
    severity: Annotated[
        str | None, typer.Option(help="Evaluate only these severities, 1 to 5, separated by commas.")
    ] = None,
    same_images_as: Annotated[
        Path | None, typer.Option(help="Leave out what tuned λ in that run too, to compare the two fairly.")
    ] = None,
    leave_out_validation: Annotated[
        bool,
        typer.Option(
            "--leave-out-validation",
            help="Leave out the images on which an AutoML run of the same seed and settings tunes λ, to "
            "compare this run fairly with it.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write the result: .json, .csv or .md. Default: eval-c.json in the run."),
    ] = None,
    device: Device = None,
) -> None:
    """Evaluate a classifier on the corrupted test set: 19 corruptions at 5 severities.

    rssl eval-c runs/20261122-101500-automl-rotation-bir-color-ir
    """
    if output is not None and output.suffix not in _WRITERS:
        raise UserError(f"--output {output}: the name must end in {', '.join(_WRITERS)}")
    severities = parse_severities(severity)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    from rsslcli.core.checkpoint import checkpoint_path, load_checkpoint, load_classifier
    from rsslcli.core.data.loading import load, load_corrupted
    from rsslcli.core.evaluation import evaluate
    from rsslcli.core.ranks import join_ranks
    from rsslcli.core.runtime import keep_freed_memory, resolve_device
    from rsslcli.core.training import validation_source

    network, trained = load_classifier(checkpoint)
    excluded = set(trained.excluded if trained else ())
    if same_images_as is not None:
        excluded |= set(load_checkpoint(same_images_as).excluded)
    if leave_out_validation and not trained:
        raise UserError(
            f"--leave-out-validation: {checkpoint} has no seed to draw those images by: use --same-images-as"
        )
    keep_freed_memory()
    target = resolve_device(device or "auto")
    name = dataset or (trained.config.dataset if trained else "cifar10")
    path = output or (checkpoint_path(checkpoint).with_name("eval-c.json") if trained else None)
    with join_ranks(target) as ranks, progress_bar() as progress:
        with ranks.first_alone():
            data = load(name, data_dir, progress)
            corrupted = load_corrupted(data, progress)
        if leave_out_validation and trained and not trained.config.automl:
            excluded |= set(validation_source(trained.config, corrupted.images_per_cell))
        if trained and trained.excluded and trained.validation_data != corrupted.identity:
            err.print(
                f"note: λ was tuned on another corrupted set than {corrupted.folder}; "
                "the images with the same numbers are left out all the same",
                soft_wrap=True,
            )
        result = evaluate(
            network,
            data.test,
            corrupted,
            device=target,
            excluded=sorted(excluded),
            limit=limit,
            corruptions=None if corruptions is None else split_names(corruptions),
            severities=severities,
            partial=path.with_name(path.name + ".partial") if path else None,
            about={"checkpoint": str(checkpoint), "dataset": name}
            | ({"step": trained.step} if trained else {}),
            progress=progress,
            ranks=ranks,
        )
    if not ranks.first:
        return
    out.print(result_table(result, f"{checkpoint} on corrupted {name}: accuracy in %"))
    out.print(_summary(result), soft_wrap=True)
    if path is not None:
        result.save(path)
        out.print(f"written to {path}", soft_wrap=True)


_WRITERS = (".json", ".csv", ".md")


def result_table(result: Evaluation, title: str) -> Table:
    """The table of an evaluation: a row per corruption, a column per severity, and means."""
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    for severity in SEVERITIES:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right", style="bold")
    for name, values in result.accuracy.items():
        table.add_row(name, *map(percent, values), percent(result.mean([name])))
    table.add_section()
    means = [*(result.mean_at(severity) for severity in SEVERITIES), result.mean(list(result.accuracy))]
    table.add_row("mean", *map(percent, means))
    return table


def _summary(result: Evaluation) -> str:
    parts = [f"clean {percent(result.clean_accuracy)}%"]
    if result.mean_accuracy is not None:
        parts.append(f"mean over the 19 corruptions {percent(result.mean_accuracy)}%")
    if result.mean_accuracy_15 is not None:
        parts.append(f"over the usual 15 {percent(result.mean_accuracy_15)}%")
    left_out = f", {len(result.excluded)} left out, kept for tuning λ" if result.excluded else ""
    return f"{' · '.join(parts)}  ({result.images} images per cell{left_out})"
