"""`rssl reproduce`: the paper's whole study, as a grid of runs that can be stopped and gone on with."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

from rsslcli.commands import completion
from rsslcli.commands.console import (
    DEFAULT_DATA_DIR,
    DataDir,
    DatasetName,
    err,
    out,
    split_names,
    stop_on_signal,
)
from rsslcli.commands.prepare_data import Corruptions, prepare_data
from rsslcli.commands.training_run import ConfigFile, TaskFile
from rsslcli.core.errors import InterruptedTrainingError, RsslError, UserError
from rsslcli.core.study import (
    PAPER_METHODS,
    PRESETS,
    Cell,
    CellEvent,
    Runner,
    choose,
    plan,
    shell_line,
    threads_each,
)

if TYPE_CHECKING:
    from rsslcli.core.estimate import Sizes


#: What the options of the grid stand under in the help.
STUDY = "Study"


def reproduce(
    preset: Annotated[
        str,
        typer.Option(
            help="paper: full size. small: some hours on two CPU cores. quick: minutes, embedded images.",
            metavar=f"<{'|'.join(PRESETS)}>",
            autocompletion=completion.one_of(PRESETS),
            rich_help_panel=STUDY,
        ),
    ] = "paper",
    output: Annotated[
        Path | None,
        typer.Option(help="The study's folder. Default: study-<preset>.", rich_help_panel=STUDY),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of every cell; paper and small have 3.", rich_help_panel=STUDY)
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Only these cells: numbers, names or methods, separated by commas.",
            metavar="<cells>",
            autocompletion=completion.some_of(PAPER_METHODS),
            rich_help_panel=STUDY,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Cells at once, each on a GPU or a share of the CPU. Default: as many as GPUs, else 1.",
            rich_help_panel=STUDY,
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Run the cells that failed once more.", rich_help_panel=STUDY)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the cells and what they will take; run nothing.", rich_help_panel=STUDY
        ),
    ] = False,
    add_task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task of your own: a row of the table, and a fifth task under AutoML; may be repeated.",
            metavar="<task>",
            rich_help_panel=STUDY,
        ),
    ] = None,
    task_file: TaskFile = None,
    config: ConfigFile = None,
    dataset: DatasetName = None,
    source: Annotated[
        str | None,
        typer.Option(help="Where to prepare the data set from, as in prepare-data.", rich_help_panel="Data"),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Reproduce the paper's Table 1 and Figure 2: train and evaluate every cell, then write the report.

    What is finished is not done again: the same command goes on with what is missing. Data that is not there
    is prepared first.

    rssl reproduce --preset small --jobs 2
    # what the cells will take; then the fourth alone, as in a cluster's job array
    rssl reproduce --dry-run
    rssl reproduce --only 4
    """
    cells = plan(
        preset,
        output or Path(f"study-{preset}"),
        dataset=dataset,
        seeds=seeds,
        add_tasks=add_task or (),
        task_files=task_file or (),
        config=config,
    )
    chosen = choose(cells, split_names(only) if only is not None else [])
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1")
    import torch

    gpus = torch.cuda.device_count()
    jobs = jobs or max(gpus, 1)
    options = ["--data-dir", str(data_dir)]
    if dry_run:
        _list_cells(chosen, options, jobs, data_dir)
        return
    for cell in chosen:
        cell.status()  # refuses a folder of another study before anything is run
    _prepare(preset, chosen[0].config.dataset, source, data_dir)
    with _View() as view, stop_on_signal() as received:
        counts = Runner(jobs, gpus, options, view, lambda: bool(received)).run(chosen, retry=retry)
    out.print(", ".join(f"{number} {kind}" for kind, number in counts.items() if number), soft_wrap=True)
    _finish(cells, counts, received)


def _prepare(preset: str, dataset: str, source: str | None, data_dir: Path) -> None:
    """Bring the data set and its corrupted versions in place, unless they are."""
    from rsslcli.core.data.loading import load_corrupted
    from rsslcli.core.data.store import load_dataset

    try:
        data = load_dataset(data_dir, dataset)
        load_corrupted(data)
    except UserError:
        size = PRESETS[preset]
        downloads = size.corruptions == "download" and dataset == size.dataset
        if source is not None or not downloads:
            prepare_data(
                dataset,
                source,
                data_dir,
                corruptions=Corruptions.none if downloads else Corruptions.generate,
                limit=None if downloads else size.corrupted_images,
            )
        if downloads:
            prepare_data(dataset, None, data_dir, corruptions=Corruptions.download)


