"""Noise, independent in every pixel and channel.

Every corruption takes images (N, 3, S, S) float32 in [0, 1] on the CPU, a random generator and its parameters
at one severity, from the tables in `parameters`. It returns images of the same shape, which the caller clips
to [0, 1].
"""

import torch
from torch import Generator, Tensor


def gaussian_noise(images: Tensor, generator: Generator, sigma: float) -> Tensor:
    """Add Gaussian noise."""
    return images + sigma * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, generator: Generator, photons: float) -> Tensor:
    """Poisson noise, as from counting photons, of which a white pixel receives `photons` on average."""
    return torch.poisson(images * photons, generator=generator) / photons


def impulse_noise(images: Tensor, generator: Generator, share: float) -> Tensor:
    """Salt and pepper: set a fraction of the values to 0 or 1."""
    uniform = torch.rand(images.shape, generator=generator)
    return torch.where(uniform < share, (uniform < share / 2).float(), images)


def speckle_noise(images: Tensor, generator: Generator, sigma: float) -> Tensor:
    """Add Gaussian noise in proportion to the brightness."""
    return images + images * sigma * torch.randn(images.shape, generator=generator)
