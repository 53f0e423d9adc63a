"""How long a study will take, and how much room."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rsslcli.core.config import Config
from rsslcli.core.study import CELLS_OF_AN_EVALUATION, Cell


@dataclass(frozen=True)
class Estimate:
    """What a cell takes: seconds of training and evaluation on its share of the machine; bytes of disk."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """The data set of a study in numbers: training images, clean test images, source images of a cell."""

    train: int
    test: int
    corrupted: int
    classes: int = 10


def estimate(
    cells: Sequence[Cell], sizes: Sizes, *, threads: int = 1, speed: float | None = None
) -> dict[str, Estimate]:
    """What each cell takes, by its name.

    The floating-point operations of a step and of an evaluation are counted on PyTorch's `meta` device. Their
    speed is that of the study's finished cells, else `speed`, else that of a few steps measured here.

    Args:
        cells: of which study.
        sizes: of the data set.
        threads: how many CPU threads a cell will have.
        speed: floating-point operations per second.
    """
    by_settings: dict[str, _Work] = {}
    counted = {}
    for cell in cells:
        settings = dataclasses.replace(cell.config, seed=0)
        key = settings.to_yaml()
        if key not in by_settings:
            by_settings[key] = _count(settings, sizes)
        counted[cell.name] = by_settings[key]
    known = [
        counted[cell.name].training / seconds
        for cell in cells
        if cell.status() == "done" and (seconds := cell.seconds())
    ]
    if known:
        speed = statistics.median(known)
    elif speed is None:
        speed = measured_speed(cells[0].config, threads)
    return {
        name: Estimate((work.training + work.evaluation) / speed, work.bytes)
        for name, work in counted.items()
    }


@dataclass(frozen=True)
class _Work:
    training: float
    evaluation: float
    bytes: int


def _count(config: Config, sizes: Sizes) -> _Work:
    """Floating-point operations and bytes of a cell, by running its steps where no tensor has content."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rsslcli.core.trainer import DeviceData, Trainer

    images = min(config.train_size or sizes.train, sizes.train)
    meta = torch.device("meta")
    data = DeviceData(
        torch.empty((images, 40, 40, 3), dtype=torch.uint8, device=meta),
        torch.empty(images, dtype=torch.int64, device=meta),
        torch.empty((config.validation_images, 32, 32, 3), dtype=torch.uint8, device=meta),
        torch.empty(config.validation_images, dtype=torch.int64, device=meta),
    )
    trainer = Trainer(config, data, sizes.classes)
    chosen = torch.empty(config.batch_size, dtype=torch.int64, device=meta)

    def operations(step: int) -> int:
        with FlopCounterMode(display=False) as counter:
            trainer.step(step, chosen)
        return int(counter.get_total_flops())

    tuned_from = min(config.warmup_epochs if config.automl else config.epochs, config.epochs)
    first, tuned = (
        tuned_from * trainer.steps_per_epoch,
        (config.epochs - tuned_from) * trainer.steps_per_epoch,
    )
    training = first * operations(0) + (tuned * operations(trainer.steps - 1) if tuned else 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        trainer.model.eval()(torch.empty((1, 3, 32, 32), device=meta))
    one = counter.get_total_flops()
    tested = min(sizes.test, images)
    evaluation = one * (sizes.test + (CELLS_OF_AN_EVALUATION - 1) * sizes.corrupted)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    metrics = trainer.steps * (150 + 60 * len(config.tasks))
    return _Work(training + one * tested * config.epochs, evaluation, 2 * weights + metrics)


def measured_speed(config: Config, threads: int) -> float:
    """Floating-point operations per second of training steps of `config`, on `threads` cores or the GPU."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rsslcli.core.data.augment import pad_images
    from rsslcli.core.runtime import resolve_device
    from rsslcli.core.trainer import DeviceData, Trainer

    device, batch = resolve_device(config.device), config.batch_size
    images = torch.zeros((batch, 32, 32, 3), dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    trainer = Trainer(config, DeviceData(pad_images(images), labels, images[:0], labels[:0]), 10)
    chosen = torch.arange(batch, device=device)
    torch.set_num_threads(threads)
    with FlopCounterMode(display=False) as counter:  # also warms up
        trainer.step(0, chosen)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        float(trainer.step(0, chosen)["loss/main"])  # waits for the device
        seconds.append(time.perf_counter() - began)
    return float(counter.get_total_flops() / statistics.median(seconds))
