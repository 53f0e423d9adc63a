"""Tasks of one's own: classes registered from Python, from a file that the user names, or from a package.

No configuration, checkpoint or run directory can name a file: they hold names of tasks, which mean something
only where the user, or what the user has installed, defines them. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rsslcli.core.errors import UserError, sanitize, short_repr

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from rsslcli.core.tasks.base import Task

#: The group of entry points in which a package names its tasks: name = "module:Class".
GROUP = "rssl.tasks"
#: What a task can be called: a word that does as a file name, as a key of metrics and of a state dict.
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: Words that already mean something where names of tasks stand.
_TAKEN = ("main", "meta", "none", "baseline")

_registered: dict[str, type[Task]] = {}
_files: dict[Path, list[str]] = {}


def names() -> list[str]:
    """The names of the tasks that are not ours: registered in this process, or installed."""
    return [*_registered, *(name for name in _installed() if name not in _registered)]


def load(name: str) -> type[Task]:
    """The class of the task `name`, one of `names`.

    Raises:
        UserError: the package that has it cannot be imported, or has no such task.
    """
    if name in _registered:
        return _registered[name]
    entry = _installed()[name]
    origin = f"task '{name}' of the package {entry.dist.name if entry.dist else entry.value}"
    try:
        kind = entry.load()
    except Exception as error:  # whatever the package raises when it is imported
        raise UserError(f"{origin} cannot be loaded: {described(error)}") from error
    _check(kind, origin)
    _check_name(name, origin)
    return _registered.setdefault(name, kind)


def register_task(kind: type[Task], name: str | None = None) -> str:
    """Make a task known by a name in this process, in place of one that had it.

    Args:
        kind: its class.
        name: lower-case letters, digits and _; by default the name of the class in lower case.

    Returns:
        The name.

    Raises:
        UserError: the class is no complete task, or the name is of a task of ours.
    """
    name = kind.__name__.lower() if name is None else name
    _check(kind, f"class {kind.__name__}")
    _check_name(name, f"class {kind.__name__}")
    _registered[name] = kind
    return name


def load_task_file(path: Path) -> list[str]:
    """Run a Python file and register the tasks that it defines: classes derived from `Task`.

    A task's name is that of its class in lower case. A class that others in the file derive from may be
    abstract, and one whose name begins with _ is passed over. A file is run once in a process.

    Returns:
        The names of its tasks.

    Raises:
        UserError: the file cannot be run, or defines no task, an incomplete one, or one whose name is taken.
    """
    from rsslcli.core.tasks.base import Task

    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the task file {path}: {error.strerror}") from None
    resolved = path.resolve()
    if resolved in _files:
        return _files[resolved]
    module = ModuleType(f"rssl_task_file_{len(_files) + 1}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where a dataclass looks for its annotations
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # whatever the file raises
        del sys.modules[module.__name__]
        raise UserError(f"task file {path}: {described(error, str(path))}") from error
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    bases = {base for kind in kinds for base in kind.__mro__[1:]}
    found: dict[str, type[Task]] = {}
    for kind in kinds:
        abstract = bool(getattr(kind, "__abstractmethods__", ()))
        if kind.__name__.startswith("_") or (abstract and kind in bases):
            continue
        origin, name = f"task file {path}{_line(kind)}: class {kind.__name__}", kind.__name__.lower()
        _check(kind, origin)
        _check_name(name, origin)
        if name in found or name in _registered:
            raise UserError(f"{origin}: there is another task '{name}' already: give the class another name")
        found[name] = kind
    if not found:
        raise UserError(
            f"task file {path} defines no task: a class derived from rsslcli.core.tasks.base.Task"
        )
    _registered.update(found)
    _files[resolved] = list(found)
    return _files[resolved]


def described(error: BaseException, file: str = "") -> str:
    """An error of somebody's code in one line, with the innermost line of `file` that it passed through."""
    text, line = str(error), 0
    if isinstance(error, SyntaxError):
        text, file, line = error.msg, error.filename or file, error.lineno or 0
    traceback = None if line else error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    where = f" ({file}, line {line})" if line else ""
    return sanitize(f"{type(error).__name__}: {text}" if text else type(error).__name__) + where


@cache
def _installed() -> dict[str, EntryPoint]:
    """The tasks of installed packages, by name. One that has the name of one of ours is never asked for."""
    from importlib.metadata import entry_points  # at every start of `rssl` it would cost 17 ms

    return {entry.name: entry for entry in entry_points(group=GROUP) if NAME.fullmatch(entry.name)}


def _check(kind: object, origin: str) -> None:
    """Raise UserError unless `kind` is the class of a complete task."""
    from rsslcli.core.tasks.base import Task

    if not isinstance(kind, type) or not issubclass(kind, Task):
        raise UserError(f"{origin} is not derived from rsslcli.core.tasks.base.Task")
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{origin} has no method {' and no method '.join(missing)}, which every task needs")
    fields = {option.name: option.default for option in dataclasses.fields(kind)}
    for name, default in fields.items():
        if not isinstance(default, bool | int | float):
            raise UserError(f"{origin}: option '{name}' needs a default, a number or True or False")
    for name in (*fields, *_annotated(kind)):  # without the decorator, they would be options of no effect
        if name not in fields or getattr(kind, name) != fields[name]:
            raise UserError(f"{origin}: its option '{name}' needs @dataclass(frozen=True) above the class")


def _annotated(kind: type[object]) -> list[str]:
    """The attributes that a class and its bases annotate as options: with a type that is no ClassVar."""
    return [
        name
        for base in kind.__mro__
        for name, annotation in inspect.get_annotations(base).items()
        if "ClassVar" not in str(annotation)
    ]


def _check_name(name: str, origin: str) -> None:
    from torch import nn

    from rsslcli.core.tasks import TASKS

    if not NAME.fullmatch(name):
        raise UserError(
            f"{origin}: {short_repr(name)} is no name for a task: use lower-case letters, digits and _"
        )
    if name in TASKS or name in _TAKEN or hasattr(nn.ModuleDict, name):  # whose keys are attributes
        raise UserError(f"{origin}: the name '{name}' is taken: choose another one")


def _line(kind: type[object]) -> str:
    """Where a class begins in its file, for a message."""
    try:
        return f", line {inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return ""
