"""A cell of a study: one training and its evaluation. The files in its folder tell its state."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.errors import UserError, command_arguments, sanitize, short_repr
from rsslcli.core.run_folder import RunFolder, State, partial_evaluation, tail
from rsslcli.core.tasks.registry import check_task_names


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        number: counts from 1, in the order in which cells are run.
        method: the row.
        config: what is trained.
        directory: the run directory; its last part is the cell's name, such as "automl-s0".
        train: arguments of the command that trains it.
        task_files: where tasks of one's own are defined.
    """

    number: int
    method: str
    config: Config
    directory: Path
    train: tuple[str, ...]
    task_files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The method and the seed."""
        return self.directory.name

    @property
    def folder(self) -> RunFolder:
        """The files of the run."""
        return RunFolder(self.directory)

    def status(self) -> State:
        """How far the cell is.

        Raises:
            UserError: the folder holds a run with other settings.
        """
        if self.folder.is_run():
            self._check_same(read_config_file(self.folder.config))
        return self.folder.state()

    def position(self, images: int) -> tuple[float, float]:
        """The shares of its training and of its evaluation that are done, from 0 to 1.

        Args:
            images: training images of the data set, which decide how many steps there are.
        """
        config, step = self.config, 0
        for record in reversed(_last_records(self.folder.metrics)):
            if isinstance(record.get("step"), int):
                step = max(record["step"], 0)
                break
        steps = min(config.train_size or images, images) // config.batch_size * config.epochs
        try:
            found = json.loads(partial_evaluation(self.folder.evaluation).read_bytes())
            evaluated = len(found["correct"]) / CELLS_OF_AN_EVALUATION
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            evaluated = 0.0
        return min(step / steps, 1.0) if steps else 0.0, min(evaluated, 1.0)

    def check_can_run(self) -> None:
        """Raise UserError where the cell is not done and this process does not know its tasks."""
        if self.status() != "done":
            try:
                check_task_names(self.config.tasks)
            except UserError as error:
                raise UserError(f"{self.directory} is not done: {error}") from None

    def seconds(self) -> float | None:
        """How long its training took, where that is known."""
        try:
            lines = self.folder.metrics.read_bytes().splitlines()
            records = [json.loads(line) for line in lines if b'"seconds"' in line]
            return float(sum(record["seconds"] for record in records)) if records else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def commands(self, options: Sequence[str] = ()) -> list[list[str]]:
        """What is left to run: the arguments of `rssl`, command by command.

        Args:
            options: arguments that every command gets, such as those for the data folder.
        """
        evaluate = command_arguments("eval-c", str(self.directory), leave_out_validation=True)
        if self.folder.is_trained():
            return [[*evaluate, *options]]
        train = list(self.train)
        if self.folder.checkpoint.is_file():
            fixed = self.train[0] == "train-automl" and not self.config.automl
            train = command_arguments(self.train[0], resume=True, fixed=fixed)
        train += command_arguments(task_file=self.task_files, output=self.directory)
        return [[*train, *options], [*evaluate, *options]]

    def _check_same(self, there: Mapping[str, Any]) -> None:
        mine = self.config.to_dict()
        # Neither changes a number: the device, and the warm-up of a cell in which no λ is tuned.
        apart = {"device"} if self.config.automl else {"device", "warmup_epochs"}
        for key, value in there.items():
            if key not in apart and mine.get(key, value) != value:
                raise UserError(
                    f"{self.directory} is of another study, with another {key} ({short_repr(value)} there, "
                    f"{short_repr(mine[key])} here): choose another `output`"
                )


#: The clean test set, and all corruptions at all severities.
CELLS_OF_AN_EVALUATION = 1 + len(CORRUPTIONS) * len(SEVERITIES)


def shell_line(arguments: Sequence[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["rssl", *arguments])


def log_file(cell: Cell) -> Path:
    return cell.directory.parent / "logs" / f"{cell.name}.txt"


def last_line(file: Path) -> str:
    """The last words in a file."""
    lines = tail(file).decode(errors="replace").splitlines()
    return sanitize(next((line for line in reversed(lines) if line.strip()), "no reason is known"), 500)


def _last_records(file: Path) -> list[dict[str, Any]]:
    """The records in the last part of a metrics file."""
    records = []
    for line in tail(file).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut off
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
