"""Checkpoints: written whole or not at all, and read without running anything that is in them."""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.errors import RsslError, UserError, one_line, quoted
from rsslcli.core.files import checkpoint_path, quietly, replacing
from rsslcli.core.networks import WideResNet
from rsslcli.core.normalization import HALF, parse_normalization
from rsslcli.core.state_dicts import find_weights

FORMAT = "rssl checkpoint"
VERSION = 1

_DAMAGED = "is damaged or of another program"
#: What a pickle may name: the parts of tensors and of state dicts, none of which does anything by itself.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
_MAX_DEPTH = 20  # of what a checkpoint nests; ours has four levels
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
        optimizer: state dict of the optimiser.
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
    content = _read(path)
    if not _is_ours(content):
        raise UserError(f"{path} holds weights, but is no checkpoint of rssl: only eval-c takes it")
    return _checkpoint(path, content)[0]


def load_classifier(
    path: Path, *, normalization: str | None = None, note: Callable[[str], None] = lambda text: None
) -> tuple[WideResNet, Checkpoint | None]:
    """The classifier in a checkpoint of `rssl`, a run directory, or a file with a WideResNet state dict.

    The state dict is taken as public files hold it: see `find_weights`.

    Args:
        path: the file, or the run directory that holds it.
        normalization: how a state dict's input is normalised: a name of `NORMALIZATIONS`, or means and
            standard deviations as "R,G,B/R,G,B". By default what the file says, or else "half".
        note: told, a line each, what a person should know: what was not used, how the input is normalised.

    Returns:
        The network in evaluation mode, and the checkpoint where the file is one of `rssl`.

    Raises:
        UserError: no such file, a file of another kind, or a damaged one; a normalisation that the file
            contradicts.
    """
    wanted = None if normalization is None else parse_normalization(normalization)
    path = checkpoint_path(path)
    content = _read(path)
    if _is_ours(content):
        if wanted not in (None, HALF):
            raise UserError(f"{path} is a checkpoint of rssl, whose normalisation is known: leave it out")
        checkpoint, network = _checkpoint(path, content)
        return checkpoint.describe(network), checkpoint
    try:
        found = find_weights(content)
    except UserError as error:
        raise UserError(f"{path}: {one_line(error, 400)}") from None
    state = _copied(path, found.state if found else content.get("state_dict", content))
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    network = _classifier(path, {str(name): value for name, value in state.items()})
    own = found.normalization if found else None
    if wanted and own and not torch.allclose(torch.tensor(wanted), torch.tensor(own), atol=1e-3):
        raise UserError(f"{path} says how its input is normalised, which is otherwise: leave it out")
    for text in found.notes if found else ():
        note(f"{path}: {text}")
    if own:
        shown = " / ".join(", ".join(f"{number:.4g}" for number in numbers) for numbers in own)
        note(f"{path}: its input is normalised as the file says, by mean / standard deviation {shown}")
    elif wanted is None:
        note(
            f"{path} does not say how its input is normalised: taken as x·2 - 1; with another normalisation "
            "the numbers would be too low (--normalization)"
        )
    mean, std = own or wanted or HALF
    if (mean, std) != HALF:
        network.set_normalization(mean, std)
    return network, None


def _read(path: Path) -> dict[Any, Any]:
    """The dictionary in a file of torch.save, without running any code that the file holds."""
    try:
        with quietly():
            # An archive is mapped, so that a tensor cannot reach beyond the file, nor be larger.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # torch raises almost anything on damaged and foreign files
        harmful = isinstance(error, _HarmfulError)
        reason = "it holds objects other than tensors" if harmful else f"it {_DAMAGED}"
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    return dict(dict.items(content))  # as in _copied


class _HarmfulError(Exception):
    """A pickle names something other than the parts of tensors."""


def _is_archive(path: Path) -> bool:
    """Whether the file is of the newer of torch's two formats, an archive; checked before torch reads it.

    torch trusts an archive's claims and looks at no checksum. Its restricted unpickler runs no code, but
    calls functions that make gigabytes of a few bytes, such as bytearray().
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            for _ in range(5):  # the format's mark, its version, the system, the content, the storages' names
                _check_pickle(file)
            return False
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            names = [member.filename.lower() for member in members]
            # As torch.save writes it: nothing compressed, nothing twice, nothing ahead of the archive.
            if (
                any(member.compress_type != zipfile.ZIP_STORED for member in members)
                or sum(member.file_size for member in members) > path.stat().st_size
                or min(member.header_offset for member in members) > 0
                or len(set(names)) < len(names)
                or archive.testzip() is not None
            ):
                raise zipfile.BadZipFile
            for member, name in zip(members, names, strict=True):
                if name.endswith(".pkl"):
                    _check_pickle(io.BytesIO(archive.read(member)))
    return True


def _check_pickle(file: IO[bytes]) -> None:
    """Read over a pickle, raising _HarmfulError where it names anything but the parts of tensors."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument)):
            raise _HarmfulError


def _copied(path: Path, content: Any) -> Any:
    """A copy of what a file holds, in plain dictionaries and tensors that share nothing.

    A pickle can share and nest its parts, and repeat one number over a tensor of any shape, so that a small
    file stands for a content of any size. Written out, it may not be larger than the file.
    """
    room = path.stat().st_size

    def copied(value: Any, depth: int) -> Any:
        nonlocal room
        room -= value.numel() * value.element_size() if isinstance(value, Tensor) else 1
        if room < 0 or depth > _MAX_DEPTH:
            raise UserError(f"{path} {_DAMAGED}: it claims more than it can hold")
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):  # an OrderedDict's own methods may be replaced by the file
            return {key: copied(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, list | tuple):
            items = [copied(item, depth + 1) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    return copied(content, 0)


def _is_ours(content: Mapping[str, Any]) -> bool:
    found = content.get("format")
    return isinstance(found, str) and found == FORMAT


def _checkpoint(path: Path, content: Mapping[str, Any]) -> tuple[Checkpoint, WideResNet]:
    """The checkpoint that `content`, read from `path`, describes, checked part by part; its classifier."""
    content = _copied(path, content)
    version = content.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise UserError(
            f"{path} has checkpoint version {quoted(version)}, this rssl reads version {VERSION}: "
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
        raise UserError(f"{path} is a damaged checkpoint: its configuration: {one_line(error)}") from None
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
        raise UserError(f"{path} is a damaged checkpoint: the optimiser's state is not of its weights")
    return Checkpoint(**values), network


def _classifier(path: Path, state: Mapping[str, Tensor]) -> WideResNet:
    try:
        _check_size(state)
        with torch.random.fork_rng(devices=[]):  # its initial weights are of no interest
            network = WideResNet.from_state_dict(state).eval()
    except UserError as error:
        raise UserError(f"{path}: {one_line(error, 400)}") from None
    for name, value in network.state_dict().items():
        given = state.get(name, value)  # the oldest files count no batches
        if given.is_floating_point() != value.is_floating_point():
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
                f"these weights are not of a WideResNet for 32×32 images: {quoted(name)} is missing or has "
                "another shape"
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
        raise UserError(f"{path} is a damaged checkpoint: NaN or infinity in {quoted(name)}: use another one")


def _fits_weights(optimizer: Mapping[Any, Any], weights: list[Tensor]) -> bool:
    """Whether `optimizer` can be the state dict of an optimiser of these weights, in this order."""
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
