"""`rssl train-automl`: several tasks, their weights tuned by Algorithm 1 (section 4)."""

from __future__ import annotations

from typing import Annotated

import typer

from rsslcli.commands import completion, options, training_run
from rsslcli.commands.console import split_names
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir, DatasetName, Device, Precision
from rsslcli.core.errors import UserError
from rsslcli.core.tasks.registry import BEST_TASKS


def train_automl(
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Some of rotation, color, ir, bir, inpaint, rgb, jigsaw, separated by commas.  "
            f"[default: {','.join(BEST_TASKS)}]",
            metavar="<names>",
            autocompletion=completion.tasks,
            rich_help_panel=options.TASKS,
        ),
    ] = None,
    weighting: options.Weighting = None,
    fixed: Annotated[
        bool,
        typer.Option(
            "--fixed",
            help="Keep λ as it is, the paper's 'without AutoML': short for --weighting fixed.",
            rich_help_panel=options.TASKS,
        ),
    ] = False,
    task_file: options.TaskFile = None,
    initial_lambda: options.InitialLambda = None,
    meta_lr: Annotated[
        float | None, typer.Option(help="β, the learning rate of λ.", rich_help_panel=options.TASKS)
    ] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="τ, epochs with λ fixed.", rich_help_panel=options.TASKS)
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
    """Train with several self-supervision tasks whose weights λ tune themselves.

    # a first look, in minutes
    rssl train-automl --preset quick
    # other tasks, fewer epochs, a name of your own
    rssl train-automl --tasks rotation,jigsaw --epochs 30 --output runs/mine
    # go on after Ctrl-C
    rssl train-automl --resume --output runs/mine
    """
    settings = {
        "dataset": dataset, "epochs": epochs, "train_size": train_size, "depth": depth, "width": width,
        "batch_size": batch_size, "lr": lr, "augment": augment, "jsd_weight": jsd_weight, "ema": ema,
        "initial_lambda": initial_lambda, "batch_norm": batch_norm, "task_share": task_share,
        "seed": seed, "device": device,
        "precision": precision, "compile": compile, "meta_lr": meta_lr, "warmup_epochs": warmup_epochs,
        "validation_corruptions": validation_corruptions, "tune_jsd": tune_jsd,
        "automl_variants": None if automl_variants is None else split_names(automl_variants),
    }  # fmt: skip
    given = training_run.Given(
        settings, data_dir, preset, config, output, resume, print_config, tensorboard, task_file
    )
    if fixed and weighting not in (None, "fixed"):
        raise UserError(f"--fixed and --weighting {weighting} contradict each other: leave one out")
    named = None if tasks is None else [] if tasks == "none" and tune_jsd else split_names(tasks)
    if named == [] and not tune_jsd:
        raise UserError("--tasks: name at least one task")
    chosen = "fixed" if fixed else weighting
    training_run.run_training(given, named, weighting=chosen, default_tasks=BEST_TASKS)
