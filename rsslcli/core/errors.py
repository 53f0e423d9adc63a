"""The errors that users see: one clear line each, and the exit code with which a command reports it.

    RsslError (1)
    ├── UserError (2), also a ValueError
    │   └── StaleCorruptionsError
    ├── InterruptedTrainingError
    ├── DivergedError
    ├── TaskError
    └── LostRankError

Messages name a parameter in backticks, such as `meta_lr`; the command line spells it as its option.
"""

import difflib
import shlex
from collections.abc import Iterable, Mapping


class RsslError(Exception):
    """A failure that is not the user's mistake. The message is one line: what is wrong, where, what to do."""

    exit_code = 1


class UserError(RsslError, ValueError):
    """The user's mistake: an invalid setting, missing data, a file of the wrong kind."""

    exit_code = 2


class StaleCorruptionsError(UserError):
    """A corrupted test set was made for other test images than those that its data set has now.

    `mend` is the command that prepares the set again.
    """

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(f"{message}: prepare them again with `{mend}`")
        self.mend = mend


class InterruptedTrainingError(RsslError):
    """Training stopped on request, with everything saved.

    Args:
        message: the line that the user sees.
        signal: the number of the signal that asked for it, if one did; the exit code says so.
    """

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message)
        if signal is not None:
            self.exit_code = 128 + signal


class DivergedError(RsslError):
    """A loss, a λ, a weight or a score is not a finite number."""


class TaskError(RsslError):
    """A custom task fails, or breaks the contract of `Task`."""


class LostRankError(RsslError):
    """Another rank of this job ended, and this one cannot continue without it."""


def short_repr(value: object) -> str:
    """Format a value, which may come from any file, as one short line for a message."""
    if isinstance(value, list | tuple | set | Mapping):
        return f"a {type(value).__name__}"  # not printed: it may contain itself
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"  # Python refuses to print it
    return sanitize(repr(value[:60] if isinstance(value, str | bytes) else value), 300)


def counted(number: int, noun: str) -> str:
    """A number of things in words, such as "1 image" or "1,000 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, such as "+1.50" or "−0.25"; what rounds to zero is "+0.00"."""
    return f"{round(value, digits) + 0:+.{digits}f}".replace("-", "−")


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """Make the error for a name that is not among `choices`: it suggests the nearest one, or lists all."""
    names = list(choices)
    near = nearest(short_repr(name).strip("'").lower(), names)
    hint = f"did you mean '{near}'?" if near else f"choose from {', '.join(names)}"
    return UserError(f"unknown {kind} {short_repr(name)}: {hint}")


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` probably means; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, list(choices), 1)), None)


def rssl_command(*words: str, **options: object) -> str:
    """A command of `rssl` as a person types it; see `command_arguments`."""
    return shlex.join(["rssl", *command_arguments(*words, **options)])


def command_arguments(*words: str, **options: object) -> list[str]:
    """Format the arguments of an `rssl` command; keywords become options.

    None and False omit the option; True makes it a flag; a list or tuple repeats it.
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
    """Make untrusted text safe for a message: one short line without control characters."""
    line = " ".join(str(text).split())[:limit]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
