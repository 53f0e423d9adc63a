"""Checkpoints: written whole or not at all, and read without running anything that is in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.errors import RsslError, UserError, sanitize, short_repr
from rsslcli.core.files import checkpoint_path, replacing
from rsslcli.core.networks.normalization import HALF, parse_normalization
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.public import find_weights, note_on_variant
from rsslcli.core.weights.tensor_files import copied, read_tensors

FORMAT = "rssl checkpoint"
VERSION = 1

_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on, and all that evaluation needs to be fair.

    Attributes:
        config: the resolved configuration.
        classes: class names, in the order of the scores.
        step: steps done.
        classifier: state dict of the WideResNet, whose names are those of the public WRN checkpoints.
        heads: state dict of the tasks' heads.
        optimizer: state dict of the optimizer.
        lambdas: float (k,), in the order of `config.tasks`.
        excluded: indices of the source images that tuned λ; no evaluation may use them.
        train_data, validation_data: what the run trained on and tuned λ on (checksums).
    """

    config: Config
    classes: tuple[str, ...]
    step: int
    classifier: dict[str, Tensor]
    heads: dict[str, Tensor]
    optimizer: dict[str, Any]
    lambdas: Tensor
    excluded: tuple[int, ...]
    train_data: str
    validation_data: str

    def network(self) -> WideResNet:
        """The trained classifier, on the CPU and in evaluation mode."""
        return self.describe(WideResNet.from_state_dict(self.classifier).eval())

    def describe(self, network: WideResNet) -> WideResNet:
        """Let a network that has these weights carry the names of its classes and what tuned its λ."""
        network.classes = self.classes
        network.excluded = self.excluded
        return network


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` so that `path` holds either the old one or the new one, whatever happens."""
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    content |= {"format": FORMAT, "version": VERSION, "config": checkpoint.config.to_dict()}
    content |= {"classes": list(checkpoint.classes), "excluded": list(checkpoint.excluded)}
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except RuntimeError as error:  # how torch reports a full disk
        raise RsslError(f"cannot write {path}: {str(error).splitlines()[0]}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `rssl`; `path` is the file or the run directory that holds it.

    Raises:
        UserError: no such file, a file of another kind, or a damaged one.
    """
    path = checkpoint_path(path)
    content = read_tensors(path)
    if not _is_ours(content):
        raise UserError(f"{path} holds weights, but is no checkpoint of rssl: only eval-c takes it")
    return _checkpoint(path, content)[0]


def load_classifier(
    path: Path, *, normalization: str | None = None, note: Callable[[str], None] = lambda text: None
) -> tuple[WideResNet, Checkpoint | None]:
    """The classifier in a checkpoint of `rssl`, a run directory, or a file with a WideResNet state dict.

    The state dict is taken as public files hold it: see `find_weights`.

    Args:
        path: the file, of torch.save or safetensors, or the run directory that holds it.
        normalization: how a state dict's input is normalized: a name of `NORMALIZATIONS`, or means and
            standard deviations as "R,G,B/R,G,B". By default what the file says, or else "half".
        note: told, a line each, what a person should know: what was not used, how the input is normalized.

    Returns:
        The network in evaluation mode, and the checkpoint where the file is one of `rssl`.

    Raises:
        UserError: no such file, a file of another kind, or a damaged one; a normalization that the file
            contradicts.
    """
    wanted = None if normalization is None else parse_normalization(normalization)
    path = checkpoint_path(path)
    content = read_tensors(path)
    if _is_ours(content):
        if wanted not in (None, HALF):
            raise UserError(f"{path} is a checkpoint of rssl, whose normalization is known: leave it out")
        checkpoint, network = _checkpoint(path, content)
        return checkpoint.describe(network), checkpoint
    try:
        found = find_weights(content)
    except UserError as error:
        raise UserError(f"{path}: {sanitize(error, 400)}") from None
    state = copied(path, found.state if found else content.get("state_dict", content))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    network = _classifier(path, {str(name): value for name, value in state.items()})
    variant = note_on_variant(network.state_dict())
    own = found.normalization if found else None
    if wanted and own and not torch.allclose(torch.tensor(wanted), torch.tensor(own), atol=1e-3):
        raise UserError(f"{path} says how its input is normalized, which is otherwise: leave it out")
    for text in (*(found.notes if found else ()), *([variant] if variant else [])):
        note(f"{path}: {text}")
    if own:
        shown = " / ".join(", ".join(f"{number:.4g}" for number in numbers) for numbers in own)
        note(f"{path}: its input is normalized as the file says, by mean / standard deviation {shown}")
    elif wanted is None:
        note(
            f"{path} does not say how its input is normalized: taken as x·2 - 1; if it was trained with "
            "another normalization, name that one, or the accuracy comes out too low"
        )
    mean, std = own or wanted or HALF
    if (mean, std) != HALF:
        network.set_normalization(mean, std)
    return network, None


def _is_ours(content: Mapping[str, Any]) -> bool:
    found = content.get("format")
    return isinstance(found, str) and found == FORMAT


def _checkpoint(path: Path, content: Mapping[str, Any]) -> tuple[Checkpoint, WideResNet]:
    """The checkpoint that `content`, read from `path`, describes, checked part by part; its classifier."""
    content = copied(path, content)
    version = content.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise UserError(
            f"{path} has checkpoint version {short_repr(version)}, this rssl reads version {VERSION}: "
            "use the rssl that wrote it"
        )
    for name, fits in _PARTS.items():
        if not fits(content.get(name)):
            raise UserError(f"{path} is a damaged checkpoint: '{name}' is missing or of the wrong kind")
    values = {name: content[name] for name in _PARTS}
    values |= {"classes": tuple(values["classes"]), "excluded": tuple(values["excluded"])}
    try:
        values["config"] = Config(**values["config"])
    except (TypeError, UserError) as error:  # an option of another version, or a value out of range
        raise UserError(f"{path} is a damaged checkpoint: its configuration: {sanitize(error)}") from None
    config, lambdas = values["config"], values["lambdas"]
    if len(lambdas) != len(config.tasks):
        raise UserError(f"{path} is a damaged checkpoint: not one λ per task")
    for name in ("classifier", "heads", "optimizer", "lambdas"):
        _check_finite(path, name, values[name])
    if (lambdas < 0).any():
        raise UserError(f"{path} is a damaged checkpoint: a λ is below 0")
    network = _classifier(path, values["classifier"])
    depth, width = 6 * len(network.block1.layer) + 4, network.feature_width // 64
    if (depth, width, network.fc.out_features) != (config.depth, config.width, len(values["classes"])):
        raise UserError(
            f"{path} is a damaged checkpoint: its weights are not of the network in its configuration"
        )
    weights = [
        tensor
        for part in (values["classifier"], values["heads"])
        for name, tensor in part.items()
        if not name.endswith(_BUFFERS)
    ]
    if not _fits_weights(values["optimizer"], weights):
        raise UserError(f"{path} is a damaged checkpoint: the optimizer's state is not of its weights")
    return Checkpoint(**values), network


def _classifier(path: Path, state: Mapping[str, Tensor]) -> WideResNet:
    try:
        _check_size(state)
        with torch.random.fork_rng(devices=[]):  # its initial weights are of no interest
            network = WideResNet.from_state_dict(state).eval()
    except UserError as error:
        raise UserError(f"{path}: {sanitize(error, 400)}") from None
    for name, value in network.state_dict().items():
        given = state.get(name, value)  # the oldest files count no batches
        # Averaging a state dict (EMA) makes floats of the counts of batches, which nothing here uses.
        counts = name.endswith("num_batches_tracked")
        if not counts and given.is_floating_point() != value.is_floating_point():
            raise UserError(f"{path}: the weights '{name}' are numbers of another kind, {given.dtype}")
        _check_finite(path, name, value)
    return network


def _check_size(state: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names and shapes promise a network that is larger than they are.

    The second convolution of every block makes up half of a WideResNet. Where these are all there, so is it.
    """
    first, last = state.get("block1.layer.0.conv1.weight"), state.get("fc.weight")
    if first is None or last is None or not first.dim() or not last.dim():
        return  # the network's own check says so better
    width, blocks = first.shape[0], {name.split(".")[2] for name in state if name.startswith("block1.layer.")}
    shapes = {
        f"block{stage}.layer.{block}.conv2.weight": (scale * width, scale * width, 3, 3)
        for stage, scale in ((1, 1), (2, 2), (3, 4))
        for block in blocks
    }
    for name, shape in (shapes | {"fc.weight": (last.shape[0], 4 * width)}).items():
        if name not in state or state[name].shape != shape:
            raise UserError(
                f"these weights are not of a WideResNet for 32×32 images: {short_repr(name)} is missing or "
                "has another shape"
            )


def _check_finite(path: Path, name: str, value: Any) -> None:
    """Refuse NaN and infinity in the tensors and numbers of `value`, which the file calls `name`."""
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


def _fits_weights(optimizer: Mapping[Any, Any], weights: list[Tensor]) -> bool:
    """Whether `optimizer` can be the state dict of an optimizer of these weights, in this order."""
    state, groups = optimizer.get("state"), optimizer.get("param_groups")
    return (
        isinstance(state, dict)
        and all(
            _is_count(index)
            and index < len(weights)
            and _are_tensors(entry)
            and all(value.shape == weights[index].shape for value in entry.values())
            for index, entry in state.items()
        )
        and isinstance(groups, list)
        and len(groups) == 1
        and isinstance(groups[0], dict)
        and groups[0].get("params") == list(range(len(weights)))
        and all(
            value is None or isinstance(value, bool | int | float)
            for name, value in groups[0].items()
            if name != "params"
        )
    )


def _are_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and (tensor.is_floating_point() or tensor.dtype == torch.int64)
        for name, tensor in value.items()
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_word(value: object) -> bool:
    return isinstance(value, str)


#: The parts of a checkpoint file, and whether a value can be one.
_PARTS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, Mapping) and all(map(_is_word, value)),
    "classes": lambda value: _is_list(value, _is_word),
    "step": _is_count,
    "classifier": _are_tensors,
    "heads": _are_tensors,
    "optimizer": lambda value: isinstance(value, Mapping),
    "lambdas": lambda value: isinstance(value, Tensor) and value.dim() == 1 and value.is_floating_point(),
    "excluded": lambda value: _is_list(value, _is_count),
    "train_data": _is_word,
    "validation_data": _is_word,
}
