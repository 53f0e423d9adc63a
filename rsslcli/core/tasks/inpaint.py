"""Inpainting (section 3): what was in the center that is now missing?"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import deconvolution_head
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task

HOLE = 8


@dataclass(frozen=True)
class Inpainting(Task):
    """Reconstruct the central 8×8 pixels, which are white in the input.

    Targets and outputs are float (N, 3, 8, 8) in [0, 1]. The loss is the mean squared error over them.
    """

    scale: float = 30.0
    #: Begin the decoder with a hidden layer, as the precursor code does.
    hidden: bool = False

    title: ClassVar[str] = "Inpainting"

    def head(self, features: int) -> nn.Module:
        return deconvolution_head(features, 64, 3, hidden=self.hidden).append(nn.Sigmoid())

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        hole, inputs = _hole(images), images.clone()
        inputs[hole] = 1.0
        return inputs, images[hole]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The images with their center filled in."""
        filled = inputs.clone()
        filled[_hole(inputs)] = outputs
        return filled


def _hole(images: Tensor) -> tuple[EllipsisType, slice, slice]:
    """The index of the central pixels of images (N, 3, H, W)."""
    top, left = (images.shape[2] - HOLE) // 2, (images.shape[3] - HOLE) // 2
    return (..., slice(top, top + HOLE), slice(left, left + HOLE))
