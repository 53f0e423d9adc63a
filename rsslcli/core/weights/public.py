"""A WideResNet in a file of another program: where its weights are, and what else the file holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rsslcli.core.errors import short_repr
from rsslcli.core.networks.normalization import Normalization, check_normalization

_FIRST, _LAST = "block1.layer.0.conv1.weight", "fc.weight"
#: The parts of a WideResNet. What else stands inside them would change what it computes, and is refused.
_PARTS = ("conv1", "block1", "block2", "block3", "bn1", "fc")
#: What the buffers of a normalization are called: RobustBench's, usual wrappers', the robustness library's.
_DEVIATION_OF = {"mu": "sigma", "mean": "std", "new_mean": "new_std"}
_MAX_DEPTH = 2  # {"model": {"state_dict": {…}}}
_MAX_NAMED = 12  # things that one note names


@dataclass(frozen=True)
class FoundWeights:
    """The weights of a WideResNet, as they are in the file.

    Attributes:
        state: by the names of our own WideResNet.
        normalization: what the file says of the input's normalization; None where it says nothing.
        notes: what a person should know: which weights were taken where there are several, what is not used.
    """

    state: dict[str, Any]
    normalization: Normalization | None
    notes: tuple[str, ...]


def find_weights(content: Mapping[Any, Any]) -> FoundWeights | None:
    """Find the state dict of a WideResNet in what a checkpoint file holds; None where there is none.

    It may be the whole content or stand under a key such as "state_dict" or "model", and its names may begin
    with what wrappers put there, such as "module." or "_orig_mod.", once or repeatedly. Heads of other tasks,
    optimizer states, numbers and texts may stand beside it.

    Raises:
        UserError: its buffers of a normalization are no such.
    """
    networks = list(_networks(content))
    if not networks:
        return None
    # Where averaged weights stand beside it, "state_dict" is the network itself.
    chosen = min(networks, key=lambda network: network.keys[-1:] not in ((), ("state_dict",)))
    part, prefix, notes = chosen.part, chosen.prefix, []
    if len(networks) > 1:
        places = ", ".join(network.place for network in networks[:_MAX_NAMED])
        notes.append(
            f"it holds several networks, at {places}: the one at {chosen.place} is taken; to take another, "
            "save it as a file of its own"
        )
    pair = next((pair for pair in map(_pair, part) if pair and _are_three(part, pair)), ())
    normalization = None
    if pair:
        mean, std = (tuple(map(float, part[name].flatten().tolist())) for name in pair)
        normalization = check_normalization(mean, std, " and ".join(map(short_repr, pair)))
    state = {name[len(prefix) :]: part[name] for name in part if _is_part(name, prefix)}
    other = [_head(name, prefix) for name in part if not _is_part(name, prefix) and name not in pair]
    unused = list(dict.fromkeys(map(short_repr, [*other, *chosen.beside])))
    if unused:
        more = f" and {len(unused) - _MAX_NAMED} more" if len(unused) > _MAX_NAMED else ""
        notes.append(f"not part of the WideResNet, and not used: {', '.join(unused[:_MAX_NAMED])}{more}")
    return FoundWeights(state, normalization, tuple(notes))


def note_on_variant(state: Mapping[str, Tensor]) -> str | None:
    """A note on weights that only look like a WideResNet's; None where nothing tells.

    Some code uses the same names for another forward pass: its widening blocks give their input to the first
    convolution as it is, so that their first normalization is computed but not used. No gradient reaches
    it, and alone among the trained layers it keeps equal weights and zero biases.

    Args:
        state: of our own WideResNet.
    """
    layers = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    untrained = [layer for layer in layers if _is_untrained(state[f"{layer}.weight"], state[f"{layer}.bias"])]
    if not untrained or not all(re.fullmatch(r"block\d\.layer\.0\.bn1", layer) for layer in untrained):
        return None
    return (
        f"{' and '.join(map(short_repr, untrained))} took no part in the training: these weights are of "
        "another architecture with the same names, such as that of FixMatch's and MixMatch's PyTorch code, "
        "which is not supported, and the scores will be wrong"
    )


def _is_untrained(weight: Tensor, bias: Tensor) -> bool:
    return not bias.any() and bool((weight == weight[:1]).all())


@dataclass(frozen=True)
class _Network:
    """A network in a file: the dictionary `part` under `keys`, its names behind `prefix`."""

    keys: tuple[Any, ...]
    part: dict[Any, Any]
    prefix: str
    #: The dictionaries on the way to `part`, one for each key.
    around: tuple[dict[Any, Any], ...]

    @property
    def beside(self) -> list[Any]:
        """The names of what else stands in these."""
        return [
            name for key, items in zip(self.keys, self.around, strict=True) for name in items if name != key
        ]

    @property
    def place(self) -> str:
        return " ".join(map(short_repr, (*self.keys, self.prefix) if self.prefix else self.keys)) or "the top"


def _networks(content: Mapping[Any, Any]) -> Iterator[_Network]:
    """The networks in `content`. Each dictionary is looked at once, however often the file refers to it."""
    to_see: list[tuple[tuple[Any, ...], Any, tuple[dict[Any, Any], ...]]] = [((), content, ())]
    seen = {id(content)}
    for keys, part, around in to_see:
        items = dict(dict.items(part))  # an OrderedDict's own methods may be replaced by the file
        for name in items:
            if isinstance(name, str) and name.endswith(_FIRST):
                prefix = name[: -len(_FIRST)]
                if prefix[-1:] in ("", ".") and prefix + _LAST in items:
                    yield _Network(keys, items, prefix, around)
        for key, value in items.items():
            if isinstance(value, dict) and id(value) not in seen and len(keys) < _MAX_DEPTH:
                seen.add(id(value))
                to_see.append(((*keys, key), value, (*around, items)))


def _is_part(name: object, prefix: str) -> bool:
    return isinstance(name, str) and name.startswith(prefix) and name[len(prefix) :].split(".")[0] in _PARTS


def _head(name: object, prefix: str) -> object:
    """What a name that is no part of the network belongs to: "rot_pred" for "module.rot_pred.weight"."""
    return name.removeprefix(prefix).split(".")[0] if isinstance(name, str) else name


def _pair(name: object) -> tuple[str, str] | None:
    """The names of a mean and of its standard deviation, where `name` is that of a mean."""
    if not isinstance(name, str):
        return None
    parent, dot, last = name.rpartition(".")
    return (name, f"{parent}{dot}{_DEVIATION_OF[last]}") if last in _DEVIATION_OF else None


def _are_three(part: Mapping[Any, Any], pair: Sequence[str]) -> bool:
    """Whether both are numbers of three channels."""
    return all(
        isinstance(part.get(name), Tensor) and part[name].is_floating_point() and part[name].numel() == 3
        for name in pair
    )
