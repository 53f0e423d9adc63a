"""How sure a classifier is of corrupted images, and how sure its accuracies are. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import CORRUPTIONS, STANDARD
from rsslcli.core.evaluation.bootstrap import Bools, Interval, interval
from rsslcli.core.evaluation.details import ECE_BINS, mean_of_all
from rsslcli.core.evaluation.outcome import METRICS, Outcome

#: What the metrics are called in a line of text.
_TITLES = {"nll": "NLL", "brier": "Brier score", "ece": "ECE"}

Labels = npt.NDArray[np.int64]
#: By corruption, the outcome at severities 1 to 5; None where it was not evaluated.
Rows = Mapping[str, Sequence[Outcome | None]]


@dataclass(frozen=True)
class Confidence:
    """How sure a classifier is, and how sure its accuracies are.

    Attributes:
        nll, brier, ece: as in `Outcome`, by corruption at severities 1 to 5, and a single number for "clean".
            None stands for what is not known.
        classes: the names of the classes.
        per_class: by corruption, and for "clean", the accuracy on the images of each class, all severities
            together; None for a class without images. Corruptions without a record of each image are missing.
        intervals: 95 % intervals of accuracies, by the names that they have in the JSON object.
        correct: by corruption, and for "clean", whether each image is right, bool (severities, images). The
            severities are those that were evaluated, the images those with the lowest indices that are not
            excluded.
    """

    nll: Mapping[str, list[float | None]]
    brier: Mapping[str, list[float | None]]
    ece: Mapping[str, list[float | None]]
    classes: tuple[str, ...]
    per_class: Mapping[str, list[float | None]]
    intervals: Mapping[str, Interval]
    correct: Mapping[str, Bools] = field(compare=False, repr=False)

    @classmethod
    def of(
        cls, clean: Outcome, rows: Rows, clean_labels: Labels, labels: Labels, classes: Sequence[str]
    ) -> Confidence:
        """Summarize the outcomes of the clean test set and of corruptions, whose images have these labels."""
        cells = {"clean": [clean], **rows}
        correct = {name: found for name, row in cells.items() if (found := _stacked(row)) is not None}
        per_class = {
            name: _accuracy_by_class(found, clean_labels if name == "clean" else labels, len(classes))
            for name, found in correct.items()
        }

        def numbers(metric: str) -> dict[str, list[float | None]]:
            return {
                name: [None if cell is None else getattr(cell, metric) for cell in row]
                for name, row in cells.items()
            }

        return cls(
            nll=numbers("nll"),
            brier=numbers("brier"),
            ece=numbers("ece"),
            classes=tuple(classes),
            per_class=per_class,
            intervals=_intervals(correct, rows),
            correct=correct,
        )

    def means(self) -> dict[str, tuple[float | None, float | None]]:
        """By metric, the number for the clean test set and the mean over all cells of corruptions.

        None stands for what is not known.
        """
        found = {}
        for metric in METRICS:
            table = dict(getattr(self, metric))
            (clean,) = table.pop("clean")
            cells = [cell for row in table.values() for cell in row]
            found[metric] = clean, mean_of_all(cells)
        return found

    def describe(self) -> str:
        """The means in a few words; empty if they are not known."""
        means = self.means()
        clean, mean = ({metric: pair[i] for metric, pair in means.items()} for i in range(2))
        return describe_means(clean, mean)

    def to_dict(self) -> dict[str, Any]:
        """The entries of an evaluation's JSON object, with 6 digits; an infinite loss is null."""
        return {
            "interval_95": {name: list(ends) for name, ends in self.intervals.items()},
            **{f"mean_{metric}": _rounded(mean) for metric, (_, mean) in self.means().items()},
            **{
                metric: {name: list(map(_rounded, row)) for name, row in getattr(self, metric).items()}
                for metric in METRICS
            },
            "ece_bins": ECE_BINS,
            "classes": list(self.classes),
            "per_class_accuracy": {
                name: list(map(_rounded, values)) for name, values in self.per_class.items()
            },
        }


def describe_means(clean: Mapping[str, float | None], mean: Mapping[str, float | None]) -> str:
    """How sure a classifier is, in a few words, by its metrics on the clean test set and their means."""
    parts = []
    for metric, title in _TITLES.items():
        show = "{:.2%}" if metric == "ece" else "{:.4f}"
        values = [mean.get(metric), clean.get(metric)]
        if None not in values:
            parts.append("{} {} (clean {})".format(title, *map(show.format, values)))
    return " · ".join(parts)


def scaled_means(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, float | None]]:
    """How sure a classifier is with scores divided by a temperature: its metrics by "clean" and "mean".

    "mean" is over all cells of corruptions. The keys of `outcomes` are those of cells, "fog/3" or "clean/0".
    """
    clean = [cell.scaled for key, cell in outcomes.items() if key == "clean/0"]
    cells = [cell.scaled for key, cell in outcomes.items() if key != "clean/0"]
    found: dict[str, dict[str, float | None]] = {}
    for name, rows in (("clean", clean), ("mean", cells)):
        known = [row for row in rows if row is not None]
        if known and len(known) == len(rows):
            found[name] = dict(zip(METRICS, map(_rounded, np.mean(known, 0).tolist()), strict=True))
    return found


def _stacked(row: Sequence[Outcome | None]) -> Bools | None:
    """Which images are right in the evaluated cells of a row; None if that is not known of each cell."""
    found = [cell.correct for cell in row if cell is not None]
    known = [correct for correct in found if correct is not None]
    return np.stack(known) if known and len(known) == len(found) else None


def _accuracy_by_class(correct: Bools, labels: Labels, classes: int) -> list[float | None]:
    right = np.bincount(labels, correct.sum(0), minlength=classes)
    images = np.bincount(labels, minlength=classes) * len(correct)
    return [float(r / n) if n else None for r, n in zip(right, images, strict=True)]


def _intervals(correct: Mapping[str, Bools], rows: Rows) -> dict[str, Interval]:
    """The interval of each mean that the JSON object has, and of which every image is known."""
    complete = {name for name, row in rows.items() if name in correct and None not in row}
    wanted = {
        "mean_accuracy": CORRUPTIONS,
        "mean_accuracy_15": STANDARD,
        "mean_accuracy_evaluated": tuple(rows),
    }
    found = {"clean_accuracy": interval(correct["clean"])} if "clean" in correct else {}
    by_names: dict[frozenset[str], Interval] = {}  # the first and the last are often of the same cells
    for key, names in wanted.items():
        if names and complete.issuperset(names):
            same = frozenset(names)
            if same not in by_names:
                by_names[same] = interval(np.concatenate([correct[name] for name in names]))
            found[key] = by_names[same]
    return found


def _rounded(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(f"{number:.6g}")
