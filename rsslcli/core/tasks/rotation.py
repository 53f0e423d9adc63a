"""Rotation (section 3): predict whether the image was rotated by 0°, 90°, 180° or 270°."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import linear_head
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task


class Rotation(Task):
    """Predict the rotation angle. Every image appears in all four orientations, so M = 4 N.

    The targets are int64 (4N,): the number of quarter turns, counter-clockwise. The loss is cross-entropy.
    """

    title: ClassVar[str] = "Rotation"
    answers: ClassVar[Sequence[str]] = ("0°", "90°", "180°", "270°")

    def head(self, features: int) -> nn.Module:
        return linear_head(features, 4)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        inputs = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
        targets = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return inputs, targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The inputs, rotated back by the predicted angles."""
        turns = outputs.argmax(1).tolist()
        return torch.stack([torch.rot90(x, -k, (1, 2)) for x, k in zip(inputs, turns, strict=True)])
