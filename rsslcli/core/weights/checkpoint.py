"""Checkpoints, written atomically and read without running any code in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.data.store import DEFAULT_SIZE, SIZES
from rsslcli.core.errors import RsslError, UserError, sanitize, short_repr
from rsslcli.core.files import checkpoint_path, replacing
from rsslcli.core.networks.batch_norm import STATISTICS
from rsslcli.core.networks.build import restore_network
from rsslcli.core.networks.names import WRN, is_custom
from rsslcli.core.networks.network import Network
from rsslcli.core.networks.normalization import HALF, Normalization, parse_normalization
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.public import WIDE_RESNET, FoundWeights, find_weights, layout_of, note_on_variant
from rsslcli.core.weights.tensor_files import copied, read_description, read_tensors

if TYPE_CHECKING:
    from rsslcli.core.networks.backbones import Backbone

FORMAT = "rssl checkpoint"
VERSION = 1

#: How the note on an assumed input normalization ends.
NORMALIZATION_ADVICE = (
    "; if it was trained with another one, pass that as `normalization`, or the accuracy will be too low"
)
#: The floats that torch computes with everywhere; others, such as float8, it only stores.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: The largest image side that the metadata of a file may claim, in pixels.
_MAX_SIZE = 4096


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume, and that evaluation needs to be fair."""

    config: Config  #: the configuration
    classes: tuple[str, ...]  #: class names, in the order of the scores
    step: int  #: number of steps done
    #: state dict of the network; a WideResNet's has the names of the public WRN checkpoints
    classifier: dict[str, Tensor]
    heads: dict[str, Tensor]  #: state dict of the tasks' heads
    optimizer: dict[str, Any]  #: state dict of the optimizer
    lambdas: Tensor  #: float (k,), in the order of `config.weighted`
    excluded: tuple[int, ...]  #: indices of the source images that tuned λ; no evaluation may use them
    train_data: str  #: checksum of the whole training split from which the run drew its images
    validation_data: str  #: identity of the corrupted set on which λ was tuned; empty if it was not
    #: state dict of the moving average of the network; empty without `config.ema`
    average: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    image_size: int = DEFAULT_SIZE  #: height and width of the images on which it trained, in pixels

    def network(self) -> Network:
        """The trained classifier, on the CPU and in evaluation mode; the moving average if there is one."""
        state = self.average or self.classifier
        return self.describe(restore_network(self.config, state, self.image_size).eval())

    def describe(self, network: Network) -> Network:
        """Attach what is known about a network with these weights to it, and return it."""
        network.classes = self.classes
        network.image_size = self.image_size
        network.excluded = self.excluded
        return network


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, make_folder: bool = True) -> None:
    """Write `checkpoint` atomically: `path` always holds either the old one or the new one.

    Without `make_folder`, a run folder that was deleted is not made again.

    Raises:
        RsslError: the file cannot be written.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    content |= {"format": FORMAT, "version": VERSION, "config": checkpoint.config.to_dict()}
    content |= {"classes": list(checkpoint.classes), "excluded": list(checkpoint.excluded)}
    try:
        with replacing(path, make_folder=make_folder) as file:
            torch.save(content, file)
    except RuntimeError as error:  # how torch reports a full disk
        raise RsslError(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of rssl; `path` is the file or the run directory that holds it.

    Raises:
        UserError: the file is missing, of another kind, or damaged.
    """
    path = checkpoint_path(path)
    content = read_tensors(path)
    if not _is_ours(content):
        raise UserError(
            f"{path} holds weights but is not a checkpoint of rssl: `eval-c`, `predict` and `export` read it"
        )
    return _checkpoint(path, content)[0]


