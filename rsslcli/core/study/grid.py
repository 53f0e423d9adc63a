"""The paper's experiments, Table 1 and Figure 2, as a grid of cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsslcli.core.config import Weighting, check_effective
from rsslcli.core.errors import UserError, command_arguments, unknown
from rsslcli.core.files import replacing
from rsslcli.core.presets import check_task_options, config_layers, merge
from rsslcli.core.study.cell import Cell
from rsslcli.core.tasks.registry import BEST_TASKS, TASKS, check_task_names, check_task_words

MAX_SEEDS = 1000
#: The file in the study's folder that records what invocations have added to the preset.
PLAN = "plan.json"
_MAX_PLAN_BYTES = 1 << 16


@dataclass(frozen=True)
class Method:
    """A way to train: a row of the study."""

    tasks: tuple[str, ...]  #: the self-supervision tasks; empty for the baseline
    weighting: Weighting = "fixed"  #: what sets λ
    settings: Mapping[str, Any] = field(default_factory=dict)  #: others in which it departs from the preset


#: The paper's experiments: the rows of Table 1, then those of Figure 2.
PAPER_METHODS = {
    "baseline": Method(()),
    **{task: Method((task,)) for task in TASKS},
    "fixed": Method(BEST_TASKS),
    "automl": Method(BEST_TASKS, weighting="automl"),
}


_AUGMIX = {"augment": "augmix"}
_RELATIVE = {"automl_variants": ("relative",)}
#: Rows beyond the paper's: joint batch normalization, the best variant of AutoML, AugMix alone and with
#: tasks.
_BEYOND = {
    "rotation-joint": Method(("rotation",), settings={"batch_norm": "joint"}),
    "automl-relative": Method(BEST_TASKS, "automl", _RELATIVE),
    "augmix": Method((), settings=_AUGMIX),
    "augmix-rotation": Method(("rotation",), settings=_AUGMIX),
    "augmix-fixed": Method(BEST_TASKS, settings=_AUGMIX),
    "augmix-automl": Method(BEST_TASKS, "automl", _AUGMIX),
    "augmix-automl-relative": Method(BEST_TASKS, "automl", {**_AUGMIX, **_RELATIVE}),
}
#: Rows that have at most two seeds, to save time: another batch normalization, λ tuned on other corruptions,
#: and rivals.
_ASIDE = {
    "rotation-all": Method(("rotation",), settings={"batch_norm": "all"}),
    "automl-strict": Method(BEST_TASKS, "automl", {"validation_corruptions": "extra"}),
    "uncertainty": Method(BEST_TASKS, "uncertainty"),
    "random": Method(BEST_TASKS, "random"),
    "upgrad": Method(BEST_TASKS, "upgrad"),
}


@dataclass(frozen=True)
class StudySize:
    """A size of the study."""

    methods: Mapping[str, Method]  #: the rows of the study, by name
    seeds: int  #: the number of seeds per method
    aside: tuple[str, ...] = ()  #: methods that run with at most two seeds, to save time
    dataset: str = "cifar10"  #: the data set to run on
    corruptions: str = "download"  #: how to get the corrupted test set, "download" or "generate"
    corrupted_images: int | None = None  #: source images of a generated set; None for the whole test set


#: The sizes, each named after the training preset that it uses.
STUDY_SIZES = {
    "paper": StudySize(PAPER_METHODS, seeds=3),
    "small": StudySize(
        PAPER_METHODS | _BEYOND | _ASIDE,
        seeds=3,
        aside=(*(task for task in TASKS if task != "rotation"), *_ASIDE),
        corruptions="generate",
        corrupted_images=600,
    ),
    "quick": StudySize(PAPER_METHODS, seeds=1, dataset="shapes", corruptions="generate"),
}


def plan(
    preset: str,
    output: Path,
    *,
    dataset: str | None = None,
    seeds: int | None = None,
    add_tasks: Sequence[str] = (),
    task_files: Sequence[Path] = (),
    config: Path | None = None,
    network: str | None = None,
) -> list[Cell]:
    """The cells of a study, ordered so that an interrupted study still has complete comparisons.

    Seeds and tasks added by earlier invocations stay in the study: see `save_plan`.

    Args:
        preset: a name in `STUDY_SIZES`, which is also a training preset.
        output: the study's folder; each cell has its own folder inside.
        dataset: the data set to run on; the preset's by default.
        seeds: the number of seeds, counting from 0; the preset's number by default.
        add_tasks: tasks beyond the paper's: each gets its own row, and all of them join the four best
            under AutoML.
        task_files: the files, already loaded, that define custom tasks that are not installed.
        config: a YAML file of settings for every cell.
        network: the network of every cell; by default that of the preset or the file.

    Raises:
        UserError: the preset or a task is unknown, or settings do not fit together.
    """
    if preset not in STUDY_SIZES:
        raise unknown("preset", preset, STUDY_SIZES)
    size = STUDY_SIZES[preset]
    count = size.seeds if seeds is None else seeds
    if not 1 <= count <= MAX_SEEDS:
        raise UserError(f"`seeds` {count}: expected at least 1 and at most {MAX_SEEDS}")
    check_task_names(add_tasks)
    if config is not None:
        check_task_options(config)
    before, added = _read_plan(output)
    added = list(dict.fromkeys([*added, *([tuple(add_tasks)] if add_tasks else ())]))
    methods = dict(size.methods)
    for tasks in added:
        for task in tasks:
            if task in size.methods:
                raise UserError(f"`add_task` {task}: the study has that task already")
        methods |= {task: Method((task,)) for task in tasks}
        methods["-".join(("automl", *tasks))] = Method((*BEST_TASKS, *tasks), weighting="automl")
    # Seed by seed, so that a study stopped early has complete comparisons.
    all_seeds = range(max(count, before))
    rows = [name for name in methods if name not in size.aside]
    order = [(name, seed) for seed in all_seeds for name in rows]
    order += [(name, seed) for seed in all_seeds[:2] for name in size.aside]
    common = {} if dataset is None and config is not None else {"dataset": dataset or size.dataset}
    common |= {} if network is None else {"network": network}
    return [
        _make_cell(number, name, methods[name], preset, config, common | {"seed": seed}, output, task_files)
        for number, (name, seed) in enumerate(order, 1)
    ]


def _make_cell(
    number: int,
    name: str,
    method: Method,
    preset: str,
    config: Path | None,
    options: Mapping[str, Any],
    output: Path,
    task_files: Sequence[Path],
) -> Cell:
    """A cell with its settings and the command that trains it; see `plan`."""
    chosen = {"tasks": list(method.tasks), "weighting": method.weighting, **method.settings}
    # Rows of earlier invocations stay even if their tasks are unknown now: see `Cell.check_can_run`.
    resolved = merge(config_layers(preset, config, {**chosen, **options}), known_tasks=False)
    check_task_names(resolved.task_options)
    check_effective(resolved)
    several = method.weighting != "fixed" or len(method.tasks) > 1
    train = command_arguments(
        "train-automl" if several else "train-single",
        tasks=",".join(method.tasks) if several else None,
        task=None if several else next(iter(method.tasks), "none"),
        fixed=several and method.weighting == "fixed",
        weighting=method.weighting if method.weighting != "fixed" else None,
        **{
            name: ",".join(value) if isinstance(value, tuple) else value
            for name, value in method.settings.items()
        },
        preset=preset,
        config=config,
        dataset=resolved.dataset,
        seed=resolved.seed,
        network=options.get("network"),
    )
    return Cell(number, name, resolved, output / f"{name}-s{resolved.seed}", tuple(train), tuple(task_files))


def save_plan(cells: Sequence[Cell]) -> None:
    """Record in the study's folder how many seeds it has and which tasks were added to it.

    Later invocations then need not repeat the options that added them. The files that define tasks are not
    recorded: they are code, and only the user names code to run.

    Raises:
        RsslError: the file cannot be written.
    """
    output = cells[0].directory.parent
    seeds = 1 + max(cell.config.seed for cell in cells)
    beyond = {cell.method: cell.config.tasks[len(BEST_TASKS) :] for cell in cells if cell.config.automl}
    added = [tasks for name, tasks in beyond.items() if tasks and name == "-".join(("automl", *tasks))]
    seeds_there, added_there = _read_plan(output)  # since `plan`, another process may have added some
    seeds, added = max(seeds, seeds_there), list(dict.fromkeys([*added_there, *added]))
    if (seeds, added) != (seeds_there, added_there):
        with replacing(output / PLAN) as file:
            file.write(json.dumps({"seeds": seeds, "added_tasks": added}).encode() + b"\n")


def _read_plan(output: Path) -> tuple[int, list[tuple[str, ...]]]:
    """What `save_plan` recorded: the number of seeds, and the groups of tasks that were added together."""
    try:
        with (output / PLAN).open("rb") as file:
            content = json.loads(file.read(_MAX_PLAN_BYTES))
        seeds = content["seeds"]
        added = [tuple(tasks) for tasks in content["added_tasks"]]
        for tasks in added:
            check_task_words(tasks)
        if type(seeds) is not int or not 1 <= seeds <= MAX_SEEDS or not all(added):
            raise ValueError
    except FileNotFoundError:
        return 0, []
    except OSError as error:
        raise UserError(f"cannot read {output / PLAN}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError, UserError):
        raise UserError(
            f"{output / PLAN} is damaged: delete it, and pass the added tasks and seeds again"
        ) from None
    return seeds, added


def check_fit(cells: Sequence[Cell], images: int) -> None:
    """Raise UserError if a cell needs more than the `images` training images of the data set."""
    for cell in cells:
        config = cell.config
        needed = max(config.train_size or 0, config.batch_size)
        if needed > images:
            name = "train_size" if config.train_size == needed else "batch_size"
            raise UserError(
                f"{config.dataset} has {images} training images, and the study's `{name}` is {needed}: set "
                f"{name} in a file for `config`, and choose another `output`"
            )


def choose(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells listed in `only` by number, name ("automl-s0") or method ("automl"); all if it is empty.

    Raises:
        UserError: an entry matches no cell.
    """
    chosen: set[int] = set()
    for name in only:
        found = {cell.number for cell in cells if name in (str(cell.number), cell.name, cell.method)}
        if not found:
            methods = dict.fromkeys(cell.method for cell in cells)
            raise unknown("cell", name, [*methods, *(cell.name for cell in cells)])
        chosen |= found
    return [cell for cell in cells if not only or cell.number in chosen]
