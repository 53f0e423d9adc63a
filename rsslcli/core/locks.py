"""Locks on folders. A lock ends with the process that holds it, even if that process is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.progress import Note

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is locked there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(
    folder: Path, *, wait: bool = False, name: str = ".lock", note: Note = lambda text: None
) -> Iterator[None]:
    """Hold the lock of `folder` within this context; the folder is created if missing.

    Args:
        folder: what to lock. An empty file of that `name` stays in it. A folder created for the lock is
            removed if it stays empty.
        wait: wait until another process releases the lock, instead of failing. A folder that is not writable
            is then used without a lock: its files can still be read.
        name: of the lock; locks of different names are independent.
        note: called if it has to wait.

    Raises:
        UserError: another process holds the lock, and `wait` is false.
        RsslError: the folder is not writable, and `wait` is false.
    """
    lock = folder / name
    is_new = not folder.exists()
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
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    mend = "wait for it, stop it, or choose another `output`"
                    raise UserError(f"{folder} is in use by another rssl: {mend}") from None
                note(f"waiting for another rssl that uses {folder}")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # the file system does not support locks
        try:
            yield
        finally:
            if is_new and list(folder.glob("*")) == [lock]:
                with suppress(OSError):
                    lock.unlink()
                    folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of `folder`; false where that cannot be told."""
    try:
        with (folder / ".lock").open("rb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
