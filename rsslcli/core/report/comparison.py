"""Group finished runs into studies and compare their rows: which differences exceed the noise.

Imports no torch. Run directories are untrusted: damaged ones are left out, with the reason.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from rsslcli.core.config import WEIGHTING_TITLES, WEIGHTINGS, Config
from rsslcli.core.corruptions.names import CORRUPTIONS, coverage
from rsslcli.core.errors import sanitize
from rsslcli.core.report.conditions import (
    describe_conditions,
    is_mixed,
    unlike_conditions,
    warn_of_conditions,
)
from rsslcli.core.report.runs import Floats, LeftOut, Run, has_effect, paper_method
from rsslcli.core.report.statistics import holm, margin_of_mean, t_probability, t_quantile
from rsslcli.core.tasks.registry import BEST_TASKS, TASKS

#: The names in the paper's Table 1, and its accuracy in percent with that task alone and a fixed λ.
TABLE_1 = {
    "rotation": ("Rotation", 76.37),
    "color": ("Color", 75.06),
    "ir": ("IR", 74.73),
    "bir": ("BIR", 75.84),
    "inpaint": ("Inpaint", 74.69),
    "rgb": ("RGB guess", 74.15),
    "jigsaw": ("Jigsaw", 73.41),
}

#: The four tasks of the paper's section 4.
FOUR = frozenset(BEST_TASKS)
#: The paper's accuracy by tasks and whether λ is tuned. That of the four follows from the error of 21.32 %.
PAPER = {(frozenset({task}), False): accuracy for task, (_, accuracy) in TABLE_1.items()}
PAPER |= {(frozenset(), False): 74.07, (FOUR, True): 78.68}

#: Settings that may differ between rows of a study: those compared on purpose or without effect on results,
#: and those that act only on tasks or only on λ. Runs that differ in any other setting form separate studies.
_OF_ROWS = ("seed", "device", "compile", "tasks", "weighting", "augment", "ema")
_OF_AUGMIX = ("jsd_weight", "tune_jsd")
_OF_TASKS = ("batch_norm", "initial_lambda", "task_options", "task_share")
_OF_AUTOML = (
    "meta_lr", "automl_variants", "meta_batch_size", "lookahead_scale", "warmup_epochs", "validation_images",
    "validation_corruptions",
)  # fmt: skip


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
        """Whether there are two pairs or more, evaluated alike."""
        return len(self.differences) > 1 and not self.unlike

    @property
    def p_value(self) -> float:
        """Of the paired t test that the mean difference is 0; at most 0.05 if the interval excludes zero."""
        if not self.margin:
            return 0.0 if self.mean else 1.0
        degrees = len(self.differences) - 1
        return 1 - t_probability(self.mean / self.margin * t_quantile(degrees), degrees)

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds the noise, as a table shows it."""
        if self.unlike:
            return f"not judged: different {self.unlike}"
        if len(self.differences) < 2:
            return "needs 2 seeds or more" if self.differences else "no common seed"
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
        return None if first.config.tasks or first.config.uses_augmix else first

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

        The others are a row above with the same tasks, rotation alone, and no tasks: of several such rows,
        the one whose settings differ least.
        """
        pairs = []
        for index, row in enumerate(self.rows):
            augmix, tasks = _learned(row)
            alone = [frozenset({"rotation"})] * (len(tasks) > 1) + [frozenset[str]()] * bool(tasks)
            among = [(self.rows[:index], tasks), *((self.rows, learned) for learned in alone)]
            for rows, learned in among:
                alike = [other for other in rows if _learned(other) == (augmix, learned)]
                if alike and (nearest := min(alike, key=partial(_distance, row))) is not self.baseline:
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
        epochs = f"{settings['epochs']} epoch{'s' * (settings['epochs'] != 1)}"
        return f"{sanitize(settings['dataset'])}, {network}, {epochs}, {images}"


def _learned(row: Row) -> tuple[bool, frozenset[str]]:
    """Whether a row trains with AugMix, and its tasks."""
    return row.config.uses_augmix, frozenset(row.config.tasks)


def _distance(row: Row, other: Row) -> int:
    """The number of settings that act on both rows and differ."""
    ours, theirs = (_method(each.config) for each in (row, other))
    return sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())


def _differ(row: Row, other: Row, name: str) -> bool:
    """Whether a setting of a row acts on both rows and differs, of `task_options` those of common tasks."""
    ours, theirs = (_method(each.config) for each in (row, other))
    if name not in theirs or has_effect(row.config) != has_effect(other.config):
        return False
    if name != "task_options":
        return bool(ours[name] != theirs[name])
    common = {*row.config.tasks} & {*other.config.tasks}
    return any(ours[name].get(task) != theirs[name].get(task) for task in common)


def make_studies(runs: Iterable[Run]) -> tuple[list[Study], list[LeftOut]]:
    """Group comparable runs into studies, the largest first; repeated runs are left out."""
    groups: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    left_out = []
    for run in sorted(runs, key=lambda run: run.config.seed):
        seeds = groups[_key([_shared(run), list(run.accuracy)])][_key(_method(run.config))]
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
    made = [Row("", runs, None) for runs in rows]
    for index, row in enumerate(made):
        trained_so = in_paper and has_effect(row.config)
        paper = PAPER.get(key) if trained_so and (key := paper_method(row.config)) else None
        made[index] = replace(row, label=_label(row.config), paper=paper)
    made.sort(key=lambda row: _place(row.config))
    # Settings that are not the defaults are named where the rows on which they act differ in them.
    distinct = []
    for row in made:
        changed = _changed(row.config)
        special = {
            name: changed[name] for name in changed if any(_differ(row, other, name) for other in made)
        }
        label = f"{row.label} ({describe(special)})" if special else row.label
        mixed = is_mixed([*row.runs.values()])
        distinct.append(replace(row, label=f"{label} *" if mixed else label))
    marked = any(row.label.endswith(" *") for row in distinct)
    return Study(
        shared, corruptions, tuple(distinct), (*_ineffective(every), *warn_of_conditions(every, marked))
    )


def _shared(run: Run) -> dict[str, Any]:
    """The settings that must be equal for a meaningful comparison."""
    apart = {*_OF_ROWS, *_OF_AUGMIX, *_OF_TASKS, *_OF_AUTOML}
    shared = {name: value for name, value in run.config.to_dict().items() if name not in apart}
    return shared if run.dataset == run.config.dataset else shared | {"evaluated on": run.dataset}


def _method(config: Config) -> dict[str, Any]:
    """Settings that distinguish rows within a study: the tasks, and what acts on them."""
    names = ["augment", "ema", *(_OF_AUGMIX if config.uses_augmix else ())]
    names += [*(_OF_TASKS if config.tasks else ()), *(_OF_AUTOML if config.automl else ())]
    method: dict[str, Any] = {"tasks": sorted(config.tasks), "weighting": config.weighting}
    method |= {name: getattr(config, name) for name in names}
    if config.tasks:
        options = config.task_options
        method["task_options"] = {task: dict(options[task]) for task in config.tasks if options.get(task)}
    return method


def _changed(config: Config) -> dict[str, Any]:
    """The method's settings that are not the defaults."""
    default = _method(
        replace(
            Config(),
            tasks=config.tasks,
            weighting=config.weighting,
            augment=config.augment,
            tune_jsd=config.tune_jsd,
        )
    )
    return {name: value for name, value in _method(config).items() if value != default[name]}


