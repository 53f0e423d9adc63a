"""A study on the terminal: its answer and its Table 1, as `report` and `reproduce` print them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from rsslcli.commands.console import note, out

if TYPE_CHECKING:
    from rsslcli.core.report.comparison import Study
    from rsslcli.core.report.page import Table as Content

#: Columns of Table 1 that a terminal shows only if it is wide enough, the first to go first.
_WIDE_ONLY = ("the usual 15", "clean", "seeds")


#: The length of names that stay on one line.
_SHORT = 24
#: Wider than any table.
_ANY_WIDTH = 10_000


def print_study(study: Study) -> None:
    """The warnings, the answer, and Table 1, with as many of its columns as fit the terminal."""
    from rsslcli.core.report.answer import answer
    from rsslcli.core.report.tables import table_1

    for warning in study.warnings:
        note(warning)
    out.print(answer(study), soft_wrap=False)
    content = table_1(study)
    title = f"{study.title}\n{content.caption}"
    tables = [_table(title, columns, content.words) for columns in _forms(content)]
    width = out.options.update(width=_ANY_WIDTH)
    out.print(next((t for t in tables if out.measure(t, options=width).maximum <= out.width), tables[-1]))


def _forms(content: Content) -> Iterator[Sequence[Sequence[str]]]:
    """The columns of the whole table, then ever fewer; the last are accuracies, and their differences."""
    columns: list[Sequence[str]] = [*zip(content.columns, *content.rows, strict=True)]
    yield columns
    # The paper's accuracies without their own differences to its baseline.
    columns = [
        [cell.partition(" (")[0] for cell in column] if column[0].startswith("paper") else column
        for column in columns
    ]
    yield columns
    for name in _WIDE_ONLY:
        columns = [column for column in columns if column[0] != name]
        yield columns


def _table(title: str, columns: Sequence[Sequence[str]], words: frozenset[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name, *cells in columns:
        is_word = name in words
        # Only words may wrap, and short names do not: a number cut in two would read as another number.
        whole = not is_word or (name == "trained with" and max(map(len, cells)) <= _SHORT)
        justify: Literal["left", "right"] = "left" if is_word else "right"
        table.add_column(Text(name.replace(" [", "\n[")), justify=justify, no_wrap=whole)
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, row))
    return table
