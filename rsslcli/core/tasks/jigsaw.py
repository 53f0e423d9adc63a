"""Jigsaw puzzle (section 3): predict which of the 4! = 24 orders the quarters of the image are in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import ClassVar

import torch
from torch import Tensor

from rsslcli.core.tasks.permutation import PermutationTask


class Jigsaw(PermutationTask):
    """Place p of the input (top left, top right, bottom left, bottom right) shows quarter order[p]."""

    title: ClassVar[str] = "Jigsaw puzzle"
    answers: ClassVar[Sequence[str]] = tuple(map("".join, permutations("1234")))
    parts: ClassVar[int] = 4

    def arrange(self, images: Tensor, order: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        height //= 2
        width //= 2
        quarters = images.reshape(count, channels, 2, height, 2, width).permute(0, 2, 4, 1, 3, 5)
        quarters = quarters.reshape(count, 4, channels, height, width)
        placed = quarters[torch.arange(count, device=images.device)[:, None], order]
        grid = placed.reshape(count, 2, 2, channels, height, width).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(images.shape)
