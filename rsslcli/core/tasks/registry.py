"""The registry of tasks: the seven of the paper's section 3, and custom ones.

A built-in task is one class (see `base.Task`) and one line in `TASKS`, which also makes it a row of every
study. Custom tasks are classes registered from Python, from a file that the user names, or from an installed
package. No configuration, checkpoint or run directory can name a file: they hold only names of tasks, which
resolve to what is registered or installed here.

This module imports no torch: a class is loaded on first use.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rsslcli.core.errors import UserError, sanitize, short_repr, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from rsslcli.core.tasks.base import Task

#: Name of a built-in task → "module:class", in the order of the paper's Table 1.
TASKS = {
    "rotation": "rsslcli.core.tasks.rotation:Rotation",
    "color": "rsslcli.core.tasks.color:Coloring",
    "ir": "rsslcli.core.tasks.reconstruction:ImageReconstruction",
    "bir": "rsslcli.core.tasks.reconstruction:ImageDeblurring",
    "inpaint": "rsslcli.core.tasks.inpaint:Inpainting",
    "rgb": "rsslcli.core.tasks.rgb:ColorChannelGuessing",
    "jigsaw": "rsslcli.core.tasks.jigsaw:Jigsaw",
}
#: The four most effective tasks, which section 4 combines.
BEST_TASKS = ("rotation", "bir", "color", "ir")

#: The entry-point group in which a package lists its tasks: name = "module:Class".
ENTRY_POINT_GROUP = "rssl.tasks"
#: A task's name. It must work as a file name, as a key of metrics and as a key of a state dict.
TASK_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: Words that already have a meaning where names of tasks are accepted.
_RESERVED = (
    "main", "meta", "jsd", "none", "baseline", "fixed", "automl", "augmix", "uncertainty", "random", "upgrad",
)  # fmt: skip

#: Custom tasks registered in this process, by name.
_registered: dict[str, type[Task]] = {}
#: Task files run in this process, by resolved path, with the names of their tasks.
_files: dict[Path, list[str]] = {}


def check_task_words(names: Iterable[str]) -> None:
    """Raise UserError for a word that cannot be a task's name, or for a name given twice.

    Reading a finished run needs only this check: its tasks may not be installed here.
    """
    seen = set()
    for name in names:
        if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
            raise _unknown(name)
        if name in seen:
            raise UserError(f"task '{name}' is named twice: name each task once")
        seen.add(name)


def check_task_names(names: Iterable[str]) -> None:
    """Raise UserError for an unknown task, suggesting the nearest name, or for a name given twice."""
    names = list(names)
    check_task_words(names)
    for name in names:
        if not is_known(name):
            raise _unknown(name)


def is_known(name: str) -> bool:
    """True if `name` can be trained here: built in, registered in this process, or installed."""
    return name in TASKS or name in custom_tasks()


def custom_tasks() -> list[str]:
    """The names of the custom tasks: those registered in this process, then the installed ones."""
    return [*_registered, *(name for name in _installed() if name not in _registered)]


def build_tasks(
    names: Iterable[str], options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Task]:
    """Create the tasks called `names`, each with its options, in the given order.

    Args:
        names: the tasks.
        options: by task, values for fields of its class; also those for tasks not in `names` must fit.

    Raises:
        UserError: an unknown task or option, or a value out of range.
    """
    names = list(names)
    options = options or {}
    check_task_names(names)
    check_task_names(options)
    built = {name: _build(name, options.get(name, {})) for name in dict.fromkeys((*names, *options))}
    return {name: built[name] for name in names}


def _build(name: str, options: Mapping[str, Any]) -> Task:
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        kind: type[Task] = getattr(importlib.import_module(module), attribute)
    else:
        kind = load_custom_task(name)
    allowed = kind.options()
    if not isinstance(options, Mapping):
        raise UserError(
            f"task_options of '{name}': expected a mapping such as {{scale: 1.0}}, got {short_repr(options)}"
        )
    for key, value in options.items():
        if key not in allowed:
            raise UserError(f"task '{name}' has no option {short_repr(key)}: it takes {', '.join(allowed)}")
        if isinstance(allowed[key], bool):
            fits = isinstance(value, bool)
            expected = "true or false"
        else:
            fits = isinstance(value, int | float) and not isinstance(value, bool) and 1e-6 <= value <= 1e3
            expected = "a number from 1e-6 to 1000"
        if not fits:
            raise UserError(f"task '{name}', option '{key}': expected {expected}, got {short_repr(value)}")
    try:
        return kind(**options)
    except ValueError as error:  # of a class that checks its options
        raise UserError(f"task_options of '{name}': {sanitize(error)}") from None
    except TypeError as error:
        if name in TASKS:
            raise
        raise UserError(
            f"task '{name}' cannot be made: {sanitize(error)}: declare its options as fields of a dataclass, "
            "without an __init__ of its own"
        ) from None


def _unknown(name: object) -> UserError:
    hint = unknown("task", name, [*TASKS, *custom_tasks()])
    return UserError(f"{hint} (to use a custom task, pass the file that defines it as `task_file`)")


def load_custom_task(name: str) -> type[Task]:
    """Load the class of the custom task `name`, one of `custom_tasks`.

    Raises:
        UserError: its package cannot be imported, or has no such task.
    """
    if name in _registered:
        return _registered[name]
    entry = _installed()[name]
    origin = f"task '{name}' of the package {entry.dist.name if entry.dist else entry.value}"
    try:
        kind = entry.load()
    except Exception as error:  # the import may raise anything
        raise UserError(f"{origin} cannot be loaded: {_describe(error)}") from error
    _check_class(kind, origin)
    _check_name(name, origin)
    return _registered.setdefault(name, kind)


def register_task(kind: type[Task], name: str | None = None) -> str:
    """Register a task in this process, replacing a custom task of the same name.

    Args:
        kind: its class.
        name: lowercase letters, digits and _; by default the name of the class in lowercase.

    Returns:
        The name.

    Raises:
        UserError: the class is not a complete task, or the name is reserved or that of a built-in task.
    """
    name = kind.__name__.lower() if name is None else name
    _check_class(kind, f"class {kind.__name__}")
    _check_name(name, f"class {kind.__name__}")
    _registered[name] = kind
    return name


def load_task_file(path: Path) -> list[str]:
    """Run a Python file and register the tasks that it defines: classes derived from `Task`.

    A task is named after its class, in lowercase. Classes whose names begin with _ are skipped, and so are
    abstract classes from which others in the file derive. Each file runs once per process.

    Returns:
        The names of its tasks.

    Raises:
        UserError: the file cannot be run, or defines no task, an incomplete one, or one whose name is taken.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the task file {path}: {error.strerror}") from None
    resolved = path.resolve()
    if resolved in _files:
        return _files[resolved]
    found: dict[str, type[Task]] = {}
    for kind in _task_classes(_run_file(path, source)):
        origin = f"task file {path}{_line(kind)}: class {kind.__name__}"
        name = kind.__name__.lower()
        _check_class(kind, origin)
        _check_name(name, origin)
        if name in found or name in _registered:
            raise UserError(f"{origin}: another task is already named '{name}': rename the class")
        found[name] = kind
    if not found:
        raise UserError(f"task file {path} defines no task: derive a class from rsslcli.Task")
    _registered.update(found)
    _files[resolved] = list(found)
    return _files[resolved]


