"""The values that the shell offers on <TAB>. Imports nothing heavy: a person is waiting."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import typer

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.tasks.registry import TASKS, custom_tasks

Completion = Callable[[str], list[str]]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _more(incomplete: str, names: Iterable[str]) -> list[str]:
    """Names separated by commas, extended by one that is not there yet."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    return [before + comma + name for name in _beginning(last, names) if name not in named]


def one_of(names: Iterable[str]) -> Completion:
    """Completion of an option that takes one of these names."""
    choices = tuple(names)
    return lambda incomplete: _beginning(incomplete, choices)


def some_of(names: Iterable[str]) -> Completion:
    """Completion of an option that takes some of these names, separated by commas."""
    choices = tuple(names)
    return lambda incomplete: _more(incomplete, choices)


corruptions = some_of(CORRUPTIONS)
severities = some_of(map(str, SEVERITIES))
#: What `prepare-data` makes without a source.
new_datasets = one_of(("cifar10", "cifar100", "shapes"))


def task_or_none(incomplete: str) -> list[str]:
    """A task, also of an installed package, or none."""
    return _beginning(incomplete, [*TASKS, *custom_tasks(), "none"])


def tasks(incomplete: str) -> list[str]:
    """Tasks separated by commas, also those of installed packages."""
    return _more(incomplete, [*TASKS, *custom_tasks()])


def datasets(ctx: typer.Context, incomplete: str) -> list[str]:
    """The data sets that are prepared, and the embedded one."""
    from rsslcli.core.data.store import EMBEDDED, prepared_datasets

    prepared = [EMBEDDED]
    with suppress(OSError):
        prepared += prepared_datasets(Path(ctx.params.get("data_dir") or default_data_dir()))
    return _beginning(incomplete, sorted(set(prepared)))


def runs(incomplete: str) -> list[str]:
    """Run directories that begin as typed, and those in such folders. Without any, the shell offers files."""
    name = incomplete.rpartition("/")[2]
    before = incomplete.removesuffix(name)
    begun = glob.escape(name) + "*"
    with suppress(OSError, ValueError):
        folder = Path(before)
        found = [*folder.glob(f"{begun}/config.yaml"), *folder.glob(f"{begun}/*/config.yaml")]
        return sorted(before + str(file.parent.relative_to(folder)) for file in found)
    return []
