"""Locks on folders: they end with the process that holds them, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rsslcli.core.errors import RsslError, UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is refused there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Within this context, no other process is in `locked` for the same folder, which is made where missing.

    Args:
        folder: what to lock; its file `.lock` stays behind, empty. A folder made for it goes again if nothing
            else is put there.
        wait: wait for another process to leave, instead of refusing to start. A folder that cannot be written
            is taken as it is then: what is in it may be read.

    Raises:
        UserError: another process holds the folder.
        RsslError: the folder cannot be written, and `wait` is false.
    """
    lock, new = folder / ".lock", not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        if wait:
            yield
            return
        raise RsslError(f"cannot write into {folder}: {error.strerror or error}") from None
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(
                    f"{folder} is in use by another rssl: wait for it, stop it, or choose another --output"
                ) from None
            except OSError:
                pass  # a file system without locks
        try:
            yield
        finally:
            if new and list(folder.glob("*")) == [lock]:
                with suppress(OSError):
                    lock.unlink()
                    folder.rmdir()
