"""Blurs. `noise` states the interface of every corruption."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rsslcli.core.corruptions.operators import gaussian_filter, zoom, zoom_matrix


def gaussian_blur(images: Tensor, generator: Generator, sigma: float) -> Tensor:
    """Gaussian blur."""
    return gaussian_filter(images, sigma)


def defocus_blur(images: Tensor, generator: Generator, radius: float, softness: float) -> Tensor:
    """Convolve with a disk, like a lens out of focus; `softness` is the sigma that softens its edge."""
    kernel = disk(radius, softness)
    border = kernel.shape[-1] // 2
    planes = F.pad(images, (border,) * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(planes, kernel).view_as(images)


def disk(radius: float, softness: float) -> Tensor:
    """A disk, softened by a Gaussian, as a kernel (1, 1, side, side).

    As in the original, the Gaussian has 3×3 pixels, or 5×5 beyond a radius of 8. The disk is drawn on
    17×17 pixels or, if it is larger, on just its own size; the Gaussian mirrors what lies beyond.
    """
    reach = max(int(radius), 8)
    offsets = torch.arange(-reach, reach + 1)
    hard = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
    soft = 1 if radius <= 8 else 2
    weights = torch.exp(-0.5 * (torch.arange(-soft, soft + 1).double() / softness) ** 2)
    weights = torch.outer(weights, weights)
    padded = F.pad(hard[None, None] / hard.sum(), (soft,) * 4, mode="reflect")
    # In float64, or the processor would choose the order of the sums, which their rounding shows.
    kernel = F.conv2d(padded, weights[None, None] / weights.sum()).float()
    empty = max(reach - int(radius) - soft, 0)  # rows of zeros around the disk
    return kernel[..., empty : kernel.shape[-2] - empty, empty : kernel.shape[-1] - empty]


def glass_blur(images: Tensor, generator: Generator, sigma: float, reach: int, passes: int) -> Tensor:
    """Blur, replace pixels with random neighbors, and blur again.

    The original walks up from the lower right corner. It intends to swap a pixel with a neighbor at offsets
    from -reach to reach - 1, but its assignment through array views only copies the neighbor, as its output
    confirms. So a neighbor that the walk has passed holds a copy itself, and the copies form chains.
    """
    count, _, height, width = images.shape
    result = (gaussian_filter(images, sigma) * 255 + 1e-3).floor() / 255
    for _ in range(passes):
        down, right = reach - 1 - torch.randint(2 * reach, (2, count, height, width), generator=generator)
        source = _end_of_chain(down * width + right, reach)
        result = result.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    return gaussian_filter(result, sigma)


def _end_of_chain(moves: Tensor, reach: int) -> Tensor:
    """The pixel that each pixel finally copies, by the moves (N, H, W) of a pass, as indices (N, H·W)."""
    count, height, width = moves.shape
    walked = torch.zeros(height, width, dtype=torch.bool)
    walked[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    pixel = torch.arange(height * width)
    source = pixel + (moves * walked).view(count, -1)
    continues = source > pixel  # the neighbor has been passed
    while continues.any():  # each round doubles the steps taken along a chain
        neighbor_continues = continues.gather(1, source)
        source = torch.where(continues, source.gather(1, source), source)
        continues &= neighbor_continues
    return source


def motion_blur(images: Tensor, generator: Generator, radius: int, sigma: float) -> Tensor:
    """Blur each image along a random direction between -45° and 45°."""
    degrees = torch.rand(len(images), generator=generator) * 90 - 45
    return smear(images, degrees, radius, sigma)


def smear(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """Blur images (N, C, H, W) to one side along the directions (N,), like ImageMagick's motion blur.

    The weights are half a Gaussian over integer steps along the direction; edge pixels repeat outward.
    """
    height, width = images.shape[-2:]
    steps = torch.arange(2 * radius + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    kept = weights > 1e-5  # smaller ones change no gray level
    steps = steps[kept]
    angle = torch.deg2rad(degrees)
    border = 2 * radius
    top = border + (steps[:, None] * torch.sin(angle) - 0.5).ceil().long()
    left = border + (steps[:, None] * torch.cos(angle) - 0.5).ceil().long()
    padded = F.pad(images, (border,) * 4, mode="replicate")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).movedim(1, 3)  # a view (N, top, left, C, H, W)
    every = torch.arange(len(images))
    result = torch.zeros_like(images)
    for weight, tops, lefts in zip(weights[kept].tolist(), top, left, strict=True):
        result += weight * windows[every, tops, lefts]
    return result


def zoom_blur(images: Tensor, generator: Generator, end: float, step: float) -> Tensor:
    """Average the image with enlargements of its center by 1, 1 + step, … up to `end`.

    Rounding in `numpy.arange` decides about the end, as in the original.
    """
    side = images.shape[-1]
    factors = np.arange(1, end, step).tolist()
    if side <= _SMALL:
        planes = images.flatten(2).double() @ _zoom_average(side, tuple(factors)).T
        return planes.to(images.dtype).view_as(images)
    total = images.clone()
    for factor in factors:
        total += zoom(images, factor)
    return total / (len(factors) + 1)


#: Up to this side, all zooms are combined in one matrix, several times faster than one after another.
_SMALL = 32


@lru_cache(maxsize=8)
def _zoom_average(side: int, factors: tuple[float, ...]) -> Tensor:
    """All zooms combined as a float64 matrix (side², side²)."""
    total = torch.eye(side * side, dtype=torch.float64)
    for factor in factors:
        matrix = zoom_matrix(side, factor).double()
        total += torch.kron(matrix, matrix)
    return total / (len(factors) + 1)
