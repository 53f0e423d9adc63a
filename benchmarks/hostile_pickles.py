"""Objects whose pickles do harm where they are read carelessly; for the fuzzer and the tests."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Poisoned:
    """A dictionary, once read, with a number in place of a method."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {self.method: 5}


class Called:
    """A call with any arguments, once read."""

    def __init__(self, function: Callable[..., object], *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class Filled:
    """An OrderedDict, once read, with any attributes and keys."""

    def __init__(self, state: Any, *keys: Any) -> None:
        self.state = state
        self.keys = keys

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), self.state, None, iter([(key, 1) for key in self.keys])
