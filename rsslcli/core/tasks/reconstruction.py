"""Image reconstruction and image deblurring (section 3): output the image, or its sharp version."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.heads import DECODED_SIDE, averaged, deconvolution_head, enlarged
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task


@dataclass(frozen=True)
class ImageReconstruction(Task):
    """Reconstruct the image itself: an autoencoder.

    Targets and outputs are float (N, 3, 32, 32) in [0, 1]: larger images are averaged to that. The loss is
    the mean squared error over pixels and channels; with scale 1 and λ = 0.5 it is negligible beside
    cross-entropies. Supplement A.1 lists no sigmoid here, but without it a scale of 10 or more diverges at
    the paper's learning rate of 0.1.
    """

    scale: float = 30.0
    #: End the decoder with a sigmoid, which keeps the outputs in the range of images.
    sigmoid: bool = True
    #: Start the decoder with a hidden layer, as the precursor code does.
    hidden: bool = False

    title: ClassVar[str] = "Image reconstruction"
    clean_input: ClassVar[bool] = True

    def head(self, features: int) -> nn.Module:
        decoder = deconvolution_head(features, 256, 128, 64, 3, hidden=self.hidden)
        return decoder.append(nn.Sigmoid()) if self.sigmoid else decoder

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        return images, averaged(images)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return enlarged(outputs, inputs)


@dataclass(frozen=True)
class ImageDeblurring(ImageReconstruction):
    """Reconstruct the image from its blurred version (BIR).

    `sigma` is the standard deviation of the Gaussian blur in pixels of a 32×32 image; it grows with the size.
    By default, the blur is visible but the content is still recognizable.
    """

    sigma: float = 1.5

    title: ClassVar[str] = "Image deblurring"
    clean_input: ClassVar[bool] = False

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        sigma = self.sigma * images.shape[2] / DECODED_SIDE
        return blurred(images, sigma), averaged(images)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur float images (N, C, H, W) with a Gaussian of `sigma` pixels, reflected at the borders.

    A separable blur is a matrix product from both sides; it treats the borders exactly, needs no padding, and
    works on any device and dtype. `corruptions.operators.gaussian_filter` is its twin on the CPU.
    """
    height, width = images.shape[2:]
    rows = _blur_matrix(height, sigma, images.device, images.dtype)
    columns = _blur_matrix(width, sigma, images.device, images.dtype)
    return rows @ images @ columns.T


@cache
def _blur_matrix(size: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, size) matrix that blurs a line of pixels, mirrored at its ends (d c b a | a b c d)."""
    position = torch.arange(size, device=device, dtype=dtype)
    weights = torch.zeros(size, size, device=device, dtype=dtype)
    radius = math.ceil(4 * sigma)
    # Sum over all mirror images of a pixel that lie within reach of the kernel.
    reach = radius // (2 * size) + 1
    for period in range(-reach, reach + 1):
        for mirrored in (position, -1 - position):
            distance = mirrored[None, :] + 2 * size * period - position[:, None]
            weights += torch.exp(-0.5 * (distance / sigma) ** 2) * (distance.abs() <= radius)
    return weights / weights.sum(1, keepdim=True)
