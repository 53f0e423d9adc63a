"""Run directories as training and evaluation leave them, with invented but seeded numbers."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.evaluation.result import Evaluation

FOUR = ("rotation", "bir", "color", "ir")
#: Points of corrupted accuracy that tasks shall add in the invented studies.
GAINS = {"rotation": 0.8, "color": 0.3, "ir": 0.1, "bir": 0.5, "inpaint": 0.1, "rgb": 0.0, "jigsaw": -0.6}


def make_run(
    directory: Path,
    *,
    mean: float | None = None,
    steps_per_epoch: int = 30,
    excluded: int = 10,
    origin: str | None = "published",
    **settings: Any,
) -> Path:
    """A finished, evaluated run.

    Args:
        directory: where.
        mean: the mean accuracy over the corruptions, exactly; by default invented from the tasks.
        steps_per_epoch: steps in an epoch.
        excluded: how many images are left out of the evaluation, drawn by the seed alone.
        origin: where the corrupted set is from; None as in the evaluations of old versions.
        settings: options of the configuration, beside a small size.
    """
    size = {"epochs": 8, "depth": 16, "width": 1, "train_size": 5000, "warmup_epochs": 2}
    config = Config(**size | settings)
    random = np.random.default_rng([config.seed, zlib.crc32(f"{config.name} {config.batch_norm}".encode())])
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(config.to_yaml())
    write_metrics(directory / "metrics.jsonl", config, random, steps_per_epoch)

    difficulty = np.linspace(0.1, -0.1, len(CORRUPTIONS))[:, None] + np.linspace(0.08, -0.08, 5)
    if mean is None:
        gain = sum(GAINS[task] for task in config.tasks) + 0.6 * config.automl
        seed = np.random.default_rng(config.seed).normal(0, 0.4)  # which runs of a seed have in common
        mean = 0.5 + (gain + seed + random.normal(0, 0.25)) / 100
    cells = difficulty + random.normal(0, 0.01, difficulty.shape)
    cells += mean - cells.mean()
    source = np.random.default_rng([config.seed, 1]).choice(1000, excluded, replace=False)
    about = {"dataset": config.dataset, "test_data": "a" * 64, "corrupted_data": "b" * 64}
    Evaluation(
        clean_accuracy=0.63,
        clean_images=1000 - excluded,
        accuracy={name: row.tolist() for name, row in zip(CORRUPTIONS, cells, strict=True)},
        images=1000 - excluded,
        excluded=tuple(sorted(int(index) for index in source)),
        about=about if origin is None else about | {"corrupted_origin": origin},
    ).save(directory / "eval-c.json")
    return directory


def write_metrics(path: Path, config: Config, random: np.random.Generator, steps_per_epoch: int) -> None:
    """The metrics of a run: losses that fall, λ that moves after the warm-up."""
    steps = config.epochs * steps_per_epoch
    seconds = 2.0 * (1 + 0.5 * len(config.tasks) + 0.4 * config.automl)
    lambdas = np.full(len(config.tasks), config.initial_lambda)
    speed = steps_per_epoch * config.batch_size / seconds
    with path.open("w") as file:
        for step in range(1, steps + 1):
            epoch = (step - 1) // steps_per_epoch + 1
            if config.automl and epoch > config.warmup_epochs:
                lambdas = np.maximum(
                    0, lambdas + random.normal(np.linspace(1, -0.5, len(lambdas)), 3) / steps
                )
            loss = 2.3 * math.exp(-2 * step / steps) + random.normal(0, 0.05)
            record = {"step": step, "epoch": epoch, "lr": 0.1, "loss/main": loss}
            record |= {f"lambda/{task}": value for task, value in zip(config.tasks, lambdas, strict=True)}
            file.write(json.dumps(record | {"images_per_second": speed}) + "\n")
            if step % steps_per_epoch == 0:
                accuracy = 0.63 * (1 - math.exp(-4 * step / steps)) + random.normal(0, 0.005)
                record = {"step": step, "epoch": epoch, "clean_accuracy": accuracy}
                file.write(json.dumps(record | {"images_per_second": speed, "seconds": seconds}) + "\n")


def make_study(folder: Path, seeds: int = 3) -> Path:
    """The whole grid: every task once, and `seeds` runs of those that the paper's Figure 2 compares."""
    for seed in range(seeds):
        make_run(folder / f"baseline-s{seed}", seed=seed)
        make_run(folder / f"rotation-s{seed}", tasks=("rotation",), seed=seed)
        make_run(folder / f"rotation-joint-s{seed}", tasks=("rotation",), batch_norm="joint", seed=seed)
        make_run(folder / f"fixed-s{seed}", tasks=FOUR, seed=seed)
        make_run(folder / f"automl-s{seed}", tasks=FOUR, weighting="automl", seed=seed)
    for task in ("color", "ir", "bir", "inpaint", "rgb", "jigsaw"):
        make_run(folder / f"{task}-s0", tasks=(task,), seed=0)
    return folder
