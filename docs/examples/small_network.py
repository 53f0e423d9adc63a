"""A network of one's own: it gets images in [0, 1], and ends in a linear layer that rssl replaces."""

from torch import nn
from torchvision.transforms import Normalize


def small() -> nn.Module:
    """A small network with layer normalization, for images of 32×32 pixels."""
    return nn.Sequential(
        Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        nn.Conv2d(3, 32, kernel_size=4, stride=4),
        nn.GELU(),
        nn.Flatten(),
        nn.LayerNorm(32 * 8 * 8),
        nn.Linear(32 * 8 * 8, 64),
        nn.GELU(),
        nn.Linear(64, 1000),
    )
