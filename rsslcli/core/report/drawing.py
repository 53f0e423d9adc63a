"""Sizes, styles and axes that the report's figures share."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rsslcli.core.report.comparison import Row
from rsslcli.core.report.statistics import margin_of_mean

#: The palette of Okabe and Ito 2008, without black (the baseline's) and yellow (too faint on white).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    # Labels are plain text, and the same runs give the same bytes.
    "text.parse_math": False,
    "svg.hashsalt": "rssl",
}


@dataclass(frozen=True)
class Size:
    """The layout of a picture. Its text is 9 points, 12 pixels on a screen, in any layout."""

    width: float  #: in inches of 96 pixels
    narrow: bool  #: whether panels and the entries of the legend are stacked
    label: int  #: characters per line of a label
    cells: int  #: columns of numbers side by side

    @property
    def legend(self) -> int:
        """Columns of the legend."""
        return 1 if self.narrow else 3


def style_of(index: int) -> dict[str, Any]:
    """Color, marker and dashes of a line; the first 30 all differ, even in gray."""
    return {
        "color": COLORS[index % len(COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index // len(COLORS) % len(_DASHES)],
    }


def styles_of(rows: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
    """Each row with its style; the baseline is black."""
    styles = [style_of(index) for index in range(len(rows))]
    if rows[0].config.is_baseline:
        styles = [{"color": "black", "marker": "o", "linestyle": "-"}, *styles]
    return list(zip(rows, styles, strict=False))


def wrap(label: str, width: int = 30) -> str:
    """Break a label into lines; if it is too long, what is in parentheses starts a new line."""
    parts = [label] if len(label) <= width else label.replace(" (", "\n(").splitlines()
    return "\n".join(line for part in parts for line in textwrap.wrap(part, width))


def in_two_lines(label: str, width: int = 30) -> str:
    """Break a label as `wrap` does, into wider lines if there would be more than two."""
    broken = (wrap(label, wider) for wider in itertools.count(width))
    return next(text for text in broken if text.count("\n") < 2)


def make_panels(rows: Sequence[Row], count: int, size: Size) -> tuple[Canvas, list[Axes]]:
    """A canvas with `count` panels, and space below for a legend of the rows."""
    lines = 1 + max(wrap(row.label).count("\n") for row in rows)
    across = 1 if size.narrow else min(count, 2)
    down = math.ceil(count / across)
    canvas = Canvas(figsize=(size.width, 2.9 * down + 0.18 * lines * math.ceil(len(rows) / size.legend)))
    return canvas, canvas.subplots(down, across, squeeze=False).ravel().tolist()


def add_legend(canvas: Canvas, axes: Axes, place: Any, size: Size) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc=place, ncols=size.legend)


def draw_intervals(
    labels: Sequence[str],
    ours: Sequence[Sequence[float]],
    paper: Sequence[float | None],
    size: Size,
) -> tuple[Canvas, Axes]:
    """A line for each label: the values of its seeds, their mean with its interval, and the paper's value."""
    texts = [wrap(label, size.label) for label in labels]
    lines = max(2, 1 + max(text.count("\n") for text in texts))
    canvas = Canvas(figsize=(size.width, 1.2 + 0.18 * (lines * len(texts) + 3 / size.legend)))
    axes = canvas.subplots()
    at = np.arange(len(texts)) - 0.12 * any(paper)
    axes.errorbar(
        [np.mean(values) for values in ours],
        at,
        xerr=[margin_of_mean(values) for values in ours],
        fmt="o",
        markersize=6,
        color=COLORS[0],
        capsize=3,
        zorder=3,
        label="ours: mean, 95 % confidence interval",
    )
    seeds = [(value, y) for values, y in zip(ours, at, strict=True) for value in values]
    axes.plot(*zip(*seeds, strict=True), "|", color="black", markersize=8, zorder=4, label="ours: each seed")
    if published := [(value, y + 0.2) for y, value in enumerate(paper) if value is not None]:
        hollow = {"color": COLORS[1], "markerfacecolor": "white", "markersize": 6}
        axes.plot(*zip(*published, strict=True), "D", **hollow, label="paper")  # type: ignore[arg-type]
    axes.set_yticks(range(len(texts)), texts)
    axes.set_ylim(len(texts) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    return canvas, axes


def cut_off(axes: Axes, low: float, high: float) -> None:
    """Cut off intervals beyond these ends: those of two seeds would squeeze everything else."""
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, low), min(right, high))
