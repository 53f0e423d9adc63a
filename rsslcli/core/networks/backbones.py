"""Networks made elsewhere: the classifiers of torchvision, and functions of the user's own."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision import models
from torchvision.ops import StochasticDepth

from rsslcli.core.errors import UserError, sanitize, short_repr, unknown
from rsslcli.core.networks.batch_norm import keep_running_statistics
from rsslcli.core.networks.names import is_custom, load_custom_network
from rsslcli.core.networks.network import Network, initialize
from rsslcli.core.networks.normalization import NORMALIZATIONS

#: Images of at most this side get a stem without stride and pooling; torchvision's are made for 224.
SMALL_IMAGE = 64
#: Beginnings of the names of torchvision's classifiers that cannot be trained here: the first do not end in
#: one linear layer, RegNets cannot be built without taking memory, as reading a checkpoint requires, and
#: MNASNets refuse tensors without the metadata that a checkpoint does not hold.
_UNFIT = ("googlenet", "inception", "squeezenet", "regnet", "mnasnet")
#: Names in torchvision's older files of DenseNets and ViTs, and what its code renames them to.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"(mlp\.)linear_1(?=\.)"), r"\g<1>0"),
    (re.compile(r"(mlp\.)linear_2(?=\.)"), r"\g<1>3"),
)


class Backbone(Network):
    """A network made elsewhere, whose last linear layer is replaced by a new classifier `fc`.

    Dropout and stochastic depth are switched off, so that a training pass draws no random numbers: ranks and
    resumed runs must agree, and Algorithm 1 passes the same images through the trunk more than once.

    Attributes:
        classifier_name: the name of the layer that `fc` replaces, in the state dict of the original.
        has_bias: whether that layer has a bias; `fc` always has one.
        new_stem: the name of the convolution that replaces the original's first one; None if it stays.

    Args:
        trunk: a module that maps images to scores; it becomes a part of this one, and is changed.
        classes: number of the classifier's outputs.
        small_stem: give it a stem for small images, see `_shrink_stem`.

    Raises:
        UserError: the module has no linear layer.
    """

    def __init__(self, trunk: nn.Module, classes: int, *, small_stem: bool = False) -> None:
        super().__init__()
        linear = [(name, layer) for name, layer in trunk.named_modules() if isinstance(layer, nn.Linear)]
        if not linear or linear[-1][1] is trunk:
            raise UserError("its classifier is missing: expected an nn.Linear as the last layer")
        self.classifier_name, last = linear[-1]
        self.has_bias = last.bias is not None
        self.feature_width = last.in_features
        _replace(trunk, self.classifier_name, nn.Identity())
        self.new_stem = _shrink_stem(trunk) if small_stem else None
        _make_deterministic(trunk)
        self.trunk = trunk
        self.fc = nn.Linear(self.feature_width, classes)
        initialize(self.fc)

    def features(self, images: Tensor) -> Tensor:
        """The trunk: float images (N, 3, H, W) in [0, 1] → features (N, feature_width)."""
        features: Tensor = self.trunk(self.normalized(images))
        return features

    @property
    def original_names(self) -> list[str]:
        """The names in the trunk's part of a state dict of the original, in their order."""
        return [name.removeprefix("trunk.") for name in self.state_dict() if name.startswith("trunk.")]

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the original, with the names of this network; a bias that it lacks is 0."""
        head = f"{self.classifier_name}."
        known = {*self.original_names}
        found = {}
        for name, value in state.items():
            if name.startswith(head):
                found[f"fc.{name.removeprefix(head)}"] = value
            else:
                found[f"trunk.{_present_name(name, known)}"] = value
        if not self.has_bias and "fc.weight" in found:
            found.setdefault("fc.bias", found["fc.weight"].new_zeros(len(found["fc.weight"])))
        return found


def _present_name(name: str, known: Collection[str]) -> str:
    """What torchvision calls a tensor today, if `name` is not known."""
    if name not in known:
        for pattern, present in _RENAMED:
            name = pattern.sub(present, name)
    return name


def build_backbone(name: str, classes: int, image_size: int) -> Backbone:
    """Build the network `name` with random weights, on the device of the context.

    A network of torchvision normalizes its input by the statistics of ImageNet. One of the user's own gets
    the images as they are, in [0, 1].

    Args:
        name: a classifier of torchvision, or "package.module:function" that `allow_network` was told.
        classes: number of the classifier's outputs.
        image_size: height and width of the images, in pixels.

    Raises:
        UserError: an unknown name, or a network that does not take such images, draws random numbers, or does
            not end in a linear layer.
    """
    network = _new(name, classes, small_stem=image_size <= SMALL_IMAGE)
    network.built_for = image_size
    _check(network, name, image_size)
    return network


def backbone_template(name: str) -> Backbone:
    """The network `name` for the names of its tensors alone: one of torchvision takes no memory.

    Raises:
        UserError: as for `build_backbone`.
    """
    with torch.device("cpu" if is_custom(name) else "meta"):
        return _new(name, 1, small_stem=False)


def _new(name: str, classes: int, *, small_stem: bool) -> Backbone:
    """The network `name`, unchecked; only one of torchvision gets the stem for small images."""
    custom = is_custom(name)
    trunk = _call(name) if custom else _torchvision(name)
    try:
        network = Backbone(trunk, classes, small_stem=small_stem and not custom)
    except UserError as error:
        raise UserError(f"network {name}: {error}") from None
    network.set_normalization(*NORMALIZATIONS["none" if custom else "imagenet"])
    return network


def backbone_names() -> list[str]:
    """The classifiers of torchvision that can be trained here."""
    return [name for name in models.list_models(module=models) if not name.startswith(_UNFIT)]


def _torchvision(name: str) -> nn.Module:
    if name in models.list_models(module=models) and name.startswith(_UNFIT):
        raise UserError(f"network {name} of torchvision cannot be trained here: choose another one")
    if name not in backbone_names():
        raise unknown("network", name, ["wrn", *backbone_names()])
    network: nn.Module = models.get_model(name, weights=None)
    return network


def _call(name: str) -> nn.Module:
    function = load_custom_network(name)
    try:
        network = function()
    except Exception as error:  # code of the user's own may raise anything
        raise UserError(f"network {name}: {type(error).__name__}: {sanitize(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"network {name}: the function returned {short_repr(network)}, not an nn.Module")
    return network


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer called `name` in `network`."""
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)


