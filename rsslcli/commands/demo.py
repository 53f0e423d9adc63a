"""`rssl demo`: a first look, without data and without questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rsslcli.commands import completion, options
from rsslcli.commands.console import (
    out,
    percent,
    progress_bar,
    shell_command,
    stop_on_signal,
    suggest_next,
    waiting,
)
from rsslcli.commands.training_run import TrainingView
from rsslcli.core.errors import InterruptedTrainingError, signed

if TYPE_CHECKING:
    from rsslcli.core.data.store import Dataset
    from rsslcli.core.study.cell import Cell
    from rsslcli.core.study.demo import Difference, Row


def demo(
    output: Annotated[
        Path,
        typer.Option(help="The folder for the two runs.", show_default=True, autocompletion=completion.runs),
    ] = Path("demo"),
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.", show_default=True)] = 0,
    device: options.Device = None,
) -> None:
    """See what corruption does to a classifier, and what AugMix changes, in minutes on two CPU cores.

    Draws the embedded images, trains a baseline and AugMix on them, and compares the two on the same
    corrupted images. If you stop it, the same command continues.

    rssl demo
    # with other random choices
    rssl demo --seed 1 --output demo-1
    """
    with waiting():
        from rsslcli.core.data.loading import load, load_corrupted
        from rsslcli.core.runtime import keep_freed_memory
        from rsslcli.core.study.demo import compare, demo_cells, evaluate_cell

    cells = demo_cells(output, seed=seed, device=device or "auto")
    keep_freed_memory()
    with progress_bar() as progress:
        dataset = load(cells[0].config.dataset, data_dir, progress)
        corrupted = load_corrupted(dataset, progress)
    again = ["demo", "--output", str(output), "--seed", str(seed)]
    again += ["--device", device] if device else []
    for cell in cells:
        _train(cell, dataset, shell_command(*again, data_dir=data_dir))
    with progress_bar() as progress:
        found = {cell.name: evaluate_cell(cell, dataset, corrupted, progress) for cell in cells}
    rows = compare(found)
    clean, images = len(dataset.test.labels), corrupted.images_per_cell
    title = f"accuracy in %: {clean} clean test images; {images} under {len(corrupted.names)} corruptions"
    out.print(_table(rows, title))
    out.print(_conclusion(rows))
    suggest_next("report", output)


def _train(cell: Cell, dataset: Dataset, again: str) -> None:
    """Train a run of the demo, shown as it goes; `again` is the command that continues."""
    from rsslcli.core.study.demo import train_cell

    with TrainingView(cell.config) as view, stop_on_signal(view.bar) as received:
        try:
            train_cell(cell, dataset, on_event=view, should_stop=lambda: bool(received))
        except InterruptedTrainingError as stopped:
            raise InterruptedTrainingError(f"{stopped}; to continue: {again}", received[0]) from None


def _table(rows: Sequence[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("trained with")
    for name in ("clean", "corrupted", "drop", "difference [95 % interval]"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = map(percent, (row.clean, row.corrupted, row.clean - row.corrupted))
        table.add_row(row.name, *cells, _interval(row.difference) if row.difference else "–")
    return table


def _interval(difference: Difference) -> str:
    """In percentage points, such as "+8.31 [+7.02, +9.65]"."""
    mean, low, high = (signed(100 * value) for value in difference)
    return f"{mean} [{low}, {high}]"


def _conclusion(rows: Sequence[Row]) -> str:
    """What the last row says, computed from it."""
    row = rows[-1]
    assert row.difference is not None
    mean, low, high = row.difference
    place = f"{100 * abs(mean):.1f} points {'above' if mean > 0 else 'below'}"
    if low <= 0 <= high:
        place = "level with"
    return (
        f"On corrupted images {row.name} is {place} the {rows[0].name}.\n"
        "The interval is over test images, for one seed; docs/results.md shows more.\n"
        "Tasks are not shown: on CIFAR-10, in trainings this short, they gained nothing."
    )
