"""Augmentation on the device: one indexing operation gathers, crops and flips the images of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rsslcli.core.randomness import BatchRandom

PADDING = 4


def pad_images(images: Tensor) -> Tensor:
    """Pad uint8 images (N, H, W, 3) with 4 black pixels on every side; done once, before `random_batch`."""
    return F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))


def random_batch(padded: Tensor, chosen: Tensor, random: BatchRandom) -> Tensor:
    """A batch of the chosen images, randomly cropped after padding by 4, and flipped left to right.

    Args:
        padded: uint8 (N, H + 8, W + 8, 3) on the device, from `pad_images`.
        chosen: int64 (B,) on the same device, the indices of the images.
        random: the source of random numbers, one row for each of the B images.

    Returns:
        uint8 (B, H, W, 3), contiguous.
    """
    device = chosen.device
    count = chosen.shape[0]
    height = padded.shape[1] - 2 * PADDING
    width = padded.shape[2] - 2 * PADDING
    down, right = (random.integers(chosen, 2 * PADDING + 1, 1) for _ in range(2))
    flipped = random.integers(chosen, 2, 1).bool()
    columns = torch.arange(width, device=device).expand(count, width)
    rows = torch.arange(height, device=device) + down
    columns = torch.where(flipped, columns.flip(1), columns) + right
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 images (N, H, W, 3) to floats (N, 3, H, W) in [0, 1], in channels-last memory layout."""
    return images.permute(0, 3, 1, 2).to(dtype) / 255
