"""Augmentation on the device, a batch at once: crops and flips whose choices are drawn per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rsslcli.core.randomness import BatchRandom

#: Images of up to this side are cropped after padding; larger ones by a random resized crop.
MAX_PADDED_SIDE = 32
PADDING = 4

#: A random resized crop: the range of its fraction of the area, and of its width divided by its height.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
#: How often a crop is drawn before the whole image is taken instead.
TRIES = 10


def random_batch(images: Tensor, random: BatchRandom) -> Tensor:
    """Crop and flip the images of a batch: padded crops up to 32 pixels, random resized crops above.

    Args:
        images: uint8 (B, H, W, 3).
        random: the source of random numbers, one row for each of the B images.

    Returns:
        uint8 (B, H, W, 3), contiguous, each image flipped left to right at random.
    """
    crop = random_crop if max(images.shape[1:3]) <= MAX_PADDED_SIDE else random_resized_crop
    return crop(images, random)


def random_crop(images: Tensor, random: BatchRandom) -> Tensor:
    """Pad with 4 black pixels on every side, crop to the size of before at a random place, and flip.

    One indexing operation crops and flips. Arguments and result are those of `random_batch`.
    """
    count, height, width, _ = images.shape
    device = images.device
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    down, right = (random.integers(images, 2 * PADDING + 1, 1) for _ in range(2))
    flipped = random.integers(images, 2, 1).bool()
    columns = torch.arange(width, device=device).expand(count, width)
    rows = torch.arange(height, device=device) + down
    columns = torch.where(flipped, columns.flip(1), columns) + right
    image = torch.arange(count, device=device)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_resized_crop(images: Tensor, random: BatchRandom) -> Tensor:
    """Crop at a random place, scale the crop to the size of before, and flip (Szegedy et al. 2015).

    The choices are those of torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` with their defaults;
    crops are never larger than the result, so bilinear interpolation needs no low-pass filter. Arguments and
    result are those of `random_batch`.
    """
    draws = random.uniform(images.new_empty(len(images), dtype=torch.float32), TRIES + 1, 4)
    top, left, height, width = choose_crops(draws, *images.shape[1:3])
    flipped = draws[:, TRIES, 2] < 0.5
    return resized_crop(images, top, left, height, width, flipped)


def choose_crops(draws: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """The places of random resized crops in images of this height and width, in pixels.

    Args:
        draws: uniform in [0, 1), float (B, TRIES + 1, 4). The first two columns of the first rows draw the
            area and the ratio of a crop, once per try; those of the last row draw its place.

    Returns:
        The top, the left, the height and the width of each crop: whole numbers, float (B,).
    """
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[:, :TRIES, 0]) * (height * width)
    low, high = (math.log(limit) for limit in RATIO)
    ratio = torch.exp(low + (high - low) * draws[:, :TRIES, 1])
    widths = (area * ratio).sqrt().round()
    heights = (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    crop_width = torch.where(found, widths.gather(1, first)[:, 0], width)
    crop_height = torch.where(found, heights.gather(1, first)[:, 0], height)
    top = (draws[:, TRIES, 0] * (height - crop_height + 1)).floor()
    left = (draws[:, TRIES, 1] * (width - crop_width + 1)).floor()
    return top, left, crop_height, crop_width


def resized_crop(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flipped: Tensor
) -> Tensor:
    """Crop each image, scale the crop bilinearly to the size of the image, and flip it left to right.

    Args:
        images: uint8 (B, H, W, 3).
        top, left, height, width: the crops, in pixels, float (B,).
        flipped: which to flip, bool (B,).

    Returns:
        uint8 (B, H, W, 3), contiguous.
    """
    size = images.shape[1:3]
    rows = _sources(top, height, size[0])
    columns = _sources(left, width, size[1])
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    # `grid_sample` measures positions from −1 at the center of the first pixel to 1 at that of the last.
    y, x = (2 * place / max(side - 1, 1) - 1 for place, side in zip((rows, columns), size, strict=True))
    shape = (len(images), *size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    pixels = images.permute(0, 3, 1, 2).to(grid.dtype)
    scaled = F.grid_sample(pixels, grid, padding_mode="border", align_corners=True)
    return scaled.round().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _sources(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The positions, float (B, size), of a line of `size` pixels within a crop that is scaled to it."""
    place = (torch.arange(size, device=start.device) + 0.5) * (length[:, None] / size) - 0.5
    last = (length - 1)[:, None]
    return start[:, None] + torch.minimum(place.clamp(min=0), last)


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images (N, H, W, 3) to floats (N, 3, H, W) in [0, 1], in channels-last memory layout."""
    return images.permute(0, 3, 1, 2).to(dtype) / 255
