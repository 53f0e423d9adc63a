"""The base of color-channel guessing and the jigsaw puzzle: predict the order of shuffled parts."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from math import factorial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import linear_head
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task


@cache
def orders(parts: int, device: torch.device) -> Tensor:
    """All orders of `parts` parts, lexicographically: int64 (parts!, parts); row 0 is the identity.

    The tensor is cached on the device: copying it there again would make every step wait.
    """
    return torch.tensor(list(permutations(range(parts))), device=device)


@dataclass(frozen=True)
class PermutationTask(Task):
    """Predict the order of shuffled parts: int64 targets (N,), the row of `orders`, under cross-entropy."""

    #: Put a hidden layer before the scores.
    hidden: bool = False

    parts: ClassVar[int]

    @abstractmethod
    def arrange(self, images: Tensor, order: Tensor) -> Tensor:
        """Put part order[n, p] of image n at position p; images (N, 3, H, W), order int64 (N, parts)."""

    def head(self, features: int) -> nn.Module:
        return linear_head(features, factorial(self.parts), hidden=self.hidden)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        targets = random.integers(images, factorial(self.parts))
        return self.arrange(images, orders(self.parts, images.device)[targets]), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The parts, put back in place according to the predicted order."""
        order = orders(self.parts, inputs.device)[outputs.argmax(1)]
        return self.arrange(inputs, order.argsort(1))
