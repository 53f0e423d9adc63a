"""WideResNet, the network of supplement A.1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.errors import UserError
from rsslcli.core.networks.batch_norm import BatchNorm2d


class BasicBlock(nn.Module):
    """Pre-activation residual block with two 3×3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # In place where nothing else reads the tensor: this takes 5 % off the time of an evaluation.
        activated = F.relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        # The shortcut of a widening block starts after the shared activation, as in the original code.
        out += x if self.convShortcut is None else self.convShortcut(activated)
        return out


class NetworkBlock(nn.Module):
    """A stage of residual blocks; its first block changes resolution and width."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(BasicBlock(outputs if i else inputs, outputs, 1 if i else stride) for i in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WideResNet: the trunk θc (all but `fc`) and the main task's classifier θmain (`fc`), supplement A.1.

    Module names are those of the public WRN-40-2 checkpoints, so that their state dicts load unchanged. The
    input is normalized as x·2 − 1 unless the buffers `mu` and `sigma`, floats (1, 3, 1, 1), are set; their
    names are RobustBench's. In networks trained here they are None, and not part of the state dict.

    Attributes:
        classes: class names in the order of the scores; empty if unknown. Like `excluded`, it is a plain
            attribute, so that wrappers and copies of the network keep it.
        excluded: indices of the source images that tuned λ; no evaluation may use them.
        image_size: height and width of the images on which it trained, in pixels; None if unknown.

    Args:
        depth: number of layers, 6n + 4; 40 in the paper.
        width: widening factor; 2 in the paper, which gives 64 · 2 = 128 features.
        classes: number of the classifier's outputs.

    Raises:
        ValueError: no WideResNet has this depth and width.
    """

    def __init__(self, depth: int = 40, width: int = 2, classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(
                f"no WideResNet has depth {depth} and width {width}: depth is 6n + 4, width is at least 1"
            )
        blocks = (depth - 4) // 6
        self.classes: tuple[str, ...] = ()
        self.excluded: tuple[int, ...] = ()
        self.image_size: int | None = None
        self.mu: Tensor | None
        self.sigma: Tensor | None
        self.register_buffer("mu", None)
        self.register_buffer("sigma", None)
        self.feature_width = 64 * width
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = NetworkBlock(blocks, 16, 16 * width, 1)
        self.block2 = NetworkBlock(blocks, 16 * width, 32 * width, 2)
        self.block3 = NetworkBlock(blocks, 32 * width, 64 * width, 2)
        self.bn1 = BatchNorm2d(self.feature_width)
        self.fc = nn.Linear(self.feature_width, classes)
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """The trunk: float images (N, 3, H, W) in [0, 1] → features (N, 64 · width)."""
        normal = images * 2 - 1 if self.mu is None or self.sigma is None else (images - self.mu) / self.sigma
        x = self.conv1(normal)
        x = self.block3(self.block2(self.block1(x)))
        return F.relu(self.bn1(x)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in [0, 1] → class scores (N, classes)."""
        scores: Tensor = self.fc(self.features(images))
        return scores

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalize the input as (x − mean) / std per channel, with x in [0, 1]."""
        like = self.conv1.weight
        self.mu, self.sigma = (like.new_tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> WideResNet:
        """Build the network that `state` belongs to, inferring its size from the tensors, and load it.

        Raises:
            UserError: `state` is not of a WideResNet with 16 · width channels in its first stage.
        """
        wrong = "these weights are not of a WideResNet for 32×32 images"
        state = {str(name): value for name, value in state.items()}
        first = "block1.layer.0.conv1.weight"
        last = "fc.weight"
        for name in (first, last):
            if not isinstance(state.get(name), Tensor) or state[name].dim() == 0:
                raise UserError(f"{wrong}: no tensor '{name}'")
        blocks = len({name.split(".")[2] for name in state if name.startswith("block1.layer.")})
        try:
            network = cls(6 * blocks + 4, state[first].shape[0] // 16, state[last].shape[0])
            network.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            lines = str(error).split("\n")  # torch lists the errors below a headline
            reason = " ".join(" ".join(lines[1:] or lines).split())
            raise UserError(f"{wrong}: {reason[:200]}") from None
        return network


def initialize(network: nn.Module) -> None:
    """He initialization (fan-out) of convolutions, as in the WideResNet code; linear biases start at 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
