"""What makes a training method in a report: its settings, its name, and its place among the others.

The runs of one row have the same method, and differ only in the seed. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rsslcli.core.config import WEIGHTING_TITLES, WEIGHTINGS, Config
from rsslcli.core.errors import sanitize
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

#: Settings that may differ between rows of a study: those that act on every run, on AugMix, on tasks or on λ
#: alone, and those without effect on results. Runs that differ in any other setting form separate studies.
OF_ALL = ("augment", "ema")
OF_AUGMIX = ("jsd_weight", "tune_jsd")
OF_TASKS = ("batch_norm", "initial_lambda", "task_options", "task_share")
OF_AUTOML = (
    "meta_lr", "automl_variants", "meta_batch_size", "lookahead_scale", "warmup_epochs", "validation_images",
    "validation_corruptions",
)  # fmt: skip
WITHOUT_EFFECT = ("device", "compile")


def shared_settings(config: Config) -> dict[str, Any]:
    """The settings that must be equal for a meaningful comparison."""
    apart = {"seed", "tasks", "weighting", *OF_ALL, *OF_AUGMIX, *OF_TASKS, *OF_AUTOML, *WITHOUT_EFFECT}
    return {name: value for name, value in config.to_dict().items() if name not in apart}


def method_settings(config: Config) -> dict[str, Any]:
    """Settings that distinguish rows within a study: the tasks, and what acts on them."""
    names = [*OF_ALL, *(OF_AUGMIX if config.uses_augmix else ())]
    names += [*(OF_TASKS if config.tasks else ()), *(OF_AUTOML if config.automl else ())]
    method: dict[str, Any] = {"tasks": sorted(config.tasks), "weighting": config.weighting}
    method |= {name: getattr(config, name) for name in names}
    if config.tasks:
        options = config.task_options
        method["task_options"] = {
            task: {name: value if isinstance(value, bool) else float(value) for name, value in given.items()}
            for task in config.tasks
            if (given := options.get(task))
        }
    return method


def changed_settings(config: Config) -> dict[str, Any]:
    """The method's settings that are not the defaults."""
    default = method_settings(
        replace(
            Config(),
            tasks=config.tasks,
            weighting=config.weighting,
            augment=config.augment,
            tune_jsd=config.tune_jsd,
        )
    )
    return {name: value for name, value in method_settings(config).items() if value != default[name]}


def acting_settings(config: Config) -> dict[str, Any]:
    """The settings that affect a run and may differ between the rows of a study."""
    return method_settings(config) | {name: getattr(config, name) for name in WITHOUT_EFFECT}


def differs_in(name: str, ours: Config, theirs: Config) -> bool:
    """Whether a setting acts on both methods and differs; of `task_options`, only common tasks count."""
    mine, others = method_settings(ours), method_settings(theirs)
    if name not in others or has_effect(ours) != has_effect(theirs):
        return False
    if name != "task_options":
        return bool(mine[name] != others[name])
    common = {*ours.tasks} & {*theirs.tasks}
    return any(mine[name].get(task) != others[name].get(task) for task in common)


def distance(ours: Config, theirs: Config) -> int:
    """The number of settings that act on the runs of both methods and differ."""
    mine, others = method_settings(ours), method_settings(theirs)
    return sum(mine[name] != others[name] for name in mine.keys() & others.keys())


def has_effect(config: Config) -> bool:
    """Whether AutoML tuned λ in this run, or its tasks had a weight above 0; true for the baseline.

    Training refuses settings without effect, but runs of older versions may have them.
    """
    return not (config.untuned or config.stays_at_0)


def paper_method(config: Config) -> tuple[frozenset[str], bool] | None:
    """The tasks, and whether λ is tuned, if the paper has such a method; else None."""
    beyond = config.uses_augmix or config.ema or config.automl_variants
    beyond = beyond or config.weighting not in ("fixed", "automl")
    beyond = beyond or (config.automl and config.validation_corruptions != "all")
    beyond = beyond or (bool(config.tasks) and (config.task_share < 1 or config.initial_lambda != 0.5))
    return None if beyond else (frozenset(config.tasks), config.automl)


def paper_accuracy(config: Config) -> float | None:
    """The paper's accuracy of a method in percent, if the paper has it and its tasks or AutoML had effect."""
    method = paper_method(config) if has_effect(config) else None
    return None if method is None else PAPER.get(method)


def method_label(config: Config) -> str:
    """The method as tables show it: the tasks, and how λ is set."""
    titles = (TABLE_1[task][0] if task in TABLE_1 else task for task in config.tasks)
    known = {frozenset[str](): "Baseline", FOUR: "Four tasks", frozenset(TABLE_1): "Seven tasks"}
    label = known.get(frozenset(config.tasks), " + ".join(titles))
    if config.uses_augmix:
        # "rotation", but "IR"
        label = label if label[:2].isupper() else label[0].lower() + label[1:]
        label = f"AugMix + {label}" if config.tasks else "AugMix"
    if config.weighting not in ("fixed", "automl") or (config.automl and has_effect(config)):
        what = " of λ and JSD" if config.tasks else " of JSD"
        return f"{label}, {WEIGHTING_TITLES[config.weighting]}{what * config.tune_jsd}"
    label = f"{label}, fixed λ" if len(config.tasks) > 1 else label
    if has_effect(config):
        return label
    return f"{label} (AutoML that never tuned)" if config.automl else f"{label} (λ is 0)"


def place_of(config: Config) -> tuple[object, ...]:
    """The sort key of a row: the baseline, single tasks in the paper's order, its four tasks, others."""
    order = sorted(list(TASKS).index(task) if task in TASKS else len(TASKS) for task in config.tasks)
    several = len(order) > 1
    changed = changed_settings(config)
    return (
        config.uses_augmix, several, several and set(config.tasks) != FOUR, order,
        list(WEIGHTINGS).index(config.weighting), len(changed), canonical(changed),
    )  # fmt: skip


def describe(settings: Mapping[str, Any]) -> str:
    """Settings on one line: "batch_norm joint, rotation.views 1"."""

    def words(name: str, value: Any) -> str:
        if (name, value) == ("validation_corruptions", "extra"):
            return "λ tuned on the extra four"
        if name == "task_options":
            of_tasks = [(task, *each) for task, options in value.items() for each in options.items()]
            return sanitize(
                ", ".join(f"{task}.{option} {_plain(number)}" for task, option, number in of_tasks)
            )
        if name == "automl_variants":
            return " and ".join(value)
        return f"{name} {sanitize(value)}"

    return ", ".join(words(name, value) for name, value in settings.items())


def _plain(value: float) -> str:
    return str(value) if isinstance(value, bool) else f"{value:g}"


def canonical(value: object) -> str:
    """A value as canonical JSON, to group and sort by."""
    return json.dumps(value, sort_keys=True, default=str)
