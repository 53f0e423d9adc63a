"""Files that are written whole or not at all, and the checkpoint that a path names. Imports no torch."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rsslcli.core.errors import RsslError, UserError, nearest
from rsslcli.core.run_folder import CHECKPOINT, CONFIG

#: So many runs are listed where none has a name like the one asked for.
_FEW_RUNS = 5


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when complete: an interruption leaves the old one.

    Raises:
        RsslError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # which may be a link to elsewhere
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RsslError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # gone, after success
            temporary.unlink()


def checkpoint_path(path: Path) -> Path:
    """The checkpoint file that `path` names, itself or inside the run directory.

    Raises:
        UserError: there is none.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    if not file.is_file():
        hint = other_runs(path) or "train one with `rssl train-automl` or `rssl train-single`"
        raise UserError(f"no checkpoint at {file}: {hint}")
    return file


def other_runs(path: Path) -> str:
    """What to say where `path` is not the run that was asked for: which one was meant, or which there are.

    Empty where nothing in the folder of `path`, or in `runs`, is a run of a similar name, and they are many.
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


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that libraries print while they parse a damaged file, in its own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def remove(path: Path) -> None:
    """Delete a file if it is there.

    Raises:
        RsslError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RsslError(f"cannot delete {path}: {error.strerror or error}") from error
