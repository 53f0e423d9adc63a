"""Atomic writes, JSON records, and finding the checkpoint that a path names. Imports no torch."""

import json
import os
import platform
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

from rsslcli.core.errors import RsslError, UserError, nearest
from rsslcli.core.run_folder import CHECKPOINT, CONFIG

#: If no run has a similar name, list all runs, up to this many.
_FEW_RUNS = 5


@contextmanager
def replacing(path: Path, *, make_folder: bool = True) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when complete; an interruption leaves the old file intact.

    Args:
        path: the file.
        make_folder: make its folder if there is none; otherwise a folder that is gone stays gone.

    Raises:
        RsslError: the file cannot be written.
    """
    # Machines that share a disk may have processes of the same number.
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.part")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # it may be a symbolic link
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        gone = not make_folder and not path.parent.exists()
        reason = f"{path.parent} was deleted during the run" if gone else error.strerror or error
        raise RsslError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):  # after success it no longer exists
            temporary.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing, damaged or of another kind."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically.

    Raises:
        RsslError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def checkpoint_path(path: Path) -> Path:
    """The checkpoint file at `path`: the file itself, or the one inside a run directory.

    Raises:
        UserError: there is no such file.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.is_file():
        hint = other_runs(path) or "train one with `rssl train-automl` or `rssl train-single`"
        raise UserError(f"no checkpoint at {file}: {hint}")
    return file


def other_runs(path: Path) -> str:
    """A hint for a message that says there is no run at `path`: the most similar run, or all runs.

    It considers the runs beside `path` and in `runs`, and is empty if none is similar and there are many.
    """
    runs: dict[str, Path] = {}
    with suppress(OSError):
        for folder in (Path("runs"), path.parent):
            runs |= {file.parent.name: file.parent for file in folder.glob(f"*/{CONFIG}")}
    if path.is_dir():
        runs.pop(path.name, None)
    if near := nearest(path.name, runs):
        return f"did you mean '{runs[near]}'?"
    few = 0 < len(runs) <= _FEW_RUNS
    return f"choose from {', '.join(sorted(map(str, runs.values())))}" if few else ""


class _Quiet:
    """How many threads are in `quietly`, and the filters of before; `warnings` knows nothing of threads."""

    lock = threading.Lock()
    threads = 0
    filters: AbstractContextManager[Any] = nullcontext()


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress Python's warnings in all threads within this context."""
    with _Quiet.lock:
        if not _Quiet.threads:
            _Quiet.filters = warnings.catch_warnings()
            _Quiet.filters.__enter__()
            warnings.simplefilter("ignore")
        _Quiet.threads += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.threads -= 1
            if not _Quiet.threads:
                _Quiet.filters.__exit__(None, None, None)


def remove(path: Path) -> None:
    """Delete a file if it exists.

    Raises:
        RsslError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RsslError(f"cannot delete {path}: {error.strerror or error}") from error
