"""Checkpoints: written whole or not at all, and read without running anything that is in them."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.errors import RsslError, UserError, quoted
from rsslcli.core.files import replacing
from rsslcli.core.networks import WideResNet

FORMAT = "rssl checkpoint"
VERSION = 1


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
        return WideResNet.from_state_dict(self.classifier).eval()


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
    return _checkpoint(path, content)


def load_classifier(path: Path) -> tuple[WideResNet, Checkpoint | None]:
    """The classifier in a checkpoint of `rssl`, a run directory, or a plain WideResNet state dict.

    A state dict may stand under a key `state_dict`, and its names may begin with `module.`.

    Returns:
        The network in evaluation mode, and the checkpoint where the file is one of `rssl`.
    """
    path = checkpoint_path(path)
    content = _read(path)
    if _is_ours(content):
        checkpoint = _checkpoint(path, content)
        return _classifier(path, checkpoint.classifier), checkpoint
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    return _classifier(
        path, {str(name).removeprefix("module."): value for name, value in state.items()}
    ), None


def checkpoint_path(path: Path) -> Path:
    """The checkpoint file that `path` names, itself or inside the run directory."""
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one with `rssl train-automl` or `rssl train-single`")
    return path


def _read(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of torch.save, without running any code that the file holds."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # torch raises almost anything on damaged and foreign files
        harmful = isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower()
        reason = "it holds objects other than tensors" if harmful else "it is damaged or of another program"
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    return content


def _is_ours(content: Mapping[str, Any]) -> bool:
    found = content.get("format")
    return isinstance(found, str) and found == FORMAT


def _checkpoint(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint that `content`, read from `path`, describes; checked part by part."""
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
        raise UserError(f"{path} is a damaged checkpoint: its configuration: {error}") from None
    if len(values["lambdas"]) != len(values["config"].tasks):
        raise UserError(f"{path} is a damaged checkpoint: not one λ per task")
    return Checkpoint(**values)


def _classifier(path: Path, state: Mapping[str, Tensor]) -> WideResNet:
    try:
        return WideResNet.from_state_dict(state).eval()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _are_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
