"""The weights from which a trunk starts, and state dicts of torchvision."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision
from hostile_pickles import Called
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.networks.backbones import build_backbone
from rsslcli.core.networks.build import build_network
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.checkpoint import load_classifier
from rsslcli.core.weights.initial import load_initial_weights

SMALL = "mobilenet_v3_small"


@pytest.fixture
def original() -> dict[str, Tensor]:
    """A state dict of torchvision with a classifier for 6 classes."""
    torch.manual_seed(1)
    state: dict[str, Tensor] = torchvision.models.resnet18(num_classes=6).state_dict()
    return state


@pytest.mark.parametrize("wrapped", ["as it is", "in a training program's file"])
def test_a_file_gives_the_trunk_its_weights_and_the_classifier_none(
    wrapped: str, original: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    state = {f"module.{name}": value for name, value in original.items()}
    torch.save(original if wrapped == "as it is" else {"state_dict": state, "epoch": 3}, file)
    config = Config(network="resnet18", weights=str(file))
    network = build_network(config, 6, 224)
    classifier = network.fc.weight.detach().clone()
    load_initial_weights(network, config)
    for name, value in original.items():
        if not name.startswith("fc."):
            assert torch.equal(network.state_dict()[f"trunk.{name}"], value), name
    assert torch.equal(network.fc.weight, classifier)


def test_the_stem_of_small_images_starts_new_and_a_note_says_so(
    original: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(original, tmp_path / "weights.pth")
    config = Config(network="resnet18", weights=str(tmp_path / "weights.pth"))
    network = build_network(config, 10, 32)
    stem = network.state_dict()["trunk.conv1.weight"].clone()
    notes: list[str] = []
    load_initial_weights(network, config, notes.append)
    assert torch.equal(network.state_dict()["trunk.conv1.weight"], stem)
    assert torch.equal(network.state_dict()["trunk.layer1.0.conv1.weight"], original["layer1.0.conv1.weight"])
    assert notes == [
        f"{config.weights} does not say how its input is normalized: the usual one of resnet18 is assumed",
        "the first convolution starts new: images of 32 pixels need a smaller one",
    ]


def test_the_stem_of_small_images_is_kept_from_a_network_that_has_it(tmp_path: Path) -> None:
    config = Config(network="resnet18", weights=str(tmp_path / "weights.pth"))
    torch.manual_seed(0)
    trained = build_network(config, 6, 32)
    state = {name.removeprefix("trunk."): value for name, value in trained.state_dict().items()}
    del state["mu"], state["sigma"]
    torch.save(state, config.weights)
    network = build_network(config, 10, 64)
    notes: list[str] = []
    load_initial_weights(network, config, notes.append)
    assert torch.equal(network.state_dict()["trunk.conv1.weight"], trained.state_dict()["trunk.conv1.weight"])
    assert notes == [
        f"{config.weights} does not say how its input is normalized: the usual one of resnet18 is assumed"
    ]


def test_weights_of_another_network_are_refused(original: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(original, file)
    for name in ("resnet34", "resnet50", SMALL, "wrn"):
        config = Config(network=name, weights=str(file), depth=10, width=1)
        with pytest.raises(UserError, match=r"weights\.pth"):
            load_initial_weights(build_network(config, 10, 224), config)
    with pytest.raises(UserError, match="there is no file nowhere"):
        load_initial_weights(build_network(Config(), 10), Config(weights="nowhere"))
    original["layer1.0.conv1.weight"][0] = float("nan")
    torch.save(original, file)
    config = Config(network="resnet18", weights=str(file))
    with pytest.raises(UserError, match="NaN or infinity"):
        load_initial_weights(build_network(config, 10, 224), config)


def test_a_wide_resnet_starts_from_a_file_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = WideResNet(10, 1, 4)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    config = Config(depth=10, width=1, weights=str(tmp_path / "weights.pt"))
    network = build_network(config, 10)
    load_initial_weights(network, config)
    assert torch.equal(
        network.state_dict()["block3.layer.0.conv2.weight"], trained.block3.layer[0].conv2.weight
    )
    assert network.fc.out_features == 10


def test_without_a_network_one_line_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    config = Config(network="resnet18", weights="imagenet")
    with pytest.raises(RsslError) as caught:
        load_initial_weights(build_network(config, 10, 224), config)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in message
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")


def test_weights_of_imagenet_come_from_the_cache_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    cached.parent.mkdir(parents=True)
    state = torchvision.models.get_model(SMALL, weights=None).state_dict()
    torch.save(state, cached)
    config = Config(network=SMALL, weights="imagenet")
    network = build_network(config, 10, 64)
    load_initial_weights(network, config)
    assert torch.equal(network.state_dict()["trunk.features.0.0.weight"], state["features.0.0.weight"])
    cached.write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be read"):
        load_initial_weights(network, config)
    torch.save(state | {"beside": Called(os.mkdir, str(tmp_path / "pwned"))}, cached)
    with pytest.raises(UserError, match="cannot be read"):
        load_initial_weights(network, config)
    assert not (tmp_path / "pwned").exists()


def test_only_networks_of_torchvision_have_weights_of_imagenet() -> None:
    for name in ("wrn", "mine:make"):
        with pytest.raises(UserError, match="no ImageNet weights"):
            Config(network=name, weights="imagenet")


@pytest.mark.parametrize("small", [False, True])
def test_a_state_dict_is_read_with_the_stem_that_it_has(small: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    trained = build_backbone("resnet18", 6, 32 if small else 224).eval()
    state = {name.removeprefix("trunk."): value for name, value in trained.state_dict().items()}
    del state["mu"], state["sigma"]
    torch.save(state, tmp_path / "weights.pth")
    notes: list[str] = []
    network, checkpoint = load_classifier(tmp_path / "weights.pth", network="resnet18", note=notes.append)
    assert checkpoint is None
    assert network.built_for == (32 if small else 224)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(images), trained(images))
    assert len(notes) == 1
    assert "the usual one of resnet18 is assumed" in notes[0]
    other, _ = load_classifier(tmp_path / "weights.pth", network="resnet18", normalization="half")
    with torch.inference_mode():
        assert not torch.equal(other(images), trained(images))
    with pytest.raises(UserError, match="not of resnet34"):
        load_classifier(tmp_path / "weights.pth", network="resnet34")
