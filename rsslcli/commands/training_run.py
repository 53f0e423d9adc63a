"""What `train-single` and `train-automl` share: their options, and a run shown as it goes."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rsslcli.commands.console import err, out, percent, progress_bar, stop_on_signal
from rsslcli.core.config import Config, make_config
from rsslcli.core.errors import InterruptedTrainingError, UserError

if TYPE_CHECKING:
    from rsslcli.core.training import Event, TrainingResult

Output = Annotated[
    Path | None, typer.Option(help="The run directory. Default: runs/<time>-<what is trained>.")
]
Preset = Annotated[str | None, typer.Option(help="paper, precursor, or quick (minutes on two CPU cores).")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of options.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
TrainSize = Annotated[
    int | None, typer.Option(help="Train on a seeded, class-balanced subset of so many images.")
]
Depth = Annotated[int | None, typer.Option(help="Layers of the WideResNet: 10, 16, 22, 28, 34 or 40.")]
Width = Annotated[int | None, typer.Option(help="Widening factor; features are 64 times this.")]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Initial learning rate.")]
InitialLambda = Annotated[float | None, typer.Option("--lambda", help="Weight λ of each task at the start.")]
ValidationCorruptions = Annotated[
    str | None,
    typer.Option(help="all, or extra: tune λ on the benchmark's four extra corruptions, test on the 15."),
]
BatchNorm = Annotated[
    str | None, typer.Option(help="per-task: a trunk pass for each task. joint: one for all.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]
Precision = Annotated[str | None, typer.Option(help="float32, tf32 or bfloat16.")]
Compile = Annotated[
    bool | None, typer.Option("--compile", help="Compile the network with torch.compile before it trains.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --output, with its own options.")
]


def run_training(
    given: Mapping[str, Any], tasks: list[str] | None, *, automl: bool, single: bool = False
) -> None:
    """Train as a command's options say.

    Args:
        given: the command's arguments by name; None is "not given".
        tasks: the tasks of a new run; None is "not given".
        automl: whether λ is tuned.
        single: whether at most one task is trained.
    """
    options = {key: given.get(key) for key in _CONFIG_OPTIONS}
    config, directory = _resolve(given, options, tasks, automl)
    if single and len(config.tasks) > 1:
        raise UserError(f"train-single takes one task, not {', '.join(config.tasks)}: use train-automl")
    from rsslcli.core.data.loading import load, load_corrupted
    from rsslcli.core.ranks import join_ranks
    from rsslcli.core.runtime import keep_freed_memory, resolve_device
    from rsslcli.core.training import train

    keep_freed_memory()
    with join_ranks(resolve_device(config.device)) as ranks:
        with progress_bar() as progress, ranks.first_alone():
            dataset = load(config.dataset, given["data_dir"], progress)
            corrupted = load_corrupted(dataset, progress) if config.automl else None
        view = TrainingView(config)
        with view, stop_on_signal() as received:
            try:
                result = train(
                    config,
                    Path(ranks.agree(str(directory))),
                    dataset,
                    corrupted,
                    resume=given["resume"],
                    on_event=view,
                    should_stop=lambda: bool(received),
                    ranks=ranks,
                )
            except InterruptedTrainingError as stopped:
                # Another rank may be the one that was told to stop.
                stopped.exit_code = 128 + (received[0] if received else signal.SIGTERM)
                raise
    view.summary(result)


#: Options of the commands that are options of the configuration by the same name.
_CONFIG_OPTIONS = (
    "dataset", "epochs", "train_size", "depth", "width", "batch_size", "lr", "initial_lambda", "meta_lr",
    "warmup_epochs", "validation_corruptions", "batch_norm", "seed", "device", "precision", "compile",
)  # fmt: skip


def _resolve(
    given: Mapping[str, Any], options: dict[str, Any], tasks: list[str] | None, automl: bool
) -> tuple[Config, Path]:
    """The configuration and the run directory."""
    output: Path | None = given["output"]
    if not given["resume"]:
        overrides = options | {"tasks": tasks, "automl": automl}
        config = make_config(given["preset"] or "paper", given["config"], overrides)
        time = datetime.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        return config, output or Path("runs") / f"{time}-{config.name}"
    if output is None:
        raise UserError("--resume needs --output, the run directory to go on with")
    changed = [key for key, value in options.items() if value is not None and key != "device"]
    changed += [key for key in ("preset", "config") if given[key] is not None] + (["tasks"] if tasks else [])
    if changed:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in changed)
        raise UserError(f"a run goes on with its own options: leave out {names}, or start a new run")
    if not (output / "config.yaml").is_file():
        raise UserError(f"{output} holds no run to go on with: there is no config.yaml")
    config = make_config(file=output / "config.yaml", overrides={"device": options["device"]})
    if config.automl != automl:
        raise UserError(
            f"{output} is a run of {'train-automl' if config.automl else 'train-single or --fixed'}"
        )
    return config, output


class TrainingView:
    """Shows a run: a bar with the current losses and λ's on a terminal, and a line after every epoch."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._latest: Mapping[str, Any] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[values]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> TrainingView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show what the engine tells."""
        from rsslcli.core.training import EpochDone, Noticed, Started

        if isinstance(event, Started):
            self._task = self._bar.add_task("", total=event.steps, completed=event.step, values="")
            tuned = (
                f", λ tuned on {event.validation_images} corrupted ones" if event.validation_images else ""
            )
            err.print(
                f"{event.config.name}: {event.images} images of {event.config.dataset}{tuned}; "
                f"WRN-{event.config.depth}-{event.config.width} on {event.device}; {event.directory}",
                soft_wrap=True,
            )
        elif isinstance(event, EpochDone):
            err.print(self._epoch_line(event.record), soft_wrap=True)
        elif isinstance(event, Noticed):
            err.print(f"note: {event.text}", soft_wrap=True)
        else:
            self._latest = event.record
            values = f"loss {event.record['loss/main']:.3f}  {self._lambdas()}"
            self._bar.update(
                self._task,
                completed=event.record["step"],
                description=f"epoch {event.record['epoch']}/{self.config.epochs}",
                values=values,
            )

    def summary(self, result: TrainingResult) -> None:
        """The last lines: what came out, and what to type next."""
        weights = "  ".join(f"{task} {value:.3f}" for task, value in result.lambdas.items())
        out.print(
            f"clean accuracy {percent(result.clean_accuracy)}%" + (f"   λ: {weights}" if weights else ""),
            soft_wrap=True,
        )
        out.print(f"next: rssl eval-c {result.directory}", soft_wrap=True)

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
