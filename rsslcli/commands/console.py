"""What the commands share: consoles, progress bars, options that several of them take."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsslcli.commands import completion
from rsslcli.core.config import DEVICES, PRECISIONS
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.files import checkpoint_path
from rsslcli.core.progress import Progress as ProgressCallback

#: Whether this process speaks: of those that `torchrun` starts, only the first one does.
SPEAKS = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def _console(stderr: bool = False) -> Console:
    """A console that prints text as it is: brackets and colons in names of files are no markup."""
    console = Console(
        stderr=stderr,
        quiet=not SPEAKS,
        markup=False,
        emoji=False,
        highlight=False,
        # Without colour, also without bold: then nothing but text is printed.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )
    if not console.is_terminal:
        console.width = 10_000  # nothing is folded or cut on its way to a file or another program
    return console


#: Results go to stdout, all that accompanies them to stderr.
out = _console()
err = _console(stderr=True)

DEFAULT_DATA_DIR = default_data_dir()

DataDir = Annotated[
    Path,
    typer.Option(
        envvar="RSSL_DATA_DIR",
        help="Where prepared data sets live.",
        show_default=True,
        rich_help_panel="Data",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="A prepared data set; shapes is embedded and always there.",
        metavar="<name>",
        autocompletion=completion.datasets,
        rich_help_panel="Data",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto takes CUDA where there is a GPU.",
        metavar=f"<{'|'.join(DEVICES)}>",
        autocompletion=completion.devices,
        rich_help_panel="Machine",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="How to multiply: float32, the default; bfloat16 is faster on GPUs and on CPUs that know it, "
        "tf32 on GPUs.",
        metavar=f"<{'|'.join(PRECISIONS)}>",
        autocompletion=completion.precisions,
        rich_help_panel="Machine",
    ),
]

Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint, a run directory, or a WideResNet state dict.",
        autocompletion=completion.runs,
    ),
]
Normalization = Annotated[
    str | None,
    typer.Option(
        help="How the input of weights from elsewhere is normalised, where the file does not say: half "
        "(x·2 - 1, the default), cifar10, none, or means and standard deviations as R,G,B/R,G,B.",
        metavar="<half|cifar10|none|…>",
    ),
]

ClassesByPosition = Annotated[
    bool,
    typer.Option(
        "--classes-by-position",
        help="Take score i for class i of the data set, whatever the names of the classes.",
    ),
]


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
        disable=not err.is_interactive,
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


def parse_corruptions(text: str | None) -> list[str] | None:
    """A comma-separated option of corruptions; None where it is not given."""
    if text is None:
        return None
    names = split_names(text)
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    if not names:
        raise UserError(f"no corruption is named: choose from {', '.join(CORRUPTIONS)}")
    return names


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


def check_dataset(name: str | None, data_dir: Path) -> None:
    """Raise UserError where `name` is no prepared data set, before anything heavy is loaded."""
    from rsslcli.core.data.store import EMBEDDED, check_prepared

    if name is not None and name != EMBEDDED:
        check_prepared(data_dir, name)


def check_checkpoints(*paths: Path | None) -> None:
    """Raise UserError where one that is given is no checkpoint, before anything heavy is loaded."""
    for path in paths:
        if path is not None:
            checkpoint_path(path)


def note(text: str) -> None:
    """Say, in a line, what a person should know beside the result."""
    err.print(f"note: {spell_options(text)}", soft_wrap=True)


def spell_options(text: str) -> str:
    """A message of the engine in the words of the command line: `meta_lr` becomes --meta-lr."""
    return re.sub(r"`([a-z_]+)`", lambda found: "--" + found[1].replace("_", "-"), text)


def say_next(*words: str | Path, data_dir: Path | None = None) -> None:
    """The last line of a command: what to type next, ready to be pasted.

    Args:
        words: the arguments of `rssl`.
        data_dir: where this command found its data, which the next one has to be told unless it knows.
    """
    command = ["rssl", *map(str, words)]
    if data_dir is not None and data_dir != default_data_dir():
        command += ["--data-dir", str(data_dir)]
    err.print(f"next: {shlex.join(command)}", soft_wrap=True)
