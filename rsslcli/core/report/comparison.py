"""Group finished runs into studies and compare their rows: which differences exceed the noise.

Imports no torch. Run directories are untrusted: damaged ones are left out, with the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS, coverage
from rsslcli.core.errors import counted, sanitize
from rsslcli.core.report.conditions import (
    describe_conditions,
    is_mixed,
    unlike_conditions,
    warn_of_conditions,
)
from rsslcli.core.report.methods import (
    FOUR,
    canonical,
    changed_settings,
    describe,
    differs_in,
    distance,
    has_effect,
    method_label,
    method_settings,
    paper_accuracy,
    place_of,
    shared_settings,
)
from rsslcli.core.report.runs import Floats, LeftOut, Run
from rsslcli.core.report.statistics import holm, margin_of_mean, t_probability, t_quantile


@dataclass(frozen=True)
class Comparison:
    """The paired differences between two rows, one for each seed that both have."""

    differences: tuple[float, ...]  #: of the mean corrupted accuracies, fractions of 1
    unlike: str = ""  #: how the evaluations of pairs differ, such as "images"; empty if they do not
    #: the p-value after Holm's correction for the other comparisons of its table; None if not corrected
    adjusted: float | None = None

    @property
    def mean(self) -> float:
        """The mean difference; NaN without a common seed."""
        return float(np.mean(self.differences)) if self.differences else math.nan

    @property
    def margin(self) -> float:
        """Half the width of the 95 % confidence interval, by Student's t; NaN for fewer than two pairs."""
        return margin_of_mean(self.differences)

    @property
    def is_judged(self) -> bool:
        """Whether there are two pairs or more, evaluated alike, whose differences show any noise."""
        return len(self.differences) > 1 and not self.unlike and not self.is_even

    @property
    def is_even(self) -> bool:
        """Whether all seeds have the same difference: by chance, so that it says nothing of the noise."""
        return len(self.differences) > 1 and np.ptp(self.differences) < 1e-9 < abs(self.mean)

    @property
    def p_value(self) -> float:
        """The p-value of the paired t test for a zero mean; at most 0.05 if the interval excludes zero."""
        if not self.margin:
            return 1.0
        degrees = len(self.differences) - 1
        return 1 - t_probability(self.mean / self.margin * t_quantile(degrees), degrees)

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds the noise, as a table shows it."""
        if self.unlike:
            return f"not judged: different {self.unlike}"
        if len(self.differences) < 2:
            return "needs 2 seeds or more" if self.differences else "no common seed"
        if self.is_even:
            return "needs more seeds"
        if abs(self.mean) <= self.margin:
            return "no"
        if self.adjusted is not None and self.adjusted > _ALPHA:
            return "not after correction"
        return "yes, better" if self.mean > 0 else "yes, worse"


#: The probability of an error that verdicts allow.
_ALPHA = 0.05


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, those that are judged corrected for each other by Holm's method."""
    adjusted = iter(holm([each.p_value for each in comparisons if each.is_judged]))
    return [replace(each, adjusted=next(adjusted)) if each.is_judged else each for each in comparisons]


@dataclass(frozen=True)
class Row:
    """The runs of one method, which differ only in the seed."""

    label: str  #: the method as tables show it; ends in * if the runs were evaluated differently
    runs: Mapping[int, Run]  #: by seed
    paper: float | None  #: the paper's accuracy in percent, if it gives one

    @property
    def config(self) -> Config:
        """The settings of its first run; the others differ only in the seed."""
        return next(iter(self.runs.values())).config

    @property
    def means(self) -> Floats:
        """The mean corrupted accuracy of each run, (seeds,)."""
        return np.array([run.mean() for run in self.runs.values()])

    def cells(self, corruption: str) -> Floats:
        """The accuracy under a corruption, averaged over the seeds, (5,)."""
        mean: Floats = np.mean([run.accuracy[corruption] for run in self.runs.values()], axis=0)
        return mean

    def pairs(self, other: Row) -> list[tuple[Run, Run]]:
        """The runs of this row paired with those of the other row, by seed."""
        return [(run, other.runs[seed]) for seed, run in self.runs.items() if seed in other.runs]

    def minus(self, other: Row) -> Comparison:
        """The difference in mean corrupted accuracy, this row minus the other."""
        pairs = self.pairs(other)
        return Comparison(
            tuple(mine.mean() - theirs.mean() for mine, theirs in pairs), unlike_conditions(pairs)
        )


