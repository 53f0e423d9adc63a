"""Shared by the commands: consoles, progress bars, signals, parsing of options."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from rsslcli.commands.terminal import Bar, TextConsole
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.files import checkpoint_path
from rsslcli.core.progress import Progress as ProgressCallback

#: Whether this process prints; under `torchrun` only rank 0 does.
IS_MAIN_RANK = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"
#: Whether this is the first rank of its machine: it reports errors too, as the files of machines may differ.
IS_FIRST_HERE = IS_MAIN_RANK or os.environ.get("LOCAL_RANK") == "0"


#: Results go to stdout, everything else to stderr.
out = TextConsole(quiet=not IS_MAIN_RANK)


err = TextConsole(stderr=True, quiet=not IS_MAIN_RANK)


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A progress bar on stderr, and the callback that moves it. Shows nothing if stderr is not a terminal."""
    bar = Bar(err, TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    task = bar.add_task("", total=None)

    def advance(description: str, done: int, total: int) -> None:
        bar.update(task, description=description, completed=done, total=total)

    with bar, _gone_at_interrupt(bar):
        yield advance


@contextmanager
def _gone_at_interrupt(bar: Bar) -> Iterator[None]:
    """Within this context, Ctrl-C removes the bar at once, even if stopping the work takes a while."""

    def stop(number: int, frame: FrameType | None) -> None:
        Thread(target=bar.stop).start()  # this thread may hold a lock that the bar waits for
        signal.default_int_handler(number, frame)

    previous = signal.getsignal(signal.SIGINT)
    if bar.disable or previous is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def waiting(text: str = "loading PyTorch") -> Iterator[None]:
    """A spinner with a few words on stderr, removed at the end. Shows nothing if stderr is not a terminal."""
    if not err.is_interactive:
        yield
        return
    with err.status(text, spinner="dots" if err.encoding.startswith("utf") else "line"):
        yield


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into an exception, so that running work cleans up."""
    raise KeyboardInterrupt


@contextmanager
def stop_on_signal(
    bar: Bar | None = None, *, second: Callable[[int, FrameType | None], object] | None = None
) -> Iterator[list[int]]:
    """Within this context, the first SIGINT, SIGTERM or SIGHUP goes into the list; a second one acts at once.

    A SIGHUP that the user ignores, as under nohup, stays ignored.

    Args:
        bar: the bar that the first one removes from the terminal.
        second: what handles the second one; by default the process ends.
    """
    received: list[int] = []
    threads: list[Thread] = []

    def tell() -> None:
        with suppress(OSError):  # the terminal may be gone
            if bar is not None:
                bar.stop()
            err.print("stopping after this step; once more to stop at once")

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in previous:
            signal.signal(each, second or signal.SIG_DFL)
        threads.append(Thread(target=tell))  # this thread may hold a lock that the bar waits for
        threads[-1].start()

    caught = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    previous = {each: signal.signal(each, note) for each in caught}
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
        for thread in threads:
            thread.join()


def split_names(value: str) -> list[str]:
    """A comma-separated option as a list."""
    return [name.strip() for name in value.split(",") if name.strip()]


def parse_corruptions(text: str | None) -> list[str] | None:
    """A comma-separated option of corruptions; None if it is not given."""
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
    """A comma-separated option of severities; all of them if it is not given."""
    try:
        chosen = SEVERITIES if text is None else tuple(int(part) for part in split_names(text))
    except ValueError:
        chosen = ()
    if not chosen or not set(chosen) <= set(SEVERITIES):
        raise UserError(f"--severity {text}: expected numbers from 1 to 5, such as 1,3,5")
    return chosen


def percent(fraction: float | None) -> str:
    """An accuracy for a table; a dash if there is none."""
    return "–" if fraction is None else f"{100 * fraction:.2f}"


def check_dataset(name: str | None, data_dir: Path) -> None:
    """Raise UserError unless `name` is a prepared data set, before anything heavy is loaded."""
    from rsslcli.core.data.store import EMBEDDED, check_prepared

    if name is not None and name != EMBEDDED:
        check_prepared(data_dir, name)


def choose_dataset(data_dir: Path) -> str:
    """The data set to show where none is named: CIFAR-10 if it is prepared."""
    from rsslcli.core.data.store import EMBEDDED, prepared_datasets

    prepared = prepared_datasets(data_dir)
    dataset = "cifar10" if "cifar10" in prepared else next(iter(prepared), EMBEDDED)
    err.print(f"showing '{dataset}'; choose another with --dataset", soft_wrap=True)
    return dataset


def check_checkpoints(*paths: Path | None) -> None:
    """Raise UserError unless all given paths are checkpoints, before anything heavy is loaded."""
    for path in paths:
        if path is not None:
            checkpoint_path(path)


def note(text: str) -> None:
    """Print a note: a line that the user should read beside the result."""
    err.print(Text.assemble(("note:", "note"), " ", spell_options(text)))


def spell_options(text: str) -> str:
    """Spell the parameters in a message of the engine as options: `meta_lr` becomes --meta-lr."""
    names = _option_names() if "`" in text else {}
    return re.sub(r"`([a-z_]+)`", lambda found: names.get(found[1], found[0]), text)


def set_option_names(names: Callable[[], Mapping[str, str]]) -> None:
    """Set the function that returns the options of all commands by the names of their parameters."""
    global _option_names  # noqa: PLW0603
    _option_names = names


_option_names: Callable[[], Mapping[str, str]] = dict


def shell_command(*words: str | Path, data_dir: Path | None = None, ranks: int = 1) -> str:
    """A command that can be pasted into a shell; it names `data_dir` only if that is not the default.

    With several `ranks`, it runs under torchrun.
    """
    command = ["rssl"] if ranks == 1 else ["torchrun", "--nproc-per-node", str(ranks), "-m", "rsslcli"]
    command += map(str, words)
    if data_dir is not None and data_dir != default_data_dir():
        command += ["--data-dir", str(data_dir)]
    return shlex.join(command)


def suggest_next(*words: str | Path, data_dir: Path | None = None) -> None:
    """Print the last line of a command: what to type next. For the arguments see `shell_command`."""
    suggest_line(shell_command(*words, data_dir=data_dir))


def suggest_line(line: str) -> None:
    """Print the last line of a command: the shell command to type next."""
    err.print(Text.assemble(("next:", "next"), " ", line))