def _finish(cells: list[Cell], counts: dict[str, int], received: list[int]) -> None:
    """Write the report on what there is, and say how to go on."""
    from rsslcli.core.report import write_report

    finished = [cell.directory for cell in cells if cell.status() == "done"]
    study = cells[0].directory.parent
    if finished:
        write_report(finished, study / "report")
        out.print(
            f"{len(finished)} of {len(cells)} cells: {study / 'report' / 'report.html'}", soft_wrap=True
        )
    again = shell_line(sys.argv[1:])
    if received:
        stopped = InterruptedTrainingError(f"stopped, all saved: the same command goes on: {again}")
        stopped.exit_code = 128 + received[0]
        raise stopped
    if counts["failed"]:
        raise RsslError(f"{counts['failed']} cells failed, see above: once mended, {again} --retry")


class _View:
    """Shows a study: a bar per running cell on a terminal, and a line for each that starts or ends."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            console=err,
            transient=True,
            disable=not err.is_interactive,
        )

    def __enter__(self) -> _View:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: CellEvent) -> None:
        """Show what the engine tells."""
        cell = event.cell
        if event.kind == "running":
            self._bar.update(self._tasks[cell.name], completed=100 * event.progress)
            return
        if event.kind == "started":
            self._tasks[cell.name] = self._bar.add_task(cell.name, total=100)
        elif cell.name in self._tasks:
            self._bar.remove_task(self._tasks.pop(cell.name))
        line = f"cell {cell.number} {cell.name}: {event.kind}"
        err.print(f"{line}: {event.text}" if event.text else line, soft_wrap=True)


def _list_cells(cells: list[Cell], options: list[str], jobs: int, data_dir: Path) -> None:
    """The table of `--dry-run`, and the commands of every cell that is not done."""
    from rsslcli.core.estimate import estimate

    estimates = estimate(cells, _sizes(cells[0], data_dir), threads=threads_each(jobs))
    statuses = {cell.name: cell.status() for cell in cells}
    table = Table(title="what each cell takes", title_justify="left")
    for column in ("cell", "name", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("time", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    missing = [cell for cell in cells if statuses[cell.name] != "done"]
    for cell in cells:
        time, size = _duration(estimates[cell.name].seconds), f"{estimates[cell.name].bytes / 1e6:.0f} MB"
        table.add_row(str(cell.number), cell.name, statuses[cell.name], time, size)
    out.print(table)
    for cell in missing:
        commands = " && ".join(shell_line(command) for command in cell.commands(options))
        out.print(f"{cell.number}: {commands}", soft_wrap=True)
    seconds = sum(estimates[cell.name].seconds for cell in missing)
    gigabytes = sum(estimates[cell.name].bytes for cell in missing) / 1e9
    at_once = f", {jobs} at once" if jobs > 1 else ""
    out.print(
        f"{len(missing)} of {len(cells)} cells are left: about {_duration(seconds / jobs)} on this machine"
        f"{at_once}, {gigabytes:.2f} GB (an estimate: operations counted, their speed measured)",
        soft_wrap=True,
    )


def _sizes(cell: Cell, data_dir: Path) -> Sizes:
    """The numbers of images: of the data set as it is prepared, else of CIFAR-10 as it is published."""
    from rsslcli.core.data.loading import load_corrupted
    from rsslcli.core.data.store import load_dataset
    from rsslcli.core.estimate import Sizes
    from rsslcli.core.training import validation_source

    try:
        data = load_dataset(data_dir, cell.config.dataset)
        source = load_corrupted(data).images_per_cell
    except UserError:
        return Sizes(50_000, 10_000, 9_900)
    tested = source - len(validation_source(cell.config, source))
    return Sizes(len(data.train.labels), len(data.test.labels), tested, len(data.train.classes))


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 1440:.1f} days"
