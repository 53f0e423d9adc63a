"""Coloring (section 3): predict the color of each pixel of a gray image."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import averaged, deconvolution_head, enlarged
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task

BINS = 32

# Linear sRGB → CIE XYZ (IEC 61966-2-1), each row divided by the white point D65 of the 2° observer.
_RGB_TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
# The inverse of that matrix.
_XYZ_TO_RGB = (
    (3.2404813 * 0.95047, -1.5371515, -0.4985363 * 1.08883),
    (-0.9692549 * 0.95047, 1.8759900, 0.0415559 * 1.08883),
    (0.0556466 * 0.95047, -0.2040413, 1.0573111 * 1.08883),
)
# ITU-R BT.601 luma, the usual weights for converting to gray.
_LUMA = (0.2989, 0.5870, 0.1140)


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB → CIELAB (D65, 2° observer).

    Args:
        images: float (N, 3, H, W) in [0, 1].

    Returns:
        float (N, 3, H, W): L in [0, 100]; A in [−86.2, 98.3] and B in [−107.9, 94.5] over all of sRGB.
    """
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055).pow(2.4), images / 12.92)
    red, green, blue = linear.unbind(1)
    xyz = torch.stack([r * red + g * green + b * blue for r, g, b in _RGB_TO_XYZ], dim=1)
    f = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856).pow(1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIELAB (D65, 2° observer) → sRGB, the inverse of `rgb_to_lab`.

    Args:
        lab: float (N, 3, H, W).

    Returns:
        float (N, 3, H, W) in [0, 1]; colors outside of sRGB are clipped to its range.
    """
    lightness, a, b = lab.unbind(1)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, fy - b / 200], dim=1)
    x, y, z = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787).unbind(1)
    linear = torch.stack([p * x + q * y + r * z for p, q, r in _XYZ_TO_RGB], dim=1).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.pow(1 / 2.4) - 0.055, 12.92 * linear)


def to_gray(images: Tensor) -> Tensor:
    """Convert RGB images (N, 3, H, W) to gray: their luma in all three channels, in the same shape."""
    red, green, blue = images.unbind(1)
    gray = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return gray.unsqueeze(1).expand_as(images)


class Coloring(Task):
    """Predict the quantized A and B of CIELAB per pixel from the gray image.

    The targets are int64 (N, 2, 32, 32): bins 0 … 31 of width 8 from −128, for A and B of the image, averaged
    to 32×32. The outputs are (N, 64, 32, 32): 32 scores for A, then 32 for B. The loss is
    1 / (2 N_pixel) Σ cross-entropy.
    """

    title: ClassVar[str] = "Coloring"

    def head(self, features: int) -> nn.Module:
        return deconvolution_head(features, 256, 128, 64, 2 * BINS)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        ab = rgb_to_lab(averaged(images))[:, 1:]
        targets = ((ab + 128) * (BINS / 256)).long().clamp(0, BINS - 1)
        return to_gray(images), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(_by_channel(outputs), targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The gray images, colored with the centers of the likeliest bins."""
        ab = enlarged((_by_channel(outputs).argmax(1) + 0.5) * (256 / BINS) - 128, inputs)
        return lab_to_rgb(torch.cat([rgb_to_lab(inputs)[:, :1], ab], dim=1))


def _by_channel(outputs: Tensor) -> Tensor:
    """Scores (N, 64, H, W) as (N, 32, 2, H, W): one score per bin, for A and for B."""
    return outputs.view(len(outputs), 2, BINS, *outputs.shape[2:]).transpose(1, 2)
