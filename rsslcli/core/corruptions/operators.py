"""Filters and resampling as small matrices for the rows and columns of an image."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=64)
def gaussian_matrix(size: int, sigma: float, truncate: float = 4.0, mode: str = "nearest") -> Tensor:
    """Gaussian filter along one axis as a matrix (size, size), like `scipy.ndimage.gaussian_filter1d`.

    `mode` sets what lies beyond the edge: "nearest" repeats the edge pixel, "reflect" mirrors (b a | a b).
    """
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / max(sigma, 1e-12)) ** 2)
    source = torch.arange(size)[:, None] + offsets
    if mode == "nearest":
        source = source.clamp(0, size - 1)
    else:
        source = source.remainder(2 * size)
        source = torch.minimum(source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))
    return matrix.float()


@lru_cache(maxsize=64)
def box_matrix(source: int, target: int) -> Tensor:
    """Pillow's BOX resize along one axis as a matrix (target, source).

    Each pixel is the mean of those it covers, where a pixel is covered if its center is.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    pixel = torch.arange(source)
    center = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    # Pillow's two conditions, in its order of operations: rounding decides for a center on a border.
    first = (center - 0.5 * stretch + 0.5).floor()
    last = (center + 0.5 * stretch + 0.5).floor()
    position = (pixel - center + 0.5) * (1 / stretch)
    covered = (pixel >= first) & (pixel < last) & (position > -0.5) & (position <= 0.5)
    return covered / covered.sum(1, keepdim=True)


@lru_cache(maxsize=64)
def zoom_matrix(size: int, factor: float) -> Tensor:
    """Linear enlargement of the middle of one axis by `factor` ≥ 1 as a matrix (size, size)."""
    crop = math.ceil(size / factor)
    enlarged = round(crop * factor)
    position = torch.arange(enlarged, dtype=torch.float64) * ((crop - 1) / max(enlarged - 1, 1))
    low = position.floor().long().clamp(max=max(crop - 2, 0))
    fraction = position - low
    matrix = torch.zeros(enlarged, size, dtype=torch.float64)
    rows = torch.arange(enlarged)
    start = (size - crop) // 2
    matrix[rows, start + low] = 1 - fraction
    matrix[rows, (start + low + 1).clamp(max=size - 1)] += fraction
    trim = (enlarged - size) // 2
    return matrix[trim : trim + size].float()


def apply_separably(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix along the height and one along the width of images (..., H, W).

    In float64: libraries sum a product in an order of their own on each processor, and in float32 that
    moves a gray level here and there.
    """
    return (rows.double() @ (images.double() @ columns.double().T)).to(images.dtype)


def gaussian_filter(images: Tensor, sigma: float, truncate: float = 4.0, mode: str = "nearest") -> Tensor:
    """Gaussian filter over the last two axes, like `skimage.filters.gaussian`."""
    height, width = images.shape[-2:]
    return apply_separably(
        images,
        gaussian_matrix(height, sigma, truncate, mode),
        gaussian_matrix(width, sigma, truncate, mode),
    )


def zoom(images: Tensor, factor: float) -> Tensor:
    """Enlarge the center of images (N, C, S, S) by `factor` ≥ 1, linearly, as `zoom_matrix` does."""
    side = images.shape[-1]
    crop = math.ceil(side / factor)
    enlarged = round(crop * factor)
    start = (side - crop) // 2
    trim = (enlarged - side) // 2
    middle = images[..., start : start + crop, start : start + crop]
    zoomed = F.interpolate(middle, (enlarged, enlarged), mode="bilinear", align_corners=True)
    return zoomed[..., trim : trim + side, trim : trim + side]
