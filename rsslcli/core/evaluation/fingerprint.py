"""The fingerprint of an evaluation, by which an interrupted one is recognized."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rsslcli.core.evaluation.adaptation_settings import Adaptation

if TYPE_CHECKING:
    from rsslcli.core.weights.trained_tasks import TrainedTasks


def setting_of(
    data: str,
    adaptation: Adaptation | None,
    tasks: TrainedTasks | None,
    temperature: float | None,
    cells: Iterable[str],
) -> str:
    """The setting of an evaluation, as text for its fingerprint.

    `data` identifies the images and the precision; `cells` are the keys of the cells, which depend on each
    other in a mixed stream.
    """
    text = data if temperature is None else f"{data}{temperature!r}"
    if adaptation is None:
        return text
    mixed = list(cells) if adaptation.stream == "mixed" else []
    return text + json.dumps([adaptation.to_dict(), tasks.fingerprint() if tasks else "", *mixed])


def fingerprint(classifier: nn.Module, setting: str, chosen: Sequence[npt.NDArray[np.int64]]) -> str:
    """A fingerprint of an evaluation: the weights, the data and precision, and the indices of the images."""
    digest = hashlib.sha256(setting.encode())
    for indices in chosen:
        digest.update(len(indices).to_bytes(8, "little") + indices.astype("<i8").tobytes())
    for name, value in classifier.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_weights(classifier: nn.Module) -> str:
    """A fingerprint (sha256, hexadecimal) of the parameters and buffers."""
    return fingerprint(classifier, "", ())
