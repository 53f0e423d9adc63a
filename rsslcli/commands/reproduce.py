"""`rssl reproduce`: the paper's whole study, as a grid of runs that can be stopped and resumed."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rsslcli.commands import completion, options
from rsslcli.commands.console import err, interrupt, note, out, split_names, stop_on_signal, waiting
from rsslcli.commands.prepare_data import Corruptions, bring_in_place
from rsslcli.commands.study_table import print_study
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.errors import (
    InterruptedTrainingError,
    RsslError,
    StaleCorruptionsError,
    UserError,
    counted,
    rssl_command,
)
from rsslcli.core.study.cell import Cell
from rsslcli.core.study.grid import PAPER_METHODS, STUDY_SIZES, check_fit, choose, plan, save_plan
from rsslcli.core.study.runner import CellEvent, Runner, threads_each

if TYPE_CHECKING:
    from rsslcli.core.study.estimate import Sizes

_study = partial(typer.Option, rich_help_panel="Study")
_Preset = Annotated[
    str,
    _study(
        help="paper: full size. small: some hours on two CPU cores. quick: minutes, embedded images.",
        **options.one_of(list(STUDY_SIZES)),
    ),
]
_Only = Annotated[
    str | None,
    _study(
        help="Only these cells: numbers, names or methods, separated by commas.",
        metavar="<cells>",
        autocompletion=completion.some_of(PAPER_METHODS),
    ),
]
_AddTask = Annotated[
    list[str] | None,
    _study(
        help="A task of your own: a row of the table, and a fifth task under AutoML; may be repeated.",
        metavar="<task>",
    ),
]
_DryRun = Annotated[
    bool,
    _study("--dry-run", help="List the cells, their time and disk space; run nothing."),
]


def reproduce(
    preset: _Preset = "paper",
    output: Annotated[Path | None, _study(help="The study's folder.  [default: study-<preset>]")] = None,
    seeds: Annotated[
        int | None, _study(help="Seeds per row; at most two for some rows of small.  [default: 3; quick: 1]")
    ] = None,
    only: _Only = None,
    jobs: Annotated[
        int | None,
        _study(
            help="How many cells run at once, each on a GPU or a share of the CPU.  [default: one per GPU, "
            "else 1]",
        ),
    ] = None,
    retry: Annotated[bool, _study("--retry", help="Rerun the cells that failed.")] = False,
    dry_run: _DryRun = False,
    add_task: _AddTask = None,
    task_file: options.TaskFile = None,
    config: options.ConfigFile = None,
    network: options.NetworkToTrain = None,
    dataset: options.DatasetName = None,
    source: Annotated[
        str | None,
        typer.Option(help="Where to prepare the data set from, as in prepare-data.", rich_help_panel="Data"),
    ] = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Reproduce the paper's Table 1 and Figure 2: train and evaluate every cell, then write the report.

    Finished cells are skipped, so the same command resumes an interrupted study. Missing data is prepared
    first.

    rssl reproduce --preset small --jobs 2
    # time and disk space; then the fourth cell alone, as in a cluster's job array
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
        network=network,
    )
    wanted = [cell for cell in cells if seeds is None or cell.config.seed < seeds]
    chosen = choose(wanted, _named(only) if only is not None else [])
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: expected at least 1")
    for cell in cells:
        cell.status()  # refuses a folder of another study before anything is run
    for cell in chosen:
        cell.check_can_run()  # refuses unknown tasks

    with waiting():
        import torch

    gpus = torch.cuda.device_count()
    jobs = jobs or max(gpus, 1)
    common = ["--data-dir", str(data_dir)]
    if dry_run:
        sizes = _sizes(preset, chosen[0], source, data_dir)
        check_fit(chosen, sizes.train)
        _list_cells(chosen, common, jobs, sizes)
        return
    images = _prepare(preset, chosen[0].config.dataset, source, data_dir)
    check_fit(chosen, images)
    save_plan(cells)
    view = _View()
    with view._bar, stop_on_signal(second=interrupt) as received:
        runner = Runner(jobs, gpus, images, common, view, lambda: bool(received))
        counts = runner.run(chosen, retry=retry)
    out.print(", ".join(f"{number} {kind}" for kind, number in counts.items() if number))
    _finish(cells, counts, received)


def _named(only: str) -> list[str]:
    """The cells that --only names."""
    names = split_names(only)
    if not names:
        raise UserError("--only names no cell: give numbers, names or methods, or leave it out for all")
    return names


def _prepare(preset: str, dataset: str, source: str | None, data_dir: Path) -> int:
    """Prepare the data set and its corrupted versions if missing; return the number of training images."""
    from rsslcli.core.data.loading import load_corrupted
    from rsslcli.core.data.published import corrupted_origin
    from rsslcli.core.data.store import load_dataset

    try:
        data = load_dataset(data_dir, dataset)
        corrupted = load_corrupted(data)
    except StaleCorruptionsError:
        raise  # what is there may be larger than the study's, and finished cells were evaluated on it
    except UserError:
        size = STUDY_SIZES[preset]
        downloads = size.corruptions == "download" and dataset == size.dataset
        if source is not None or not downloads:
            bring_in_place(
                dataset,
                source,
                data_dir,
                corruptions=Corruptions.none if downloads else Corruptions.generate,
                limit=None if downloads else size.corrupted_images,
            )
        if downloads:
            bring_in_place(dataset, None, data_dir, corruptions=Corruptions.download)
        data = load_dataset(data_dir, dataset)
    else:
        if corrupted_origin(corrupted) == "generated" and {*corrupted.names} != {*CORRUPTIONS}:
            # Its generation was stopped, or is still running: a study needs all of them.
            limit = corrupted.images_per_cell
            bring_in_place(dataset, None, data_dir, corruptions=Corruptions.generate, limit=limit)
    return len(data.train.labels)


def _finish(cells: list[Cell], counts: dict[str, int], received: list[int]) -> None:
    """Write the report on the finished cells, print its Table 1, and say how to continue."""
    from rsslcli.core.report.write import write_report

    finished = [cell.directory for cell in cells if cell.status() == "done"]
    study = cells[0].directory.parent
    if finished:
        for found in write_report(finished, study / "report").studies:
            print_study(found)
        out.print(f"{len(finished)} of {len(cells)} cells: {study / 'report' / 'report.html'}")
    again = rssl_command(*sys.argv[1:])
    if received:
        raise InterruptedTrainingError(f"stopped; to continue: {again}", received[0])
    if counts["failed"]:
        failed = counted(counts["failed"], "cell")
        raise RsslError(f"{failed} failed, see above; to rerun them: {again} --retry")


#: The steps of a full bar.
_PARTS = 100_000


class _View:
    """Shows a study: a bar per running cell on a terminal, and a line for each that starts or ends."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[str, TaskID]] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_interactive,
            speed_estimate_period=300,
        )

    def __call__(self, event: CellEvent) -> None:
        """Show an event."""
        cell = event.cell
        if event.kind == "running":
            self._move(event)
            return
        self._remove(cell.name)
        line = f"cell {cell.number} {cell.name}: {event.kind}"
        err.print(f"{line}: {event.text}" if event.text else line)

    def _move(self, event: CellEvent) -> None:
        """Move the bar of a cell; its training and its evaluation have separate bars.

        A bar starts where this process does: earlier work says nothing about the time that is left.
        """
        name = event.cell.name
        done = int(_PARTS * event.progress)
        phase, task = self._tasks.get(name, ("", None))
        if task is None or phase != event.text:
            self._remove(name)
            task = self._bar.add_task(f"{name} {event.text}", total=_PARTS, completed=done)
            self._tasks[name] = (event.text, task)
        self._bar.update(task, completed=done)

    def _remove(self, name: str) -> None:
        if name in self._tasks:
            self._bar.remove_task(self._tasks.pop(name)[1])


