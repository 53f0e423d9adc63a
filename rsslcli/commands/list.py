"""`rssl list`: the data sets that are prepared, and the runs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from rsslcli.commands import completion
from rsslcli.commands.console import note, out, percent, suggest_next
from rsslcli.commands.hints import suggest_evaluation, suggest_report, suggest_resuming, suggest_training
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.errors import UserError, counted, sanitize
from rsslcli.core.files import other_runs

if TYPE_CHECKING:
    from rsslcli.core.config import Config
    from rsslcli.core.data.inventory import DatasetEntry
    from rsslcli.core.report.inventory import RunEntry

#: Where runs are, unless the user says where.
_RUNS = Path("runs")
#: The one column of runs that is folded to fit.
_FOLDED = "what is trained"
#: On a terminal with at least this many columns, a run takes one line.
_WIDE = 110
#: Columns for a run's name on narrower terminals, where longer ones are folded.
_NAME_COLUMNS = 16
#: Columns for all but the name on wider ones.
_OTHER_COLUMNS = 86
#: Columns for a word that says what is trained, such as the name of a network; longer ones are split.
_WORD_COLUMNS = 12


def list_(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder of runs.  [default: runs]", autocompletion=completion.runs),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the data sets that are prepared, and the runs: what was trained when, and how accurate it is.

    rssl list
    # the runs of a study, for a program
    rssl list study-small --json
    """
    if folder is not None and not folder.is_dir():
        hint = other_runs(folder)
        raise UserError(f"{folder}: expected a folder of runs" + (f": {hint}" if hint else ""))
    from rsslcli.core.data.inventory import list_datasets
    from rsslcli.core.report.inventory import list_runs

    place = folder or _RUNS
    datasets = list_datasets(data_dir)
    runs = list_runs(place)
    if as_json:
        content = {"data_dir": str(data_dir), "datasets": [*map(_dataset_fields, datasets)]}
        content |= {"runs_folder": str(place), "runs": [*map(_run_fields, runs)]}
        out.print(json.dumps(content, indent=2), soft_wrap=True)
        return
    if datasets:
        out.print(_dataset_table(datasets, f"data sets in {data_dir}"))
    else:
        out.print(f"no data sets in {data_dir}", soft_wrap=True)
    if runs:
        out.print(_run_table(runs, place))
    else:
        out.print(f"no runs in {place}", soft_wrap=True)
    for text in [*(entry.problem for entry in datasets), *(entry.problem for entry in runs)]:
        if text:
            note(text)
    _suggest(datasets, runs, data_dir)


def _suggest(datasets: Sequence[DatasetEntry], runs: Sequence[RunEntry], data_dir: Path) -> None:
    """Say what to do next with the latest run, or without any."""
    latest = next((run for run in reversed(runs) if run.config is not None), None)
    if latest is None or latest.config is None:
        usable = next((entry for entry in datasets if entry.train_images), None)
        if usable:
            suggest_training(usable.name, usable.train_images, data_dir)
        else:
            suggest_next("train-automl", "--preset", "quick")
    elif latest.state == "evaluated":
        suggest_report(latest.directory)
    elif latest.state == "trained":
        suggest_evaluation(latest.directory, latest.config, data_dir)
    elif latest.state == "interrupted":
        suggest_resuming(latest.directory, latest.config, data_dir)


def _dataset_fields(entry: DatasetEntry) -> dict[str, Any]:
    corrupted = entry.corrupted
    return {
        "name": entry.name,
        "folder": str(entry.folder),
        "classes": list(entry.classes),
        "train_images": entry.train_images,
        "test_images": entry.test_images,
        "height": entry.height,
        "width": entry.width,
        "corrupted": corrupted and vars(corrupted),
        "bytes": entry.size,
        "problem": entry.problem,
    }


def _run_fields(entry: RunEntry) -> dict[str, Any]:
    return {
        "directory": str(entry.directory),
        "state": entry.state,
        "begun": entry.begun.isoformat(timespec="seconds"),
        "epochs": entry.epochs,
        "clean_accuracy": entry.clean_accuracy,
        "mean_accuracy": entry.mean_accuracy,
        "evaluated_on": entry.evaluated_on,
        "other_evaluations": list(entry.other_evaluations),
        "problem": entry.problem,
        "config": entry.config and entry.config.to_dict(),
    }


def _dataset_table(entries: Sequence[DatasetEntry], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("data set", "classes", "training", "test", "size", "corrupted test set", "disk"):
        is_text = heading in ("data set", "corrupted test set")
        table.add_column(heading, justify="left" if is_text else "right")
    for entry in entries:
        counts = (len(entry.classes), entry.train_images, entry.test_images)
        cells = [*(f"{count:,}" for count in counts), f"{entry.width}x{entry.height}", _corrupted(entry)]
        if not entry.classes:
            cells = ["–"] * 4 + ["damaged"]
        table.add_row(*map(Text, (entry.name, *cells, _bytes(entry.size))))
    return table


def _corrupted(entry: DatasetEntry) -> str:
    """What there is of a corrupted test set."""
    found = entry.corrupted
    if found is None:
        return "not usable" if entry.problem else "none"
    part = "" if found.corruptions == len(CORRUPTIONS) else f"{found.corruptions} of {len(CORRUPTIONS)}, "
    return f"{found.origin}, {part}{counted(found.images, 'image')}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _run_table(entries: Sequence[RunEntry], folder: Path) -> Table:
    table = Table(title=f"runs in {folder}: accuracy in %, clean and mean of 19", title_justify="left")
    is_narrow = out.width < _WIDE
    gap = "\n" if is_narrow else " "
    for heading in ("run", _FOLDED, "begun (UTC)", "clean", "mean", "state"):
        justify: Literal["right", "left"] = "right" if heading in ("clean", "mean") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading != _FOLDED)
    for entry in entries:
        name = sanitize(entry.directory.relative_to(folder))
        folded = textwrap.fill(name, _NAME_COLUMNS if is_narrow else out.width - _OTHER_COLUMNS)
        what = _what(entry.config) if entry.config else "–"
        if is_narrow:  # a column is as wide as its longest word
            what = " ".join(part for word in what.split() for part in textwrap.wrap(word, _WORD_COLUMNS))
        begun = f"{entry.begun:%Y-%m-%d}{gap}{entry.begun:%H:%M}"
        accuracies = percent(entry.clean_accuracy), percent(entry.mean_accuracy)
        table.add_row(*map(Text, (folded, what, begun, *accuracies, _state(entry, gap))))
    return table


def _what(config: Config) -> str:
    """What a run trains, on which data set, with which network."""
    name = config.name.replace("-", " ")  # so that it can be folded
    return f"{name}; {config.dataset}; {config.network_title}"


def _state(entry: RunEntry, gap: str) -> str:
    if entry.config is None or entry.state not in ("training", "interrupted"):
        return entry.state
    epoch = f"epoch {entry.epochs}/{entry.config.epochs}"
    return epoch if entry.state == "training" else f"{epoch},{gap}{entry.state}"
