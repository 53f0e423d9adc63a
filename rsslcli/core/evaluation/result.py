"""The result of an evaluation: accuracies, their means, and its output formats."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES, STANDARD, coverage
from rsslcli.core.data.store import Split
from rsslcli.core.errors import UserError, counted
from rsslcli.core.evaluation.adaptation_settings import describe_adaptation
from rsslcli.core.evaluation.bootstrap import Interval
from rsslcli.core.evaluation.confidence import Confidence
from rsslcli.core.evaluation.details import mean_of_all
from rsslcli.core.evaluation.diagnostics import Diagnostics
from rsslcli.core.evaluation.relative import describe_relative
from rsslcli.core.files import replacing

#: A row of the table: its name, and accuracies in [0, 1].
_Row = tuple[str, list[float | None]]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. Accuracies are in [0, 1].

    Attributes:
        clean_accuracy: accuracy on the clean test set.
        clean_images: number of clean images evaluated.
        accuracy: by corruption, accuracies at severities 1 to 5; None for a severity that was not evaluated.
        images: number of source images evaluated in each cell of `accuracy`.
        excluded: indices of the excluded source images: those that tuned λ, here or in a run to compare with,
            or on which a temperature was fitted, and any that the caller excluded.
        about: names and fingerprints of the weights and data.
        notes: what the reader of the numbers should know, one line each.
        confidence: how sure the classifier and the accuracies are; None if that was not measured.
        diagnostics: what goes wrong, for the report; None if that was not measured.
        adapted: the accuracies with adaptation to the images of each cell, and its settings in `about`; None
            unless they were measured.
    """

    clean_accuracy: float
    clean_images: int
    accuracy: dict[str, list[float | None]]
    images: int
    excluded: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    confidence: Confidence | None = None
    diagnostics: Diagnostics | None = field(default=None, compare=False)
    adapted: Evaluation | None = None

    @property
    def mean_accuracy(self) -> float | None:
        """The paper's metric: the mean over all 19 corruptions; None if some were not evaluated."""
        return self.mean(CORRUPTIONS)

    @property
    def mean_accuracy_15(self) -> float | None:
        """The benchmark's usual metric: the mean over its 15 test corruptions; None if one is missing."""
        return self.mean(STANDARD)

    def mean(self, names: Sequence[str]) -> float | None:
        """The mean over these corruptions and all severities; None if a cell was not evaluated."""
        return mean_of_all([cell for name in names for cell in self.accuracy.get(name, [None])])

    def mean_at(self, severity: int, names: Sequence[str] = CORRUPTIONS) -> float | None:
        """The mean over these corruptions at one severity; None if a cell was not evaluated."""
        return mean_of_all(
            [self.accuracy[name][severity - 1] if name in self.accuracy else None for name in names]
        )

    @property
    def coverage(self) -> str:
        """What the mean over the evaluated corruptions covers: "19", or "17 of 19 (missing: snow, fog)"."""
        return coverage(self.accuracy)

    def means(self) -> dict[str, float | None]:
        """The clean accuracy, the mean over the evaluated corruptions, and that over the usual 15 if known.

        The mean over the evaluated corruptions is None if a severity is missing.
        """
        means = {"clean": self.clean_accuracy, f"mean of {self.coverage}": self.mean(tuple(self.accuracy))}
        if self.mean_accuracy_15 is not None:
            means["mean of the usual 15"] = self.mean_accuracy_15
        return means

    @property
    def images_in_words(self) -> str:
        """How many images are evaluated; how many are left out, and what for."""
        clean = f", {self.clean_images} clean ones" if self.clean_images != self.images else ""
        purpose = "tuning λ or calibration" if "calibrated" in self.about else "tuning λ"
        left_out = f", {len(self.excluded)} left out, kept for {purpose}" if self.excluded else ""
        return f"{counted(self.images, 'image')} per cell{clean}{left_out}"

    def intervals(self) -> dict[str, Interval]:
        """The 95 % intervals of the means that are known, by the names in `means`."""
        if self.confidence is None:
            return {}
        keys = ("clean_accuracy", "mean_accuracy_evaluated", "mean_accuracy_15")
        pairs = zip(self.means(), keys, strict=False)
        found = self.confidence.intervals
        return {name: found[key] for name, key in pairs if key in found}

    def rows(self) -> list[_Row]:
        """The rows of a table: clean, each corruption, and the mean over the evaluated ones.

        Each is a name and seven numbers: the accuracies at severities 1 to 5, their mean, and the drop, which
        is the clean accuracy minus that mean. None stands for what was not evaluated.
        """
        names = tuple(self.accuracy)

        def row(name: str, cells: Sequence[float | None], mean: float | None) -> _Row:
            return name, [*cells, mean, None if mean is None else self.clean_accuracy - mean]

        return [
            ("clean", [*[None] * len(SEVERITIES), self.clean_accuracy, None]),
            *(row(name, self.accuracy[name], self.mean([name])) for name in names),
            row(f"mean of {len(names)}", [self.mean_at(s, names) for s in SEVERITIES], self.mean(names)),
        ]

    def rows_adapted(self) -> list[_Row]:
        """The rows of the table of an adapted evaluation: clean, each corruption, and their mean.

        Each is a name and eight numbers: the mean accuracies over the severities without and with adaptation,
        the gain, which is their difference, and the gain at severities 1 to 5.
        """
        adapted = self.adapted or self
        names = tuple(self.accuracy)

        def row(name: str, of: Sequence[str]) -> _Row:
            before, after = self.mean(of), adapted.mean(of)
            gains = [_gain(self.mean_at(s, of), adapted.mean_at(s, of)) for s in SEVERITIES]
            return name, [before, after, _gain(before, after), *gains]

        clean = [self.clean_accuracy, adapted.clean_accuracy]
        return [
            ("clean", [*clean, _gain(*clean), *[None] * len(SEVERITIES)]),
            *(row(name, [name]) for name in names),
            row(f"mean of {len(names)}", names),
        ]

    def _accuracies(self) -> dict[str, Any]:
        """The entries of the JSON object that hold accuracies."""
        return {
            "clean_accuracy": self.clean_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_accuracy_15": self.mean_accuracy_15,
            "mean_accuracy_evaluated": self.mean(tuple(self.accuracy)),
            "mean_accuracy_evaluated_of": self.coverage,
            "accuracy": self.accuracy,
            **({} if self.confidence is None else self.confidence.to_dict()),
        }

    def to_json(self) -> str:
        """Format the evaluation as a JSON object, as `rssl eval-c` writes it."""
        content = {
            **self._accuracies(),
            "images": self.images,
            "clean_images": self.clean_images,
            "excluded": list(self.excluded),
            **self.about,
            "notes": list(self.notes),
        }
        if self.diagnostics is not None:
            content["diagnostics"] = self.diagnostics.to_dict()
        if self.adapted is not None:
            content["adapted"] = {**self.adapted.about, **self.adapted._accuracies()}
        return json.dumps(content, indent=2) + "\n"

    def to_csv(self) -> str:
        """Format one line per cell: corruption,severity,accuracy,images; clean has severity 0.

        An adapted evaluation has a further column, adapted_accuracy.
        """
        cells = [("clean", 0, self.clean_accuracy, self.clean_images)]
        for name, values in self.accuracy.items():
            pairs = zip(SEVERITIES, values, strict=True)
            cells += [(name, s, value, self.images) for s, value in pairs if value is not None]
        lines = [
            ",".join(map(str, cell)) for cell in (("corruption", "severity", "accuracy", "images"), *cells)
        ]
        if self.adapted is not None:
            found = self.adapted
            column = [found.accuracy[name][s - 1] if s else found.clean_accuracy for name, s, *_ in cells]
            lines = [
                f"{line},{value}" for line, value in zip(lines, ["adapted_accuracy", *column], strict=True)
            ]
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """Format a table in percent: a row per corruption, a column per severity, means and drops.

        An adapted evaluation has a second table, of the gains.
        """
        lines = _markdown_table("corruption | 1 | 2 | 3 | 4 | 5 | mean | drop", self.rows())
        lines += ["", *_markdown_means(self)]
        lines.append(f"- {self.images_in_words}")
        if self.about.get("precision", "float32") != "float32":
            lines.append(f"- computed in {self.about['precision']}")
        if "relative_to" in self.about:
            lines.append(f"- {describe_relative(self.about['relative_to'])}")
        lines += [f"- note: {note}" for note in self.notes]
        if self.adapted is not None:
            head = "corruption | unadapted | adapted | gain | at 1 | at 2 | at 3 | at 4 | at 5"
            lines += ["", f"With adaptation ({describe_adaptation(self.adapted.about)}):", ""]
            lines += [*_markdown_table(head, self.rows_adapted()), "", *_markdown_means(self.adapted)]
            if "relative_to" in self.adapted.about:
                lines.append(f"- {describe_relative(self.adapted.about['relative_to'])}")
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> None:
        """Write to `path` atomically, as its suffix says.

        Raises:
            UserError: the name does not end in .json, .csv or .md.
            RsslError: the file cannot be written.
        """
        path = Path(path)
        writers = {".json": self.to_json, ".csv": self.to_csv, ".md": self.to_markdown}
        if path.suffix not in writers:
            raise UserError(f"{path}: the name must end in {', '.join(writers)}")
        text = writers[path.suffix]()
        with replacing(path) as file:
            file.write(text.encode())


