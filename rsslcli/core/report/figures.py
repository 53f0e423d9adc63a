"""Draw the report's figures with matplotlib; markers, dashes and colors suit color-blind readers."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.errors import signed
from rsslcli.core.files import quietly
from rsslcli.core.report.comparison import Row, Study
from rsslcli.core.report.diagnosis_figures import confusion, reliability
from rsslcli.core.report.drawing import (
    COLORS,
    STYLE,
    Size,
    add_legend,
    cut_off,
    draw_intervals,
    in_two_lines,
    make_panels,
    style_of,
    styles_of,
    wrap,
)
from rsslcli.core.report.methods import FOUR, has_effect, paper_method
from rsslcli.core.report.page import Figure
from rsslcli.core.report.runs import Floats

#: More rows would be unreadable; the tables show them all.
MAX_ROWS = 28
#: The same for figures with a line per row.
MAX_LINES = 10
_OF_LINES = ("severities", "training")
#: Points per curve, enough to look smooth.
_POINTS = 300


_WIDE = Size(width=7.2, narrow=False, label=42, cells=14)
#: For a phone: 375 pixels minus the margins.
_NARROW = Size(width=3.45, narrow=True, label=20, cells=5)

#: A figure, its caption, and the rest of its alternative text; None if the runs lack the numbers for it.
_Drawn = tuple[Canvas, str, str] | None


def draw(study: Study, prefix: str = "") -> dict[str, Figure]:
    """Draw the figures of a study that its runs have the numbers for.

    Returns:
        The figures among "accuracy", "difference", "figure-2a", "figure-2b", "corruptions", "severities",
        "confusion", "reliability" and "training", by name. The names of their PNG files begin with `prefix`.
    """
    figures = {}
    with mpl.rc_context(), quietly():  # or it warns of every character that the font lacks
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        for name, plot in _PLOTS.items():
            rows = _most_seeds(study.rows, MAX_LINES if name in _OF_LINES else MAX_ROWS)
            drawn = plot(study, rows, _WIDE)
            narrow = plot(study, rows, _NARROW)
            if drawn is not None and narrow is not None:
                canvas, caption, words = drawn
                pair = (canvas, narrow[0])
                svg, narrow_svg = (_saved(each, "svg", metadata={"Date": None}) for each in pair)
                canvas.set_layout_engine("none")  # the layout is done, and slow
                png = _saved(canvas, "png")
                alt = f"{caption} {words}"
                if len(rows) < len(study.rows) and name not in _OF_SOME:
                    most = f"the {len(rows)} with the most seeds, and of those with equally many the best"
                    caption += f" Of {len(study.rows)} rows, {most}; the tables have all."
                figures[name] = Figure(f"{prefix}{name}.png", caption, alt, svg, narrow_svg, png)
    return figures


def _most_seeds(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows in their order: the baseline and those with the most seeds, the best of them."""
    ranks = [(not row.config.is_baseline, -len(row.runs), -row.means.mean()) for row in rows]
    kept = sorted(range(len(rows)), key=lambda index: ranks[index])[:limit]
    return [rows[index] for index in sorted(kept)]


def _on_seeds(rows: Sequence[Row]) -> str:
    """A sentence for a caption of means over all seeds if the rows have different ones."""
    if len({frozenset(row.runs) for row in rows}) == 1:
        return ""
    return " Rows have different seeds: only differences over common seeds can be compared."


