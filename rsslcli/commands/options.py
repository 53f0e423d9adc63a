"""The options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands import completion
from rsslcli.commands.console import (
    waiting,
)
from rsslcli.core.config import (
    AUGMENTS,
    AUTOML_VARIANTS,
    BATCH_NORM_MODES,
    DEVICES,
    PRECISIONS,
    VALIDATION_CORRUPTIONS,
    WEIGHTINGS,
)
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.evaluation.adaptation_settings import ADAPTATION_METHODS, STREAMS
from rsslcli.core.presets import PRESETS

DEFAULT_DATA_DIR = default_data_dir()
DataDir = Annotated[
    Path,
    typer.Option(
        envvar="RSSL_DATA_DIR",
        help="Where prepared data sets live.",
        show_default=True,
        rich_help_panel="Data",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="A prepared data set; shapes is embedded and always there.",
        metavar="<name>",
        autocompletion=completion.datasets,
        rich_help_panel="Data",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto uses CUDA if there is a GPU.",
        metavar=f"<{'|'.join(DEVICES)}>",
        autocompletion=completion.devices,
        rich_help_panel="Machine",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Numeric precision: float32 by default; bfloat16 is faster on GPUs and CPUs that support it, "
        "tf32 on GPUs.",
        metavar=f"<{'|'.join(PRECISIONS)}>",
        autocompletion=completion.precisions,
        rich_help_panel="Machine",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="A checkpoint, a run directory, or a WideResNet state dict.",
        autocompletion=completion.runs,
    ),
]
Normalization = Annotated[
    str | None,
    typer.Option(
        help="How the input of weights from elsewhere is normalized, if the file does not say: half "
        "(x·2 - 1, the default), cifar10, none, or means and standard deviations as R,G,B/R,G,B.",
        metavar="<half|cifar10|none|…>",
    ),
]
ClassesByPosition = Annotated[
    bool,
    typer.Option(
        "--classes-by-position",
        help="Take score i for class i of the data set, whatever the names of the classes.",
    ),
]


#: Headings of the options on the help pages.
TASKS = "Tasks"
_TRAINING = "Training"
_RUN = "Run"
_MACHINE = "Machine"


def _load_task_files(context: typer.Context, paths: list[Path] | None) -> list[Path]:
    """Make the tasks in these files known, before any option that names them is looked at."""
    if paths and not context.resilient_parsing:  # which a shell asks for at every <TAB>
        from rsslcli.core.tasks.registry import load_task_file

        with waiting():
            import rsslcli.core.tasks.base  # noqa: F401 (the files import it, and PyTorch with it)
        for path in paths:
            load_task_file(path)
    return paths or []


TaskFile = Annotated[
    list[Path] | None,
    typer.Option(
        help="A Python file that defines tasks of your own, which is run; may be repeated.",
        metavar="<file.py>",
        callback=_load_task_files,
        rich_help_panel=TASKS,
    ),
]
TrainSize = Annotated[
    int | None,
    typer.Option(
        help="Train on a seeded, class-balanced subset of N images.",
        rich_help_panel="Data",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Settings to start from; quick takes minutes on two CPU cores.  [default: paper]",
        metavar=f"<{'|'.join(PRESETS)}>",
        autocompletion=completion.presets,
        rich_help_panel=_TRAINING,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A YAML file of settings; it overrides the preset, and options override it.",
        metavar="<file.yaml>",
        rich_help_panel=_TRAINING,
    ),
]
Epochs = Annotated[
    int | None, typer.Option(help="Passes over the training images.", rich_help_panel=_TRAINING)
]
Depth = Annotated[
    int | None,
    typer.Option(help="Layers of the WideResNet: 10, 16, 22, 28, 34 or 40.", rich_help_panel=_TRAINING),
]
Width = Annotated[
    int | None,
    typer.Option(help="Widening factor; features are 64 times this.", rich_help_panel=_TRAINING),
]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.", rich_help_panel=_TRAINING)]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Initial learning rate.", rich_help_panel=_TRAINING)
]
Augment = Annotated[
    str | None,
    typer.Option(
        help="standard crops and flips; augmix adds AugMix and its consistency loss.",
        metavar=f"<{'|'.join(AUGMENTS)}>",
        autocompletion=completion.augments,
        rich_help_panel=_TRAINING,
    ),
]
JsdWeight = Annotated[
    float | None,
    typer.Option(
        help="Weight of AugMix's consistency loss; 0 trains on one augmented view.",
        rich_help_panel=_TRAINING,
    ),
]
TuneJsd = Annotated[
    bool | None,
    typer.Option(
        "--tune-jsd",
        help="Let AutoML tune the weight of AugMix's consistency loss too.",
        rich_help_panel=TASKS,
    ),
]
Weighting = Annotated[
    str | None,
    typer.Option(
        help="What sets the weights λ: AutoML by default, nothing (fixed), or one of its rivals.",
        metavar=f"<{'|'.join(WEIGHTINGS)}>",
        autocompletion=completion.weightings,
        rich_help_panel=TASKS,
    ),
]
Ema = Annotated[
    float | None,
    typer.Option(
        help="Evaluate a moving average of the weights with this decay per step, such as 0.999.",
        rich_help_panel=_TRAINING,
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.", rich_help_panel=_TRAINING)]
InitialLambda = Annotated[
    float | None,
    typer.Option("--lambda", help="Weight λ of each task at the start.", rich_help_panel=TASKS),
]
ValidationCorruptions = Annotated[
    str | None,
    typer.Option(
        help="all, or tune λ on the benchmark's four extra corruptions, to test on the 15.",
        metavar=f"<{'|'.join(VALIDATION_CORRUPTIONS)}>",
        autocompletion=completion.validation_corruptions,
        rich_help_panel=TASKS,
    ),
]
AutomlVariants = Annotated[
    str | None,
    typer.Option(
        help="Departures of AutoML from the paper's, separated by commas.",
        metavar=f"<{','.join(AUTOML_VARIANTS)}>",
        autocompletion=completion.automl_variants,
        rich_help_panel=TASKS,
    ),
]
BatchNorm = Annotated[
    str | None,
    typer.Option(
        help="A trunk pass for each task, or a joint one; with all, each updates the running statistics.",
        metavar=f"<{'|'.join(BATCH_NORM_MODES)}>",
        autocompletion=completion.batch_norm_modes,
        rich_help_panel=TASKS,
    ),
]
TaskShare = Annotated[
    float | None,
    typer.Option(
        help="The fraction of each batch that the tasks see; less is faster.  [default: 1]",
        rich_help_panel=TASKS,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="The run directory.  [default: runs/<time>-<what is trained>]",
        autocompletion=completion.runs,
        rich_help_panel=_RUN,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in --output with its own settings.",
        rich_help_panel=_RUN,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Print every setting and where it comes from, as YAML for --config, and exit.",
        rich_help_panel=_RUN,
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Write the metrics for TensorBoard too, into tensorboard in the run directory.",
        rich_help_panel=_RUN,
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile",
        help="Compile the network with torch.compile before it trains.",
        rich_help_panel=_MACHINE,
    ),
]


_EVALUATION = "Evaluation"
Limit = Annotated[
    int | None,
    typer.Option(
        help="Evaluate only the first N source images.", metavar="<int>", rich_help_panel=_EVALUATION
    ),
]
OnlyCorruptions = Annotated[
    str | None,
    typer.Option(
        help="Evaluate only these corruptions, separated by commas.",
        metavar="<names>",
        autocompletion=completion.corruptions,
        rich_help_panel=_EVALUATION,
    ),
]
OnlySeverities = Annotated[
    str | None,
    typer.Option(
        help="Evaluate only these severities, 1 to 5, separated by commas.",
        metavar="<numbers>",
        autocompletion=completion.severities,
        rich_help_panel=_EVALUATION,
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        help="paper: all 19 corruptions. robustbench: the 15 of RobustBench's leaderboard, at all "
        "severities, and a summary in its terms.",
        metavar="<paper|robustbench>",
        rich_help_panel=_EVALUATION,
    ),
]
SameImagesAs = Annotated[
    Path | None,
    typer.Option(
        help="Leave out what tuned λ in that run too, to compare the two fairly.",
        metavar="<run>",
        autocompletion=completion.runs,
        rich_help_panel=_EVALUATION,
    ),
]
LeaveOutValidation = Annotated[
    bool,
    typer.Option(
        "--leave-out-validation",
        help="Leave out the images on which an AutoML run of the same seed and settings tunes λ, to "
        "compare this run fairly with it.",
        rich_help_panel=_EVALUATION,
    ),
]
EvaluationFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Where to write the result: .json, .csv or .md. Default: eval-c.json in the run, and "
        "eval-c-partial.json for a part.",
        rich_help_panel=_EVALUATION,
    ),
]


_ADAPTATION = "Adaptation"
RelativeTo = Annotated[
    Path | None,
    typer.Option(
        help="Also print mCE and relative mCE, the errors divided by those of that run on the same images.",
        metavar="<run>",
        autocompletion=completion.runs,
        rich_help_panel=_EVALUATION,
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Fit a temperature that makes the probabilities fit, on images that are not tested: those that "
        "tuned λ, else a fifth of the images, which are then left out. `rssl predict` uses it.",
        rich_help_panel=_EVALUATION,
    ),
]
Adapt = Annotated[
    str | None,
    typer.Option(
        help="Adapt to the images of each cell, without their labels, and print both accuracies. bn: use the "
        "statistics of each batch too. tent: also minimize the entropy of the scores. tasks: take gradient "
        "steps on the run's own tasks.",
        metavar=f"<{'|'.join(ADAPTATION_METHODS)}>",
        autocompletion=completion.adaptation_methods,
        rich_help_panel=_ADAPTATION,
    ),
]
Prior = Annotated[
    float | None,
    typer.Option(
        help="How many images the statistics of the training count for, beside those of a batch: 0 uses the "
        "batch alone, inf the training alone.  [default: 512; 0 for tent]",
        metavar="<number>",
        rich_help_panel=_ADAPTATION,
    ),
]
AdaptBatch = Annotated[
    int | None,
    typer.Option(
        help="The largest number of images in a batch.  [default: 200]",
        metavar="<int>",
        rich_help_panel=_ADAPTATION,
    ),
]
AdaptStream = Annotated[
    str | None,
    typer.Option(
        "--stream",
        help="The order of the images: shuffled, sorted by class, or mixed, all corruptions of a severity "
        "together. The latter two show what breaks a method.  [default: shuffled]",
        metavar=f"<{'|'.join(STREAMS)}>",
        autocompletion=completion.streams,
        rich_help_panel=_ADAPTATION,
    ),
]
