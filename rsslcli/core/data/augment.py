"""Augmentation on the device: the images of a batch are gathered, cropped and flipped in one indexing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rsslcli.core.randomness import BatchRandom

PADDING = 4


def pad_images(images: Tensor) -> Tensor:
    """Pad uint8 images (N, H, W, 3) with 4 black pixels on every side, once, ahead of `random_batch`."""
    return F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))


def random_batch(padded: Tensor, chosen: Tensor, random: BatchRandom) -> Tensor:
    """Random crop with padding 4 and horizontal flip of the chosen images (DESIGN: one batch per step).

    Args:
        padded: uint8 (N, H + 8, W + 8, 3) on the device, from `pad_images`.
        chosen: int64 (B,) on the same device, which images to take.
        random: where random numbers come from: a row for each of the B images.

    Returns:
        uint8 (B, H, W, 3), contiguous.
    """
    device, count = chosen.device, chosen.shape[0]
    height, width = padded.shape[1] - 2 * PADDING, padded.shape[2] - 2 * PADDING
    down, right = (random.integers(chosen, 2 * PADDING + 1, 1) for _ in range(2))
    flipped = random.integers(chosen, 2, 1).bool()
    columns = torch.arange(width, device=device).expand(count, width)
    rows = torch.arange(height, device=device) + down
    columns = torch.where(flipped, columns.flip(1), columns) + right
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def to_float(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images (N, H, W, 3) → floats (N, 3, H, W) in [0, 1], in channels-last layout without a copy."""
    return images.permute(0, 3, 1, 2).to(dtype) / 255
