"""What do the running statistics of batch normalization do to a run? Its accuracy with new ones.

    python benchmarks/running_statistics.py runs/baseline --tasks none rotation [--data-dir DATA]

The weights stay as they are. The statistics are estimated from batches of the run's training images: for
"none" from what its main task sees, and for a task from its inputs too, which pass after those of each batch,
as with `--batch-norm all`. The table has the accuracies in float32 on the images that tune no λ: `eval-c`
tests an AutoML run on those, and a run without AutoML on those with `--leave-out-validation` only.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from rsslcli.core.data.augment import random_batch, to_float
from rsslcli.core.data.augmix import augmix
from rsslcli.core.data.gathering import ChosenImages, ImageSource
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.data.store import Dataset, class_balanced_subset
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.fairness import images_to_leave_out
from rsslcli.core.networks.network import Network
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import resolve_device, seeded_generator
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.weights.checkpoint import Checkpoint, load_checkpoint

#: With a momentum of 0.1, what was there before has the weight 0.9 ** 120, or 3e-6.
BATCHES = 120


@torch.no_grad()
def with_new_statistics(run: Checkpoint, dataset: Dataset, tasks: list[str]) -> Network:
    """The network of a run with running statistics from batches of its training images.

    Args:
        run: its checkpoint; its network is used, not the moving average.
        dataset: the data set that it was trained on.
        tasks: those whose inputs count too, each in a separate pass.
    """
    config = run.config
    device = resolve_device("auto")
    labels = dataset.train.labels
    chosen = None
    if config.train_size is not None:
        chosen = class_balanced_subset(labels, config.train_size, config.seed, "train_size")
        labels = labels[chosen]
    images = ImageSource(ChosenImages([dataset.train.images], chosen), device)
    targets = torch.from_numpy(labels).to(device)
    # One view of each image, if the run does not say otherwise, so that both passes count alike.
    options = {"rotation": {"views": 1}} | dict(config.task_options)
    network = replace(run, average={}).network()
    model = MultiTaskNetwork(
        network, build_tasks(tasks, options), batch_norm="all", autocast=config.precision == "bfloat16"
    )
    model.to(device).train()
    generator = seeded_generator(device, 0, "running statistics")
    for _ in range(BATCHES):
        drawn = torch.randint(len(images), (config.batch_size,), generator=generator, device=device)
        random = BatchRandom(generator, config.batch_size)
        batch = to_float(random_batch(images.gather(drawn.to(images.home)), random))
        views = [augmix(batch, random) for _ in range(config.augmix_views)]
        for _ in model.losses(batch, targets[drawn], random, views):
            pass
    return network.eval()


def main() -> None:
    """Print the table of the runs on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--tasks", nargs="+", default=["none", "rotation"])
    parser.add_argument("--data-dir", type=Path, default=default_data_dir())
    given = parser.parse_args()
    print("| run | statistics of | mean over corruptions | clean |\n| :-- | :-- | --: | --: |")
    for path in given.runs:
        run = load_checkpoint(path)
        dataset = load(run.config.dataset, given.data_dir)
        corrupted = load_corrupted(dataset)
        excluded = images_to_leave_out(run, corrupted, leave_out_validation=True)
        for task in given.tasks:
            network = with_new_statistics(run, dataset, [] if task == "none" else [task])
            device = next(network.parameters()).device
            found = evaluate(network, dataset.test, corrupted, device=device, excluded=excluded)
            _, mean, *_ = found.means().values()
            words = "the main task" if task == "none" else f"the main task and {task}"
            print(f"| {path.name} | {words} | {mean:.2%} | {found.clean_accuracy:.2%} |", flush=True)


if __name__ == "__main__":
    main()
