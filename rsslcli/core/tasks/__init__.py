"""The self-supervision tasks, by the names that the command line knows: those of section 3, and one's own.

A task is one class (see `base.Task`) and one line in `TASKS`; nothing else in the project names tasks.
Tasks of one's own come from files and packages, see `own`.
This module imports no torch: a class is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rsslcli.core.errors import UserError, short_repr, unknown
from rsslcli.core.tasks import own

if TYPE_CHECKING:
    from rsslcli.core.tasks.base import Task

#: Name on the command line → "module:class", in the order of the paper's Table 1.
TASKS = {
    "rotation": "rsslcli.core.tasks.rotation:Rotation",
    "color": "rsslcli.core.tasks.color:Coloring",
    "ir": "rsslcli.core.tasks.reconstruction:ImageReconstruction",
    "bir": "rsslcli.core.tasks.reconstruction:ImageDeblurring",
    "inpaint": "rsslcli.core.tasks.inpaint:Inpainting",
    "rgb": "rsslcli.core.tasks.rgb:ColorChannelGuessing",
    "jigsaw": "rsslcli.core.tasks.jigsaw:Jigsaw",
}
#: The four most effective of them, which section 4 combines.
BEST_TASKS = ("rotation", "bir", "color", "ir")


def check_task_words(names: Iterable[str]) -> None:
    """Raise UserError for what cannot be the name of any task, or for a name given twice.

    Whoever only reads what a run has left asks no more, since its tasks may be of somebody's own.
    """
    seen = set()
    for name in names:
        if not isinstance(name, str) or not own.NAME.fullmatch(name):
            raise _unknown(name)
        if name in seen:
            raise UserError(f"task '{name}' is named twice: name each task once")
        seen.add(name)


def check_task_names(names: Iterable[str]) -> None:
    """Raise UserError for a name that is no task, with the nearest one, or for a name given twice."""
    names = list(names)
    check_task_words(names)
    for name in names:
        if not is_known(name):
            raise _unknown(name)


def is_known(name: str) -> bool:
    """Whether `name` is a task that can be trained here: ours, registered in this process, or installed."""
    return name in TASKS or name in own.names()


def build_tasks(
    names: Iterable[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Task]:
    """Make the tasks called `names`, each with its own options, in their order.

    `options` holds, by task, values for fields of its class; those of tasks not named are ignored.
    """
    names, options = list(names), options or {}
    check_task_names(names)
    check_task_names(options)
    return {name: _build(name, options.get(name, {})) for name in names}


def _build(name: str, options: Mapping[str, Any]) -> Task:
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        kind: type[Task] = getattr(importlib.import_module(module), attribute)
    else:
        kind = own.load(name)
    allowed = kind.options()
    if not isinstance(options, Mapping):
        raise UserError(
            f"task_options of '{name}': expected a mapping such as {{scale: 1.0}}, got {short_repr(options)}"
        )
    for key, value in options.items():
        if key not in allowed:
            raise UserError(f"task '{name}' has no option {short_repr(key)}: it takes {', '.join(allowed)}")
        if isinstance(allowed[key], bool):
            fits, expected = isinstance(value, bool), "true or false"
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= 1e3
            expected = "a number from 1e-6 to 1000"
        if not fits:
            raise UserError(f"task '{name}', option '{key}': expected {expected}, got {short_repr(value)}")
    return kind(**options)


def _unknown(name: object) -> UserError:
    hint = unknown("task", name, [*TASKS, *own.names()])
    return UserError(f"{hint} (a task of your own needs --task-file with the file that defines it)")
