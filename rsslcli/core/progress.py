"""The callbacks through which the engine reports what it does."""

from collections.abc import Callable
from typing import Protocol

#: Called with one line that a user should know, such as how the data was changed.
Note = Callable[[str], None]


class Progress(Protocol):
    """Called as the work advances."""

    def __call__(self, description: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of the part called `description` are finished."""


def silent(description: str, done: int, total: int) -> None:
    """Ignore progress."""