def departures(study: Study) -> list[list[str]]:
    """The settings that differ from the defaults, the preset `paper`, or between rows.

    Returns:
        For each setting and value: the setting, its value, the default, and the labels of the rows with it.
    """
    default = Config().to_dict()
    found = [
        [name, _words(value), _words(default.get(name, "–")), "all"]
        for name, value in study.settings.items()
        if value != default.get(name)
    ]
    for name in ("augment", *_OF_AUGMIX, "ema", *_OF_TASKS, *_OF_AUTOML, "device", "compile"):
        rows = [row for row in study.rows if any(name in _acting(run.config) for run in row.runs.values())]
        labels: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            for value in dict.fromkeys(_words(_acting(run.config)[name]) for run in row.runs.values()):
                labels[value].append(row.label)
        labels.pop(_words(default[name]), None)
        every = "all with AutoML" if name in _OF_AUTOML else "all with tasks"
        if len(rows) == len(study.rows):
            every = "all"
        for value, having in labels.items():
            which = every if len(having) == len(rows) > 1 else "; ".join(having)
            found.append([name, value, _words(default[name]), which])
    return found


def _acting(config: Config) -> dict[str, Any]:
    """The settings that affect a run and may differ between the rows of a study."""
    return _method(config) | {"device": config.device, "compile": config.compile}


