"""`rssl eval-c` on checkpoints as they are found, without training any."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from helpers import refuse, succeed

from rsslcli.core.checkpoint import Checkpoint, save_checkpoint
from rsslcli.core.config import Config
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.networks import WideResNet
from rsslcli.core.training import draw_validation_set

CONFIG = Config(dataset="mine", depth=10, width=1, validation_images=7, seed=3)


def save_run(folder: Path, config: Config, excluded: tuple[int, ...] = ()) -> None:
    """A run directory with the checkpoint of a network of random weights."""
    network = WideResNet(config.depth, config.width)
    optimizer = torch.optim.SGD(network.parameters()).state_dict()
    empty = torch.empty(0)
    save_checkpoint(
        folder / "checkpoint.pt",
        Checkpoint(
            config=config, classes=tuple("abcdefghij"), step=1, classifier=network.state_dict(), heads={},
            optimizer=optimizer, lambdas=empty, excluded=excluded, train_data="", validation_data="",
        ),
    )  # fmt: skip


def test_leave_out_validation(home: Path) -> None:
    """A run that tuned nothing is tested on the images that an AutoML run of the same settings is."""
    save_run(home / "plain", CONFIG)
    out = succeed("eval-c plain --corruptions fog --severity 1 --leave-out-validation", cwd=home)
    assert "(33 images per cell, 7 left out, kept for tuning λ)" in out
    data = load("mine", home / "data")
    tuned = dataclasses.replace(CONFIG, tasks=("ir",), automl=True)
    expected = draw_validation_set(tuned, data, load_corrupted(data)).source
    assert json.loads((home / "plain" / "eval-c.json").read_text())["excluded"] == list(expected)
    torch.save(WideResNet(10, 1).state_dict(), home / "w.pt")
    refuse("eval-c w.pt --leave-out-validation", cwd=home, match="no seed to draw those images by")
