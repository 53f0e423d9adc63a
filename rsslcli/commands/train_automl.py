"""`rssl train-automl`: several tasks, their weights tuned by Algorithm 1 (section 4)."""

from __future__ import annotations

from typing import Annotated

import typer

from rsslcli.commands import completion, options
from rsslcli.commands.console import split_names
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir, DatasetName, Device, Precision
from rsslcli.commands.training_run import Given, run_training
from rsslcli.core.errors import UserError
from rsslcli.core.tasks.registry import BEST_TASKS, TASKS


def train_automl(
    context: typer.Context,
    tasks: Annotated[
        str | None,
        options.task_option(
            help=f"Some of {', '.join(TASKS)}, separated by commas.  [default: {','.join(BEST_TASKS)}]",
            metavar="<names>",
            autocompletion=completion.tasks,
        ),
    ] = None,
    weighting: options.Weighting = None,
    fixed: Annotated[
        bool,
        options.task_option(
            "--fixed", help="Keep λ as it is, the paper's 'without AutoML': short for --weighting fixed."
        ),
    ] = False,
    task_file: options.TaskFile = None,
    initial_lambda: options.InitialLambda = None,
    meta_lr: Annotated[
        float | None, options.task_option(help=f"β, the learning rate of λ.{options.default('meta_lr')}")
    ] = None,
    warmup_epochs: Annotated[
        int | None, options.task_option(help=f"τ, epochs with λ fixed.{options.default('warmup_epochs')}")
    ] = None,
    validation_corruptions: options.ValidationCorruptions = None,
    tune_jsd: options.TuneJsd = None,
    automl_variants: options.AutomlVariants = None,
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
    """Train with several self-supervision tasks whose weights λ tune themselves.

    # a first look, in minutes
    rssl train-automl --preset quick
    # other tasks, fewer epochs, a name of your own
    rssl train-automl --tasks rotation,jigsaw --epochs 30 --output runs/mine
    # go on after Ctrl-C
    rssl train-automl --resume --output runs/mine
    """
    if fixed and weighting not in (None, "fixed"):
        raise UserError(f"--fixed and --weighting {weighting} contradict each other: leave one out")
    named = None if tasks is None else [] if tasks == "none" else split_names(tasks)
    if named == [] and tasks != "none":
        raise UserError("--tasks: name at least one task")
    chosen = "fixed" if fixed else weighting
    run_training(Given.of(context), named, weighting=chosen)
