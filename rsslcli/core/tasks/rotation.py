"""Rotation (section 3): predict whether the image was rotated by 0°, 90°, 180° or 270°."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import linear_head
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task


@dataclass(frozen=True)
class Rotation(Task):
    """Predict the rotation angle: the number of quarter turns, counter-clockwise, under cross-entropy.

    With v `views`, every image appears in v orientations, so that inputs and int64 targets have v · N rows.

    Raises:
        ValueError: `views` is not 1, 2 or 4.
    """

    #: 4: all four orientations. 1: a random one. 2: a random one and its opposite.
    views: int = 4
    #: Put a hidden layer before the scores.
    hidden: bool = False

    title: ClassVar[str] = "Rotation"
    answers: ClassVar[Sequence[str]] = ("0°", "90°", "180°", "270°")

    def __post_init__(self) -> None:
        if self.views not in (1, 2, 4):
            raise ValueError(f"expected 1, 2 or 4 views, got {self.views}")

    def head(self, features: int) -> nn.Module:
        return linear_head(features, 4, hidden=self.hidden)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        rotated = [torch.rot90(images, turns, (2, 3)) for turns in range(4)]
        if self.views == 4:
            return torch.cat(rotated), torch.arange(4, device=images.device).repeat_interleave(len(images))
        targets = random.integers(images, 4)
        if self.views == 2:
            targets = torch.cat([targets, (targets + 2) % 4])
        image = torch.arange(len(targets), device=images.device) % len(images)
        return torch.stack(rotated)[targets, image], targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The inputs, rotated back by the predicted angles."""
        turns = outputs.argmax(1).tolist()
        return torch.stack([torch.rot90(x, -k, (1, 2)) for x, k in zip(inputs, turns, strict=True)])