def _list_cells(cells: list[Cell], common: list[str], jobs: int, sizes: Sizes) -> None:
    """The table of `--dry-run`, and the commands of every cell that is not done."""
    from rsslcli.core.study.estimate import estimate

    # This process has taken as long to start as each command of a cell will.
    estimates = estimate(cells, sizes, threads=threads_each(jobs), startup=time.process_time())
    missing = [cell for cell in cells if cell.status() != "done"]
    table = Table(title="what each cell takes", title_justify="left")
    for column in ("cell", "name", "status"):
        table.add_column(column, no_wrap=True)
    for column in ("time", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    for cell in cells:
        found = estimates.get(cell.name)
        takes = [_duration(found.low, found.high), f"{found.bytes / 1e6:.0f} MB"] if found else ["–", "–"]
        table.add_row(str(cell.number), cell.name, cell.status(), *takes)
    out.print(table)
    for cell in missing:
        commands = " && ".join(rssl_command(*command) for command in cell.commands(common))
        out.print(f"{cell.number}: {commands}")
    low = _time_of_all([estimates[cell.name].low for cell in missing], jobs)
    high = _time_of_all([estimates[cell.name].high for cell in missing], jobs)
    gigabytes = sum(estimates[cell.name].bytes for cell in missing) / 1e9
    at_once = f", {jobs} at once" if jobs > 1 else ""
    out.print(
        f"{len(missing)} of {len(cells)} cells are left: about {_duration(low, high)} on this "
        f"machine{at_once}, {gigabytes:.2f} GB (an estimate: operations counted, their speed measured)",
    )
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores + 1:
        note(
            f"this machine is busy (load {load:.0f}, {cores} cores): the shorter times are for an idle "
            "machine, the longer ones for one that stays as busy as it is now"
        )


def _time_of_all(times: Sequence[float], jobs: int) -> float:
    """How long cells take, `jobs` at a time: no less than the longest one."""
    return max([sum(times) / jobs, *times])


def _sizes(preset: str, cell: Cell, source: str | None, data_dir: Path) -> Sizes:
    """The numbers of images, as prepared, or else as the study would prepare them.

    A data set of your own that is not prepared yet is assumed to be as large as CIFAR-10, with a note.
    """
    from rsslcli.core.data.cifar import OFFICIAL
    from rsslcli.core.data.corrupted import open_corrupted
    from rsslcli.core.data.loading import EMBEDDED_LIMIT
    from rsslcli.core.data.shapes import TEST_SIZE, TRAIN_SIZE
    from rsslcli.core.data.store import DEFAULT_SIZE, EMBEDDED, dataset_folder, load_dataset
    from rsslcli.core.data.validation import validation_source
    from rsslcli.core.study.estimate import Sizes

    name = cell.config.dataset
    embedded = name == EMBEDDED
    try:
        data = load_dataset(data_dir, name)
        train = len(data.train.labels)
        test = len(data.test.labels)
        classes = len(data.train.classes)
        side = data.size
    except UserError:
        if name not in (*OFFICIAL, EMBEDDED):
            if source is None:
                raise
            note(f"'{name}' is not prepared: the times are those for the sizes of CIFAR-10")
        train, test, classes = (TRAIN_SIZE, TEST_SIZE, 10) if embedded else (50_000, 10_000, 10)
        side = DEFAULT_SIZE
    try:
        images = open_corrupted(dataset_folder(data_dir, name) / "corrupted", name).images_per_cell
    except UserError:
        limit = EMBEDDED_LIMIT if embedded else STUDY_SIZES[preset].corrupted_images
        images = min(limit or test, test)
    return Sizes(train, test, images - len(validation_source(cell.config, images)), classes, side)


def _duration(low: float, high: float) -> str:
    """A range of seconds, rounded up: "20–35 min", "17 min–2.5 h", or "20 min" if both ends round to that."""
    start, unit = _in_unit(low)
    end, last = _in_unit(high)
    if unit != last:
        return f"{start} {unit}–{end} {last}"
    return f"{start} {unit}" if start == end else f"{start}–{end} {unit}"


def _in_unit(seconds: float) -> tuple[str, str]:
    """A time in the unit that suits it: the number, rounded up, and the unit."""
    minutes = math.ceil(seconds / 60)
    if minutes <= 60:
        return str(minutes), "min"
    hours = seconds / 3600
    number, unit = (hours, "h") if hours < 48 else (hours / 24, "days")
    return f"{math.ceil(10 * number) / 10:.1f}", unit
