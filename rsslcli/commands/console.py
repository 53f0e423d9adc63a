"""What the commands share: consoles, progress bars, options that several of them take."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.errors import UserError
from rsslcli.core.progress import Progress as ProgressCallback

#: Whether this process speaks: of those that `torchrun` starts, only the first one does.
SPEAKS = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"
#: Results go to stdout, all that accompanies them to stderr.
out = Console(highlight=False, quiet=not SPEAKS)
err = Console(stderr=True, highlight=False, quiet=not SPEAKS)

DataDir = Annotated[
    Path, typer.Option(envvar="RSSL_DATA_DIR", help="Where prepared data sets live.", show_default=True)
]
DatasetName = Annotated[
    str | None, typer.Option("--dataset", help="A prepared data set; shapes is embedded and always there.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; auto takes CUDA where there is a GPU.")]

DEFAULT_DATA_DIR = Path("data")


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A progress bar on stderr, and the callback that moves it. Shows nothing where stderr is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)

        def advance(description: str, done: int, total: int) -> None:
            bar.update(task, description=description, completed=done, total=total)

        yield advance


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Within this context, the first SIGINT or SIGTERM is noted in the list; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        err.print("stopping after this step; once more to stop at once")

    previous = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def split_names(value: str) -> list[str]:
    """A comma-separated option as a list."""
    return [name.strip() for name in value.split(",") if name.strip()]


def parse_severities(text: str | None) -> tuple[int, ...]:
    """A comma-separated option of severities; all of them where it is not given."""
    try:
        chosen = SEVERITIES if text is None else tuple(int(part) for part in split_names(text))
    except ValueError:
        chosen = ()
    if not chosen or not set(chosen) <= set(SEVERITIES):
        raise UserError(f"--severity {text}: expected numbers from 1 to 5, such as 1,3,5")
    return chosen


def percent(fraction: float | None) -> str:
    """An accuracy for a table; a dash where there is none."""
    return "–" if fraction is None else f"{100 * fraction:.2f}"