def _shrink_stem(trunk: nn.Module) -> str | None:
    """Give small images a stem as in ResNets for CIFAR: 3×3 with stride 1, and no pooling behind it.

    A first convolution with a 3×3 kernel stays, at stride 1. Returns the name of a new convolution.
    """
    first = ""
    replaced = None
    for name, layer in list(trunk.named_modules()):
        if isinstance(layer, nn.MaxPool2d) and first:
            _replace(trunk, name, nn.Identity())
        elif isinstance(layer, nn.Conv2d) and first:
            break
        elif isinstance(layer, nn.Conv2d):
            first = name
            if layer.kernel_size == (3, 3):
                layer.stride = (1, 1)
                layer.padding = (1, 1)
            else:
                replaced = name
                bias = layer.bias is not None
                stem = nn.Conv2d(layer.in_channels, layer.out_channels, 3, 1, 1, bias=bias)
                initialize(stem)
                _replace(trunk, name, stem)
    return replaced


def _make_deterministic(trunk: nn.Module) -> None:
    """Switch off what draws random numbers in a training pass: dropout and stochastic depth."""
    for layer in trunk.modules():
        if isinstance(layer, _DropoutNd | StochasticDepth):
            layer.p = 0.0
        elif isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
        elif isinstance(getattr(layer, "drop_prob", None), float):  # DropPath of timm
            layer.drop_prob = 0.0  # type: ignore[assignment]


def _check(network: Backbone, name: str, image_size: int) -> None:
    """Raise UserError unless checkpoints hold it, and a training pass gives features and draws nothing."""
    if reason := _not_saved(network):
        raise UserError(f"network {name} cannot be saved and read again: {reason}")
    if any(isinstance(layer, _InstanceNorm) and layer.track_running_stats for layer in network.modules()):
        raise UserError(
            f"network {name} has instance normalization with running statistics, which the meta step would "
            "change: make it with track_running_stats=False"
        )
    shape = (2, 3, image_size, image_size)
    images = torch.zeros(shape, device=network.fc.weight.device)
    before = torch.get_rng_state()
    network.train()
    try:
        with torch.no_grad(), keep_running_statistics(network):
            features = network.features(images)
    except Exception as error:  # foreign code raises anything
        raise UserError(
            f"network {name} fails on images of {image_size}×{image_size}: {type(error).__name__}: "
            f"{sanitize(error)}: choose another network, or prepare the data set in another `size`"
        ) from error
    if not isinstance(features, Tensor) or features.shape != (2, network.feature_width):
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"network {name}: without its last linear layer, '{network.classifier_name}', two images give "
            f"{found}, not (2, {network.feature_width}): that layer must come last"
        )
    if not torch.equal(before, torch.get_rng_state()):
        raise UserError(
            f"network {name} draws random numbers in a training pass: remove its dropout and the like"
        )


def _not_saved(network: nn.Module) -> str:
    """Why a checkpoint cannot hold a network; empty if it can."""
    seen: set[int] = set()
    for key, tensor in network.state_dict().items():
        name = sanitize(key.removeprefix("trunk."))
        if not (tensor.is_floating_point() or tensor.dtype == torch.int64):
            return f"{name} is {tensor.dtype}: make it float or int64, or a buffer with persistent=False"
        if tensor.is_meta:
            continue
        if not tensor.isfinite().all():
            return f"{name} is not finite: make it a buffer with persistent=False"
        if tensor.data_ptr() in seen and tensor.numel():
            return f"{name} shares its memory with another tensor: give it memory of its own"
        seen.add(tensor.data_ptr())
    return ""
