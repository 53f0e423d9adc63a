"""A custom network: it gets images in [0, 1], and ends in a linear layer that rssl replaces."""

from torch import Tensor, nn


class Center(nn.Module):
    """Bring values from [0, 1] to [-1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images - 1


def small() -> nn.Module:
    """A small network with layer normalization, for images of 32×32 pixels."""
    return nn.Sequential(
        Center(),
        nn.Conv2d(3, 32, kernel_size=4, stride=4),
        nn.GELU(),
        nn.Flatten(),
        nn.LayerNorm(32 * 8 * 8),
        nn.Linear(32 * 8 * 8, 64),
        nn.GELU(),
        nn.Linear(64, 1000),
    )