@dataclass(frozen=True)
class Study:
    """Runs that can be compared: they agree in every setting that affects all of them."""

    settings: Mapping[str, Any]  #: the settings that they share, by name
    corruptions: tuple[str, ...]  #: the corruptions that they were evaluated on
    rows: tuple[Row, ...]  #: the baseline first, then in the order of the paper's Table 1, then the rest
    warnings: tuple[str, ...]  #: what limits the comparison, one sentence each

    @property
    def baseline(self) -> Row | None:
        """The row without tasks and without AugMix."""
        first = self.rows[0]
        return first if first.config.is_baseline else None

    @property
    def against_baseline(self) -> list[tuple[Row, Comparison]]:
        """The other rows, each with its difference to the baseline; those are corrected for each other.

        Empty without a baseline.
        """
        base = self.baseline
        if base is None:
            return []
        found = corrected([row.minus(base) for row in self.rows[1:]])
        return list(zip(self.rows[1:], found, strict=True))

    @property
    def what_is_added(self) -> list[tuple[Row, Row, Comparison]]:
        """Rows minus others with the same augmentation, corrected for each other.

        Each row is compared with a row above that has the same tasks, with one that has the four tasks alone,
        with one that has rotation alone, and with one without tasks. Of several such rows, the one whose
        settings differ least is taken.
        """
        pairs = []
        for index, row in enumerate(self.rows):
            augmix, tasks = _learned(row)
            among = [(self.rows[:index], tasks)]
            if tasks > FOUR:
                among.append((self.rows, FOUR))
            if len(tasks) > 1:
                among.append((self.rows, frozenset({"rotation"})))
            if tasks:
                among.append((self.rows, frozenset()))
            for rows, learned in among:
                alike = [other for other in rows if _learned(other) == (augmix, learned)]
                nearest = min(alike, key=lambda other: distance(row.config, other.config), default=None)
                if nearest is not None and nearest is not self.baseline:
                    pairs.append((row, nearest))
        found = corrected([row.minus(other) for row, other in pairs])
        return [(row, other, each) for (row, other), each in zip(pairs, found, strict=True)]

    @property
    def runs(self) -> list[Run]:
        """The runs of all rows."""
        return [run for row in self.rows for run in row.runs.values()]

    @property
    def over(self) -> str:
        """What mean accuracies cover: "the 19 corruptions", "18 of 19 corruptions (missing: fog)"."""
        whole = self.corruptions == CORRUPTIONS
        return "the 19 corruptions" if whole else coverage(self.corruptions).replace(" (", " corruptions (")

    @property
    def conditions(self) -> str:
        """Which corrupted images the runs were evaluated on, how many, and in which precision."""
        return describe_conditions(self.runs)

    @property
    def title(self) -> str:
        """Data set, network, epochs and training images, as a heading."""
        settings = self.settings
        images = (
            "all training images"
            if settings["train_size"] is None
            else f"{settings['train_size']:,} training images"
        )
        network = sanitize(self.runs[0].config.network_title)
        epochs = counted(settings["epochs"], "epoch")
        return f"{sanitize(settings['dataset'])}, {network}, {epochs}, {images}"


def _learned(row: Row) -> tuple[bool, frozenset[str]]:
    """Whether a row trains with AugMix, and its tasks."""
    return row.config.uses_augmix, frozenset(row.config.tasks)


def make_studies(runs: Iterable[Run]) -> tuple[list[Study], list[LeftOut]]:
    """Group comparable runs into studies, the largest first; repeated runs are left out."""
    groups: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    left_out = []
    for run in sorted(runs, key=lambda run: run.config.seed):
        seeds = groups[canonical([_shared(run), list(run.accuracy)])][canonical(method_settings(run.config))]
        if run.config.seed in seeds:
            first = sanitize(seeds[run.config.seed].directory)
            left_out.append(LeftOut(run.directory, f"has the same configuration and seed as {first}"))
        seeds.setdefault(run.config.seed, run)
    studies = [_make_study(list(rows.values())) for rows in groups.values()]
    return sorted(studies, key=lambda study: -sum(len(row.runs) for row in study.rows)), left_out


def _make_study(rows: Sequence[Mapping[int, Run]]) -> Study:
    """A study of rows, each given as runs by seed: label the rows, order them and collect warnings."""
    every = [run for runs in rows for run in runs.values()]
    shared = _shared(every[0])
    corruptions = tuple(every[0].accuracy)
    in_paper = (every[0].config.dataset, every[0].dataset, corruptions) == ("cifar10", "cifar10", CORRUPTIONS)
    configs = [next(iter(runs.values())).config for runs in rows]
    made = [
        Row(
            _name(config, configs) + " *" * is_mixed([*runs.values()]),
            runs,
            paper_accuracy(config) if in_paper else None,
        )
        for config, runs in zip(configs, rows, strict=True)
    ]
    made.sort(key=lambda row: place_of(row.config))
    marked = any(row.label.endswith(" *") for row in made)
    return Study(shared, corruptions, tuple(made), (*_ineffective(every), *warn_of_conditions(every, marked)))


def _name(config: Config, others: Sequence[Config]) -> str:
    """A method, with those of its settings that are not the defaults and in which other methods differ."""
    special = {
        name: value
        for name, value in changed_settings(config).items()
        if any(differs_in(name, config, other) for other in others)
    }
    return f"{method_label(config)} ({describe(special)})" if special else method_label(config)


def _shared(run: Run) -> dict[str, Any]:
    """What must be equal for a meaningful comparison: settings, and the data set of the evaluation."""
    shared = shared_settings(run.config)
    return shared if run.dataset == run.config.dataset else shared | {"evaluated on": run.dataset}


def _ineffective(runs: Sequence[Run]) -> Iterator[str]:
    """Warnings about runs whose tasks or AutoML had no effect."""
    idle = [run for run in runs if not has_effect(run.config)]
    if names := [run.name for run in idle if run.config.automl]:
        yield f"AutoML changed no λ in {', '.join(names)}: those runs trained with fixed λ."
    if names := [run.name for run in idle if not run.config.automl]:
        yield f"The tasks had no effect in {', '.join(names)}: λ is fixed at 0."
