"""The errors that a person sees: one clear line each, with the exit code of the command that meets them."""

import difflib
import shlex
from collections.abc import Iterable, Mapping


class RsslError(Exception):
    """A failure that is not the user's mistake. The message is one line: what is wrong, where, what to do."""

    exit_code = 1


class UserError(RsslError):
    """The user's mistake: a wrong option, missing data, a file of another kind."""

    exit_code = 2


class InterruptedTrainingError(RsslError):
    """Training stopped because it was asked to, with everything saved."""


class DivergedError(RsslError):
    """A loss, a λ, a weight or a score is not a finite number."""


class TaskError(RsslError):
    """A task of the user's own fails, or does not keep to what `Task` asks for."""


class LostRankError(RsslError):
    """Another process of this job ended, and this one cannot go on without it."""


def short_repr(value: object) -> str:
    """A value as messages show it: on one short line, whatever a file held in its place."""
    if isinstance(value, list | tuple | set | Mapping):
        return f"a {type(value).__name__}"  # which may hold itself
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"  # which Python refuses to print
    return sanitize(repr(value[:60] if isinstance(value, str | bytes) else value), 300)


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a name that is none of `choices`: it names the nearest one, or all."""
    names = list(choices)
    near = nearest(short_repr(name).strip("'").lower(), names)
    hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(names)}"
    return UserError(f"unknown {kind} {short_repr(name)}: {hint}")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The one of `choices` that was probably meant by `name`; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(choices), 1)), None)


def rssl_command(*words: str, **options: object) -> str:
    """A command of `rssl` as a person types it; see `command_arguments`."""
    return shlex.join(["rssl", *command_arguments(*words, **options)])


def command_arguments(*words: str, **options: object) -> list[str]:
    """The arguments of a command of `rssl`; the names of options follow from the keywords.

    An option that is None or False is left out, one that is True stands alone; a list or tuple repeats it.
    """
    arguments = list(words)
    for name, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is None or each is False:
                continue
            arguments.append("--" + name.replace("_", "-"))
            if each is not True:
                arguments.append(str(each))
    return arguments


def sanitize(text: object, limit: int = 200) -> str:
    """Text from outside as messages show it: one short line without control characters."""
    line = " ".join(str(text).split())[:limit]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
