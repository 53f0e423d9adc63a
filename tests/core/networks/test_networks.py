"""The networks against the names of the public checkpoints, supplement A.1, and arithmetic written out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.errors import UserError
from rsslcli.core.networks.batch_norm import keep_running_statistics
from rsslcli.core.networks.network import initialize
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.tasks.registry import build_tasks


def expected_shapes(depth: int, width: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a public WideResNet state dict, by rule."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}

    def add_norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    inputs = 16
    for stage in (1, 2, 3):
        outputs = 16 * width * 2 ** (stage - 1)
        for layer in range((depth - 4) // 6):
            prefix = f"block{stage}.layer.{layer}"
            add_norm(f"{prefix}.bn1", inputs)
            shapes[f"{prefix}.conv1.weight"] = (outputs, inputs, 3, 3)
            add_norm(f"{prefix}.bn2", outputs)
            shapes[f"{prefix}.conv2.weight"] = (outputs, outputs, 3, 3)
            if inputs != outputs:
                shapes[f"{prefix}.convShortcut.weight"] = (outputs, inputs, 1, 1)
            inputs = outputs
    add_norm("bn1", inputs)
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def written_out(state: Mapping[str, Tensor], images: Tensor, *, batch_statistics: bool) -> Tensor:
    """The forward pass of a WideResNet from its state dict: (features, then scores) in one matrix."""

    def norm_relu(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if batch_statistics:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        column = (slice(None), None, None)
        x = (x - mean[column]) / torch.sqrt(var[column] + 1e-5)
        return (x * state[f"{name}.weight"][column] + state[f"{name}.bias"][column]).clamp(min=0)

    x = F.conv2d(2 * (images - 0.5), state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        layer = 0
        while f"block{stage}.layer.{layer}.conv1.weight" in state:
            name = f"block{stage}.layer.{layer}"
            stride = 2 if stage > 1 and layer == 0 else 1
            first = norm_relu(f"{name}.bn1", x)
            out = F.conv2d(first, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm_relu(f"{name}.bn2", out), state[f"{name}.conv2.weight"], padding=1)
            if f"{name}.convShortcut.weight" in state:
                x = F.conv2d(first, state[f"{name}.convShortcut.weight"], stride=stride)
            x = x + out
            layer += 1
    features = norm_relu("bn1", x).flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    return torch.cat([features, features @ state["fc.weight"].T + state["fc.bias"]], dim=1)


def randomized(depth: int, width: int, classes: int = 10) -> WideResNet:
    """A network in float64 whose normalization and biases are not at their start values."""
    torch.manual_seed(2)
    network = WideResNet(depth, width, classes).double()
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif "bn" in name and value.is_floating_point():
            value.add_(torch.randn_like(value) * 0.2)
    return network


def test_names_and_shapes_are_those_of_public_wrn_40_2_checkpoints() -> None:
    network = WideResNet()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    expected = expected_shapes(40, 2, 10)
    assert shapes == expected
    assert [name for name in shapes if "convShortcut" in name] == [
        f"block{stage}.layer.0.convShortcut.weight" for stage in (1, 2, 3)
    ]
    convolution = re.compile(r"block[123]\.layer\.[0-5]\.conv[12]\.weight")
    assert len([name for name in shapes if convolution.fullmatch(name)]) == 36
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_243_546
    assert network.feature_width == 128
    features = network.eval().features(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 128)


@pytest.mark.parametrize(("depth", "width", "classes"), [(10, 1, 10), (16, 1, 4), (10, 3, 100)])
def test_names_and_shapes_of_other_sizes(depth: int, width: int, classes: int) -> None:
    state = WideResNet(depth, width, classes).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == expected_shapes(depth, width, classes)


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2), (40, 2)])
def test_forward_equals_the_arithmetic_written_out(depth: int, width: int, images: Tensor) -> None:
    network = randomized(depth, width)
    for batch_statistics in (False, True):
        expected = written_out(network.state_dict(), images, batch_statistics=batch_statistics)
        network.train(batch_statistics)
        with torch.no_grad(), keep_running_statistics(network):
            scores, features = network(images), network.features(images)
        assert scores.std() > 1e-3, "the comparison needs scores that differ"
        torch.testing.assert_close(torch.cat([features, scores], 1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("depth", "width"), [(4, 1), (9, 1), (12, 1), (-2, 1), (40, 0), (10, -1)])
def test_impossible_sizes(depth: int, width: int) -> None:
    with pytest.raises(ValueError, match="no WideResNet has depth"):
        WideResNet(depth, width)


def test_initialization_is_he_by_the_outputs() -> None:
    torch.manual_seed(0)
    network = WideResNet(10, 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert abs(float(module.weight.detach().mean())) < 0.05 * (2 / fan_out) ** 0.5
    assert not network.fc.bias.any()
    head = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    initialize(head)
    assert not any(bool(m.bias.any()) for m in head.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize(("depth", "width", "classes"), [(10, 1, 10), (16, 1, 3), (10, 2, 100), (28, 1, 1)])
def test_from_state_dict_round_trip(depth: int, width: int, classes: int) -> None:
    network = WideResNet(depth, width, classes)
    torch.nn.init.normal_(network.bn1.running_mean)
    loaded = WideResNet.from_state_dict(network.state_dict())
    for (name, value), (other, expected) in zip(
        loaded.state_dict().items(), network.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, expected)
        assert value.data_ptr() != expected.data_ptr(), "the loaded network must own its weights"


def test_old_checkpoints_without_batch_counters_load() -> None:
    state = WideResNet(10, 1).state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    loaded = WideResNet.from_state_dict(old)
    assert torch.equal(loaded.fc.weight, state["fc.weight"])


def changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: state | {name.replace("__", "."): value for name, value in changes.items()}


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: {}, "no tensor 'block1.layer.0.conv1.weight'"),
        (lambda state: {"weight": torch.ones(3)}, "block1.layer"),
        (lambda state: {f"net.{name}": value for name, value in state.items()}, "block1.layer"),
        (lambda state: state | {5: torch.ones(3)}, "WideResNet"),
        (lambda state: {5: torch.ones(3)}, "WideResNet"),
        (without("fc.weight"), "fc.weight"),
        (without("fc.bias"), "fc.bias"),
        (without("block1.layer.0.conv1.weight"), "block1.layer.0.conv1.weight"),
        (without("block2.layer.0.convShortcut.weight"), "block2.layer.0.convShortcut.weight"),
        (changed(surplus=torch.ones(3)), "surplus"),
        (changed(block1__layer__7__bn1__weight=torch.ones(16)), "WideResNet"),
        (changed(block1__layer__999999999__bn1__weight=torch.ones(16)), "WideResNet"),
        (changed(block1__layer__x__bn1__weight=torch.ones(16)), "WideResNet"),
        (changed(block1__layer__=torch.ones(16)), "WideResNet"),
        (changed(fc__weight=torch.ones(10, 65)), "'fc.weight' is missing or has another shape"),
        (changed(fc__weight=torch.tensor(1.0)), "WideResNet"),
        (changed(fc__weight=3), "WideResNet"),
        (changed(fc__weight=None), "WideResNet"),
        (changed(fc__bias="ten"), "fc.bias"),
        (changed(fc__bias=[0.0] * 10), "fc.bias"),
        (changed(conv1__weight=torch.ones(16, 3, 7, 7)), "conv1.weight"),
        (changed(block1__layer__0__conv1__weight=torch.ones(8, 16, 3, 3)), "block1.layer.0.conv2.weight"),
        (changed(block1__layer__0__conv1__weight=torch.ones(48, 16, 3, 3)), "WideResNet"),
        (changed(**{"line\nbreak": torch.ones(1)}), "WideResNet"),
    ],
)
def test_from_state_dict_refuses(spoil: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    state = spoil(dict(WideResNet(10, 1).state_dict()))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        WideResNet.from_state_dict(state)
    text = str(caught.value)
    assert text.startswith("these weights are not of a WideResNet")
    assert len(text.splitlines()) == 1
    assert len(text) < 300


def test_running_statistics_are_kept_and_the_outputs_are_the_same() -> None:
    network, reference = randomized(10, 1).float().train(), randomized(10, 1).float().train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    images = torch.rand(6, 3, 16, 16)
    with keep_running_statistics(network):
        kept = network(images)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    torch.testing.assert_close(kept, reference(images))
    assert any(not torch.equal(value, before[name]) for name, value in reference.named_buffers())
    network(images)
    for (name, value), expected in zip(network.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_running_statistics_update_again_after_an_exception_and_nesting() -> None:
    network = WideResNet(10, 1).train()
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) == 7

    def fail() -> None:
        with keep_running_statistics(network):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(layer.track_running_stats for layer in layers)
    with keep_running_statistics(network):
        with keep_running_statistics(network):
            pass
        assert not any(layer.track_running_stats for layer in layers), "the outer context still holds"
    assert all(layer.track_running_stats for layer in layers)


def test_evaluation_uses_running_statistics_even_where_they_are_kept() -> None:
    network = randomized(10, 1).eval()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with keep_running_statistics(network):
        kept = network(images)
    assert torch.equal(kept, network(images))


def deconvolutions(*channels: int) -> list[str]:
    """Supplement A.1: the first has stride 1 and no padding; BatchNorm and ReLU stand between two."""
    lines = [f"deconv 128-{channels[0]} kernel 4 stride 1 padding 0"]
    for inputs, outputs in pairwise(channels):
        lines += [f"norm {inputs}", "relu", f"deconv {inputs}-{outputs} kernel 4 stride 2 padding 1"]
    return lines


HEADS = {
    "rotation": ["linear 128-4"],
    "color": deconvolutions(256, 128, 64, 64),
    # The paper names a sigmoid for inpainting only; reconstruction ends in one here (docs/method.md).
    "ir": [*deconvolutions(256, 128, 64, 3), "sigmoid"],
    "bir": [*deconvolutions(256, 128, 64, 3), "sigmoid"],
    "inpaint": [*deconvolutions(64, 3), "sigmoid"],
    "rgb": ["linear 128-6"],
    "jigsaw": ["linear 128-24"],
}
OUTPUTS = {
    "rotation": (4,),
    "color": (64, 32, 32),
    "ir": (3, 32, 32),
    "bir": (3, 32, 32),
    "inpaint": (3, 8, 8),
    "rgb": (6,),
    "jigsaw": (24,),
}


def describe(module: nn.Module) -> list[str]:
    if isinstance(module, nn.Linear):
        return [f"linear {module.in_features}-{module.out_features}"]
    if isinstance(module, nn.ConvTranspose2d):
        sizes = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding")}
        assert all(pair[0] == pair[1] for pair in sizes.values())
        kernel, stride, padding = (pair[0] for pair in sizes.values())
        assert (module.output_padding, module.groups, module.dilation) == ((0, 0), 1, (1, 1))
        channels = f"{module.in_channels}-{module.out_channels}"
        return [f"deconv {channels} kernel {kernel} stride {stride} padding {padding}"]
    if isinstance(module, nn.BatchNorm2d):
        return [f"norm {module.num_features}"]
    if isinstance(module, nn.Sequential):
        return [line for part in module for line in describe(part)]
    if isinstance(module, nn.Unflatten):
        return []
    return [type(module).__name__.lower()]


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_those_of_the_supplement(name: str) -> None:
    head = build_tasks([name])[name].head(128)
    assert describe(head) == HEADS[name]
    outputs = head(torch.randn(2, 128)).detach()
    assert outputs.shape == (2, *OUTPUTS[name])
    if HEADS[name][-1] == "sigmoid":
        assert 0 < float(outputs.min()) < float(outputs.max()) < 1


@pytest.mark.parametrize("name", ["rotation", "rgb", "jigsaw", "ir", "bir", "inpaint"])
def test_head_options(name: str) -> None:
    """The precursor's hidden layer comes first; without its sigmoid a decoder is the paper's own."""
    head = build_tasks([name], {name: {"hidden": True}})[name].head(128)
    assert describe(head) == ["linear 128-128", "relu", *HEADS[name]]
    assert head(torch.randn(2, 128)).shape == (2, *OUTPUTS[name])
    if name in ("ir", "bir"):
        head = build_tasks([name], {name: {"sigmoid": False}})[name].head(128)
        assert describe(head) == HEADS[name][:-1]


def test_a_transposed_convolution_has_a_bias_only_where_no_normalization_follows() -> None:
    head = build_tasks(["color"])["color"].head(128)
    convolutions = [module for module in head.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [module.bias is not None for module in convolutions] == [False, False, False, True]


def test_heads_follow_other_feature_widths() -> None:
    for name, task in build_tasks(HEADS).items():
        assert task.head(64)(torch.randn(2, 64)).shape == (2, *OUTPUTS[name])
