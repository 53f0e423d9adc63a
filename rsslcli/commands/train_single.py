"""`rssl train-single`: the baseline, or one task beside the main one (section 3)."""

from __future__ import annotations

from typing import Annotated

import typer

from rsslcli.commands import completion, options
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir, DatasetName, Device, Precision
from rsslcli.commands.training_run import Given, run_training
from rsslcli.core.errors import UserError
from rsslcli.core.tasks.registry import TASKS


def train_single(
    context: typer.Context,
    task: Annotated[
        str | None,
        options.task_option(
            help=f"{', '.join(TASKS)}; none for the baseline.  [required, unless --config or "
            "--resume says it]",
            metavar="<name>",
            autocompletion=completion.task_or_none,
        ),
    ] = None,
    task_file: options.TaskFile = None,
    initial_lambda: options.InitialLambda = None,
    batch_norm: options.BatchNorm = None,
    task_share: options.TaskShare = None,
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    train_size: options.TrainSize = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    epochs: options.Epochs = None,
    network: options.NetworkToTrain = None,
    weights: options.Weights = None,
    depth: options.Depth = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    optimizer: options.Optimizer = None,
    trunk_lr_factor: options.TrunkLrFactor = None,
    augment: options.Augment = None,
    jsd_weight: options.JsdWeight = None,
    ema: options.Ema = None,
    seed: options.Seed = None,
    output: options.Output = None,
    resume: options.Resume = False,
    print_config: options.PrintConfig = False,
    tensorboard: options.TensorBoard = False,
    device: Device = None,
    precision: Precision = None,
    compile: options.Compile = None,
) -> None:
    """Train with one self-supervision task at a fixed weight, or with none.

    # the baseline
    rssl train-single --task none
    # one task, and images of your own
    rssl train-single --task rotation --dataset mine --epochs 30
    # what would be done, setting by setting
    rssl train-single --task rotation --preset quick --print-config
    """
    if task is None and not resume and config is None:
        raise UserError("--task is missing: name a task, or none for the baseline")
    if task is not None and "," in task:
        raise UserError(f"train-single takes one task, not {task}: use train-automl --fixed")
    tasks = None if task is None else [] if task == "none" else [task]
    run_training(Given.of(context), tasks, weighting="fixed", single=True)
