"""How the engine reports the progress of long work, without knowing who shows it."""

from collections.abc import Callable
from typing import Protocol

#: Told in one line what was done to the data, or was not.
Note = Callable[[str], None]


class Progress(Protocol):
    """Called as the work advances."""

    def __call__(self, description: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of the part called `description` are finished."""


def silent(description: str, done: int, total: int) -> None:
    """Show nothing."""
