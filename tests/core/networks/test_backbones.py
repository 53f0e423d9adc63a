"""Networks of torchvision and of the user's own: shapes, stems, names, and what they must not do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from rsslcli.core.config import Config
from rsslcli.core.data.gathering import ImageSource
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.class_names import networks_in
from rsslcli.core.networks.backbones import backbone_names, build_backbone
from rsslcli.core.networks.build import build_network, restore_backbone
from rsslcli.core.networks.names import allow_network
from rsslcli.core.training.step import Trainer, TrainingData

FIVE = {
    "resnet18": 512,
    "convnext_tiny": 768,
    "efficientnet_v2_s": 1280,
    "mobilenet_v3_small": 1024,
    "swin_t": 768,
}


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", FIVE)
def test_features_and_scores_have_their_shapes_at_every_size(name: str, size: int) -> None:
    with torch.device("meta"):
        network = build_network(Config(network=name), 7, size).train()
        images = torch.empty(2, 3, size, size)
    assert network.feature_width == FIVE[name]
    assert network.features(images).shape == (2, FIVE[name])
    assert network(images).shape == (2, 7)
    assert networks_in(nn.Sequential(network)) == [network]


def test_small_images_get_the_stem_of_a_cifar_resnet() -> None:
    with torch.device("meta"):
        small, usual = (build_backbone("resnet18", 10, size).trunk for size in (64, 224))
    assert (small.conv1.kernel_size, small.conv1.stride, small.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(small.maxpool, nn.Identity)
    assert (usual.conv1.kernel_size, usual.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(usual.maxpool, nn.MaxPool2d)


def test_at_224_the_scores_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    original = torchvision.models.mobilenet_v3_small(num_classes=5).eval()
    network = build_backbone("mobilenet_v3_small", 5, 224).eval()
    network.load_state_dict(network.renamed(original.state_dict()), strict=False)
    images = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        torch.testing.assert_close(network(images), original((images - mean) / std), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_a_training_pass_draws_no_random_numbers(name: str) -> None:
    network = build_backbone(name, 3, 32).train()
    images = torch.rand(2, 3, 32, 32)
    before = torch.get_rng_state()
    first = network.features(images)
    assert torch.equal(before, torch.get_rng_state())
    if name == "convnext_tiny":  # without batch normalization the same pass gives the same features
        assert torch.equal(first, network.features(images))


def test_a_step_of_a_resnet50_at_224_runs_on_the_meta_device() -> None:
    def images(count: int) -> ImageSource:
        return ImageSource(torch.empty(count, 224, 224, 3, dtype=torch.uint8, device="meta"))

    labels = torch.empty(8, dtype=torch.int64, device="meta")
    config = Config(
        network="resnet50", tasks=("rotation",), weighting="automl", warmup_epochs=0, batch_size=4,
        meta_batch_size=4, optimizer="adamw", trunk_lr_factor=0.1,
    )  # fmt: skip
    trainer = Trainer(config, TrainingData(images(8), labels, images(8), labels), classes=20)
    trainer.model.train()
    values = trainer.step(0, torch.empty(4, dtype=torch.int64, device="meta"))
    assert set(values) == {"loss/main", "loss/rotation", "loss/meta", "lambda/rotation"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_trunk_has_a_learning_rate_of_its_own(optimizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = ImageSource(torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator))
    config = Config(
        depth=10, width=1, batch_size=8, optimizer=optimizer, trunk_lr_factor=0.0, weight_decay=0.01
    )  # type: ignore[arg-type]
    trainer = Trainer(config, TrainingData(images, torch.arange(8), images, torch.arange(8)), classes=10)
    trainer.model.train()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step(0, torch.arange(8))
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"network.fc.weight", "network.fc.bias"}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnt18", "unknown network 'resnt18': did you mean 'resnet18'"),
        ("squeezenet1_0", "cannot be trained here"),
        ("vit_b_16", "vit_b_16 fails on images of 32×32.*choose another network, or prepare the data set in"),
        ("os:listdir", "code of your own"),
    ],
)
def test_an_unfit_name_is_refused(name: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        build_network(Config(network=name), 10)
    assert "regnet_x_400mf" not in backbone_names()


@pytest.mark.parametrize("name", ["", "res net", "../x:y", "a.b:", "a:b:c", "x" * 300, "A"])
def test_a_configuration_takes_no_other_words(name: str) -> None:
    with pytest.raises(UserError, match=r"^network: expected wrn"):
        Config(network=name)


BAD = {
    "Linear": ("lambda: nn.Linear(3, 3)", "expected an nn.Linear as the last layer"),
    "early": (
        "lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.Linear(5, 5), nn.Unflatten(1, (5, 1)))",
        r"two images give \(2, 5, 1\), not \(2, 5\)",
    ),
    "noise": (
        "lambda: nn.Sequential(nn.Flatten(), nn.RReLU(), nn.Linear(3072, 5))",
        "draws random numbers",
    ),
    "tracked": (
        "lambda: nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), "
        "nn.Linear(3072, 5))",
        "has instance normalization with running statistics.*make it with track_running_stats=False",
    ),
    "nothing": ("lambda: 3", "not an nn.Module"),
    "mask": ("lambda: with_buffer(torch.full((3,), -math.inf))", "mask is not finite: make it a buffer"),
    "bits": ("lambda: with_buffer(torch.ones(3, dtype=torch.bool))", "mask is torch.bool: make it float"),
    "tied": ("tied", r"1\.weight shares its memory with another tensor: give it memory of its own"),
    "fails": ("lambda: 1 / 0", "ZeroDivisionError"),
    "value": ("3", "expected a function"),
}


MODULE = """
import math
import torch
from torch import nn

def with_buffer(mask):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))
    network.register_buffer("mask", mask)
    return network

def tied():
    first, second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    second.weight = first.weight
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(3072, 5))
"""


@pytest.mark.parametrize("name", BAD)
def test_mistakes_in_a_network_of_ones_own_are_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, match = BAD[name]
    (tmp_path / f"bad_network_{name}.py").write_text(f"{MODULE}\nmake = {code}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    allow_network(f"bad_network_{name}:make")
    with pytest.raises(UserError, match=match) as caught:
        build_network(Config(network=f"bad_network_{name}:make"), 10)
    assert "\n" not in str(caught.value)


def test_restored_weights_share_no_memory_and_must_be_complete() -> None:
    torch.manual_seed(0)
    state = build_backbone("mobilenet_v3_small", 3, 32).state_dict()
    network = restore_backbone("mobilenet_v3_small", state)
    network.fc.weight.data.zero_()
    assert state["fc.weight"].any()
    assert all(not value.is_meta for value in network.state_dict().values())
    del state["trunk.features.3.block.0.0.weight"]
    with pytest.raises(UserError, match=r"'features\.3\.block\.0\.0\.weight' is missing"):
        restore_backbone("mobilenet_v3_small", state)


def test_a_small_file_does_not_make_a_large_network() -> None:
    """Nothing is allocated before the names and shapes are compared: 2.5 GB would be."""
    with pytest.raises(UserError, match="is missing"):
        restore_backbone("vit_h_14", {"fc.weight": torch.zeros(1, 1280)}, 224)
