"""A cell of a study: one training run and its evaluation. Its state follows from the files in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.errors import UserError, command_arguments, sanitize, short_repr
from rsslcli.core.files import read_json
from rsslcli.core.networks.names import is_custom
from rsslcli.core.report.runs import read_history
from rsslcli.core.run_folder import RunFolder, State, partial_evaluation, tail
from rsslcli.core.tasks.registry import check_task_names


@dataclass(frozen=True)
class Cell:
    """One training run and its evaluation."""

    number: int  #: counts from 1, in the order in which cells are run
    method: str  #: the row of the study that it belongs to
    config: Config  #: the settings of the training
    directory: Path  #: the run directory, named after the cell, such as "automl-s0"
    train: tuple[str, ...]  #: the arguments of the `rssl` command that trains it
    task_files: tuple[Path, ...] = ()  #: the files that define custom tasks

    @property
    def name(self) -> str:
        """The method and the seed, such as "automl-s0"."""
        return self.directory.name

    @property
    def folder(self) -> RunFolder:
        """The files of the run."""
        return RunFolder(self.directory)

    def status(self) -> State:
        """How far the cell is; see `run_folder.State`.

        Raises:
            UserError: the folder holds a run with other settings.
        """
        if self.folder.is_run():
            self._check_same(read_config_file(self.folder.config))
        return self.folder.state()

    def position(self, images: int) -> tuple[float, float]:
        """The completed fractions of the training and of the evaluation, from 0 to 1.

        Args:
            images: the number of training images in the data set, which sets the number of steps.
        """
        config = self.config
        step = self.folder.last_step()
        steps = min(config.train_size or images, images) // config.batch_size * config.epochs
        cells = read_json(partial_evaluation(self.folder.evaluation)).get("cells")
        evaluated = len(cells) / CELLS_OF_AN_EVALUATION if isinstance(cells, dict) else 0.0
        return min(step / steps, 1.0) if steps else 0.0, min(evaluated, 1.0)

    def check_can_run(self) -> None:
        """Raise UserError if the cell is not done and one of its tasks is not registered here."""
        if self.status() != "done":
            try:
                check_task_names(self.config.tasks)
            except UserError as error:
                raise UserError(f"{self.directory} is not done: {error}") from None

    def seconds(self) -> float | None:
        """How long the training took; None if its metrics do not say."""
        try:
            seconds = read_history(self.folder.metrics, self.config).seconds
        except (UserError, OSError):
            return None
        return None if math.isnan(seconds) else seconds

    def commands(self, options: Sequence[str] = ()) -> list[list[str]]:
        """The commands that remain to be run, each as the arguments of `rssl`.

        Args:
            options: arguments that every command gets, such as those for the data folder.
        """
        own = self.config.network if is_custom(self.config.network) else None  # every command names it
        evaluate = command_arguments("eval-c", str(self.directory), leave_out_validation=True, network=own)
        if self.folder.is_trained():
            return [[*evaluate, *options]]
        train = list(self.train)
        if self.folder.checkpoint.is_file():
            train = command_arguments(self.train[0], resume=True, network=own)
        train += command_arguments(task_file=self.task_files, output=self.directory)
        return [[*train, *options], [*evaluate, *options]]

    def _check_same(self, there: Mapping[str, Any]) -> None:
        mine = self.config.to_dict()
        # These change no result: the device, and the warm-up of a cell that tunes no λ.
        ignored = {"device"} if self.config.automl else {"device", "warmup_epochs"}
        for key, value in Config(**there).to_dict().items():
            if key not in ignored and mine[key] != value:
                raise UserError(
                    f"{self.directory} belongs to another study, with another {key} ({short_repr(value)} "
                    f"there, {short_repr(mine[key])} here): choose another `output`"
                )


#: The clean test set, plus every corruption at every severity.
CELLS_OF_AN_EVALUATION = 1 + len(CORRUPTIONS) * len(SEVERITIES)


def log_file(cell: Cell) -> Path:
    """The file that takes what the commands of a cell print."""
    return cell.directory.parent / "logs" / f"{cell.name}.txt"


def last_line(file: Path) -> str:
    """The last line of a file that is not blank, made safe to print."""
    lines = tail(file).decode(errors="replace").splitlines()
    return sanitize(next((line for line in reversed(lines) if line.strip()), "no reason was recorded"), 500)
