"""What `train-single` and `train-automl` share: their options, and a run shown as it goes."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

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
from rsslcli.core.config import Config, check_effective
from rsslcli.core.errors import InterruptedTrainingError, UserError, command_arguments
from rsslcli.core.files import other_runs
from rsslcli.core.networks.names import WRN, is_custom
from rsslcli.core.presets import Layers, check_task_options, config_layers, explain, merge
from rsslcli.core.run_folder import RunFolder
from rsslcli.core.tasks.registry import BEST_TASKS

if TYPE_CHECKING:
    from rsslcli.core.training.events import Event
    from rsslcli.core.training.loop import TrainingResult


@dataclass(frozen=True)
class Given:
    """The arguments of a training command; None is "not given"."""

    settings: Mapping[str, object]  #: the options that set a field of `Config`, by its name
    data_dir: Path  #: where prepared data sets live
    preset: str | None  #: the settings to start from
    config: Path | None  #: a YAML file of settings
    output: Path | None  #: the run directory; None makes one
    resume: bool  #: whether to continue the run in `output`
    print_config: bool  #: whether to print the settings only
    tensorboard: bool  #: whether to write for TensorBoard too
    task_file: Sequence[Path] | None  #: the files that define custom tasks, already loaded

    @classmethod
    def of(cls, context: typer.Context) -> Given:
        """The arguments of the command in `context`, by the parameters of its function.

        The tasks and the weighting are left out: each command reads them in its own way.
        """
        values = context.params
        names = [option.name for option in fields(Config) if option.name not in ("tasks", "weighting")]
        given = {field.name: values[field.name] for field in fields(cls) if field.name != "settings"}
        for key in ("data_dir", "config", "output"):
            if given[key] == "":
                raise UserError(f"`{key}` is empty: give a path, or leave it out")
            given[key] = None if given[key] is None else Path(given[key])
        return cls({name: values.get(name) for name in names}, **given)


def run_training(
    given: Given,
    tasks: list[str] | None,
    *,
    weighting: str | None,
    single: bool = False,
) -> None:
    """Train as a command's options say.

    Args:
        given: the command's arguments.
        tasks: the tasks of a new run; None is "not given".
        weighting: what sets λ, if the command says; by default the configuration file, or else AutoML.
        single: whether at most one task is trained. If neither the command line nor a configuration file
            names tasks, such a run has none, and any other run has the paper's best four.
    """
    if given.output is not None and given.output.is_file():
        raise UserError(f"--output {given.output}: expected a folder, but it is a file")
    layers = _layers(given, tasks, weighting, single=single)
    config = merge(layers)
    if given.resume and single and not config.is_single:
        raise UserError(f"{given.output} is a run of train-automl: resume it with that command")
    if given.resume and weighting not in (None, config.weighting):
        raise UserError(
            f"{given.output} is a run of train-automl --weighting {config.weighting}: leave out --weighting "
            "and --fixed"
        )
    if single and len(config.tasks) > 1:
        raise UserError(f"train-single takes one task, not {', '.join(config.tasks)}: use train-automl")
    if not given.resume:
        check_effective(config)
    if given.config is not None:
        check_task_options(given.config)
    if given.print_config:
        out.print(explain(layers), end="")
        return
    if _wants_tensorboard(given) and find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs TensorBoard: pip install 'rsslcli[tensorboard]'")
    _check_network(given, config)
    _note_without_effect(given, config)
    check_dataset(config.dataset, given.data_dir)
    _train(given, config, single=single)


def _train(given: Given, config: Config, *, single: bool) -> None:
    """Load the data, train, and show the run as it goes."""
    data_dir = given.data_dir
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
        directory = given.output
        if directory is None:
            directory = Path(world.broadcast(str(_new_directory(config)) if world.is_main else ""))
            stack.callback(_remove_empty, directory)
        view = stack.enter_context(TrainingView(config))
        listeners: list[Callable[[Event], None]] = [view]
        if _wants_tensorboard(given):
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
                resume=given.resume,
                on_event=tell,
                should_stop=lambda: bool(received),
                world=world,
            )
        except InterruptedTrainingError as stopped:
            name = "train-single" if single else "train-automl"
            network = config.network if is_custom(config.network) else None
            words = command_arguments(
                name, resume=True, output=directory, network=network, task_file=given.task_file
            )
            command = shell_command(*words, data_dir=data_dir, ranks=world.size)
            told = received[0] if received else signal.SIGTERM  # by which another rank was told to stop
            raise InterruptedTrainingError(f"{stopped}; resume with: {command}", told) from None
    view.summary(result)
    suggest_evaluation(directory, config, data_dir)


def _wants_tensorboard(given: Given) -> bool:
    """Whether to write for TensorBoard: if the user says so, or the run to resume has done it."""
    begun = given.resume and given.output is not None and RunFolder(given.output).tensorboard.is_dir()
    return given.tensorboard or begun


#: Options that act only where another setting is given.
_NEEDS = {
    "meta_lr": "automl",
    "warmup_epochs": "automl",
    "validation_corruptions": "automl",
    "automl_variants": "automl",
    "initial_lambda": "tasks",
    "batch_norm": "tasks",
    "task_share": "tasks",
    "jsd_weight": "uses_augmix",
}
_WHY = {"automl": "λ is not tuned", "tasks": "there are no tasks", "uses_augmix": "`augment` is not augmix"}


def _layers(given: Given, tasks: list[str] | None, weighting: str | None, *, single: bool) -> Layers:
    """What decides the configuration of a new run, or of the one to resume."""
    options = given.settings
    output = given.output
    if not given.resume:
        layers = config_layers(given.preset or "paper", given.config, {**options, "tasks": tasks})
        usual = {"tasks": () if single else BEST_TASKS, "weighting": "automl"}
        chosen = [("the command", {"weighting": weighting})] if weighting else []
        return [("default", usual), *layers, *chosen]
    if output is None:
        raise UserError("--resume needs --output, the run directory to continue")
    free = ("device", "network")  # a network of the user's own is named again, see `_check_network`
    changed = [key for key, value in options.items() if value is not None and key not in free]
    changed += [key for key in ("preset", "config") if getattr(given, key) is not None]
    changed += [] if tasks is None else ["task" if single else "tasks"]
    if changed:
        names = ", ".join(f"`{key}`" for key in changed)
        raise UserError(f"a run goes on with its own options: leave out {names}, or start a new run")
    if not RunFolder(output).is_run():
        hint = other_runs(output) or "there is no config.yaml"
        raise UserError(f"{output} holds no run to continue: {hint}")
    return config_layers(file=RunFolder(output).config, overrides={"device": options.get("device")})


def _check_network(given: Given, config: Config) -> None:
    """Refuse a network other than that of the run to resume, and a WideResNet's size for another network."""
    named = given.settings.get("network")
    if named not in (None, config.network):
        raise UserError(f"a run goes on with its own `network`, {config.network}: leave out {named}")
    for key in ("depth", "width"):
        if given.settings.get(key) is not None and config.network != WRN:
            raise UserError(
                f"`{key}` is for a WideResNet, and the `network` is {config.network}: leave out `{key}`"
            )


