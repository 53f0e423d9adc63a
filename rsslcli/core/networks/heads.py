"""The heads θaux of the tasks (supplement A.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

#: The side of the pictures that the decoders of supplement A.1 draw, whatever the size of the images.
DECODED_SIDE = 32


def averaged(images: Tensor, side: int = DECODED_SIDE) -> Tensor:
    """Float images (N, C, H, W), averaged over blocks of pixels to (N, C, side, side) if they are larger."""
    return F.adaptive_avg_pool2d(images, side) if max(images.shape[2:]) > side else images


def enlarged(pictures: Tensor, like: Tensor) -> Tensor:
    """Pictures (N, C, h, w), each pixel repeated, in the height and width of the images `like`."""
    same = pictures.shape[2:] == like.shape[2:]
    return pictures if same else F.interpolate(pictures, like.shape[2:], mode="nearest-exact")


def linear_head(features: int, outputs: int, *, hidden: bool = False) -> nn.Module:
    """FC(features, outputs): features (N, features) → scores (N, outputs), supplement A.1.

    With `hidden`, FC(features, features) and ReLU come first.
    """
    linear = nn.Linear(features, outputs)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), linear) if hidden else linear


def deconvolution_head(features: int, *channels: int, hidden: bool = False) -> nn.Sequential:
    """A stack of transposed convolutions, supplement A.1: features (N, features) → (N, channels[-1], S, S).

    The first one (kernel 4, stride 1, padding 0) maps 1×1 to 4×4; each further one (kernel 4, stride 2,
    padding 1) doubles the side, so S = 2 ** (len(channels) + 1). BatchNorm and ReLU come between them;
    a convolution before a BatchNorm has no bias, since the BatchNorm would cancel it. With `hidden`,
    FC(features, features) and ReLU come first, as in the paper's published precursor code.
    """
    layers: list[nn.Module] = [nn.Linear(features, features), nn.ReLU()] if hidden else []
    layers.append(nn.Unflatten(1, (features, 1, 1)))
    inputs = features
    for i, outputs in enumerate(channels):
        if i:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU()]
        stride, padding = (2, 1) if i else (1, 0)
        last = i == len(channels) - 1
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=last))
        inputs = outputs
    return nn.Sequential(*layers)
