"""What `train-single` and `train-automl` share: their options, and a run shown as it goes."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.cells import cell_len
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from rsslcli.commands import completion
from rsslcli.commands.console import (
    check_dataset,
    err,
    note,
    out,
    percent,
    progress_bar,
    shell_command,
    stop_on_signal,
    waiting,
)
from rsslcli.commands.hints import suggest_evaluation
from rsslcli.commands.terminal import Bar
from rsslcli.core.config import (
    BATCH_NORM_MODES,
    PRESETS,
    VALIDATION_CORRUPTIONS,
    Config,
    Layers,
    check_effective,
    config_layers,
    explain,
    merge,
)
from rsslcli.core.errors import InterruptedTrainingError, UserError
from rsslcli.core.files import other_runs
from rsslcli.core.run_folder import RunFolder

if TYPE_CHECKING:
    from rsslcli.core.training.events import Event
    from rsslcli.core.training.loop import TrainingResult

#: Headings of the options on the help pages.
TASKS, _TRAINING, _RUN, _MACHINE = "Tasks", "Training", "Run", "Machine"


def _load_task_files(context: typer.Context, paths: list[Path] | None) -> list[Path]:
    """Make the tasks in these files known, before any option that names them is looked at."""
    if paths and not context.resilient_parsing:  # which a shell asks for at every <TAB>
        from rsslcli.core.tasks.own import load_task_file

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
        help="Train on a seeded, class-balanced subset of so many images.",
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
        help="A YAML file of options: over the preset, under what is given here.",
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
BatchNorm = Annotated[
    str | None,
    typer.Option(
        help="A trunk pass for each task, or one for all.",
        metavar=f"<{'|'.join(BATCH_NORM_MODES)}>",
        autocompletion=completion.batch_norm_modes,
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
        help="Go on with the run in --output, with its own options.",
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


def run_training(
    given: Mapping[str, Any],
    tasks: list[str] | None,
    *,
    automl: bool,
    single: bool = False,
    default_tasks: Sequence[str] = (),
) -> None:
    """Train as a command's options say.

    Args:
        given: the command's arguments by name; None is "not given".
        tasks: the tasks of a new run; None is "not given".
        automl: whether λ is tuned.
        single: whether at most one task is trained.
        default_tasks: the tasks where neither the command line nor a configuration file names any.
    """
    layers = _layers(given, tasks, automl, default_tasks)
    config = merge(layers)
    if given["resume"] and config.automl != automl:
        kind = "train-automl" if config.automl else "train-single or train-automl --fixed"
        raise UserError(f"{given['output']} is a run of {kind}")
    if single and len(config.tasks) > 1:
        raise UserError(f"train-single takes one task, not {', '.join(config.tasks)}: use train-automl")
    if not given["resume"]:
        check_effective(config)
    if given["print_config"]:
        out.print(explain(layers), end="", soft_wrap=True)
        return
    if given["tensorboard"] and find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs TensorBoard: pip install 'rsslcli[tensorboard]'")
    _note_without_effect(given, config)
    data_dir = given["data_dir"]
    check_dataset(config.dataset, data_dir)

    with waiting():
        from rsslcli.core.data.loading import load, load_corrupted
        from rsslcli.core.ranks import join_world
        from rsslcli.core.runtime import keep_freed_memory, resolve_device
        from rsslcli.core.training.loop import train
        from rsslcli.core.training.tensorboard import TensorBoardWriter

    keep_freed_memory()
    with ExitStack() as stack:
        world = stack.enter_context(join_world(resolve_device(config.device)))
        with progress_bar() as progress, world.main_first():
            dataset = load(config.dataset, data_dir, progress)
            corrupted = load_corrupted(dataset, progress) if config.automl else None
        directory = given["output"]
        if directory is None:
            directory = Path(world.broadcast(str(_new_directory(config)) if world.is_main else ""))
            stack.callback(_remove_empty, directory)
        view = stack.enter_context(TrainingView(config))
        listeners: list[Callable[[Event], None]] = [view]
        if given["tensorboard"] or (given["resume"] and RunFolder(directory).tensorboard.is_dir()):
            listeners.append(stack.enter_context(TensorBoardWriter()))

        def tell(event: Event) -> None:
            for listener in listeners:
                listener(event)

        received = stack.enter_context(stop_on_signal(view.bar))
        try:
            result = train(
                config,
                directory,
                dataset,
                corrupted,
                resume=given["resume"],
                on_event=tell,
                should_stop=lambda: bool(received),
                world=world,
            )
        except InterruptedTrainingError as stopped:
            words = _resuming_words(given, directory, automl=automl, single=single)
            command = shell_command(*words, data_dir=data_dir, ranks=world.size)
            resumable = InterruptedTrainingError(f"{stopped}; go on with: {command}")
            # Another rank may be the one that was told to stop.
            resumable.exit_code = 128 + (received[0] if received else signal.SIGTERM)
            raise resumable from None
    view.summary(result)
    suggest_evaluation(directory, config, data_dir)


#: Options of the commands that are options of the configuration by the same name.
_CONFIG_OPTIONS = (
    "dataset", "epochs", "train_size", "depth", "width", "batch_size", "lr", "initial_lambda", "meta_lr",
    "warmup_epochs", "validation_corruptions", "batch_norm", "seed", "device", "precision", "compile",
)  # fmt: skip

#: Options that act only where another setting is given.
_NEEDS = {
    "meta_lr": "automl",
    "warmup_epochs": "automl",
    "validation_corruptions": "automl",
    "initial_lambda": "tasks",
    "batch_norm": "tasks",
}


def _layers(
    given: Mapping[str, Any], tasks: list[str] | None, automl: bool, default_tasks: Sequence[str]
) -> Layers:
    """What decides the configuration of a new run, or of the one to resume."""
    options = {key: given.get(key) for key in _CONFIG_OPTIONS}
    output: Path | None = given["output"]
    if not given["resume"]:
        layers = config_layers(given["preset"] or "paper", given["config"], options | {"tasks": tasks})
        return [("default", {"tasks": default_tasks}), *layers, ("the command", {"automl": automl})]
    if output is None:
        raise UserError("--resume needs --output, the run directory to go on with")
    changed = [key for key, value in options.items() if value is not None and key != "device"]
    changed += [key for key in ("preset", "config") if given[key] is not None] + (["tasks"] if tasks else [])
    if changed:
        names = ", ".join(map(_option, changed))
        raise UserError(f"a run goes on with its own options: leave out {names}, or start a new run")
    if not RunFolder(output).is_run():
        hint = other_runs(output) or "there is no config.yaml"
        raise UserError(f"{output} holds no run to go on with: {hint}")
    return config_layers(file=RunFolder(output).config, overrides={"device": options["device"]})


def _option(key: str) -> str:
    """The command-line option of a setting."""
    return "--lambda" if key == "initial_lambda" else f"--{key.replace('_', '-')}"


def _note_without_effect(given: Mapping[str, Any], config: Config) -> None:
    """Say which options on the command line have no effect, because of what else is on it."""
    for key, setting in _NEEDS.items():
        if given.get(key) is not None and not getattr(config, setting):
            why = "λ is fixed" if setting == "automl" else "there are no tasks"
            note(f"{_option(key)} has no effect: {why}")


def _resuming_words(
    given: Mapping[str, Any], directory: Path, *, automl: bool, single: bool
) -> list[str | Path]:
    """The arguments of `rssl` that go on with a run."""
    words: list[str | Path] = ["train-single" if single else "train-automl"]
    if not automl and not single:
        words.append("--fixed")
    words += ["--resume", "--output", directory]
    for file in given["task_file"] or ():
        words += ["--task-file", file]
    return words


def _new_directory(config: Config) -> Path:
    """Make the directory of a run that was not given one: its time comes first, so that names sort."""
    time = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = config.name if len(config.name) <= 60 else f"{config.name.split('-')[0]}-{len(config.tasks)}-tasks"
    directory, number = Path("runs", f"{time}-{name}"), 1
    while True:
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:  # of a run that began in the same second
            number += 1
            directory = Path("runs", f"{time}-{name}-{number}")


def _remove_empty(directory: Path) -> None:
    """Remove the directory of a run that came to nothing."""
    with suppress(OSError):
        directory.rmdir()


#: Columns of the bar, and fewer to which a narrow terminal may shorten it.
_BAR, _SHORT_BAR = 24, 8


class TrainingView:
    """Shows a run: a bar with the current losses and λ's on a terminal, and a line after every epoch."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._latest: Mapping[str, Any] = {}
        fixed = Column(no_wrap=True)  # so that a narrow terminal shortens the bar alone
        self.bar = Bar(
            err,
            TextColumn("{task.description}", table_column=fixed),
            BarColumn(bar_width=_BAR),
            MofNCompleteColumn(table_column=fixed),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=fixed),
            TextColumn("{task.fields[values]}", table_column=fixed),
        )

    def __enter__(self) -> TrainingView:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show what the engine tells."""
        from rsslcli.core.training.events import EpochDone, Notice, Started

        if isinstance(event, Started):
            self._task = self.bar.add_task("", total=event.steps, completed=event.step, values="")
            tunes = event.config.automl and not event.config.untuned
            tuned = f", λ tuned on {event.validation_images} corrupted ones" if tunes else ""
            err.print(
                f"{event.config.name}: {event.images} images of {event.config.dataset}{tuned}; "
                f"WRN-{event.config.depth}-{event.config.width} on {event.device}; {event.directory}"
            )
        elif isinstance(event, EpochDone):
            err.print(self._epoch_line(event.record))
        elif isinstance(event, Notice):
            note(event.text)
        else:
            self._latest = event.record
            description = f"epoch {event.record['epoch']}/{self.config.epochs}"
            self.bar.update(
                self._task,
                completed=event.record["step"],
                description=description,
                values=self._values(len(description)),
            )

    def _values(self, taken: int) -> str:
        """The loss and the λ's, or as much of that as fits on the bar's line beside `taken` columns."""
        count = len(str(self.bar.tasks[self._task].total))
        room = self.bar.room - taken - (2 * count + 1) - len("0:00:00") - 4  # the spaces between columns
        loss = f"loss {self._latest['loss/main']:.3f}"
        both = f"{loss}  {self._lambdas()}"
        if cell_len(err.as_shown(both)) <= room - _BAR:
            return both
        return loss if len(loss) <= room - _SHORT_BAR else ""

    def summary(self, result: TrainingResult) -> None:
        """What came out."""
        weights = "  ".join(f"{task} {value:.3f}" for task, value in result.lambdas.items())
        out.print(
            f"clean accuracy {percent(result.clean_accuracy)}% on {result.clean_images} test images"
            + (f"   λ: {weights}" if weights else ""),
            soft_wrap=True,
        )

    def _epoch_line(self, record: Mapping[str, Any]) -> str:
        loss = f"{self._latest['loss/main']:.3f}" if self._latest else "–"
        return (
            f"epoch {record['epoch']:>3}/{self.config.epochs}  "
            f"clean {percent(record['clean_accuracy']):>6}%  loss {loss}  "
            f"{record['images_per_second']:.0f} images/s  {self._lambdas()}"
        ).rstrip()

    def _lambdas(self) -> str:
        if not self.config.tasks or not self._latest:
            return ""
        return "λ " + " ".join(f"{task} {self._latest[f'lambda/{task}']:.3f}" for task in self.config.tasks)
