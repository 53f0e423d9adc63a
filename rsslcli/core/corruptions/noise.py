"""Noise, independent in every pixel and channel.

Every corruption takes images (N, 3, H, W) float32 in [0, 1], a severity 1…5 and the generator of its
random numbers, and returns images of the same shape; the caller clips them to [0, 1]. The parameters per
severity are those of the original generator of CIFAR-10-C (Hendrycks and Dietterich 2019).
"""

import torch
from torch import Generator, Tensor

GAUSSIAN_SIGMA = (0.04, 0.06, 0.08, 0.09, 0.10)


def gaussian_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add normal noise."""
    return images + GAUSSIAN_SIGMA[severity - 1] * torch.randn(images.shape, generator=generator)
