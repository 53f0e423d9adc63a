"""What `rssl predict` shows: a table of images, the rates of the classes, and a summary."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from rsslcli.commands.console import percent
from rsslcli.core.errors import counted, sanitize

if TYPE_CHECKING:
    from rsslcli.commands.terminal import TextConsole
    from rsslcli.core.evaluation.predictions import Confusion, Prediction

#: Images in the table.
_ROWS = 20
#: Classes that a summary names.
_NAMED = 5
#: Wrong classes that the table of rates names for each class.
_MISTAKES = 2
#: The fewest columns for the name of a file.
_FILE_COLUMNS = 12
#: Columns for the name of a class; of a longer name, only the end is shown.
_CLASS_COLUMNS = 18
#: A width in which any table fits, in columns.
_UNFOLDED = 10_000


class Summary:
    """Counts of all predictions, and the few that a table shows; its size does not depend on their number."""

    def __init__(self, confusion: Confusion | None) -> None:
        self.confusion = confusion
        self.images = 0
        self.predicted: Counter[str] = Counter()
        self._rows: list[tuple[float, int, Prediction]] = []

    def add(self, prediction: Prediction) -> None:
        """Count a prediction; keep it if it is among the first or, with labels, most confident mistakes."""
        self.images += 1
        self.predicted[prediction.prediction] += 1
        rank = 0.0
        if self.confusion is not None:
            self.confusion.add(prediction)
            if prediction.label in (None, prediction.prediction):
                return
            rank = prediction.probability
        heapq.heappush(self._rows, (rank, -self.images, prediction))
        if len(self._rows) > _ROWS:
            heapq.heappop(self._rows)

    def rows(self) -> list[Prediction]:
        """The predictions for the table, in its order."""
        return [prediction for *_, prediction in sorted(self._rows, reverse=True)]


def print_summary(summary: Summary, console: TextConsole, *, with_rows: bool) -> None:
    """Print the summary, after the table of images if `with_rows`; nothing without images."""
    if not summary.images:
        return
    rows = summary.rows()
    if with_rows and rows:
        console.print(_table(summary, rows, console.width))
    if summary.confusion is not None:
        _print_rates(summary.confusion, summary.images, console)
        return
    names = [f"{sanitize(name)} {count:,}" for name, count in summary.predicted.most_common(_NAMED)]
    more = len(summary.predicted) - len(names)
    counts = ", ".join([*names, *([f"{more} more class{'es' * (more > 1)}"] if more else [])])
    console.print(f"{counted(summary.images, 'image')}, by predicted class: {counts}", soft_wrap=True)


def _table(summary: Summary, rows: Sequence[Prediction], width: int) -> Table:
    """A row per image: its file, its label if there are any, and what is predicted."""
    labeled = summary.confusion is not None
    table = Table(title=_title(summary, len(rows)), title_justify="left")
    cells = [[*([_class(row.label)] if labeled else []), *_ranked(row)] for row in rows]
    headings = ["file", *(["label"] if labeled else []), "prediction", "probability"]
    headings += ["next"] if len(rows[0].ranking) > 1 else []
    for heading in headings:
        justify: Literal["right", "left"] = "right" if heading == "probability" else "left"
        table.add_column(heading, justify=justify, no_wrap=heading != "next")
    columns = zip(headings[1:], *cells, strict=True)
    taken = sum(3 + max(map(cell_len, column)) for column in columns)
    room = max(width - taken - 4, _FILE_COLUMNS)
    for row, rest in zip(rows, cells, strict=True):
        table.add_row(*map(Text, (_shortened(sanitize(row.file, 4096), room), *rest)))
    return table


def _title(summary: Summary, rows: int) -> str:
    confusion = summary.confusion
    if confusion is not None:
        mistakes = confusion.images - int(confusion.counts.trace())
        return "mistakes" if mistakes == rows else f"the {rows} most confident of {mistakes:,} mistakes"
    return "" if summary.images == rows else f"the first {rows} of {counted(summary.images, 'image')}"


def _ranked(prediction: Prediction) -> list[str]:
    """The cells for the most probable class, its probability, and the classes that follow."""
    names = [(_class(name), f"{percent(value)}%") for name, value in prediction.ranking]
    further = ", ".join(" ".join(pair) for pair in names[1:])
    return [*names[0], *([further] if further else [])]


def _class(name: object) -> str:
    return _shortened(sanitize(name), _CLASS_COLUMNS)


def _shortened(name: str, room: int) -> str:
    """The end of a name that is longer than `room` columns."""
    if cell_len(name) <= room:
        return name
    while cell_len(name) >= room:
        name = name[1:]
    return f"…{name}"


def _print_rates(confusion: Confusion, images: int, console: TextConsole) -> None:
    """Print the rates of each class, the confusion matrix where it fits, and the accuracy."""
    console.print(_rates_table(confusion))
    matrix = _matrix_table(confusion)
    unfolded = console.options.update(width=_UNFOLDED)
    if console.measure(matrix, options=unfolded).maximum <= console.width:
        console.print(matrix)
    low, high = map(percent, confusion.interval)
    right = int(confusion.counts.trace())
    others = images - confusion.images
    outside = f"; {counted(others, 'image')} in no folder of a class" if others else ""
    console.print(
        f"accuracy {percent(confusion.accuracy)}%: {right:,} of {counted(confusion.images, 'image')}, "
        f"95 % interval {low} to {high}%{outside}",
        soft_wrap=True,
    )


def _rates_table(confusion: Confusion) -> Table:
    table = Table(title="by class: rates in %", title_justify="left")
    for heading in ("class", "images", "recall", "precision", "taken for"):
        table.add_column(heading, justify="left" if heading in ("class", "taken for") else "right")
    totals = confusion.counts.sum(1).tolist()
    rates = zip(confusion.classes, totals, confusion.recall, confusion.precision, strict=True)
    for index, (name, images, recall, precision) in enumerate(rates):
        if not images and precision is None:
            continue
        wrong = (f"{sanitize(other)} {count}" for other, count in confusion.mistakes(index)[:_MISTAKES])
        cells = (sanitize(name), str(images), percent(recall), percent(precision), ", ".join(wrong))
        table.add_row(*map(Text, cells))
    return table


def _matrix_table(confusion: Confusion) -> Table:
    """A row per class with images, a column per class that is predicted or has images."""
    counts = confusion.counts
    columns = [index for index in range(len(counts)) if counts[index].any() or counts[:, index].any()]
    numbers = {
        index: name if name == str(index) else f"{index} {sanitize(name)}"
        for index, name in enumerate(confusion.classes)
    }
    table = Table(title="confusion matrix", title_justify="left")
    table.add_column("class / predicted")
    for index in columns:
        table.add_column(str(index), justify="right")
    for index in columns:
        if counts[index].any():
            cells = (str(count) if (count := counts[index, other]) else "·" for other in columns)
            table.add_row(Text(numbers[index]), *cells)
    return table