def load_classifier(
    path: Path,
    *,
    network: str | None = None,
    normalization: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Network, Checkpoint | None]:
    """Load the classifier in a checkpoint of rssl, a run directory, or a file with a state dict.

    State dicts may be stored as in the usual public files: see `find_weights`.

    Args:
        path: a file written by torch.save or safetensors, or the run directory that holds it.
        network: the architecture of a state dict, as `Config.network`; by default "wrn".
        normalization: the input normalization of a state dict: a name of `NORMALIZATIONS`, or means and
            standard deviations as "R,G,B/R,G,B". By default the one in the file, or else "half" for a
            WideResNet, "imagenet" for a network of torchvision, and "none" for one of the user's own.
        note: called with one line for each thing to know: unused weights, the input normalization.

    Returns:
        The network in evaluation mode, and the checkpoint if the file is one of rssl.

    Raises:
        UserError: the file is missing, of another kind, or damaged, or contradicts `network` or
            `normalization`.
    """
    wanted = None if normalization is None else parse_normalization(normalization)
    path = checkpoint_path(path)
    content = read_tensors(path)
    if _is_ours(content):
        checkpoint, trained = _checkpoint(path, content)
        if wanted is not None and not _normalizes_by(trained, wanted):
            raise UserError(
                f"{path} is a checkpoint of rssl, whose normalization is known: omit `normalization`"
            )
        if network not in (None, checkpoint.config.network):
            raise UserError(f"{path} is a run of `network` {checkpoint.config.network}, not of {network}")
        return checkpoint.describe(trained), checkpoint
    loaded, found = _foreign(path, content, network or WRN)
    _describe(loaded, read_description(path))
    if is_custom(network or WRN) and loaded.image_size is None:
        size = loaded.built_for
        note(f"{path} does not say on which images it was trained: `predict` and `export` take {size}×{size}")
    stored = found.normalization if found else None
    if wanted and stored and not torch.allclose(torch.tensor(wanted), torch.tensor(stored), atol=1e-3):
        raise UserError(f"{path} contains another normalization of its input: omit `normalization`")
    variant = note_on_variant(loaded.state_dict()) if isinstance(loaded, WideResNet) else None
    for text in (*(found.notes if found else ()), *([variant] if variant else [])):
        note(f"{path}: {text}")
    if stored:
        shown = " / ".join(", ".join(f"{number:.4g}" for number in numbers) for numbers in stored)
        note(f"{path}: its input is normalized as the file says, with mean / standard deviation {shown}")
    elif wanted is None:
        assumed = "x·2 - 1" if isinstance(loaded, WideResNet) else f"the usual one of {network}"
        note(f"{path} does not say how its input is normalized: {assumed} is assumed{NORMALIZATION_ADVICE}")
    chosen = stored or wanted
    if chosen and not (chosen == HALF and loaded.mu is None):
        loaded.set_normalization(*chosen)
    return loaded, None


def _foreign(path: Path, content: Mapping[str, Any], name: str) -> tuple[Network, FoundWeights | None]:
    """The network `name` with weights from a file of another program, and what was found in it."""
    template = None if name == WRN else _template(name)
    layout = WIDE_RESNET
    if template:
        layout = layout_of(name, template.original_names, template.classifier_name)
    try:
        found = find_weights(content, layout)
    except UserError as error:
        raise UserError(f"{path}: {sanitize(error, 400)}") from None
    state = copied(path, found.state if found else content.get("state_dict", content))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        title = "a WideResNet" if template is None else name
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of {title}")
    state = {str(name): value for name, value in state.items()}
    if template is None:
        return _network(path, state, Config()), found
    state = template.renamed(state)
    config = Config(network=name)
    failures = []
    for size in (224, 32, 64):  # torchvision's are made for 224; with a stem for small images, for less
        try:
            return _network(path, state, config, size), found
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _template(name: str) -> Backbone:
    from rsslcli.core.networks.backbones import backbone_template  # torchvision takes a while to import

    return backbone_template(name)


def _describe(network: Network, described: Mapping[str, Any]) -> None:
    """Attach class names, temperature and image size in the metadata of a file, as far as they are usable."""
    names: Any = described.get("classes")
    if _is_list(names, _is_word) and len({*names}) == len(names) == network.fc.out_features:
        network.classes = tuple(names)
    network.temperature = described.get("temperature")
    preprocessing = described.get("preprocessing")
    sizes: Any = preprocessing.get("size") if isinstance(preprocessing, dict) else None
    if _is_list(sizes, _is_size) and len(sizes) == 2 and sizes[0] == sizes[1]:
        network.image_size = sizes[0]


def _normalizes_by(network: Network, wanted: Normalization) -> bool:
    """Whether the input of a network is normalized by these means and standard deviations."""
    if network.mu is None or network.sigma is None:
        return wanted == HALF
    known = torch.stack([network.mu.flatten(), network.sigma.flatten()])
    return torch.allclose(known, torch.tensor(wanted, dtype=known.dtype), atol=1e-3)


def _is_ours(content: Mapping[str, Any]) -> bool:
    found = content.get("format")
    return isinstance(found, str) and found == FORMAT


def _checkpoint(path: Path, content: Mapping[str, Any]) -> tuple[Checkpoint, Network]:
    """Check `content`, read from `path`, part by part; return the checkpoint and its classifier."""
    content = {"average": {}, "image_size": DEFAULT_SIZE} | copied(path, content)  # version 0.1 had neither
    version = content.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise UserError(
            f"{path} has checkpoint version {short_repr(version)}, but this rssl reads version {VERSION}: "
            "use the rssl that wrote it"
        )
    for name, fits in _PARTS.items():
        if not fits(content.get(name)):
            raise UserError(f"{path} is a damaged checkpoint: '{name}' is missing or has the wrong type")
    values = {name: content[name] for name in _PARTS}
    values |= {"classes": tuple(values["classes"]), "excluded": tuple(values["excluded"])}
    try:
        values["config"] = Config.from_dict(values["config"])
    except (TypeError, UserError) as error:  # an unknown option, or a value out of range
        raise UserError(f"{path} is a damaged checkpoint: its configuration: {sanitize(error)}") from None
    config = values["config"]
    lambdas = values["lambdas"]
    if len(lambdas) != len(config.weighted):
        raise UserError(f"{path} is a damaged checkpoint: the number of λ is not that of the tasks")
    if bool(values["average"]) != bool(config.ema):
        raise UserError(f"{path} is a damaged checkpoint: its moving average does not fit `ema`")
    for name in ("classifier", "heads", "optimizer", "lambdas"):
        _check_finite(path, name, values[name])
    if (lambdas < 0).any():
        raise UserError(f"{path} is a damaged checkpoint: a λ is negative")
    for state in (values["classifier"], *filter(None, [values["average"]])):
        network = _network(path, state, config, values["image_size"])  # the last one is the one to evaluate
        if not _is_of(network, config) or network.fc.out_features != len(values["classes"]):
            raise UserError(
                f"{path} is a damaged checkpoint: its weights do not fit the network in its configuration"
            )
    heads = [value for name, value in values["heads"].items() if not name.endswith(STATISTICS)]
    weights = [*network.parameters(), *heads]
    if not _fits_weights(values["optimizer"], config.optimizer, weights):
        raise UserError(f"{path} is a damaged checkpoint: the optimizer's state does not fit its weights")
    return Checkpoint(**values), network


