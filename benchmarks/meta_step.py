"""What tuning λ costs: the AutoML step ÷ the fixed-λ step of the same tasks, measured side by side.

    python benchmarks/meta_step.py

Both steps are whole: batch, task inputs, forward and backward passes, optimiser. They take turns, and the
ratio is taken pair by pair, so that a drift of the machine's speed cancels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from rsslcli.core.config import Config
from rsslcli.core.data.augment import pad_images
from rsslcli.core.runtime import describe_device, resolve_device
from rsslcli.core.trainer import DeviceData, Trainer


def make_trainer(tasks: tuple[str, ...], depth: int, width: int, device: torch.device) -> Trainer:
    """A trainer on random images: speed does not depend on what they show."""
    config = Config(tasks=tasks, automl=True, warmup_epochs=1, depth=depth, width=width, lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    count = 2 * config.batch_size
    images = torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=generator)
    data = DeviceData(
        *(tensor.to(device) for tensor in (pad_images(images), labels, images[:100], labels[:100]))
    )
    trainer = Trainer(config, data, classes=10)
    trainer.model.train()
    return trainer


def seconds(trainer: Trainer, step: int) -> float:
    """The time of one step; steps of the first epoch are the warm-up's, with λ fixed."""
    chosen = trainer.epoch_order(0)[: trainer.config.batch_size]
    began = time.perf_counter()
    trainer.step(step, chosen)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", default="rotation,bir,color,ir")
    parser.add_argument("--depth", type=int, default=40)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    device = resolve_device(options.device)
    trainer = make_trainer(tuple(options.tasks.split(",")), options.depth, options.width, device)
    tuned = trainer.steps_per_epoch  # the first step after the warm-up
    for step in (0, tuned):
        seconds(trainer, step)
    pairs = [(seconds(trainer, 0), seconds(trainer, tuned)) for _ in range(options.pairs)]
    ratios = [automl / fixed for fixed, automl in pairs]
    result = {
        "device": describe_device(device),
        "torch": torch.__version__,
        "network": f"WRN-{options.depth}-{options.width}",
        "tasks": options.tasks,
        "pairs": options.pairs,
        "fixed_seconds": statistics.median(fixed for fixed, _ in pairs),
        "automl_seconds": statistics.median(automl for _, automl in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }
    for key, value in result.items():
        print(f"{key:>15}  {value:.3f}" if isinstance(value, float) else f"{key:>15}  {value}")
    if options.json:
        with open(options.json, "w") as file:  # noqa: PTH123
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
