"""WideResNet, the network of supplement A.1."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.errors import UserError, short_repr
from rsslcli.core.networks.network import Network, initialize


class BasicBlock(nn.Module):
    """Pre-activation residual block with two 3×3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
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


class WideResNet(Network):
    """WideResNet: the trunk θc (all but `fc`) and the main task's classifier θmain (`fc`), supplement A.1.

    Module names are those of the public WRN-40-2 checkpoints, so that their state dicts load unchanged.

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
        self.depth = depth
        self.width = width
        self.feature_width = 64 * width
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = NetworkBlock(blocks, 16, 16 * width, 1)
        self.block2 = NetworkBlock(blocks, 16 * width, 32 * width, 2)
        self.block3 = NetworkBlock(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(self.feature_width)
        self.fc = nn.Linear(self.feature_width, classes)
        initialize(self)

    def features(self, images: Tensor) -> Tensor:
        """The trunk: float images (N, 3, H, W) in [0, 1] → features (N, 64 · width)."""
        x = self.conv1(self.normalized(images))
        x = self.block3(self.block2(self.block1(x)))
        return F.relu(self.bn1(x)).mean(dim=(2, 3))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> WideResNet:
        """Build the network that `state` belongs to, inferring its size from the tensors, and load it.

        Names and shapes of a few small tensors cannot make it build a large network: the second convolutions
        of the blocks, about half of a WideResNet, must all be there first.

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
        channels, classes = state[first].shape[0], state[last].shape[0]
        blocks = {name.split(".")[2] for name in state if name.startswith("block1.layer.")}
        shapes = {
            f"block{stage}.layer.{block}.conv2.weight": (scale * channels, scale * channels, 3, 3)
            for stage, scale in ((1, 1), (2, 2), (3, 4))
            for block in blocks
        }
        for name, shape in (shapes | {last: (classes, 4 * channels)}).items():
            if getattr(state.get(name), "shape", None) != shape:
                raise UserError(f"{wrong}: {short_repr(name)} is missing or has another shape")
        try:
            network = cls(6 * len(blocks) + 4, channels // 16, classes)
            network.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            lines = str(error).split("\n")  # torch lists the errors below a headline
            reason = " ".join(" ".join(lines[1:] or lines).split())
            raise UserError(f"{wrong}: {reason[:200]}") from None
        return network
