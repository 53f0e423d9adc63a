"""Draw the report's figures with matplotlib; markers, dashes and colors suit color-blind readers."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.files import quietly
from rsslcli.core.report.comparison import FOUR, Row, Study
from rsslcli.core.report.page import Figure
from rsslcli.core.report.runs import Floats, has_effect, paper_method

#: The palette of Okabe and Ito 2008, without black (the baseline's) and yellow (too faint on white).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", "-.", ":")
_STYLE: Any = {
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
#: More rows would be unreadable; the tables show them all.
MAX_ROWS = 14
#: Points per curve, enough to look smooth.
_POINTS = 300


@dataclass(frozen=True)
class _Size:
    """The layout of a picture. Its text is 9 points, 12 pixels on a screen, in any layout."""

    width: float  #: in inches of 96 pixels
    narrow: bool  #: whether panels and the entries of the legend are stacked
    label: int  #: characters per line of a label
    cells: int  #: columns of numbers side by side

    @property
    def legend(self) -> int:
        """Columns of the legend."""
        return 1 if self.narrow else 3


_WIDE = _Size(width=7.2, narrow=False, label=34, cells=MAX_ROWS)
#: For a phone: 375 pixels minus the margins.
_NARROW = _Size(width=3.45, narrow=True, label=20, cells=5)

#: A figure, its caption, and the rest of its alternative text; None if the runs lack the numbers for it.
_Drawn = tuple[Canvas, str, str] | None


def draw(study: Study, prefix: str = "") -> dict[str, Figure]:
    """Draw the figures of a study that its runs have the numbers for.

    Returns:
        The figures among "difference", "figure-2a", "figure-2b", "corruptions", "severities" and "training",
        by name. The names of their PNG files begin with `prefix`.
    """
    rows = study.rows[:MAX_ROWS]
    figures = {}
    more = f" The first {MAX_ROWS} of {len(study.rows)} rows." if len(rows) < len(study.rows) else ""
    with mpl.rc_context(), quietly():  # or it warns of every character that the font lacks
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        for name, plot in _PLOTS.items():
            drawn = plot(study, rows, _WIDE)
            narrow = plot(study, rows, _NARROW)
            if drawn is not None and narrow is not None:
                canvas, caption, words = drawn
                pair = (canvas, narrow[0])
                svg, narrow_svg = (_saved(each, "svg", metadata={"Date": None}) for each in pair)
                canvas.set_layout_engine("none")  # the layout is done, and slow
                png = _saved(canvas, "png")
                alt = f"{caption} {words}"
                figures[name] = Figure(f"{prefix}{name}.png", caption + more, alt, svg, narrow_svg, png)
    return figures


def _saved(canvas: Canvas, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    canvas.savefig(file, format=kind, **options)
    return file.getvalue()


def _style(index: int) -> dict[str, Any]:
    """Color, marker and dashes of a line; the first 30 all differ, even in gray."""
    return {
        "color": _COLORS[index % len(_COLORS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index // len(_COLORS) % len(_DASHES)],
    }


def _styles(rows: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
    """Each row with its style; the baseline is black."""
    styles = [_style(index) for index in range(len(rows))]
    if not rows[0].config.tasks:
        styles = [{"color": "black", "marker": "o", "linestyle": "-"}, *styles]
    return list(zip(rows, styles, strict=False))


def _wrap(label: str, width: int = 30) -> str:
    """Break a label into lines; if it is too long, what is in parentheses starts a new line."""
    parts = [label] if len(label) <= width else label.replace(" (", "\n(").splitlines()
    return "\n".join(line for part in parts for line in textwrap.wrap(part, width))


def _panels(rows: Sequence[Row], count: int, size: _Size) -> tuple[Canvas, list[Axes]]:
    """A canvas with `count` panels, and space below for a legend of the rows."""
    lines = 1 + max(_wrap(row.label).count("\n") for row in rows)
    across = 1 if size.narrow else min(count, 2)
    down = math.ceil(count / across)
    canvas = Canvas(figsize=(size.width, 2.9 * down + 0.18 * lines * math.ceil(len(rows) / size.legend)))
    return canvas, canvas.subplots(down, across, squeeze=False).ravel().tolist()


def _legend(canvas: Canvas, axes: Axes, place: Any, size: _Size) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc=place, ncols=size.legend)


def _against(row: Row, base: Row) -> str:
    """The label of a difference to the baseline; it says if the two were evaluated differently."""
    unlike = row.minus(base).unlike
    return f"{row.label} (different {unlike})" if unlike else row.label


def _compared(study: Study, rows: Sequence[Row]) -> tuple[Row, list[Row]] | None:
    """The baseline and the rows that share a seed with it; None if there are none."""
    base = study.baseline
    shown = [row for row in rows if base is not None and row is not base and row.pairs(base)]
    return (base, shown) if base is not None and shown else None


def _difference(study: Study, rows: Sequence[Row], size: _Size) -> _Drawn:
    found = _compared(study, rows)
    if found is None:
        return None
    base, shown = found
    labels = [_wrap(_against(row, base), size.label) for row in shown]
    lines = max(2, 1 + max(label.count("\n") for label in labels))
    canvas = Canvas(figsize=(size.width, 1.2 + 0.18 * (lines * len(shown) + 3 / size.legend)))
    axes = canvas.subplots()
    axes.axvline(0, color="black", linewidth=0.8)
    ours = [row.minus(base) for row in shown]
    at = np.arange(len(shown)) - 0.12
    axes.errorbar(
        [100 * each.mean for each in ours],
        at,
        xerr=[100 * each.margin for each in ours],
        fmt="o",
        markersize=6,
        color=_COLORS[0],
        capsize=3,
        zorder=3,
        label="ours: mean, 95 % confidence interval",
    )
    seeds = [(100 * value, y) for each, y in zip(ours, at, strict=True) for value in each.differences]
    axes.plot(*zip(*seeds, strict=True), "|", color="black", markersize=8, zorder=4, label="ours: each seed")
    paper = [(row.paper - base.paper, y + 0.2) for y, row in enumerate(shown) if row.paper and base.paper]
    if paper:
        hollow = {"color": _COLORS[1], "markerfacecolor": "white", "markersize": 6}
        axes.plot(*zip(*paper, strict=True), "D", **hollow, label="paper")  # type: ignore[arg-type]
    # The intervals of two seeds are so wide that they would squeeze everything else: they may be cut off.
    reach = 2 * max(abs(x) for x, _ in [*seeds, *paper])
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -reach), min(high, reach) or 1)
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    text = "difference to the baseline, percentage points of corrupted accuracy"
    axes.set_xlabel(_wrap(text, 28 if size.narrow else 80))
    _legend(canvas, axes, "outside upper center", size)
    caption = (
        f"Difference to the baseline, mean over {study.over}: an interval that excludes zero exceeds the "
        "noise; one seed has none. An interval may extend beyond the edge."
    )
    return canvas, caption, "The numbers are in the table above."


def _figure_2a(study: Study, rows: Sequence[Row], size: _Size) -> _Drawn:
    rows = [row for row in rows if has_effect(row.config)]
    keys = ((frozenset[str](), False), (frozenset({"rotation"}), False), (FOUR, False), (FOUR, True))
    shown = [row for key in keys for row in rows if paper_method(row.config) == key]
    if not shown:
        return None
    width = size.width if size.narrow else max(4.2, 1.1 + 1.25 * len(shown))
    canvas = Canvas(figsize=(width, 4.4 if size.narrow else 3.4))
    axes = canvas.subplots()
    words = []
    paper = [(x, 100 - row.paper) for x, row in enumerate(shown) if row.paper]
    ours = [100 * (1 - row.means) for row in shown]
    heights = [float(errors.mean()) for errors in ours]
    spreads = [float(np.std(errors, ddof=1)) if len(errors) > 1 else np.nan for errors in ours]
    places = [x + 0.2 * bool(row.paper) for x, row in enumerate(shown)]
    look = {"width": 0.38, "edgecolor": "#333333", "linewidth": 0.7}
    number: Any = {"padding": 2, "fontsize": 9 if size.narrow else 8, "rotation": 90 * size.narrow}
    if paper:
        left = [x - 0.2 for x, _ in paper]
        bars = axes.bar(left, [y for _, y in paper], color="#dddddd", hatch="///", label="paper", **look)  # type: ignore[arg-type]
        axes.bar_label(bars, fmt="%.2f", **number)
    bars = axes.bar(places, heights, yerr=spreads, capsize=4, color=_COLORS[0], label="ours", **look)  # type: ignore[arg-type]
    axes.bar_label(bars, [f"{height:.2f}" for height in heights], **number)
    words += [f"{shown[x].label}, paper: {y:.2f} %." for x, y in paper]
    words += [f"{row.label}, ours: {height:.2f} %." for row, height in zip(shown, heights, strict=True)]
    labels = [_wrap(row.label, size.label if size.narrow else 16) for row in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=90 * size.narrow)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.25 if size.narrow else 0.12)
    axes.set_ylabel("test error, %")
    _legend(canvas, axes, "outside upper right", size)
    caption = (
        f"As the paper's Figure 2a: test error, mean over {study.over}. Our runs were evaluated on "
        f"{study.conditions}. Error bars: standard deviation over seeds."
    )
    return canvas, caption, " ".join(words)


def _figure_2b(study: Study, rows: Sequence[Row], size: _Size) -> _Drawn:
    tuned = [row for row in rows if row.config.automl and has_effect(row.config)][:4]
    if not tuned:
        return None
    canvas = Canvas(figsize=(size.width, (3.6 if size.narrow else 3.0) * len(tuned)))
    words = []
    for axes, row in zip(canvas.subplots(len(tuned), squeeze=False)[:, 0], tuned, strict=True):
        grid = np.linspace(0, row.config.epochs, _POINTS)
        for index, task in enumerate(row.config.weighted):
            curves = [run.history.lambdas[task] for run in row.runs.values() if task in run.history.lambdas]
            if not curves:
                continue
            lines = np.array([np.interp(grid, *curve.T) for curve in curves])
            style = _style(index)
            if len(lines) > 1:
                axes.plot(grid, lines.T, color=style["color"], linewidth=0.6, alpha=0.55)
            axes.plot(grid, lines.mean(0), **style, linewidth=2, markevery=(8 + 7 * index, 40), label=task)
            words.append(f"{row.label}: λ of {task} ends at {lines[:, -1].mean():.3f}.")
        warmup = min(row.config.warmup_epochs, row.config.epochs)
        if warmup:
            axes.axvspan(0, warmup, color="#ececec", zorder=0)
            axes.axvline(warmup, color="#888888", linewidth=0.8, linestyle=":")
            top = axes.get_xaxis_transform()
            axes.text(0.01 * row.config.epochs, 0.98, "warm-up", va="top", fontsize=8, transform=top)
        title = _wrap(row.label, 40 if size.narrow else 80)
        axes.set(xlabel="epoch", ylabel="λ", title=title, xlim=(0, row.config.epochs))
        if size.narrow:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    caption = (
        "As the paper's Figure 2b: the tasks' weights λ. Thin lines are seeds, thick ones their mean; "
        "during the warm-up (shaded) λ is fixed."
    )
    return canvas, caption, " ".join(words)


def _corruptions(study: Study, rows: Sequence[Row], size: _Size) -> _Drawn:
    found = _compared(study, rows)
    if found is None:
        return None
    base, shown = found
    values = np.array([[_gain(row, base, name).mean() for row in shown] for name in study.corruptions])
    limit = max(float(np.abs(values).max()), 0.1)
    parts = np.array_split(np.arange(len(shown)), math.ceil(len(shown) / size.cells))
    width = size.width if size.narrow else max(4.0, 1.9 + 0.62 * len(shown))
    canvas = Canvas(figsize=(width, (2.1 + 0.235 * len(values)) * len(parts)))
    panels = canvas.subplots(len(parts), squeeze=False)[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        picture = axes.imshow(values[:, part], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for (y, x), value in np.ndenumerate(values[:, part]):
            text = f"{round(value, 1) + 0:+.1f}".replace("-", "−")
            color = "white" if value > 0.55 * limit or value < -0.7 * limit else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=color)
        axes.set_yticks(range(len(values)), study.corruptions)
        axes.xaxis.tick_top()
        labels = [_wrap(_against(shown[index], base), size.label if size.narrow else 30) for index in part]
        turned: Any = {} if size.narrow else {"ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(part)), labels, rotation=90 if size.narrow else 40, **turned)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    bar: Any = {"location": "bottom", "shrink": 0.5, "aspect": 30, "pad": 0.02}
    canvas.colorbar(picture, ax=panels, label="percentage points", **bar)
    caption = (
        "Difference to the baseline by corruption in percentage points, mean over severities and common "
        "seeds: purple is better, orange worse."
    )
    return canvas, caption, "The accuracies are in the table below."


def _severities(study: Study, rows: Sequence[Row], size: _Size) -> _Drawn:
    found = _compared(study, rows)
    canvas, panels = _panels(rows, 2 if found else 1, size)
    panels[0].set(xlabel="severity", ylabel="%", title="accuracy", xticks=SEVERITIES)
    for row, style in _styles(rows):
        accuracy = 100 * np.mean([row.cells(name) for name in study.corruptions], axis=0)
        label = _against(row, found[0]) if found else row.label
        panels[0].plot(SEVERITIES, accuracy, **style, label=_wrap(label))
        if found and row.pairs(found[0]):
            gain = np.mean([_gain(row, found[0], name) for name in study.corruptions], axis=0)
            panels[1].plot(SEVERITIES, gain, **style)
            panels[1].set(xlabel="severity", ylabel="percentage points", title="difference to the baseline")
            panels[1].set_xticks(SEVERITIES)
    _legend(canvas, panels[0], "outside lower center", size)
    caption = f"Accuracy by severity, mean over {study.over} and seeds, and the difference to the baseline."
    return canvas, caption, "The accuracies are in the table below."


def _training(study: Study, rows: Sequence[Row], size: _Size) -> _Drawn:
    epochs = study.settings["epochs"]
    canvas, (losses, accuracies) = _panels(rows, 2, size)
    grid = np.unique(np.linspace(1, epochs, min(epochs, _POINTS)).round())
    for row, style in _styles(rows):
        histories = [run.history for run in row.runs.values()]
        style |= {"markevery": max(1, len(grid) // 6), "markersize": 3.5, "label": _wrap(row.label)}
        losses.plot(grid, np.mean([np.interp(grid, h.epochs, h.loss) for h in histories], axis=0), **style)
        mean = np.mean([np.interp(grid, h.epochs, h.clean_accuracy) for h in histories], axis=0)
        accuracies.plot(grid, 100 * mean, **style)
    losses.set(xlabel="epoch", ylabel="cross-entropy", title="training loss of the main task")
    # A loss far above that of guessing comes from a diverging run: it may be cut off.
    losses.set_ylim(0, min(losses.get_ylim()[1], 10))
    accuracies.set(xlabel="epoch", ylabel="%", title="clean test accuracy")
    _legend(canvas, losses, "outside lower center", size)
    caption = "Training: the main task's loss, averaged over each epoch, and the clean accuracy after it."
    return canvas, f"{caption} Means over seeds.", "The accuracies at the end are in the first table."


def _gain(row: Row, base: Row, corruption: str) -> Floats:
    """The difference to the baseline in percentage points, averaged over common seeds, (5,)."""
    gains = [a.accuracy[corruption] - b.accuracy[corruption] for a, b in row.pairs(base)]
    mean: Floats = 100 * np.mean(gains, axis=0)
    return mean


_PLOTS: dict[str, Callable[[Study, Sequence[Row], _Size], _Drawn]] = {
    "difference": _difference,
    "figure-2a": _figure_2a,
    "figure-2b": _figure_2b,
    "corruptions": _corruptions,
    "severities": _severities,
    "training": _training,
}
