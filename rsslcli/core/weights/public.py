"""Finding the weights of a network in files of other programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rsslcli.core.errors import short_repr
from rsslcli.core.networks.normalization import Normalization, check_normalization

#: Names of normalization buffers, mean → deviation: RobustBench, common wrappers, the robustness library.
_DEVIATION_OF = {"mu": "sigma", "mean": "std", "new_mean": "new_std"}
_MAX_DEPTH = 2  # {"model": {"state_dict": {…}}}
_MAX_NAMED = 12  # items listed in one note


@dataclass(frozen=True)
class Layout:
    """The names by which the weights of an architecture are found."""

    title: str  #: the architecture, for messages
    first: str  #: the first tensor of every state dict
    last: str  #: the weights of the classifier
    #: The parts of the network. Unknown weights inside them would change what it computes, and are rejected.
    parts: frozenset[str]


WIDE_RESNET = Layout(
    "WideResNet",
    "block1.layer.0.conv1.weight",
    "fc.weight",
    frozenset({"conv1", "block1", "block2", "block3", "bn1", "fc"}),
)


def layout_of(title: str, names: Sequence[str], classifier: str) -> Layout:
    """The layout of an architecture from the names in a state dict, and that of its classifier's layer."""
    parts = frozenset(name.split(".")[0] for name in [*names, classifier])
    return Layout(title, names[0], f"{classifier}.weight", parts)


@dataclass(frozen=True)
class FoundWeights:
    """The weights of a network in a file."""

    state: dict[str, Any]  #: tensors by the names of the architecture
    normalization: Normalization | None  #: the normalization of the input in the file; None if there is none
    #: what the user should know: which of several networks was chosen, and what is not used
    notes: tuple[str, ...]


def find_weights(content: Mapping[Any, Any], layout: Layout = WIDE_RESNET) -> FoundWeights | None:
    """Find the state dict of an architecture in the content of a checkpoint file; None if there is none.

    It may be the whole content or be stored under a key such as "state_dict" or "model", and its names may
    have the prefixes of wrappers, such as "module." or "_orig_mod.", once or repeatedly. The file may also
    hold heads of other tasks, optimizer states, numbers and texts.

    Raises:
        UserError: the values of its normalization buffers are invalid.
    """
    networks = list(_networks(content, layout))
    if not networks:
        return None
    # If there are several, such as averaged weights, prefer the top level and "state_dict".
    chosen = min(networks, key=lambda network: network.keys[-1:] not in ((), ("state_dict",)))
    part = chosen.part
    prefix = chosen.prefix
    notes = []
    if len(networks) > 1:
        places = ", ".join(network.place for network in networks[:_MAX_NAMED])
        notes.append(
            f"it holds several networks, at {places}: the one at {chosen.place} is used; to use another, "
            "save it in a separate file"
        )
    # A network of the user's own may normalize its input itself: then the pair is a part of it.
    others = [name for name in part if not _is_part(name, prefix, layout)]
    pair = next((pair for pair in map(_pair, others) if pair and _are_three(part, pair)), ())
    normalization = None
    if pair:
        mean, std = (tuple(map(float, part[name].flatten().tolist())) for name in pair)
        normalization = check_normalization(mean, std, " and ".join(map(short_repr, pair)))
    state = {name[len(prefix) :]: part[name] for name in part if _is_part(name, prefix, layout)}
    heads = [_head(name, prefix) for name in others if name not in pair]
    unused = list(dict.fromkeys(map(short_repr, [*heads, *chosen.beside])))
    if unused:
        more = f" and {len(unused) - _MAX_NAMED} more" if len(unused) > _MAX_NAMED else ""
        notes.append(f"not part of the {layout.title}, so not used: {', '.join(unused[:_MAX_NAMED])}{more}")
    return FoundWeights(state, normalization, tuple(notes))


def note_on_variant(state: Mapping[str, Tensor]) -> str | None:
    """A note on weights that only look like those of a WideResNet; None if nothing indicates this.

    Some code uses the same names for a different forward pass: its widening blocks pass their input directly
    to the first convolution, so that the output of their first normalization is not used. No gradient reaches
    that layer, and it alone keeps its initial equal weights and zero biases.

    Args:
        state: state dict of a `WideResNet`.
    """
    layers = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    untrained = [layer for layer in layers if _is_untrained(state[f"{layer}.weight"], state[f"{layer}.bias"])]
    if not untrained or not all(re.fullmatch(r"block\d\.layer\.0\.bn1", layer) for layer in untrained):
        return None
    return (
        f"{' and '.join(map(short_repr, untrained))} did not take part in training: these weights are of "
        "another architecture with the same names, such as that of FixMatch's and MixMatch's PyTorch code, "
        "which is not supported, and the scores will be wrong"
    )


def _is_untrained(weight: Tensor, bias: Tensor) -> bool:
    return not bias.any() and bool((weight == weight[:1]).all())


@dataclass(frozen=True)
class _Network:
    """A network in a file: the dictionary `part` under `keys`, in which its names begin with `prefix`."""

    keys: tuple[Any, ...]
    part: dict[Any, Any]
    prefix: str
    #: The dictionaries on the path to `part`, one per key
    around: tuple[dict[Any, Any], ...]

    @property
    def beside(self) -> list[Any]:
        """The other keys in the dictionaries on the path."""
        return [
            name for key, items in zip(self.keys, self.around, strict=True) for name in items if name != key
        ]

    @property
    def place(self) -> str:
        return " ".join(map(short_repr, (*self.keys, self.prefix) if self.prefix else self.keys)) or "the top"


def _networks(content: Mapping[Any, Any], layout: Layout) -> Iterator[_Network]:
    """Find the networks in `content`. Each dictionary is visited once, even if the file repeats it."""
    to_see: list[tuple[tuple[Any, ...], Any, tuple[dict[Any, Any], ...]]] = [((), content, ())]
    seen = {id(content)}
    for keys, part, around in to_see:
        items = dict(dict.items(part))  # bypasses methods of an OrderedDict that the file may replace
        for name in items:
            if isinstance(name, str) and name.endswith(layout.first):
                prefix = name[: -len(layout.first)]
                if prefix[-1:] in ("", ".") and prefix + layout.last in items:
                    yield _Network(keys, items, prefix, around)
        for key, value in items.items():
            if isinstance(value, dict) and id(value) not in seen and len(keys) < _MAX_DEPTH:
                seen.add(id(value))
                to_see.append(((*keys, key), value, (*around, items)))


def _is_part(name: object, prefix: str, layout: Layout) -> bool:
    if not isinstance(name, str) or not name.startswith(prefix):
        return False
    return name[len(prefix) :].split(".")[0] in layout.parts


def _head(name: object, prefix: str) -> object:
    """The module of a name outside the network: "rot_pred" for "module.rot_pred.weight"."""
    return name.removeprefix(prefix).split(".")[0] if isinstance(name, str) else name


def _pair(name: object) -> tuple[str, str] | None:
    """The names of a mean and its standard deviation if `name` is that of a mean, else None."""
    if not isinstance(name, str):
        return None
    parent, dot, last = name.rpartition(".")
    return (name, f"{parent}{dot}{_DEVIATION_OF[last]}") if last in _DEVIATION_OF else None


def _are_three(part: Mapping[Any, Any], pair: Sequence[str]) -> bool:
    """True if both are floating-point tensors with three elements."""
    return all(
        isinstance(part.get(name), Tensor) and part[name].is_floating_point() and part[name].numel() == 3
        for name in pair
    )
