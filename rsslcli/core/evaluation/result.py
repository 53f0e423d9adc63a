"""The result of an evaluation: accuracies, their means, and the forms in which it is written."""

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
from rsslcli.core.files import replacing

#: A row of the table: its name, and fractions of 1.
_Row = tuple[str, list[float | None]]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Accuracies are fractions of 1.

    Attributes:
        clean_accuracy: on the clean test set.
        clean_images: how many clean images that is.
        accuracy: by corruption, at severity 1 to 5; None where a severity was not evaluated.
        images: source images evaluated in each cell of `accuracy`.
        excluded: indices of the source images left out: those that tuned λ, here or in a run to compare with.
        about: what was evaluated on what: names and fingerprints.
        notes: what a person should know beside the numbers, a line each.
    """

    clean_accuracy: float
    clean_images: int
    accuracy: dict[str, list[float | None]]
    images: int
    excluded: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def mean_accuracy(self) -> float | None:
        """The paper's number: the mean over all 19 corruptions; None where some were not evaluated."""
        return self.mean(CORRUPTIONS)

    @property
    def mean_accuracy_15(self) -> float | None:
        """The benchmark's usual number: the mean over its 15 test corruptions; None where one is missing."""
        return self.mean(STANDARD)

    def mean(self, names: Sequence[str]) -> float | None:
        """The mean over these corruptions and all severities; None where one was not evaluated."""
        return _mean([cell for name in names for cell in self.accuracy.get(name, [None])])

    def mean_at(self, severity: int, names: Sequence[str] = CORRUPTIONS) -> float | None:
        """The mean over these corruptions at one severity; None where one was not evaluated there."""
        return _mean([self.accuracy[name][severity - 1] if name in self.accuracy else None for name in names])

    @property
    def coverage(self) -> str:
        """What the mean over the evaluated corruptions covers: "19", or "17 of 19 (missing: snow, fog)"."""
        return coverage(self.accuracy)

    def means(self) -> dict[str, float | None]:
        """By its name: the clean accuracy, the mean over what was evaluated, that of the usual 15 if known.

        The mean over what was evaluated is None where a severity was not.
        """
        means = {"clean": self.clean_accuracy, f"mean of {self.coverage}": self.mean(tuple(self.accuracy))}
        return (
            means
            if self.mean_accuracy_15 is None
            else means | {"mean of the usual 15": self.mean_accuracy_15}
        )

    def rows(self) -> list[_Row]:
        """The rows of a table: clean, each corruption, the mean over those that were evaluated.

        Each is a name and seven fractions of 1: the accuracy at severity 1 to 5, their mean, and the drop,
        which is the clean accuracy minus that mean. None stands for what was not evaluated.
        """
        names = tuple(self.accuracy)

        def row(name: str, cells: Sequence[float | None], mean: float | None) -> _Row:
            return name, [*cells, mean, None if mean is None else self.clean_accuracy - mean]

        return [
            ("clean", [*[None] * len(SEVERITIES), self.clean_accuracy, None]),
            *(row(name, self.accuracy[name], self.mean([name])) for name in names),
            row(f"mean of {len(names)}", [self.mean_at(s, names) for s in SEVERITIES], self.mean(names)),
        ]

    def to_json(self) -> str:
        """The evaluation as a JSON object, as `eval-c` writes it."""
        content = {
            "clean_accuracy": self.clean_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_accuracy_15": self.mean_accuracy_15,
            "mean_accuracy_evaluated": self.mean(tuple(self.accuracy)),
            "mean_accuracy_evaluated_of": self.coverage,
            "accuracy": self.accuracy,
            "images": self.images,
            "clean_images": self.clean_images,
            "excluded": list(self.excluded),
            **self.about,
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=2) + "\n"

    def to_csv(self) -> str:
        """A line per corruption and severity: corruption,severity,accuracy,images; clean is severity 0."""
        lines = ["corruption,severity,accuracy,images", f"clean,0,{self.clean_accuracy},{self.clean_images}"]
        for name, values in self.accuracy.items():
            cells = zip(SEVERITIES, values, strict=True)
            lines += [f"{name},{s},{value},{self.images}" for s, value in cells if value is not None]
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """A table in percent: clean and a row per corruption, a column per severity, means and drops."""
        lines = ["| corruption | 1 | 2 | 3 | 4 | 5 | mean | drop |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
        for name, values in self.rows():
            cells = ["–" if cell is None else f"{100 * cell:.2f}" for cell in values]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        named = self.means().items()
        lines += [
            "",
            *(f"- {name}: {'–' if mean is None else f'{100 * mean:.2f} %'}" for name, mean in named),
        ]
        clean = f", {self.clean_images} clean ones" if self.clean_images != self.images else ""
        lines.append(
            f"- {self.images} images per cell{clean}, {len(self.excluded)} left out, kept for tuning λ"
        )
        if self.about.get("precision", "float32") != "float32":
            lines.append(f"- computed in {self.about['precision']}")
        lines += [f"- note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> None:
        """Write to `path`, whole or not at all: CSV or Markdown if it ends in .csv or .md, else JSON."""
        path = Path(path)
        text = {".csv": self.to_csv, ".md": self.to_markdown}.get(path.suffix, self.to_json)()
        with replacing(path) as file:
            file.write(text.encode())


#: Test images that RobustBench evaluates in each cell.
ROBUSTBENCH_IMAGES = 10_000


def with_robustbench(result: Evaluation) -> Evaluation:
    """`result` with an entry `robustbench` that says it in RobustBench's terms (Croce et al. 2021).

    Its protocol: the 15 corruptions at all 5 severities, the whole test set, the mean of the 75 accuracies.
    `clean_acc` and `corruptions_acc` are in percent, as in its model cards; `corruptions_mce` is the mean
    corruption error, not normalized by another network, which for CIFAR is 100 minus the latter.
    """
    mean = result.mean_accuracy_15
    terms = {
        "clean_acc": round(100 * result.clean_accuracy, 2),
        "corruptions_acc": None if mean is None else round(100 * mean, 2),
        "corruptions_mce": None if mean is None else round(100 * (1 - mean), 2),
        "n_examples": result.images,
    }
    return dataclasses.replace(result, about={**result.about, "robustbench": terms})


#: An accuracy within this share of the way from guessing to 1 is near chance, and so is one that so many
#: standard errors do not tell from guessing (one-sided, 99.5 %).
_NEAR_CHANCE = 0.1


_STANDARD_ERRORS = 2.576


def note_on_chance(result: Evaluation, test: Split) -> str | None:
    """A note where the clean accuracy is near chance, which says what is usually wrong; None elsewhere.

    Chance is the share of the most frequent class of `test`. An accuracy is near it if it is at most a tenth
    of the way from there to 1, or, of few images, not significantly higher. It is also significantly below
    half of the way: a handful of images says nothing.
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


def _mean(cells: Sequence[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return float(np.mean(known)) if known and len(known) == len(cells) else None
