"""Blurs. `noise` states the interface of every corruption."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rsslcli.core.corruptions.operators import gaussian_filter, shift_pixels, zoom_matrix

GAUSSIAN_SIGMA = (0.4, 0.6, 0.7, 0.8, 1.0)
#: radius of the disk, sigma of the Gaussian that softens its edge
DEFOCUS_DISK = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
#: sigma, passes; pixels move by at most one
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
#: radius, sigma
MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
#: the averaged zoom factors are 1, 1.01, … up to this; rounding in `numpy.arange` decides about the end
ZOOM_END = (1.06, 1.11, 1.16, 1.21, 1.26)


def gaussian_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Gaussian blur."""
    return gaussian_filter(images, GAUSSIAN_SIGMA[severity - 1])


def defocus_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Convolve with a disk, like a lens out of focus."""
    kernel = _disk(*DEFOCUS_DISK[severity - 1])
    border = kernel.shape[-1] // 2
    height, width = images.shape[-2:]
    planes = F.pad(images, (border,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(planes, kernel).view(-1, 3, height, width)


def _disk(radius: float, softness: float) -> Tensor:
    """A disk, softened by a 3×3 Gaussian, as a kernel (1, 1, side, side)."""
    reach = int(radius) + 1
    offsets = torch.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()
    weights = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / softness) ** 2)
    weights = torch.outer(weights, weights)
    return F.conv2d(disk[None, None] / disk.sum(), weights[None, None] / weights.sum(), padding=1)


def glass_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Blur, replace pixels with random neighbors, and blur again.

    The original intends to swap a pixel with its neighbor, but its assignment through array views only
    copies the neighbor, which always lies above or to the left and is not overwritten yet, as its output
    confirms. So each pass is one gather.
    """
    sigma, passes = GLASS[severity - 1]
    count, _, height, width = images.shape
    result = (gaussian_filter(images, sigma) * 255 + 1e-3).floor() / 255
    moves_inside = torch.zeros(height, width, dtype=torch.long)
    moves_inside[2:, 2:] = -1
    for _ in range(passes):
        down, right = torch.randint(2, (2, count, height, width), generator=generator) * moves_inside
        result = shift_pixels(result, down, right)
    return gaussian_filter(result, sigma)


def motion_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Blur each image along a random direction between -45° and 45°."""
    radius, sigma = MOTION[severity - 1]
    degrees = torch.rand(len(images), generator=generator) * 90 - 45
    return smear(images, degrees, radius, sigma)


def smear(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) to one side along the directions (N,), like ImageMagick's motion blur.

    The weights are half a Gaussian over integer steps along the direction; edge pixels repeat outward.
    """
    steps = torch.arange(2 * radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angle = torch.deg2rad(degrees)[:, None, None]
    result = torch.zeros_like(images)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        if weight > 1e-5:  # smaller weights change no gray level
            down = (step * torch.sin(angle) - 0.5).ceil().long()
            right = (step * torch.cos(angle) - 0.5).ceil().long()
            result += weight * shift_pixels(images, down, right)
    return result


def zoom_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Average the image with enlargements of its center."""
    height, width = images.shape[-2:]
    return (images.flatten(2) @ _zoom_average(height, width, severity).T).view_as(images)


@lru_cache(maxsize=8)
def _zoom_average(height: int, width: int, severity: int) -> Tensor:
    """All zooms combined as a matrix (H·W, H·W), several times faster than one zoom after another."""
    factors = np.arange(1, ZOOM_END[severity - 1], 0.01).tolist()
    total = torch.eye(height * width)
    for factor in factors:
        total += torch.kron(zoom_matrix(height, factor), zoom_matrix(width, factor))
    return total / (len(factors) + 1)
