"""Random loss weighting (Lin et al., 2022), a rival of Algorithm 1: new weights at every step."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_weights(lambdas: Tensor, generator: torch.Generator | None) -> None:
    """Draw the weights of a step: the softmax of standard normal numbers, which sums to 1.

    Args:
        lambdas: (1 + k,) the weights of the main loss and of the tasks, overwritten in place.
        generator: the source, on the device; None is torch's default generator.
    """
    drawn = torch.randn(lambdas.shape, generator=generator, device=lambdas.device, dtype=lambdas.dtype)
    lambdas.copy_(drawn.softmax(0))
