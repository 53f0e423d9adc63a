"""Blurs. The shape contract of every corruption is in `noise`."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rsslcli.core.corruptions.operators import gaussian_filter, shift_pixels, zoom_matrix

GAUSSIAN_SIGMA = (0.4, 0.6, 0.7, 0.8, 1.0)
#: radius of the disk, sigma of the Gaussian that softens its rim
DEFOCUS_DISK = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
#: sigma, passes; pixels move by at most one
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
#: radius, sigma
MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
#: the zooms averaged are 1, 1.01, … up to this; whether the end belongs to them is as in `numpy.arange`
ZOOM_END = (1.06, 1.11, 1.16, 1.21, 1.26)


def gaussian_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Gaussian blur."""
    return gaussian_filter(images, GAUSSIAN_SIGMA[severity - 1])


def defocus_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Convolve with a disk, as a lens out of focus does."""
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
    """Blur, replace pixels by random neighbours, blur.

    The original means to swap a pixel with its neighbour, but its assignment through array views only
    copies the neighbour, which always lies above or to the left and has not been overwritten yet (its
    output confirms it). So each pass is one gather.
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
    """Blur along a direction of its own for each image, between -45° and 45°."""
    radius, sigma = MOTION[severity - 1]
    degrees = torch.rand(len(images), generator=generator) * 90 - 45
    return smear(images, degrees, radius, sigma)


def smear(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) to one side along the directions (N,), like ImageMagick's motion blur.

    The weights are half a Gaussian over whole pixels along the direction; the edge pixels repeat outwards.
    """
    steps = torch.arange(2 * radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    angle = torch.deg2rad(degrees)[:, None, None]
    result = torch.zeros_like(images)
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        if weight > 1e-5:  # too little to change a grey level otherwise
            down = (step * torch.sin(angle) - 0.5).ceil().long()
            right = (step * torch.cos(angle) - 0.5).ceil().long()
            result += weight * shift_pixels(images, down, right)
    return result


def zoom_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Average the image with enlargements of its middle."""
    height, width = images.shape[-2:]
    return (images.flatten(2) @ _zoom_average(height, width, severity).T).view_as(images)


@lru_cache(maxsize=8)
def _zoom_average(height: int, width: int, severity: int) -> Tensor:
    """All zooms at once as a matrix (H·W, H·W); it is several times faster than one zoom after the other."""
    factors = np.arange(1, ZOOM_END[severity - 1], 0.01).tolist()
    total = torch.eye(height * width)
    for factor in factors:
        total += torch.kron(zoom_matrix(height, factor), zoom_matrix(width, factor))
    return total / (len(factors) + 1)
