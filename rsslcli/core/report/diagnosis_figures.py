"""The confusion matrix and the reliability plot of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rsslcli.core.errors import sanitize
from rsslcli.core.evaluation.details import ECE_BINS
from rsslcli.core.evaluation.diagnostics import BOTH, Counts, Reliability
from rsslcli.core.report.comparison import Row, Study
from rsslcli.core.report.diagnosis import diagnosed
from rsslcli.core.report.drawing import COLORS, Size

#: More classes leave no room for numbers in the cells of the confusion matrix.
_NUMBERED = 12
#: Characters of a class name.
_NAME = 14
_TITLES = {"clean": "clean", "corrupted": "under corruption"}

_Drawn = tuple[Canvas, str, str] | None


def _panels(count: int, size: Size, height: float) -> tuple[Canvas, list[Axes]]:
    shape = (count, 1) if size.narrow else (1, count)
    canvas = Canvas(figsize=(size.width, height * shape[0]))
    return canvas, canvas.subplots(*shape, squeeze=False).ravel().tolist()


def confusion(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    """Draw the confusion matrices of the run that `diagnosed` chooses."""
    found = diagnosed(study)
    if found is None or not found[2].confusion:
        return None
    diagnostics = found[2]
    names = [sanitize(name) for name in diagnostics.classes]
    names = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names]
    canvas, panels = _panels(len(diagnostics.confusion), size, 3.7)
    for number, (axes, (kind, counts)) in enumerate(zip(panels, diagnostics.confusion.items(), strict=True)):
        _draw_matrix(axes, counts)
        ticks = range(len(names))
        axes.set_xticks(ticks, names, rotation=90, fontsize=8)
        axes.set_yticks(ticks, names if number == 0 or size.narrow else [""] * len(names), fontsize=8)
        axes.set(title=_TITLES[kind], xlabel="predicted")
        if number == 0 or size.narrow:
            axes.set_ylabel("class")
    caption = (
        "Confusion matrix: of the images of each class (a row), the percentage that is taken for each class "
        "(a column); under corruption over all corruptions and severities. The diagonal is right."
    )
    return canvas, caption, "The most frequent confusions are in the table below."


def _draw_matrix(axes: Axes, counts: Counts) -> None:
    """Draw the counts as percentages of their rows."""
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    if len(counts) <= _NUMBERED:
        for (y, x), value in np.ndenumerate(percent):
            if value >= 0.5:
                color = "white" if value > 55 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def reliability(study: Study, rows: Sequence[Row], size: Size) -> _Drawn:
    """Draw the reliability of the run that `diagnosed` chooses, also calibrated if that was measured."""
    found = diagnosed(study)
    if found is None or not found[2].reliability:
        return None
    diagnostics = found[2]
    kinds = [kind for kind in BOTH if kind in diagnostics.reliability]
    canvas, panels = _panels(len(kinds), size, 3.4)
    words = []
    for axes, kind in zip(panels, kinds, strict=True):
        label = f"ECE {100 * diagnostics.reliability[kind].ece:.1f} %"
        _draw_bins(axes, diagnostics.reliability[kind], label)
        words.append(f"{_TITLES[kind]}: {label}")
        if (scaled := diagnostics.calibrated.get(kind)) is not None:
            label = f"calibrated: ECE {100 * scaled.ece:.1f} %"
            line: Any = {"color": COLORS[1], "marker": "D", "markersize": 3.5}
            axes.plot(*_known(scaled), **line, label=label, zorder=4)
            words[-1] += f", {label}"
        axes.set(title=_TITLES[kind], xlabel="probability of the predicted class", ylabel="accuracy")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(loc="upper left")
    caption = (
        "Reliability: how often images are right, by the probability of their predicted class, in "
        f"{ECE_BINS} bins of equal width. On the diagonal the probabilities are right; below it the network "
        "is too sure of itself. A darker bar stands for more images. The expected calibration error (ECE) is "
        "that of all images of a panel together."
    )
    if diagnostics.calibrated:
        caption += " Calibrated: all scores are divided by the temperature, which was fitted on clean images"
        of, total = (
            sum(bins["corrupted"].images) for bins in (diagnostics.calibrated, diagnostics.reliability)
        )
        caption += "" if of == total else f", not in these bins: {of:,} of {total:,} corrupted images are"
        caption += "."
    return canvas, caption, f"{'; '.join(words)}."


def _draw_bins(axes: Axes, found: Reliability, label: str) -> None:
    """Bars of the accuracy in each bin, darker for more images, and the diagonal."""
    edges = np.arange(ECE_BINS) / ECE_BINS
    accuracy = np.nan_to_num(found.accuracy)
    share = np.array(found.images) / max(found.images)
    bars = axes.bar(edges, accuracy, 1 / ECE_BINS, align="edge", color=COLORS[0], edgecolor="white")
    bars.set_label(label)
    for bar, each in zip(bars, share, strict=True):
        bar.set_alpha(0.25 + 0.75 * float(each))
    axes.plot([0, 1], [0, 1], color="#555555", linewidth=0.9, linestyle="--")


def _known(found: Reliability) -> tuple[list[float], list[float]]:
    """The mean probability and the accuracy of the bins with images."""
    pairs = [pair for pair in zip(found.confidence, found.accuracy, strict=True) if not np.isnan(pair).any()]
    return [x for x, _ in pairs], [y for _, y in pairs]
