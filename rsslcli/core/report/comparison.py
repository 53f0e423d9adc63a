"""Finished runs read back as studies: what they measured, and which differences exceed the noise.

Imports no torch. Run directories are read as untrusted files: what is damaged is left out, with the reason.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS, coverage
from rsslcli.core.errors import sanitize
from rsslcli.core.report.conditions import (
    describe_conditions,
    is_mixed,
    unlike_conditions,
    warn_of_conditions,
)
from rsslcli.core.report.runs import Floats, LeftOut, Run, has_effect
from rsslcli.core.tasks.registry import BEST_TASKS, TASKS

#: The names of the paper's Table 1, and its accuracy in per cent with that task alone at a fixed λ.
TABLE_1 = {
    "rotation": ("Rotation", 76.37),
    "color": ("Color", 75.06),
    "ir": ("IR", 74.73),
    "bir": ("BIR", 75.84),
    "inpaint": ("Inpaint", 74.69),
    "rgb": ("RGB guess", 74.15),
    "jigsaw": ("Jigsaw", 73.41),
}


#: The four tasks of its section 4.
FOUR = frozenset(BEST_TASKS)


#: The paper's accuracy by tasks and whether λ is tuned. That of the four is from the error of 21.32 %.
PAPER = {(frozenset({task}), False): accuracy for task, (_, accuracy) in TABLE_1.items()}


PAPER |= {(frozenset(), False): 74.07, (FOUR, True): 78.68}


#: Settings that are compared on purpose or change no result, and those that act only on tasks and on λ:
#: they tell rows of a study apart. Any other setting tells studies apart.
_OF_ROWS = ("seed", "device", "compile", "tasks", "automl")


_OF_TASKS = ("batch_norm", "initial_lambda", "task_options")


_OF_AUTOML = (
    "meta_lr", "meta_batch_size", "lookahead_scale", "warmup_epochs", "validation_images",
    "validation_corruptions",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One row against another: the paired differences, one for each seed that both have.

    Attributes:
        differences: of the mean corrupted accuracies, fractions of 1.
        unlike: how the evaluations of a pair differ, such as "images"; empty where all pairs are alike.
    """

    differences: tuple[float, ...]
    unlike: str = ""

    @property
    def mean(self) -> float:
        """The mean difference; NaN where there is none."""
        return float(np.mean(self.differences)) if self.differences else math.nan

    @property
    def margin(self) -> float:
        """Half of the 95 % confidence interval of the mean, by Student's t; NaN for fewer than two pairs."""
        n = len(self.differences)
        return (
            t_quantile(n - 1) * float(np.std(self.differences, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        )

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds the noise, in words."""
        if self.unlike:
            return f"not judged: different {self.unlike}"
        if len(self.differences) < 2:
            return "one seed: not judged" if self.differences else "no common seed"
        if abs(self.mean) <= self.margin:
            return "no"
        return "yes, better" if self.mean > 0 else "yes, worse"


@dataclass(frozen=True)
class Row:
    """The runs of one method, which differ in the seed alone.

    Attributes:
        label: what was trained, as the tables say it; ends in * where the runs were not evaluated alike.
        runs: by seed.
        paper: the paper's accuracy in per cent, where it gives one.
    """

    label: str
    runs: Mapping[int, Run]
    paper: float | None

    @property
    def config(self) -> Config:
        """The configuration, of any of its seeds."""
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
        """This row's runs with another's of the same seed."""
        return [(run, other.runs[seed]) for seed, run in self.runs.items() if seed in other.runs]

    def minus(self, other: Row) -> Comparison:
        """This row's mean corrupted accuracy compared with another's."""
        pairs = self.pairs(other)
        return Comparison(tuple(own.mean() - its.mean() for own, its in pairs), unlike_conditions(pairs))


@dataclass(frozen=True)
class Study:
    """Runs that can be compared: every setting that acts on all of them is the same.

    Attributes:
        settings: those, by name.
        corruptions: which ones the runs were evaluated on.
        rows: the baseline first, then as in the paper's Table 1, then the rest.
        warnings: what spoils the comparison, in a sentence each.
    """

    settings: Mapping[str, Any]
    corruptions: tuple[str, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def baseline(self) -> Row | None:
        """The row without tasks."""
        return None if self.rows[0].config.tasks else self.rows[0]

    @property
    def runs(self) -> list[Run]:
        """The runs of all rows."""
        return [run for row in self.rows for run in row.runs.values()]

    @property
    def over(self) -> str:
        """What a mean accuracy is taken over: "the 19 corruptions", "18 of 19 corruptions (missing: fog)"."""
        whole = self.corruptions == CORRUPTIONS
        return "the 19 corruptions" if whole else coverage(self.corruptions).replace(" (", " corruptions (")

    @property
    def conditions(self) -> str:
        """On which corrupted images the runs were evaluated, how many, and in which precision."""
        return describe_conditions(self.runs)

    @property
    def title(self) -> str:
        """Data set and size, in a few words."""
        of = self.settings
        images = (
            "all training images" if of["train_size"] is None else f"{of['train_size']:,} training images"
        )
        network = f"WRN-{of['depth']}-{of['width']}"
        epochs = f"{of['epochs']} epoch{'s' * (of['epochs'] != 1)}"
        return f"{sanitize(of['dataset'])}, {network}, {epochs}, {images}"


def make_studies(runs: Iterable[Run]) -> tuple[list[Study], list[LeftOut]]:
    """Put runs that can be compared together, the largest study first, and leave repetitions out."""
    groups: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    left_out = []
    for run in sorted(runs, key=lambda run: run.config.seed):
        seeds = groups[_key([_shared(run), list(run.accuracy)])][_key(_method(run.config))]
        if run.config.seed in seeds:
            first = seeds[run.config.seed].name
            left_out.append(LeftOut(run.directory, f"the same configuration and seed as {first}"))
        seeds.setdefault(run.config.seed, run)
    studies = [_make_study(list(rows.values())) for rows in groups.values()]
    return sorted(studies, key=lambda study: -sum(len(row.runs) for row in study.rows)), left_out


def _make_study(rows: Sequence[Mapping[int, Run]]) -> Study:
    every = [run for runs in rows for run in runs.values()]
    shared, corruptions = _shared(every[0]), tuple(every[0].accuracy)
    in_paper = (every[0].config.dataset, every[0].dataset, corruptions) == ("cifar10", "cifar10", CORRUPTIONS)
    made = [Row("", runs, None) for runs in rows]
    for index, row in enumerate(made):
        trained_so = in_paper and has_effect(row.config)
        paper = PAPER.get((frozenset(row.config.tasks), row.config.automl)) if trained_so else None
        made[index] = replace(row, label=_label(row.config), paper=paper)
    made.sort(key=lambda row: _place(row.config))
    # Rows that read alike are told apart by what is not the default about them.
    distinct = []
    for row in made:
        alike = [_method(other.config) for other in made if other.label == row.label]
        own = {k: v for k, v in _changed(row.config).items() if any(other[k] != v for other in alike)}
        label = f"{row.label} ({describe(own)})" if own else row.label
        mixed = is_mixed([*row.runs.values()])
        distinct.append(replace(row, label=f"{label} *" if mixed else label))
    marked = any(row.label.endswith(" *") for row in distinct)
    return Study(
        shared, corruptions, tuple(distinct), (*_ineffective(every), *warn_of_conditions(every, marked))
    )


def _shared(run: Run) -> dict[str, Any]:
    """The settings that must be the same for a comparison to mean anything."""
    apart = {*_OF_ROWS, *_OF_TASKS, *_OF_AUTOML}
    shared = {name: value for name, value in run.config.to_dict().items() if name not in apart}
    return shared if run.dataset == run.config.dataset else shared | {"evaluated on": run.dataset}


def _method(config: Config) -> dict[str, Any]:
    """What makes runs of a study one row: the tasks, and the settings that act on them."""
    names = (*(_OF_TASKS if config.tasks else ()), *(_OF_AUTOML if config.automl else ()))
    method = {"tasks": sorted(config.tasks), "automl": config.automl}
    method |= {name: getattr(config, name) for name in names}
    if config.tasks:
        options = config.task_options
        method["task_options"] = {task: dict(options[task]) for task in config.tasks if options.get(task)}
    return method


def _changed(config: Config) -> dict[str, Any]:
    """The settings of the method that are not the defaults."""
    default = _method(replace(Config(), tasks=config.tasks, automl=config.automl))
    return {name: value for name, value in _method(config).items() if value != default[name]}


def departures(study: Study) -> list[list[str]]:
    """The settings that differ from the defaults, the preset `paper`, or between rows.

    Returns:
        Per setting and value: the setting, its value, the default, and the labels of the rows that have it.
    """
    default = Config().to_dict()
    found = [
        [name, _words(value), _words(default.get(name, "–")), "all"]
        for name, value in study.settings.items()
        if value != default.get(name)
    ]
    for name in (*_OF_TASKS, *_OF_AUTOML, "device", "compile"):
        rows = [row for row in study.rows if any(name in _acting(run.config) for run in row.runs.values())]
        labels: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            for value in dict.fromkeys(_words(_acting(run.config)[name]) for run in row.runs.values()):
                labels[value].append(row.label)
        labels.pop(_words(default[name]), None)
        every = (
            "all"
            if len(rows) == len(study.rows)
            else "all with AutoML"
            if name in _OF_AUTOML
            else "all with tasks"
        )
        for value, of in labels.items():
            which = every if len(of) == len(rows) > 1 else "; ".join(of)
            found.append([name, value, _words(default[name]), which])
    return found


def _acting(config: Config) -> dict[str, Any]:
    """The settings that act in a run and may differ between the rows of a study."""
    return _method(config) | {"device": config.device, "compile": config.compile}


def _words(value: object) -> str:
    """A setting's value as the report shows it."""
    if value is None:  # the size of a subset
        return "all"
    if isinstance(value, Mapping) and not value:
        return "none"
    text = value if isinstance(value, str) else _key(value).replace('"', "")
    return sanitize(text)


def _label(config: Config) -> str:
    titles = (TABLE_1[task][0] if task in TABLE_1 else task for task in config.tasks)
    known = {frozenset[str](): "Baseline", FOUR: "Four tasks", frozenset(TABLE_1): "Seven tasks"}
    label = known.get(frozenset(config.tasks)) or " + ".join(titles)
    if config.automl and has_effect(config):
        return f"{label}, AutoML"
    label = f"{label}, fixed λ" if len(config.tasks) > 1 else label
    if has_effect(config):
        return label
    return f"{label} (AutoML that never tuned)" if config.automl else f"{label} (λ is 0)"


def _ineffective(runs: Sequence[Run]) -> Iterator[str]:
    """Say which runs did not train what their settings name."""
    idle = [run for run in runs if not has_effect(run.config)]
    if names := [run.name for run in idle if run.config.automl]:
        yield f"AutoML changed no λ in {', '.join(names)}: those runs trained with fixed λ."
    if names := [run.name for run in idle if not run.config.automl]:
        yield f"The tasks had no effect in {', '.join(names)}: λ is fixed at 0."


def _place(config: Config) -> tuple[object, ...]:
    """Where a row stands: the baseline, single tasks in the paper's order, its four, others."""
    order = sorted(list(TASKS).index(task) if task in TASKS else len(TASKS) for task in config.tasks)
    several = len(order) > 1
    changed = _changed(config)
    return several, several and set(config.tasks) != FOUR, order, config.automl, len(changed), _key(changed)


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def describe(settings: Mapping[str, Any]) -> str:
    """Settings in a line: "batch_norm joint, lr 0.2"."""
    words = {k: _key(v).replace('"', "") if isinstance(v, Mapping) else v for k, v in settings.items()}
    return ", ".join(f"{name} {sanitize(value)}" for name, value in words.items())


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t for which Student's distribution holds `confidence` between −t and t, to double precision.

    For a whole number of degrees of freedom, 1 or more, the integral is a finite sum (Abramowitz and Stegun,
    26.7.3 and 26.7.4). It is inverted by bisection over θ, where t = √degrees · tan θ.
    """

    def inside(theta: float) -> float:
        total, term = 0.0, math.cos(theta) if degrees % 2 else 1.0
        for k in range(2 + degrees % 2, degrees + 1, 2):
            total += term
            term *= (k - 1) / k * math.cos(theta) ** 2
        total *= math.sin(theta)
        return 2 / math.pi * (theta + total) if degrees % 2 else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)