def _network(
    path: Path, state: Mapping[str, Tensor], config: Config, image_size: int = DEFAULT_SIZE
) -> Network:
    """The network of `config` with weights from `path`; a WideResNet has the size that they say."""
    last = state.get("fc.weight")
    if last is not None and last.shape[:1] == (0,):
        raise UserError(f"{path}: its classifier has no outputs")
    try:
        with torch.random.fork_rng(devices=[]):  # the initial weights will be overwritten
            network = restore_network(config, state, image_size).eval()
    except UserError as error:
        raise UserError(f"{path}: {sanitize(error, 400)}") from None
    check_weights(path, network, state)
    return network


def check_weights(path: Path, network: Network, state: Mapping[str, Tensor]) -> None:
    """Raise UserError if weights of `state`, which `network` took, have the wrong dtype or are not finite."""
    for name, value in network.state_dict().items():
        given = state.get(name, value)  # the oldest files have no num_batches_tracked
        # Averaging a state dict (EMA) turns the batch counts into floats. Nothing here uses them.
        counts = name.endswith("num_batches_tracked")
        if not counts and given.is_floating_point() != value.is_floating_point():
            raise UserError(f"{path}: the weights '{name}' have the wrong dtype, {given.dtype}")
        _check_finite(path, name, value)


def _is_of(network: Network, config: Config) -> bool:
    """True if a network has the depth and width of `config`, which only a WideResNet has."""
    if not isinstance(network, WideResNet):
        return config.network != WRN
    return (network.depth, network.width) == (config.depth, config.width)


def _check_finite(path: Path, name: str, value: Any) -> None:
    """Reject NaN and infinity in the tensors and numbers of `value`, the part `name` of the file."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(path, f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_finite(path, name, item)
    elif isinstance(value, Tensor | float) and not (
        math.isfinite(value) if isinstance(value, float) else value.isfinite().all()
    ):
        raise UserError(
            f"{path} is a damaged checkpoint: NaN or infinity in {short_repr(name)}: use another one"
        )


def _fits_weights(optimizer: Mapping[Any, Any], kind: str, weights: list[Tensor]) -> bool:
    """True if `optimizer` can be the state dict of an optimizer of these weights, in this order."""
    state = optimizer.get("state")
    groups = optimizer.get("param_groups")
    return (
        isinstance(state, dict)
        and all(
            _is_count(index)
            and index < len(weights)
            and _are_tensors(entry)
            and all(
                value.shape == (() if name == "step" else weights[index].shape)
                for name, value in entry.items()
            )
            and (kind == "sgd" or entry.keys() == {"step", "exp_avg", "exp_avg_sq"})
            for index, entry in state.items()
        )
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
        and [index for group in groups for index in group["params"]] == list(range(len(weights)))
        and all(_is_setting(value) for group in groups for name, value in group.items() if name != "params")
    )


def _is_setting(value: object) -> bool:
    """True if an optimizer can have a setting of this value, such as a pair of betas."""
    if isinstance(value, tuple):
        return all(isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, bool | int | float)


def _are_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.dtype in (*_FLOATS, torch.int64)
        for name, tensor in value.items()
    )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIZE


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_word(value: object) -> bool:
    return isinstance(value, str)


#: The parts of a checkpoint file, each with a check of its value.
_PARTS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, Mapping) and all(map(_is_word, value)),
    "classes": lambda value: _is_list(value, _is_word),
    "step": _is_count,
    "classifier": _are_tensors,
    "heads": _are_tensors,
    "optimizer": lambda value: isinstance(value, Mapping),
    "lambdas": lambda value: isinstance(value, Tensor) and value.dim() == 1 and value.dtype in _FLOATS,
    "excluded": lambda value: _is_list(value, _is_count),
    "train_data": _is_word,
    "validation_data": _is_word,
    "average": _are_tensors,
    "image_size": lambda value: _is_count(value) and value in SIZES,
}
