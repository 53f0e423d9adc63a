"""`benchmarks/running_statistics.py` against the running average written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running_statistics
import torch
from running_statistics import with_new_statistics

from rsslcli.core.config import Config
from rsslcli.core.data.augment import random_batch, to_float
from rsslcli.core.data.augmix import augmix
from rsslcli.core.data.store import Dataset, make_split
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import seeded_generator
from rsslcli.core.weights.checkpoint import Checkpoint

CLASSES = ("ant", "bee", "cow")


AUGMIX = {"augment": "augmix"}


@pytest.mark.parametrize(
    ("tasks", "options", "views"),
    [([], {}, 0), (["rotation"], {}, 0), ([], AUGMIX, 2), ([], AUGMIX | {"jsd_weight": 0.0}, 1)],
)
def test_the_statistics_are_the_running_average_of_the_passes(
    tasks: list[str], options: dict[str, Any], views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_statistics, "BATCHES", 3)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    split = make_split(images, np.arange(20) % 3, list(CLASSES))
    torch.manual_seed(0)
    network = WideResNet(10, 1, classes=3)
    run = Checkpoint(
        config=Config(depth=10, width=1, batch_size=8, **options), classes=CLASSES, step=1,
        classifier=network.state_dict(), heads={}, optimizer={}, lambdas=torch.zeros(0), excluded=(),
        train_data="", validation_data="",
    )  # fmt: skip
    found = with_new_statistics(run, Dataset("toy", tmp_path, split, split), tasks)

    for name, value in network.named_parameters():
        assert torch.equal(found.get_parameter(name).cpu(), value), "the weights stay"
    generator = seeded_generator(torch.device("cpu"), 0, "running statistics")
    mean = torch.zeros(16)
    for _ in range(3):
        drawn = torch.randint(20, (8,), generator=generator)
        random = BatchRandom(generator, 8)
        batch = to_float(random_batch(torch.from_numpy(images)[drawn], random))
        augmented = [augmix(batch, random) for _ in range(views)]
        passes = [torch.cat(augmented if views == 1 else [batch, *augmented])]
        if tasks:
            turns = random.integers(batch, 4)
            turned = [torch.rot90(image, int(k), (1, 2)) for image, k in zip(batch, turns, strict=True)]
            passes.append(torch.stack(turned))
        for each in passes:
            mean = 0.9 * mean + 0.1 * network.conv1(each * 2 - 1).mean((0, 2, 3))
    torch.testing.assert_close(found.block1.layer[0].bn1.running_mean.cpu(), mean, rtol=1e-4, atol=1e-5)