def _run_file(path: Path, source: bytes) -> ModuleType:
    """Run the task file `path` as a new module."""
    module = ModuleType(f"rssl_task_file_{len(_files) + 1}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclass looks up annotations there
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # the file may raise anything
        del sys.modules[module.__name__]
        raise UserError(f"task file {path}: {_describe(error, str(path))}") from error
    return module


def _task_classes(module: ModuleType) -> list[type[Task]]:
    """The public task classes that a module defines, without abstract bases of others in it."""
    from rsslcli.core.tasks.base import Task

    # Classes that the file merely imports, such as Task, belong to other modules.
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    bases = {base for kind in kinds for base in kind.__mro__[1:]}
    return [
        kind
        for kind in kinds
        if not kind.__name__.startswith("_")
        and not (getattr(kind, "__abstractmethods__", ()) and kind in bases)
    ]


def _describe(error: BaseException, file: str = "") -> str:
    """Describe an error of foreign code in one line, with the innermost line of `file` in its traceback."""
    text = str(error)
    line = 0
    if isinstance(error, SyntaxError):
        text = error.msg
        file = error.filename or file
        line = error.lineno or 0
    traceback = None if line else error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    where = f" ({file}, line {line})" if line else ""
    return sanitize(f"{type(error).__name__}: {text}" if text else type(error).__name__) + where


@cache
def _installed() -> dict[str, EntryPoint]:
    """The tasks of installed packages, by name. Built-in tasks take precedence over them."""
    from importlib.metadata import entry_points  # imported here: it would add 17 ms to every start of `rssl`

    return {
        entry.name: entry
        for entry in entry_points(group=ENTRY_POINT_GROUP)
        if TASK_NAME.fullmatch(entry.name)
    }


def _check_class(kind: object, origin: str) -> None:
    """Raise UserError unless `kind` is the class of a complete task."""
    from rsslcli.core.tasks.base import Task

    if not isinstance(kind, type) or not issubclass(kind, Task):
        raise UserError(f"{origin} is not derived from rsslcli.Task")
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{origin} has no method {' and no method '.join(missing)}, which every task needs")
    if not isinstance(kind.title, str):
        raise UserError(f"{origin}: title: expected text, got {short_repr(kind.title)}")
    if not isinstance(kind.answers, list | tuple) or not all(isinstance(each, str) for each in kind.answers):
        raise UserError(f"{origin}: answers: expected texts, got {short_repr(kind.answers)}")
    fields = {option.name: option.default for option in dataclasses.fields(kind)}
    for name, default in fields.items():
        if not isinstance(default, bool | int | float):
            raise UserError(f"{origin}: option '{name}' needs a default: a number, True or False")
    # Without the decorator, annotated attributes look like options but have no effect.
    for name in (*fields, *_annotated(kind)):
        if name not in fields or getattr(kind, name) != fields[name]:
            raise UserError(f"{origin}: its option '{name}' needs @dataclass(frozen=True) above the class")


def _annotated(kind: type[object]) -> list[str]:
    """The attributes that a class and its bases annotate, except ClassVars."""
    return [
        name
        for base in kind.__mro__
        for name, annotation in inspect.get_annotations(base).items()
        if "ClassVar" not in str(annotation)
    ]


def _check_name(name: str, origin: str) -> None:
    """Raise UserError unless a custom task can be called `name`."""
    from torch import nn

    if not TASK_NAME.fullmatch(name):
        raise UserError(
            f"{origin}: {short_repr(name)} cannot be a task's name: use lowercase letters, digits and _"
        )
    # The heads live in an nn.ModuleDict, whose keys must not hide its attributes.
    if name in TASKS or name in _RESERVED or hasattr(nn.ModuleDict, name):
        raise UserError(f"{origin}: the name '{name}' is taken: choose another one")


def _line(kind: type[object]) -> str:
    """Where a class begins in its file, for a message."""
    try:
        return f", line {inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return ""
