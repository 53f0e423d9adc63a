"""A study on the terminal: its answer and its Table 1, as `report` and `reproduce` print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from rsslcli.commands.console import note, out

if TYPE_CHECKING:
    from rsslcli.core.report.comparison import Study
    from rsslcli.core.report.page import Table as Content

#: Columns of Table 1 that a terminal shows only if it is wide enough.
_WIDE_ONLY = ("seeds", "the usual 15", "clean")


#: The length of names that stay on one line.
_SHORT = 24
#: Wider than any table.
_ANY_WIDTH = 10_000


def print_study(study: Study) -> None:
    """The warnings, the answer, and Table 1: in a short form if the whole one does not fit the terminal."""
    from rsslcli.core.report.answer import answer
    from rsslcli.core.report.write import table_1

    for warning in study.warnings:
        note(warning)
    out.print(answer(study))
    content = table_1(study)
    title = f"{study.title}\n{content.caption}"
    whole = _table(title, [*zip(content.columns, *content.rows, strict=True)], content.words)
    fits = out.measure(whole, options=out.options.update(width=_ANY_WIDTH)).maximum <= out.width
    out.print(whole if fits else _table(title, _without_details(content), content.words))


def _without_details(content: Content) -> list[Sequence[str]]:
    """The columns of the short form: accuracies, and their differences to the baseline."""
    kept: list[Sequence[str]] = []
    for column in zip(content.columns, *content.rows, strict=True):
        if column[0].startswith("paper"):  # without its own differences to its baseline
            kept.append([cell.partition(" (")[0] for cell in column])
        elif column[0] not in _WIDE_ONLY:
            kept.append(column)
    return kept


def _table(title: str, columns: Sequence[Sequence[str]], words: frozenset[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name, *cells in columns:
        is_word = name in words
        # Only words may take a second line, short names last: a number that is cut would be another number.
        whole = not is_word or (name == "trained with" and max(map(len, cells)) <= _SHORT)
        justify: Literal["left", "right"] = "left" if is_word else "right"
        table.add_column(Text(name.replace(" [", "\n[")), justify=justify, no_wrap=whole)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, row))
    return table
