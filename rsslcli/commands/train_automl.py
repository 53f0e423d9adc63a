"""`rssl train-automl`: several tasks, their weights tuned by Algorithm 1 (section 4)."""

from __future__ import annotations

from typing import Annotated

import typer

from rsslcli.commands import training_run as options
from rsslcli.commands.console import DEFAULT_DATA_DIR, DataDir, DatasetName, Device, split_names

#: The four tasks of the paper's section 4.
DEFAULT_TASKS = ["rotation", "bir", "color", "ir"]


def train_automl(
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks separated by commas, of rotation, color, ir, bir, inpaint, rgb, jigsaw.",
            show_default=",".join(DEFAULT_TASKS),
        ),
    ] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Keep λ as it is: the paper's 'without AutoML'.")
    ] = False,
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    output: options.Output = None,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    epochs: options.Epochs = None,
    train_size: options.TrainSize = None,
    depth: options.Depth = None,
    width: options.Width = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    initial_lambda: options.InitialLambda = None,
    meta_lr: Annotated[float | None, typer.Option(help="β, the learning rate of λ.")] = None,
    warmup_epochs: Annotated[int | None, typer.Option(help="τ, epochs with λ fixed.")] = None,
    validation_corruptions: options.ValidationCorruptions = None,
    batch_norm: options.BatchNorm = None,
    seed: options.Seed = None,
    device: Device = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    resume: options.Resume = False,
) -> None:
    """Train with several self-supervision tasks whose weights λ tune themselves.

    rssl train-automl --tasks rotation,bir,color,ir --preset quick
    """
    given = locals()
    named = None if tasks is None else split_names(tasks)
    if named is None and not resume and config is None:
        named = DEFAULT_TASKS
    options.run_training(given, named, automl=not fixed)
