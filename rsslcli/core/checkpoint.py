"""Checkpoints: written whole or not at all, and read without running anything that is in them."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.data.store import replacing
from rsslcli.core.errors import RsslError, UserError
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
    content |= {"format": FORMAT, "version": VERSION, "config": _plain(checkpoint.config)}
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
    if content.get("format") != FORMAT:
        raise UserError(f"{path} holds weights, but is no checkpoint of rssl: only eval-c takes it")
    if content.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {content.get('version')!r}, this rssl reads version {VERSION}: "
            "use the rssl that wrote it"
        )
    try:
        names = [field.name for field in dataclasses.fields(Checkpoint)]
        values = {name: content[name] for name in names}
        values["config"] = Config(**values["config"])
        values["classes"] = tuple(str(name) for name in values["classes"])
        values["excluded"] = tuple(int(index) for index in values["excluded"])
        return Checkpoint(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is a damaged checkpoint: {type(error).__name__}: {error}") from None


def load_classifier(path: Path) -> tuple[WideResNet, Checkpoint | None]:
    """The classifier in a checkpoint of `rssl`, a run directory, or a plain WideResNet state dict.

    A state dict may stand under a key `state_dict`, and its names may begin with `module.`.

    Returns:
        The network in evaluation mode, and the checkpoint where the file is one of `rssl`.
    """
    path = checkpoint_path(path)
    content = _read(path)
    if content.get("format") == FORMAT:
        checkpoint = load_checkpoint(path)
        return checkpoint.network(), checkpoint
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    try:
        return WideResNet.from_state_dict(state).eval(), None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        harmful = isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error)
        reason = "it holds objects other than tensors" if harmful else "it is damaged or of another program"
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    return content


def _plain(config: Config) -> dict[str, Any]:
    """The configuration as plain data, which is all that a safe load brings back."""
    return dataclasses.asdict(config) | {"tasks": list(config.tasks)}
