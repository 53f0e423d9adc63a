"""Checking the pickles in files of torch.save before torch reads them.

torch's restricted unpickler runs no code from a file, but it calls a few functions with any arguments in the
file: `bytearray(2**30)` fills a gigabyte, `set(tensor)` iterates over a tensor that a few bytes can make a
trillion long, and a dictionary key of nested tuples takes years to hash. So each pickle is first interpreted
here, with stand-ins for objects, and passes only if torch.save could have written every call in it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import IO, Any

import torch

from rsslcli.core.errors import sanitize


class ForeignObjectError(Exception):
    """A pickle names an object other than tensors and plain values; the message is its name."""


@dataclass(frozen=True)
class _Global:
    """An object that a pickle refers to by name, such as "torch.float32"."""

    name: str


@dataclass(eq=False)
class _Dict:
    """A dictionary of the class `kind`, with at most `size` entries."""

    kind: str
    size: int = 0


class _Value:
    """A value that is never called, iterated or changed."""


_STORAGE = _Value()
_TENSOR = _Value()
_PLAIN = _Value()

#: Functions that make a tensor from a storage.
_REBUILD_TENSOR = frozenset(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
#: Functions that a pickle may call, by their names in Python 3; `_Machine.call` checks the arguments.
_CALLABLE = _REBUILD_TENSOR | {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch.device",
    "torch.serialization._get_layout",
}


def check_pickle(file: IO[bytes]) -> None:
    """Check the pickle at the current position of `file`, and read up to its end.

    Raises:
        ForeignObjectError: it names an object other than tensors and plain values.
        Exception: any error if it is damaged, or claims more than it can hold.
    """
    machine = _Machine()
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        machine.read = 1 + (position or 0) - start
        step: Callable[[Any], None] | None = getattr(machine, f"on_{opcode.name.lower()}", None)
        if step is None:
            raise UnpicklingError(f"torch does not support {opcode.name}")
        step(argument)


class _Machine:
    """torch's restricted unpickler, run on stand-ins: a stack machine with a method per opcode.

    Tuples, lists, strings, bytes, numbers and None stand for themselves.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.read = 0  # bytes read so far
        self.spent = 0  # items that calls have used so far

    def spend(self, items: int) -> None:
        """Count the items that a call uses: in total, at most one per byte read."""
        self.spent += items
        if self.spent > self.read:
            raise UnpicklingError("the same items are used again and again")

    def pop_to_mark(self) -> list[Any]:
        """Pop everything pushed since the last mark."""
        items = self.stack
        self.stack = self.outer.pop()
        return items

    # Opcodes that push a value. pickletools passes it as the argument, but None for True and False.

    def _push(self, argument: Any) -> None:
        self.stack.append(argument)

    on_binint = on_binint1 = on_binint2 = on_long1 = on_binfloat = on_binunicode = on_short_binstring = _push
    on_none = on_newtrue = on_newfalse = _push

    def on_global(self, argument: str) -> None:
        self.stack.append(_named(argument))

    def on_binpersid(self, _: None) -> None:
        self.stack[-1] = _STORAGE

    def on_proto(self, _: int) -> None:
        pass

    on_stop = on_proto

    # The memo.

    def on_binput(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def on_binget(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    on_long_binput = on_binput
    on_long_binget = on_binget

    # Containers.

    def on_mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def on_empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def on_tuple(self, _: None) -> None:
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def on_tuple1(self, _: None) -> None:
        self.stack[-1] = (self.stack[-1],)

    def on_tuple2(self, _: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def on_tuple3(self, _: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def on_empty_list(self, _: None) -> None:
        self.stack.append([])

    def on_append(self, _: None) -> None:
        self.extend([self.stack.pop()])

    def on_appends(self, _: None) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise UnpicklingError("items for something other than a list")
        self.stack[-1].extend(items)

    def on_empty_dict(self, _: None) -> None:
        self.stack.append(_Dict("dict"))

    def on_setitem(self, _: None) -> None:
        value = self.stack.pop()
        self.set_items([self.stack.pop(), value])

    def on_setitems(self, _: None) -> None:
        self.set_items(self.pop_to_mark())

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Dict):
            raise UnpicklingError("keys for something other than a dictionary")
        self.check_keys(items[::2])
        self.stack[-1].size += len(items) // 2

    def check_keys(self, keys: list[Any]) -> None:
        """Reject keys that are slow to hash: nested tuples, whose hashes are not cached."""
        for key in keys:
            parts = key if isinstance(key, tuple) else (key,)
            self.spend(len(parts) - 1)
            if any(isinstance(part, tuple | list | _Dict) for part in parts):
                raise UnpicklingError("a key of nested containers")

    def on_empty_set(self, _: None) -> None:
        self.stack.append(_PLAIN)

    # Calls.

    def on_build(self, _: None) -> None:
        """Set attributes, such as the `_metadata` of a state dict."""
        match self.stack.pop(), self.stack[-1]:
            case _Dict("dict", size), _Dict("collections.OrderedDict"):
                self.spend(size)
            case _:
                raise UnpicklingError("attributes for something other than an OrderedDict")

    def on_reduce(self, _: None) -> None:
        arguments = self.stack.pop()
        result = self.call(self.stack.pop(), arguments)
        if result is None:
            raise UnpicklingError("a call with arguments that torch.save does not write")
        self.stack.append(result)

    def call(self, function: object, arguments: object) -> object:
        """The stand-in for the result of a call; None if torch.save does not write such a call."""
        result: object = None
        match function, arguments:
            case _Global("collections.OrderedDict" as kind), ():
                result = _Dict(kind)
            case _Global("collections.OrderedDict" as kind), (list(pairs),):  # as Python 2 writes it
                self.spend(len(pairs))
                if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                    self.check_keys([pair[0] for pair in pairs])
                    result = _Dict(kind, len(pairs))
            case _Global("collections.Counter" as kind), (_Dict("dict", size),):
                self.spend(size)
                result = _Dict(kind, size)
            case _Global("builtins.set"), (list(items),):
                self.spend(len(items))
                self.check_keys(items)
                result = _PLAIN
            case _Global("torch.Size"), (tuple(sizes),):
                self.spend(len(sizes))
                result = _PLAIN if _are_integers(sizes) else None
            case _Global("_codecs.encode"), (str(text), "latin1"):
                self.spend(len(text))
                result = text.encode("latin1")
            case _Global("builtins.bytearray"), (bytes(data),) | (str(data), "latin-1"):
                self.spend(len(data))
                result = _PLAIN
            case (
                (_Global("builtins.bytearray"), ())
                | (_Global("builtins.complex"), (float(), float()))
                | (_Global("torch.device"), (str(),) | (str(), int()))
                | (_Global("torch.serialization._get_layout"), (str(),))
            ):
                result = _PLAIN
            case _Global("torch._utils._rebuild_parameter"), (tensor, *_) if tensor is _TENSOR:
                result = _TENSOR
            case _Global(name), (storage, int(), tuple(size), tuple(stride), *_) if storage is _STORAGE:
                self.spend(len(size) + len(stride))
                is_sized = _are_integers(size) and _are_integers(stride)
                result = _TENSOR if name in _REBUILD_TENSOR and is_sized else None
        return result


def _named(argument: str) -> _Global:
    """The object that a pickle calls "module name", if it is harmless."""
    module, _, name = argument.partition(" ")
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"  # Python 2 has another name for it
    is_storage = module in ("torch", "torch.storage") and name.isidentifier() and name.endswith("Storage")
    is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
    if full not in _CALLABLE and not is_storage and not is_dtype:
        raise ForeignObjectError(sanitize(full, 80))
    return _Global(full)


def _are_integers(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, int) for value in values)