#: Number of test images that RobustBench evaluates in each cell.
ROBUSTBENCH_IMAGES = 10_000


def with_robustbench(result: Evaluation) -> Evaluation:
    """Add an entry `robustbench` with the metrics of RobustBench (Croce et al. 2021).

    Its protocol: the 15 corruptions at all 5 severities, the whole test set, the mean of the 75 accuracies.
    `clean_acc` and `corruptions_acc` are in percent, as in its model cards. `corruptions_mce` is the mean
    corruption error, not normalized by another network: for CIFAR, 100 minus `corruptions_acc`.
    """
    mean = result.mean_accuracy_15
    terms = {
        "clean_acc": round(100 * result.clean_accuracy, 2),
        "corruptions_acc": None if mean is None else round(100 * mean, 2),
        "corruptions_mce": None if mean is None else round(100 * (1 - mean), 2),
        "n_examples": result.images,
    }
    return dataclasses.replace(result, about={**result.about, "robustbench": terms})


#: An accuracy is near chance within this fraction of the way from guessing to 1,
_NEAR_CHANCE = 0.1
#: or within this many standard errors of guessing (one-sided, 99.5 %).
_STANDARD_ERRORS = 2.576


def note_on_chance(result: Evaluation, test: Split) -> str | None:
    """A note on the usual causes if the clean accuracy is near chance; otherwise None.

    Chance is the fraction of the most frequent class in `test`. An accuracy is near it if it is at most a
    tenth of the way from there to 1 or, for few images, not significantly higher. It must also be
    significantly below half of the way, since a handful of images proves nothing.
    """
    chance = float(np.bincount(test.labels).max()) / len(test.labels)
    halfway = (1 + chance) / 2

    def margin(accuracy: float) -> float:
        return _STANDARD_ERRORS * math.sqrt(accuracy * (1 - accuracy) / result.clean_images)

    near = min(chance + max(_NEAR_CHANCE * (1 - chance), margin(chance)), halfway - margin(halfway))
    if result.clean_accuracy > near:
        return None
    return (
        f"the clean accuracy, {result.clean_accuracy:.2%}, is near that of guessing, {chance:.2%}. If the "
        "weights are good, they do not fit this evaluation: check how the input is normalized, the order of "
        "the classes, and the architecture, since some variants have the names and shapes of this WideResNet "
        "but compute something else (FixMatch's PyTorch code: LeakyReLU, shortcuts without activation)"
    )


def _markdown_table(head: str, rows: Sequence[_Row]) -> list[str]:
    lines = [f"| {head} |", f"|---{'|--:' * head.count('|')}|"]
    for name, values in rows:
        cells = ["–" if cell is None else f"{100 * cell:.2f}" for cell in values]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _markdown_means(result: Evaluation) -> list[str]:
    intervals = result.intervals()
    lines = []
    for name, mean in result.means().items():
        ends = (
            ""
            if name not in intervals
            else " (95 %: {:.2f} to {:.2f})".format(*(100 * end for end in intervals[name]))
        )
        lines.append(f"- {name}: {'–' if mean is None else f'{100 * mean:.2f} %'}{ends}")
    sureness = result.confidence.describe() if result.confidence else ""
    return [*lines, f"- means over the cells: {sureness}"] if sureness else lines


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