def _saved(canvas: Canvas, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    canvas.savefig(file, format=kind, **options)
    return file.getvalue()


def _against(row: Row, base: Row) -> str:
    """The label of a difference to the baseline; it says if the two were evaluated differently."""
    unlike = row.minus(base).unlike
    return f"{row.label} (different {unlike})" if unlike else row.label


def _compared(study: Study, rows: Sequence[Row]) -> tuple[Row, list[Row]] | None:
    """The baseline and the rows that share a seed with it; None if there are none."""
    base = study.baseline
    shown = [row for row in rows if base is not None and row is not base and row.pairs(base)]
    return (base, shown) if base is not None and shown else None


def _accuracy(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    canvas, axes = draw_intervals(
        [row.label for row in rows], [(100 * row.means).tolist() for row in rows], [], size
    )
    every = 100 * np.concatenate([row.means for row in rows])
    reach = max(float(np.ptp(every)), 1)
    cut_off(axes, every.min() - reach, every.max() + reach)
    if found := _compared(study, rows):
        base, shown = found
        means = [100 * np.mean([theirs.mean() for _, theirs in row.pairs(base)]) for row in shown]
        places = [rows.index(row) for row in shown]
        mark: Any = {"color": COLORS[1], "markersize": 15, "markeredgewidth": 1.6, "zorder": 2}
        axes.plot(means, places, "|", label="the baseline over the same seeds", **mark)
    axes.set_xlabel(wrap("accuracy under corruption, %", 28 if size.narrow else 80))
    add_legend(canvas, axes, "outside upper center", size)
    caption = (
        f"Accuracy under corruption by method, mean over {study.over}, with the 95 % confidence interval of "
        "the mean over seeds; one seed has none. An interval may extend beyond the edge. Runs of a seed are "
        "related, so the differences below are known better than the accuracies."
    ) + _on_seeds(rows)
    return canvas, caption, "The numbers are in the table above."


def _difference(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    found = _compared(study, rows)
    if found is None:
        return None
    base, shown = found
    ours = [[100 * value for value in row.minus(base).differences] for row in shown]
    paper = [row.paper - base.paper if row.paper and base.paper else None for row in shown]
    canvas, axes = draw_intervals([_against(row, base) for row in shown], ours, paper, size)
    axes.axvline(0, color="black", linewidth=0.8)
    reach = 2 * max(abs(x) for x in [*itertools.chain(*ours), *paper] if x is not None)
    cut_off(axes, -reach, reach or 1)
    text = "difference to the baseline, percentage points of corrupted accuracy"
    axes.set_xlabel(wrap(text, 28 if size.narrow else 80))
    add_legend(canvas, axes, "outside upper center", size)
    caption = (
        f"Difference to the baseline, mean over {study.over}: an interval that excludes zero exceeds the "
        "noise if this row is compared alone; the table says which still do among all. One seed has no "
        "interval. An interval may extend beyond the edge."
    )
    return canvas, caption, "The numbers are in the table above."


def _figure_2a(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
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
    bars = axes.bar(places, heights, yerr=spreads, capsize=4, color=COLORS[0], label="ours", **look)  # type: ignore[arg-type]
    axes.bar_label(bars, [f"{height:.2f}" for height in heights], **number)
    words += [f"{shown[x].label}, paper: {y:.2f} %." for x, y in paper]
    words += [f"{row.label}, ours: {height:.2f} %." for row, height in zip(shown, heights, strict=True)]
    labels = [in_two_lines(row.label, 20) if size.narrow else wrap(row.label, 16) for row in shown]
    axes.set_xticks(range(len(shown)), labels, rotation=90 * size.narrow)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    axes.margins(y=0.25 if size.narrow else 0.12)
    axes.set_ylabel("test error, %")
    add_legend(canvas, axes, "outside upper right", size)
    caption = (
        f"As the paper's Figure 2a: test error, mean over {study.over}. Our runs were evaluated on "
        f"{study.conditions}. Error bars: standard deviation over seeds."
    ) + _on_seeds(shown)
    return canvas, caption, " ".join(words)


def _figure_2b(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    every = [row for row in rows if row.config.automl and has_effect(row.config)]
    if not every:
        return None
    tuned = _most_seeds(every, 4)
    canvas = Canvas(figsize=(size.width, (3.6 if size.narrow else 3.0) * len(tuned)))
    words = []
    for axes, row in zip(canvas.subplots(len(tuned), squeeze=False)[:, 0], tuned, strict=True):
        grid = np.linspace(0, row.config.epochs, _POINTS)
        for index, task in enumerate(row.config.weighted):
            curves = [run.history.lambdas[task] for run in row.runs.values() if task in run.history.lambdas]
            if not curves:
                continue
            lines = np.array([np.interp(grid, *curve.T) for curve in curves])
            style = style_of(index)
            if len(lines) > 1:
                axes.plot(grid, lines.T, color=style["color"], linewidth=0.6, alpha=0.55)
            axes.plot(grid, lines.mean(0), **style, linewidth=2, markevery=(8 + 7 * index, 40), label=task)
            words.append(f"{row.label}: λ of {task} ends at {lines[:, -1].mean():.3f}.")
        warmup = min(row.config.warmup_epochs, row.config.epochs)
        if warmup:
            axes.axvspan(0, warmup, color="#ececec", zorder=0)
            axes.axvline(warmup, color="#888888", linewidth=0.8, linestyle=":")
        title = wrap(row.label, 40 if size.narrow else 80)
        axes.set(xlabel="epoch", ylabel="λ", title=title, xlim=(0, row.config.epochs))
        if size.narrow:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    caption = (
        "As the paper's Figure 2b: the tasks' weights λ. Thin lines are seeds, thick ones their mean; "
        "during the warm-up (shaded) λ is fixed."
    )
    if len(tuned) < len(every):
        caption += f" Of {len(every)} rows that tune λ, the {len(tuned)} with the most seeds."
    return canvas, caption, " ".join(words)


def _corruptions(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    found = _compared(study, rows)
    if found is None:
        return None
    base, shown = found
    values = np.array([[_gain(row, base, name).mean() for row in shown] for name in study.corruptions])
    limit = max(float(np.abs(values).max()), 0.1)
    parts = np.array_split(np.arange(len(shown)), math.ceil(len(shown) / size.cells))
    width = size.width if size.narrow else max(4.0, 1.9 + 0.62 * len(parts[0]))
    canvas = Canvas(figsize=(width, (2.1 + 0.235 * len(values)) * len(parts)))
    panels = canvas.subplots(len(parts), squeeze=False)[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        picture = axes.imshow(values[:, part], cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for (y, x), value in np.ndenumerate(values[:, part]):
            color = "white" if value > 0.55 * limit or value < -0.7 * limit else "black"
            axes.text(x, y, signed(value, 1), ha="center", va="center", fontsize=7.5, color=color)
        axes.set_yticks(range(len(values)), study.corruptions)
        axes.xaxis.tick_top()
        labels = [in_two_lines(_against(shown[index], base), 20 if size.narrow else 30) for index in part]
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


def _severities(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    found = _compared(study, rows)
    canvas, panels = make_panels(rows, 2 if found else 1, size)
    panels[0].set(xlabel="severity", ylabel="%", title="accuracy", xticks=SEVERITIES)
    for row, style in styles_of(rows):
        accuracy = 100 * np.mean([row.cells(name) for name in study.corruptions], axis=0)
        label = _against(row, found[0]) if found else row.label
        panels[0].plot(SEVERITIES, accuracy, **style, label=wrap(label))
        if found and row.pairs(found[0]):
            gain = np.mean([_gain(row, found[0], name) for name in study.corruptions], axis=0)
            panels[1].plot(SEVERITIES, gain, **style)
            panels[1].set(xlabel="severity", ylabel="percentage points", title="difference to the baseline")
            panels[1].set_xticks(SEVERITIES)
    add_legend(canvas, panels[0], "outside lower center", size)
    caption = (
        f"Accuracy by severity, mean over {study.over} and seeds, and the difference to the baseline over "
        f"common seeds.{_on_seeds(rows)}"
    )
    return canvas, caption, "The accuracies are in the table below."


def _training(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    epochs = study.settings["epochs"]
    known = any(np.isfinite(run.history.loss).any() for row in rows for run in row.runs.values())
    canvas, panels = make_panels(rows, 2 if known else 1, size)
    losses, accuracies = panels[0], panels[-1]  # without records per step, there are no losses
    grid = np.unique(np.linspace(1, epochs, min(epochs, _POINTS)).round())
    for row, style in styles_of(rows):
        histories = [run.history for run in row.runs.values()]
        style |= {"markevery": max(1, len(grid) // 6), "markersize": 3.5, "label": wrap(row.label)}
        if known:
            mean = np.mean([np.interp(grid, h.epochs, h.loss) for h in histories], axis=0)
            losses.plot(grid, mean, **style)
        mean = np.mean([np.interp(grid, h.epochs, h.clean_accuracy) for h in histories], axis=0)
        accuracies.plot(grid, 100 * mean, **style)
    if known:
        losses.set(xlabel="epoch", ylabel="cross-entropy", title="training loss of the main task")
        losses.update_datalim([(1, 0)])
        losses.autoscale_view()
        # A loss far above that of guessing comes from a diverging run: it may be cut off.
        losses.set_ylim(0, min(losses.get_ylim()[1], 10))
    accuracies.set(xlabel="epoch", ylabel="%", title="clean test accuracy")
    add_legend(canvas, accuracies, "outside lower center", size)
    loss = "the main task's loss, averaged over each epoch, and " if known else ""
    caption = (
        f"Training: {loss}the clean accuracy after each epoch, measured on at most as many test images as an "
        f"epoch trains on, so that it ends a little off Table 1. Means over seeds.{_on_seeds(rows)}"
    )
    return canvas, caption, "Accuracies on all images are in the first table."


def _gain(row: Row, base: Row, corruption: str) -> Floats:
    """The difference to the baseline in percentage points, averaged over common seeds, (5,)."""
    gains = [a.accuracy[corruption] - b.accuracy[corruption] for a, b in row.pairs(base)]
    mean: Floats = 100 * np.mean(gains, axis=0)
    return mean


_PLOTS: dict[str, Callable[[Study, Sequence[Row], Size], _Drawn]] = {
    "accuracy": _accuracy,
    "difference": _difference,
    "figure-2a": _figure_2a,
    "figure-2b": _figure_2b,
    "corruptions": _corruptions,
    "severities": _severities,
    "confusion": confusion,
    "reliability": reliability,
    "training": _training,
}
#: Those that choose their rows themselves, or show one run.
_OF_SOME = ("figure-2a", "figure-2b", "confusion", "reliability")
#: The names of the figures.
FIGURES = tuple(_PLOTS)
