"""Blurs. The shape contract of every corruption is in `noise`."""

from torch import Generator, Tensor

from rsslcli.core.corruptions.operators import gaussian_filter

GAUSSIAN_SIGMA = (0.4, 0.6, 0.7, 0.8, 1.0)


def gaussian_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Gaussian blur."""
    return gaussian_filter(images, GAUSSIAN_SIGMA[severity - 1])
