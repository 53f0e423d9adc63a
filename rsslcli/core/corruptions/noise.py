"""Noise, independent in every pixel and channel.

Every corruption takes images (N, 3, H, W) float32 in [0, 1] on the CPU, a severity from 1 to 5 and a random
generator. It returns images of the same shape, which the caller clips to [0, 1]. The parameters per severity
are those of the original generator of CIFAR-10-C (Hendrycks and Dietterich 2019).
"""

import torch
from torch import Generator, Tensor

GAUSSIAN_SIGMA = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS_AT_WHITE = (500, 250, 100, 75, 50)
IMPULSE_SHARE = (0.01, 0.02, 0.03, 0.05, 0.07)
SPECKLE_SIGMA = (0.06, 0.1, 0.12, 0.16, 0.2)


def gaussian_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise."""
    return images + GAUSSIAN_SIGMA[severity - 1] * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Poisson noise, as from counting photons."""
    photons = PHOTONS_AT_WHITE[severity - 1]
    return torch.poisson(images * photons, generator=generator) / photons


def impulse_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Salt and pepper: set a fraction of the values to 0 or 1."""
    uniform = torch.rand(images.shape, generator=generator)
    share = IMPULSE_SHARE[severity - 1]
    return torch.where(uniform < share, (uniform < share / 2).float(), images)


def speckle_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add Gaussian noise in proportion to the brightness."""
    return images + images * SPECKLE_SIGMA[severity - 1] * torch.randn(images.shape, generator=generator)
