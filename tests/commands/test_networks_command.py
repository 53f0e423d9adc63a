"""Networks of torchvision and of the user's own, through the commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from helpers import Here

from rsslcli.core.networks import names

FEW = "--dataset mine --train-size 20 --epochs 1 --batch-size 10"
ONE_CELL = "--limit 4 --corruptions fog --severity 1"
OWN = """
from torch import nn

def small():
    patches = [nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.LayerNorm(64)]
    return nn.Sequential(*patches, nn.GELU(), nn.Dropout(), nn.Linear(64, 2))
"""


def test_a_resnet_trains_resumes_and_is_evaluated_exported_and_used(home: Path, here: Here) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    torch.save(state, home / "resnet18-start.pth")
    code, out, err = here(
        f"train-single --task none --network resnet18 --weights resnet18-start.pth --optimizer adamw "
        f"--lr 0.001 --trunk-lr-factor 0.1 {FEW} --output resnet"
    )
    assert (code, "clean accuracy" in out) == (0, True), err
    assert "resnet18 on CPU" in err
    assert "the first convolution starts new" in err
    config = yaml.safe_load((home / "resnet" / "config.yaml").read_text())
    assert (config["network"], config["weights"]) == ("resnet18", "resnet18-start.pth")
    (home / "resnet18-start.pth").unlink()  # a run goes on from its checkpoint
    code, _, err = here("train-single --resume --output resnet")
    assert (code, "starts new" in err) == (0, False), err
    assert "clean" in here.succeed(f"eval-c resnet {ONE_CELL}")
    here.refuse(f"eval-c resnet --network resnet34 {ONE_CELL}", "is a run of --network resnet18")
    assert "(N, 3, 32, 32)" in here.succeed("export resnet --output resnet.pt2")
    image = next((home / "images" / "test").glob("*/*.png"))
    assert image.name in here.succeed(f"predict resnet {image}")


def test_a_state_dict_of_torchvision_is_evaluated_by_the_name_of_its_network(home: Path, here: Here) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(num_classes=10).state_dict(), home / "mobile.pth")
    evaluate = f"eval-c mobile.pth --dataset mine --classes-by-position {ONE_CELL}"
    assert "clean" in here.succeed(f"{evaluate} --network mobilenet_v3_small")
    here.refuse(evaluate, "not of a WideResNet")
    here.refuse(f"{evaluate} --network mobilenet_v3_smal", "did you mean 'mobilenet_v3_small'")
    shape = r"images \(N, 3, 224, 224\)"
    out = here.succeed("export mobile.pth --network mobilenet_v3_small --output mobile.pt2")
    assert "(N, 3, 224, 224)" in out, shape


def test_a_file_alone_never_imports_a_network_of_ones_own(
    home: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "own_networks.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "own_networks:small"
    train = f"train-single --task rotation {FEW} --output own-network"
    code, _, err = here(f"{train} --network {name}")
    assert code == 0, err
    assert f"next: rssl eval-c own-network --network {name}" in err

    names._allowed.clear()  # go on as in another process
    del sys.modules["own_networks"]
    unsafe = "is code of your own, which runs only if you name it: pass its name as --network"
    (home / "own-network.yaml").write_text(f"network: {name}\n")
    for command in (
        f"eval-c own-network {ONE_CELL}",
        "predict own-network images/test",
        "export own-network --output own-network.pt2",
        "train-single --resume --output own-network",
        "visualize-tasks --checkpoint own-network",
        f"train-single --task none --config own-network.yaml {FEW} --output never",
    ):
        here.refuse(command, unsafe)
        assert "own_networks" not in sys.modules, command
    assert not (home / "never").exists()

    assert "clean" in here.succeed(f"eval-c own-network --network {name} {ONE_CELL}")
    assert "adapted" in here.succeed(f"eval-c own-network --network {name} {ONE_CELL} --adapt tasks")
    here.refuse(
        f"eval-c own-network --network {name} {ONE_CELL} --adapt bn", "has no batch normalization", code=2
    )
    here.succeed(f"train-single --resume --output own-network --network {name}")
    here.refuse("train-single --resume --output own-network --network resnet18", "goes on with its own")
    here.refuse(f"{train}2 --network no_such_module:small", "ModuleNotFoundError")


def test_the_preset_for_pretrained_networks_takes_another_network(here: Here) -> None:
    out = here.succeed("train-automl --preset finetune --network convnext_tiny --print-config")
    settings = yaml.safe_load(out)
    expected = {
        "network": "convnext_tiny", "weights": "imagenet", "epochs": 10, "warmup_epochs": 1, "lr": 0.001,
        "optimizer": "adamw", "trunk_lr_factor": 0.1, "weight_decay": 0.05, "lookahead_scale": 100.0,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--network resnt18", "unknown network 'resnt18': did you mean 'resnet18'"),
        ("--network resnet18 --depth 16", "a WideResNet, and the --network is resnet18: leave out --depth"),
        ("--weights imagenet", "no ImageNet weights of 'wrn'"),
        ("--network Res-Net", "network: expected wrn"),
        ("--weights missing.pth --depth 10 --width 1", "there is no file missing.pth"),
        ("--optimizer adam", "did you mean 'adamw'"),
        ("--trunk-lr-factor -1", "expected at least 0"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(options: str, match: str, home: Path, here: Here) -> None:
    here.refuse(f"train-single --task none {options} {FEW} --output nothing", match)
    assert not (home / "nothing").exists()
