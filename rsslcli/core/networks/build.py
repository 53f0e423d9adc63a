"""Building the network that a configuration names, new or with trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsslcli.core.errors import UserError, short_repr
from rsslcli.core.networks.names import WRN, is_custom
from rsslcli.core.networks.network import Network
from rsslcli.core.networks.wide_resnet import WideResNet

if TYPE_CHECKING:
    from rsslcli.core.config import Config
    from rsslcli.core.networks.backbones import Backbone


def build_network(config: Config, classes: int, image_size: int = 32) -> Network:
    """The network of `config` with random weights, on the device of the context.

    Args:
        config: the settings.
        classes: number of the classifier's outputs.
        image_size: height and width of the images, in pixels.

    Raises:
        UserError: its name is unknown, or it does not take such images; see `build_backbone`.
    """
    if config.network == WRN:
        return WideResNet(config.depth, config.width, classes)
    from rsslcli.core.networks.backbones import build_backbone  # torchvision takes a while to import

    return build_backbone(config.network, classes, image_size)


def restore_network(config: Config, state: Mapping[str, Tensor], image_size: int = 32) -> Network:
    """The network of `config` with the trained weights `state`.

    Raises:
        UserError: the weights are not of that network.
    """
    if config.network == WRN:
        return WideResNet.from_state_dict(state)
    return restore_backbone(config.network, state, image_size)


def restore_backbone(name: str, state: Mapping[str, Tensor], image_size: int = 32) -> Backbone:
    """The network `name` with trained weights, which share no memory with `state`.

    A network of torchvision takes memory only once the names and shapes of its tensors are found in `state`,
    so that a small file cannot claim a large network.

    Args:
        name: as for `build_backbone`.
        state: by the names of a `Backbone`. Without `mu` and `sigma`, it keeps its usual normalization.
        image_size: height and width of the images, in pixels.

    Raises:
        UserError: the weights are not of that network.
    """
    from rsslcli.core.networks.backbones import build_backbone
    from rsslcli.core.networks.normalization import NORMALIZATIONS

    last = state.get("fc.weight")
    outputs = len(last) if isinstance(last, Tensor) and last.dim() else 1
    custom = is_custom(name)
    with torch.device("cpu" if custom else "meta"):
        network = build_backbone(name, outputs, image_size)
    expected = network.state_dict()
    is_normalized = "mu" in state
    if not is_normalized:
        network.mu = network.sigma = None
    kept = {key: value for key, value in expected.items() if is_normalized or key not in ("mu", "sigma")}
    for key in [*kept, *state]:
        missing = key not in state and not key.endswith("num_batches_tracked")
        if missing or key not in kept or (key in state and state[key].shape != kept[key].shape):
            raise UserError(
                f"these weights are not of {name} for images of {image_size}×{image_size}: "
                f"{short_repr(key.removeprefix('trunk.'))} is missing, has another shape or is not part of it"
            )
    copies = {key: value.to(kept[key].dtype, copy=True) for key, value in state.items()}
    network.load_state_dict(copies, assign=True)
    if not is_normalized:
        network.set_normalization(*NORMALIZATIONS["none" if custom else "imagenet"])
    return network
