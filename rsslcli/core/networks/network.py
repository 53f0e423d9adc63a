"""What every classifier here is: a trunk, and a linear classifier on its features."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Network(nn.Module):
    """A classifier: the trunk θc (`features`) and the main task's classifier θmain (`fc`).

    A subclass defines `features`, and sets `feature_width` and `fc`. The input is normalized as x·2 − 1
    unless the buffers `mu` and `sigma`, floats (1, 3, 1, 1), are set; their names are RobustBench's. In
    WideResNets trained here they are None, and not part of the state dict.

    Attributes:
        feature_width: the number of features.
        classes: class names in the order of the scores; empty if unknown. Like `excluded`, it is a plain
            attribute, so that wrappers and copies of the network keep it.
        excluded: indices of the source images that tuned λ; no evaluation may use them.
        image_size: height and width of the images on which it trained, in pixels; None if unknown.
        temperature: what calibrates its probabilities, as an exported file says; None if unknown. It may be
            any value: see `read_temperature`.
        built_for: the height and width of the images for which it is built; it may take others.
    """

    feature_width: int
    fc: nn.Linear
    mu: Tensor | None
    sigma: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = ()
        self.excluded: tuple[int, ...] = ()
        self.image_size: int | None = None
        self.temperature: object = None
        self.built_for = 32
        self.register_buffer("mu", None)
        self.register_buffer("sigma", None)

    def features(self, images: Tensor) -> Tensor:
        """The trunk: float images (N, 3, H, W) in [0, 1] → features (N, feature_width)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in [0, 1] → class scores (N, classes)."""
        scores: Tensor = self.fc(self.features(images))
        return scores

    def normalized(self, images: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in [0, 1], normalized as the trunk expects."""
        return images * 2 - 1 if self.mu is None or self.sigma is None else (images - self.mu) / self.sigma

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalize the input as (x − mean) / std per channel, with x in [0, 1]."""
        like = self.fc.weight
        self.mu, self.sigma = (like.new_tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))


def initialize(network: nn.Module) -> None:
    """He initialization (fan-out) of convolutions, as in the WideResNet code; linear biases start at 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
