"""Color-channel guessing (section 3): in which of the 3! = 6 orders stand the color channels?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import ClassVar

from torch import Tensor

from rsslcli.core.tasks.permutation import PermutationTask


class ColorChannelGuessing(PermutationTask):
    """Channel c of the input is channel order[c] of the image."""

    title: ClassVar[str] = "Color-channel guessing"
    answers: ClassVar[Sequence[str]] = tuple(map("".join, permutations("RGB")))
    parts: ClassVar[int] = 3

    def arrange(self, images: Tensor, order: Tensor) -> Tensor:
        return images.gather(1, order[:, :, None, None].expand_as(images))
