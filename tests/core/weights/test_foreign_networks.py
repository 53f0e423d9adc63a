"""State dicts of networks made elsewhere, read with the code that made them or as torchvision reads them."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rsslcli.core.config import Config
from rsslcli.core.errors import UserError
from rsslcli.core.networks.backbones import backbone_names, build_backbone
from rsslcli.core.networks.names import allow_network
from rsslcli.core.networks.network import Network
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.checkpoint import Checkpoint, load_classifier, save_checkpoint
from rsslcli.core.weights.export import export_classifier

MODULE = """
import torch
from torch import nn

class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.25]))

    def forward(self, x):
        return (x - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)

def pooled(*first, bias=True):
    last = nn.Linear(8, 4, bias=bias)
    return nn.Sequential(*first, nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)

def normalizing():
    return pooled(Normalize())

def plain():
    return pooled()

def without_bias():
    return pooled(bias=False)

def only_64():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 4))
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """A function that makes one of the networks in `MODULE`, and saves its state dict as w.pt."""
    (tmp_path / "foreign_networks.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "foreign_networks", raising=False)

    def make(name: str) -> nn.Module:
        allow_network(f"foreign_networks:{name}")
        torch.manual_seed(0)
        network: nn.Module = getattr(importlib.import_module("foreign_networks"), name)().eval()
        torch.save(network.state_dict(), tmp_path / "w.pt")
        return network

    return make


@pytest.mark.parametrize(
    ("name", "size"), [("normalizing", 40), ("plain", 40), ("without_bias", 40), ("only_64", 64)]
)
def test_the_scores_are_those_of_the_original(
    name: str, size: int, make: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    original = make(name)
    notes: list[str] = []
    network, _ = load_classifier(tmp_path / "w.pt", network=f"foreign_networks:{name}", note=notes.append)
    images = torch.rand(3, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), original(images))
    assert network.built_for == (64 if name == "only_64" else 224)
    assert not any("as the file says" in note for note in notes)
    assert any(f"take {network.built_for}×{network.built_for}" in note for note in notes)


def test_a_classifier_whose_bias_is_lost_is_refused(make: Callable[[str], nn.Module], tmp_path: Path) -> None:
    state = make("plain").state_dict()
    del state["4.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"fc\.bias' is missing"):
        load_classifier(tmp_path / "w.pt", network="foreign_networks:plain")


@pytest.mark.parametrize(
    ("name", "pattern", "old"),
    [
        ("densenet121", r"(denselayer\d+\.)(norm|conv)(\d)\.", r"\1\2.\3."),
        ("vit_b_16", r"mlp\.0\.", "mlp.linear_1."),
        ("vit_b_16", r"mlp\.3\.", "mlp.linear_2."),
    ],
)
def test_names_in_older_files_of_torchvision(name: str, pattern: str, old: str) -> None:
    """As torchvision's own code renames them."""
    with torch.device("meta"):
        network = build_backbone(name, 5, 224)
    state = network.state_dict()
    originals = {
        key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")
    }
    older = {re.sub(pattern, old, key): value for key, value in originals.items()}
    assert older.keys() != originals.keys()
    assert network.renamed(older).keys() == {f"trunk.{key}" for key in originals}
    assert network.renamed(originals).keys() == {f"trunk.{key}" for key in originals}


def test_mnasnets_are_refused_before_they_are_trained() -> None:
    assert not any(name.startswith("mnasnet") for name in backbone_names())
    with pytest.raises(UserError, match=r"mnasnet0_5 of torchvision cannot be trained here"):
        build_backbone("mnasnet0_5", 4, 32)


def checkpoint_of(network: Network, config: Config) -> Checkpoint:
    return Checkpoint(
        config, ("a", "b", "c"), 3, network.state_dict(), {}, {"state": {}, "param_groups": []},
        torch.zeros(0), (), "", "",
    )  # fmt: skip


def saved_run(path: Path, name: str) -> Checkpoint:
    network = WideResNet(10, 1, 3) if name == "wrn" else build_backbone(name, 3, 32)
    size = {"depth": 10, "width": 1} if name == "wrn" else {"network": name}
    config = Config(tasks=(), weighting="fixed", **size)  # type: ignore[arg-type]
    found = checkpoint_of(network, config)
    indices = [*range(len([*network.parameters()]))]
    found = replace(found, optimizer={"state": {}, "param_groups": [{"params": indices, "lr": 0.1}]})
    save_checkpoint(path, found)
    return found


@pytest.mark.parametrize(
    ("name", "own", "other"), [("resnet18", "imagenet", "half"), ("wrn", "half", "none")]
)
def test_only_the_normalization_of_a_run_may_be_named(
    name: str, own: str, other: str, tmp_path: Path
) -> None:
    saved_run(tmp_path / "checkpoint.pt", name)
    load_classifier(tmp_path, normalization=own)
    with pytest.raises(UserError, match="whose normalization is known: omit `normalization`"):
        load_classifier(tmp_path, normalization=other)


@pytest.mark.parametrize("part", ["heads", "lambdas"])
def test_numbers_that_torch_only_stores_are_damage(part: str, tmp_path: Path) -> None:
    found = saved_run(tmp_path / "checkpoint.pt", "wrn")
    value = torch.zeros(0).to(torch.float8_e4m3fn)
    damaged: dict[str, Tensor] | Tensor = {"ir.x": value} if part == "heads" else value
    save_checkpoint(tmp_path / "checkpoint.pt", replace(found, **{part: damaged}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"damaged checkpoint: '{part}' is missing or has the wrong type"):
        load_classifier(tmp_path)


def test_a_classifier_without_outputs_is_refused(tmp_path: Path) -> None:
    state = WideResNet(10, 1).state_dict()
    torch.save(state | {"fc.weight": torch.zeros(0, 64), "fc.bias": torch.zeros(0)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="its classifier has no outputs"):
        load_classifier(tmp_path / "w.pt")


def test_a_safetensors_file_keeps_size_and_temperature(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "w.safetensors"
    export_classifier(WideResNet(10, 1), path, image_size=96, about={"temperature": repr(2.5)})
    network, _ = load_classifier(path)
    assert (network.image_size, network.temperature) == (96, 2.5)
    for size in ([96], [0, 0], [96, 32], [9_999, 9_999], [True, True], "96", [96.0, 96.0]):
        about = {"preprocessing": json.dumps({"size": size})}
        export_classifier(WideResNet(10, 1), path, about=about)
        assert load_classifier(path)[0].image_size is None
