"""Files that are written whole or not at all, and the checkpoint that a path names. Imports no torch."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rsslcli.core.errors import RsslError, UserError


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
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one with `rssl train-automl` or `rssl train-single`")
    return path


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
