"""The options that several commands take."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rsslcli.commands import completion
from rsslcli.commands.console import split_names, waiting
from rsslcli.core.config import (
    AUGMENTS,
    AUTOML_VARIANTS,
    BATCH_NORM_MODES,
    DEVICES,
    OPTIMIZERS,
    PRECISIONS,
    VALIDATION_CORRUPTIONS,
    WEIGHTINGS,
    Config,
)
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.errors import unknown
from rsslcli.core.evaluation.adaptation_settings import ADAPTATION_METHODS, STREAMS
from rsslcli.core.networks.names import allow_network
from rsslcli.core.presets import PRESETS

#: What `eval-c` can report: the paper's 19 corruptions, or RobustBench's 15.
PROTOCOLS = ("paper", "robustbench")

# Options by their section of the help pages.
_data = partial(typer.Option, rich_help_panel="Data")
_machine = partial(typer.Option, rich_help_panel="Machine")
_training = partial(typer.Option, rich_help_panel="Training")
_run = partial(typer.Option, rich_help_panel="Run")
_evaluation = partial(typer.Option, rich_help_panel="Evaluation")
_adaptation = partial(typer.Option, rich_help_panel="Adaptation")
task_option = partial(typer.Option, rich_help_panel="Tasks")


def one_of(choices: Sequence[str], kind: str | None = None) -> dict[str, Any]:
    """The arguments that make an option take one of these words: help, completion and a check.

    `kind` is what messages call such a word, by default the name of the parameter.
    """

    def check(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in choices and not context.resilient_parsing:
            raise unknown(kind or str(option.name), value, choices)
        return value

    metavar = f"<{'|'.join(choices)}>"
    return {"metavar": metavar, "autocompletion": completion.one_of(choices), "callback": check}


_DEFAULTS = Config()


def default(setting: str) -> str:
    """The end of the help of an option: the setting's value without a preset or a file."""
    value = getattr(_DEFAULTS, setting)
    return f"  [default: {f'{value:g}' if isinstance(value, float) else value}]"