def _words(value: object) -> str:
    """A setting's value as the report shows it."""
    if value is None:  # of train_size
        return "all"
    if isinstance(value, Mapping) and not value:
        return "none"
    text = value if isinstance(value, str) else _key(value).replace('"', "")
    return sanitize(text)


def _label(config: Config) -> str:
    """The method as tables show it: the tasks, and how λ is set."""
    titles = (TABLE_1[task][0] if task in TABLE_1 else task for task in config.tasks)
    known = {frozenset[str](): "Baseline", FOUR: "Four tasks", frozenset(TABLE_1): "Seven tasks"}
    label = known.get(frozenset(config.tasks), " + ".join(titles))
    if config.uses_augmix:
        label = f"AugMix + {label[0].lower()}{label[1:]}" if config.tasks else "AugMix"
    if config.weighting not in ("fixed", "automl") or (config.automl and has_effect(config)):
        what = " of λ and JSD" if config.tasks else " of JSD"
        return f"{label}, {WEIGHTING_TITLES[config.weighting]}{what * config.tune_jsd}"
    label = f"{label}, fixed λ" if len(config.tasks) > 1 else label
    if has_effect(config):
        return label
    return f"{label} (AutoML that never tuned)" if config.automl else f"{label} (λ is 0)"


def _ineffective(runs: Sequence[Run]) -> Iterator[str]:
    """Warnings about runs whose tasks or AutoML had no effect."""
    idle = [run for run in runs if not has_effect(run.config)]
    if names := [run.name for run in idle if run.config.automl]:
        yield f"AutoML changed no λ in {', '.join(names)}: those runs trained with fixed λ."
    if names := [run.name for run in idle if not run.config.automl]:
        yield f"The tasks had no effect in {', '.join(names)}: λ is fixed at 0."


def _place(config: Config) -> tuple[object, ...]:
    """The sort key of a row: the baseline, single tasks in the paper's order, its four tasks, others."""
    order = sorted(list(TASKS).index(task) if task in TASKS else len(TASKS) for task in config.tasks)
    several = len(order) > 1
    changed = _changed(config)
    return (
        config.uses_augmix, several, several and set(config.tasks) != FOUR, order,
        list(WEIGHTINGS).index(config.weighting), len(changed), _key(changed),
    )  # fmt: skip


def _key(value: object) -> str:
    """A value as canonical JSON, to group and sort by."""
    return json.dumps(value, sort_keys=True, default=str)


def describe(settings: Mapping[str, Any]) -> str:
    """Settings on one line: "batch_norm joint, rotation.views 1"."""

    def words(name: str, value: Any) -> str:
        if (name, value) == ("validation_corruptions", "extra"):
            return "λ tuned on the extra four"
        if name == "task_options":
            of_tasks = [(task, *each) for task, options in value.items() for each in options.items()]
            return sanitize(", ".join(f"{task}.{option} {number}" for task, option, number in of_tasks))
        if name == "automl_variants":
            return " and ".join(value)
        return f"{name} {sanitize(value)}"

    return ", ".join(words(name, value) for name, value in settings.items())
