"""`rssl train-single`: the baseline, or one task beside the main one (section 3)."""

from __future__ import annotations

from typing import Annotated

import typer

from rsslcli.commands import completion, options, training_run
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir, DatasetName, Device, Precision
from rsslcli.core.errors import UserError


def train_single(
    task: Annotated[
        str | None,
        typer.Option(
            help="rotation, color, ir, bir, inpaint, rgb or jigsaw; none for the baseline.",
            metavar="<name>",
            autocompletion=completion.task_or_none,
            rich_help_panel=options.TASKS,
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
    depth: options.Depth = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
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
    settings = {
        "dataset": dataset, "epochs": epochs, "train_size": train_size, "depth": depth, "width": width,
        "batch_size": batch_size, "lr": lr, "augment": augment, "jsd_weight": jsd_weight, "ema": ema,
        "initial_lambda": initial_lambda, "batch_norm": batch_norm, "task_share": task_share,
        "seed": seed, "device": device,
        "precision": precision, "compile": compile,
    }  # fmt: skip
    given = training_run.Given(
        settings, data_dir, preset, config, output, resume, print_config, tensorboard, task_file
    )
    if task is None and not resume and config is None:
        raise UserError("--task is missing: name a task, or none for the baseline")
    tasks = None if task is None else [] if task == "none" else [task]
    training_run.run_training(given, tasks, weighting="fixed", single=True)