DEFAULT_DATA_DIR = default_data_dir()
DataDir = Annotated[
    Path, _data(envvar="RSSL_DATA_DIR", help="Where prepared data sets live.", show_default=True)
]
DatasetName = Annotated[
    str | None,
    _data(
        "--dataset",
        help="A prepared data set; shapes is embedded and always there.  [default: that of the run or the "
        "preset, else cifar10]",
        metavar="<name>",
        autocompletion=completion.datasets,
    ),
]
Device = Annotated[
    str | None, _machine(help=f"auto uses CUDA if there is a GPU.{default('device')}", **one_of(DEVICES))
]
Precision = Annotated[
    str | None,
    _machine(
        help="Numeric precision; bfloat16 is faster on CPUs that support it, tf32 is for GPUs.  "
        "[default: float32]",
        **one_of(PRECISIONS),
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(help="A checkpoint, a run directory, or a state dict.", autocompletion=completion.runs),
]


def _allow_network(name: str | None) -> str | None:
    """Let this process import the network that the user names, if it is code of the user's own."""
    if name is not None:
        allow_network(name)
    return name


Network = Annotated[
    str | None,
    typer.Option(
        help="The network of weights from elsewhere: a classifier of torchvision, such as resnet18. Also "
        "needed for a run whose network is package.module:function, which rssl then imports.",
        metavar="<name>",
        callback=_allow_network,
    ),
]
NetworkToTrain = Annotated[
    str | None,
    _training(
        "--network",
        help="wrn, the paper's WideResNet; a classifier of torchvision, such as resnet18; or "
        "package.module:function.  [default: wrn]",
        metavar="<name>",
        callback=_allow_network,
    ),
]
Weights = Annotated[
    str | None,
    _training(
        help="Where the trunk starts: none, imagenet (torchvision's), or a file of weights."
        f"{default('weights')}",
        metavar="<none|imagenet|file>",
    ),
]
Optimizer = Annotated[
    str | None, _training(help=f"SGD with momentum, or AdamW.{default('optimizer')}", **one_of(OPTIMIZERS))
]
TrunkLrFactor = Annotated[
    float | None,
    _training(
        "--trunk-lr-factor",
        help="The trunk's learning rate as a fraction of --lr, such as 0.1 for a pretrained one."
        f"{default('trunk_lr_factor')}",
    ),
]
Normalization = Annotated[
    str | None,
    typer.Option(
        help="How the input of weights from elsewhere is normalized, if the file does not say: half "
        "(x·2 - 1, usual for WideResNets), cifar10, imagenet, none, or means and standard deviations as "
        "R,G,B/R,G,B.",
        metavar="<half|cifar10|imagenet|none|…>",
    ),
]
ClassesByPosition = Annotated[
    bool,
    typer.Option(
        "--classes-by-position",
        help="Take score i for class i of the data set, whatever the names of the classes.",
    ),
]


def _load_task_files(context: typer.Context, paths: list[Path] | None) -> list[Path]:
    """Register the tasks in these files before any option that names them is read."""
    if paths and not context.resilient_parsing:  # which a shell asks for at every <TAB>
        from rsslcli.core.tasks.registry import load_task_file

        with waiting():
            import rsslcli.core.tasks.base  # noqa: F401 (the files import it, and PyTorch with it)
        for path in paths:
            load_task_file(path)
    return paths or []


def _split(names: str | None) -> list[str] | None:
    return None if names is None else split_names(names)


TaskFile = Annotated[
    list[Path] | None,
    task_option(
        help="A Python file that defines tasks of your own; rssl runs the file. May be repeated.",
        metavar="<file.py>",
        callback=_load_task_files,
    ),
]
TrainSize = Annotated[
    int | None, _data(help="Train on a seeded, class-balanced subset of N images.  [default: all images]")
]
Preset = Annotated[
    str | None,
    _training(
        help="Settings to start from. paper: full size; robust: AugMix; finetune: pretrained weights; "
        "precursor: the authors' code; small: a study on two CPU cores; quick: minutes.  [default: paper]",
        **one_of(list(PRESETS)),
    ),
]
ConfigFile = Annotated[
    Path | None,
    _training(
        "--config",
        help="A YAML file of settings; it overrides the preset, and options override it.",
        metavar="<file.yaml>",
    ),
]
Epochs = Annotated[int | None, _training(help=f"Passes over the training images.{default('epochs')}")]
Depth = Annotated[
    int | None, _training(help=f"Layers of the WideResNet, 6n + 4: 10, 16, 22, ….{default('depth')}")
]
Width = Annotated[
    int | None, _training(help=f"Widening factor; features are 64 times this.{default('width')}")
]
BatchSize = Annotated[int | None, _training(help=f"Images per step.{default('batch_size')}")]
LearningRate = Annotated[float | None, _training("--lr", help=f"Initial learning rate.{default('lr')}")]
Augment = Annotated[
    str | None,
    _training(
        help=f"standard crops and flips; augmix adds AugMix and its consistency loss.{default('augment')}",
        **one_of(AUGMENTS),
    ),
]
JsdWeight = Annotated[
    float | None,
    _training(
        help=f"Weight of AugMix's consistency loss; 0 trains on one augmented view.{default('jsd_weight')}"
    ),
]
TuneJsd = Annotated[
    bool | None,
    task_option("--tune-jsd", help="Let AutoML tune the weight of AugMix's consistency loss too."),
]
Weighting = Annotated[
    str | None,
    task_option(
        help="What sets the weights λ: AutoML, nothing (fixed), or one of its rivals.  [default: automl]",
        **one_of(WEIGHTINGS),
    ),
]
Ema = Annotated[
    float | None,
    _training(
        help="Evaluate a moving average of the weights with this decay per step, such as 0.999.  "
        "[default: 0, the weights themselves]"
    ),
]
Seed = Annotated[int | None, _training(help=f"Seed of every random choice.{default('seed')}")]
InitialLambda = Annotated[
    float | None,
    task_option("--lambda", help=f"Weight λ of each task at the start.{default('initial_lambda')}"),
]
ValidationCorruptions = Annotated[
    str | None,
    task_option(
        help="The corruptions that tune λ: all, or the benchmark's extra four, so that the other 15 stay "
        f"unseen.{default('validation_corruptions')}",
        **one_of(VALIDATION_CORRUPTIONS),
    ),
]
AutomlVariants = Annotated[
    str | None,
    task_option(
        help=f"Changes to the paper's update of λ: any of {', '.join(AUTOML_VARIANTS)}, separated by commas.",
        metavar="<names>",
        callback=_split,
        autocompletion=completion.some_of(AUTOML_VARIANTS),
    ),
]
BatchNorm = Annotated[
    str | None,
    task_option(
        help="per-task: a trunk pass for each task; joint: one for everything; all: as per-task, but every "
        f"pass updates the running statistics.{default('batch_norm')}",
        **one_of(BATCH_NORM_MODES),
    ),
]
TaskShare = Annotated[
    float | None,
    task_option(
        help=f"The fraction of each batch that the tasks see; less is faster.{default('task_share')}"
    ),
]
Output = Annotated[
    Path | None,
    _run(help="The run directory.  [default: runs/<time>-<what is trained>]", autocompletion=completion.runs),
]
Resume = Annotated[bool, _run("--resume", help="Continue the run in --output with its own settings.")]
PrintConfig = Annotated[
    bool,
    _run(
        "--print-config", help="Print every setting and where it comes from, as YAML for --config, and exit."
    ),
]
TensorBoard = Annotated[
    bool,
    _run(
        "--tensorboard", help="Write the metrics for TensorBoard too, into tensorboard in the run directory."
    ),
]
Compile = Annotated[
    bool | None, _machine("--compile", help="Compile the network with torch.compile before it trains.")
]
Limit = Annotated[int | None, _evaluation(help="Evaluate only the first N source images.", metavar="<int>")]
OnlyCorruptions = Annotated[
    str | None,
    _evaluation(
        help="Evaluate only these corruptions, separated by commas.",
        metavar="<names>",
        autocompletion=completion.corruptions,
    ),
]
OnlySeverities = Annotated[
    str | None,
    _evaluation(
        help="Evaluate only these severities, 1 to 5, separated by commas.",
        metavar="<numbers>",
        autocompletion=completion.severities,
    ),
]
Protocol = Annotated[
    str,
    _evaluation(
        help="paper: all 19 corruptions. robustbench: the 15 of RobustBench's leaderboard, at all "
        "severities, and a summary in its terms.",
        **one_of(PROTOCOLS),
    ),
]
SameImagesAs = Annotated[
    Path | None,
    _evaluation(
        help="Also leave out the images that tuned λ in that run, so that both are tested on the same ones.",
        metavar="<run>",
        autocompletion=completion.runs,
    ),
]
LeaveOutValidation = Annotated[
    bool,
    _evaluation(
        "--leave-out-validation",
        help="Leave out the images on which an AutoML run of the same seed and settings tunes λ, to "
        "compare this run fairly with it.",
    ),
]
EvaluationFile = Annotated[
    Path | None,
    _evaluation(
        "--output",
        help="Where to write the result: .json, .csv or .md.  [default: eval-c.json in the run; "
        "eval-c-partial.json for a part]",
    ),
]
ScoreFile = Annotated[
    Path | None,
    _evaluation(
        "--predictions",
        help="Also write the scores of every image of every cell into this .npz file; the adapted ones with "
        "--adapt.",
        metavar="<file>",
    ),
]
RelativeTo = Annotated[
    Path | None,
    _evaluation(
        help="Also print mCE and relative mCE, the errors divided by those of that run on the same images.",
        metavar="<run>",
        autocompletion=completion.runs,
    ),
]
Calibrate = Annotated[
    bool,
    _evaluation(
        "--calibrate",
        help="Fit a temperature for the probabilities, on images that are left out of the test: those that "
        "tuned λ, or else a fifth of the source images, at most 1,000. `rssl predict` uses it.",
    ),
]
Adapt = Annotated[
    str | None,
    _adaptation(
        help="Adapt to the images of each cell, without their labels, and print both accuracies. bn: use the "
        "statistics of each batch too. tent: also minimize the entropy of the scores. tasks: take gradient "
        "steps on the run's own tasks.",
        **one_of(ADAPTATION_METHODS, "adaptation"),
    ),
]
Prior = Annotated[
    float | None,
    _adaptation(
        help="Weight of the training statistics beside those of a batch, as a number of images: 0 uses the "
        "batch alone, inf the training statistics alone.  [default: 512; 0 for tent]",
        metavar="<number>",
    ),
]
AdaptBatch = Annotated[
    int | None, _adaptation(help="The largest number of images in a batch.  [default: 200]", metavar="<int>")
]
AdaptStream = Annotated[
    str | None,
    _adaptation(
        "--stream",
        help="The order of the images: shuffled, sorted by class, or mixed, all corruptions of a severity "
        "together. The latter two show what breaks a method.  [default: shuffled]",
        **one_of(STREAMS),
    ),
]
