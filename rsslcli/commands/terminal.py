"""Printing to terminals, files and pipes, whatever characters they support and even if they are full."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import Progress
from rich.table import Table
from rich.theme import Theme

#: The error handler that replaces characters which an encoding lacks.
_LOOK_ALIKES = "rssl-look-alikes"
_REPLACEMENTS = {
    "–": "-", "—": "-", "−": "-", "‑": "-", "·": "*", "×": "x", "→": "->", "…": "...", "±": "+/-",
    "≤": "<=", "≥": ">=", "’": "'", "“": '"', "”": '"',
    "α": "alpha", "β": "beta", "λ": "lambda", "σ": "sigma", "τ": "tau",
}  # fmt: skip
_THEME = Theme({"table.header": "bold cyan", "note": "yellow", "next": "bold green"})
#: Columns that bars leave free at the right for the ^C that a terminal shows.
_MARGIN = 3


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    import unicodedata

    replaced = ""
    for c in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode()
        replaced += _REPLACEMENTS.get(c) or plain or "?"
    return replaced, error.end


codecs.register_error(_LOOK_ALIKES, _look_alike)


def replace_unprintable(*streams: TextIO | None) -> None:
    """Let these streams write something similar for a character that their encoding lacks."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_LOOK_ALIKES)


class TextConsole(Console):
    """A console that prints text unchanged: brackets and colons in file names are not markup.

    It shows no bars and folds nothing in a file or a pipe. If it cannot be written, the work continues, so
    that only the text is lost; `failure` then holds the first error.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        shown = stream is not None and stream.isatty()
        super().__init__(
            stderr=stderr,
            quiet=quiet,
            markup=False,
            emoji=False,
            highlight=False,
            # Without colors, also without bold: then nothing but text is printed.
            color_system=None if os.environ.get("NO_COLOR") else "auto",
            # FORCE_COLOR asks for colors, not for bars in a log.
            force_interactive=None if shown else False,
            theme=_THEME,
        )
        if not shown:
            self.width = 10_000
        self.failure: OSError | None = None

    def on_broken_pipe(self) -> None:
        """Raise the error again, which `print` notes; rich would end the program."""
        raise  # noqa: PLE0704

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, but fold no text, and tables only between words."""
        tables = [each for each in objects if isinstance(each, Table)]
        for column in (column for table in tables for column in table.columns):
            words = (word for cell in (column.header, *column.cells) for word in str(cell).split())
            column.min_width = max(map(cell_len, words), default=None)
        options.setdefault("soft_wrap", not tables)
        try:
            super().print(*objects, **options)
        except OSError as error:
            self.failure = self.failure or error
            self.quiet = True

    def as_shown(self, text: str) -> str:
        """`text` with the replacements that this console's encoding needs."""
        return text.encode(self.encoding, _LOOK_ALIKES).decode(self.encoding)


class Bar(Progress):
    """Progress bars that disappear at the end. Shows nothing if the console is not a terminal."""

    def __init__(self, console: Console, *columns: Any) -> None:
        self._terminal = console  # rich asks for the bars before it has noted their console
        super().__init__(*columns, console=console, transient=True, disable=not console.is_interactive)

    @property
    def room(self) -> int:
        """The number of columns for the bars."""
        return max(self._terminal.width - _MARGIN, 1)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, within the room for them."""
        yield Constrain(self.make_tasks_table(self.tasks), self.room)


def lost_output() -> OSError | None:
    """Flush stdout; return the error if it cannot be written, and discard its text; else None."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Otherwise Python would try again at exit, and print its own message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None