def _note_without_effect(given: Given, config: Config) -> None:
    """Say which options on the command line have no effect, because of what else is on it."""
    for key, setting in _NEEDS.items():
        if given.settings.get(key) is not None and not getattr(config, setting):
            note(f"`{key}` has no effect: {_WHY[setting]}")
    if given.settings.get("initial_lambda") is not None and config.weighting == "random":
        note("`initial_lambda` has no effect: the weights are drawn at every step")


def _new_directory(config: Config) -> Path:
    """Make the directory of a run that was not given one: its time comes first, so that names sort."""
    time = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    name = config.name if len(config.name) <= 60 else f"{config.name.split('-')[0]}-{len(config.tasks)}-tasks"
    directory = Path("runs", f"{time}-{name}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            directory.mkdir()
            return directory
        except FileExistsError:  # of a run that began in the same second
            number += 1
            directory = Path("runs", f"{time}-{name}-{number}")


def _remove_empty(directory: Path) -> None:
    """Remove the directory of a run that came to nothing."""
    with suppress(OSError):
        directory.rmdir()


#: Columns of the bar, and fewer to which a narrow terminal may shorten it.
_BAR = 24
_SHORT_BAR = 8


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
        """Show an event of the run."""
        from rsslcli.core.training.events import EpochDone, Notice, Started

        if isinstance(event, Started):
            self._task = self.bar.add_task("", total=event.steps, completed=event.step, values="")
            tunes = event.config.automl and not event.config.untuned
            tuned = f", λ tuned on {event.validation_images} corrupted ones" if tunes else ""
            err.print(
                f"{event.config.name}: {event.images} images of {event.config.dataset}{tuned}; "
                f"{event.config.network_title} on {event.device}; {event.directory}"
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
        """Print the clean accuracy and the final λ."""
        weights = "  ".join(f"{task} {value:.3f}" for task, value in result.lambdas.items())
        out.print(
            f"clean accuracy {percent(result.clean_accuracy)}% on {result.clean_images} test images"
            + (f"   λ: {weights}" if weights else "")
        )

    def _epoch_line(self, record: Mapping[str, Any]) -> str:
        loss = f"{self._latest['loss/main']:.3f}" if self._latest else "–"
        return (
            f"epoch {record['epoch']:>3}/{self.config.epochs}  "
            f"clean {percent(record['clean_accuracy']):>6}%  loss {loss}  "
            f"{record['images_per_second']:.0f} images/s  {self._lambdas()}"
        ).rstrip()

    def _lambdas(self) -> str:
        if not self.config.weighted or not self._latest:
            return ""
        return "λ " + " ".join(
            f"{name} {self._latest[f'lambda/{name}']:.3f}" for name in self.config.weighted
        )
