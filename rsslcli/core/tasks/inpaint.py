"""Inpainting (section 3): fill in the missing center of the image."""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import averaged, deconvolution_head, enlarged
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task

#: The side of the missing part that the head predicts.
PREDICTED_SIDE = 8


@dataclass(frozen=True)
class Inpainting(Task):
    """Reconstruct the center, a quarter of the image high and wide, which is white in the input.

    Targets and outputs are float (N, 3, 8, 8) in [0, 1]: a larger center is averaged to that. The loss is the
    mean squared error over them.
    """

    scale: float = 30.0
    #: Start the decoder with a hidden layer, as the precursor code does.
    hidden: bool = False

    title: ClassVar[str] = "Inpainting"

    def head(self, features: int) -> nn.Module:
        return deconvolution_head(features, 64, 3, hidden=self.hidden).append(nn.Sigmoid())

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        hole = _hole(images)
        inputs = images.clone()
        inputs[hole] = 1.0
        return inputs, averaged(images[hole], PREDICTED_SIDE)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The inputs with the predicted center filled in."""
        filled = inputs.clone()
        hole = _hole(inputs)
        filled[hole] = enlarged(outputs, filled[hole])
        return filled


def _hole(images: Tensor) -> tuple[EllipsisType, slice, slice]:
    """The index of the central pixels of images (N, 3, H, W)."""
    top, left = (3 * side // 8 for side in images.shape[2:])
    return (..., slice(top, top + images.shape[2] // 4), slice(left, left + images.shape[3] // 4))
