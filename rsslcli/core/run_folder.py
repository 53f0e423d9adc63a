"""A run directory: the names of its files, and how far the run is. Imports no torch."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from rsslcli.core.errors import UserError

#: The settings of the run.
CONFIG = "config.yaml"
#: A JSON record per step and per epoch.
METRICS = "metrics.jsonl"
#: The weights and everything that a resumed run needs.
CHECKPOINT = "checkpoint.pt"
#: What happened, a line each with its time.
LOG = "log.txt"
#: The whole evaluation of a run on its own data set, which reports and studies read.
EVALUATION = "eval-c.json"
#: The temperature that calibrates its probabilities.
CALIBRATION = "calibration.json"
#: Why a study's cell failed.
FAILURE = "failed.txt"
#: The folder of TensorBoard's event files.
TENSORBOARD = "tensorboard"

#: The last line of a finished run's log, after its time.
FINISHED = "finished"

#: How far a run is: "begun" once it has a checkpoint, "done" once its last checkpoint is evaluated.
State = Literal["to do", "begun", "done", "failed"]


def folder_of(run: Path) -> Path:
    """The folder that a run directory is in; its parent, unless it is a link or the current folder."""
    real = run.resolve().parent
    return run.parent if run.parent.resolve() == real else real


class RunFolder:
    """A run directory, which need not exist yet, and the paths of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG
        self.metrics = path / METRICS
        self.checkpoint = path / CHECKPOINT
        self.log = path / LOG
        self.evaluation = path / EVALUATION
        self.failure = path / FAILURE
        self.tensorboard = path / TENSORBOARD

    def is_run(self) -> bool:
        """Whether the directory holds the settings of a run."""
        return self.config.is_file()

    def is_trained(self) -> bool:
        """Whether training finished: the log says so after the last checkpoint is written."""
        return self.checkpoint.is_file() and self._is_finished()

    def _is_finished(self) -> bool:
        return tail(self.log).endswith(f" {FINISHED}\n".encode())

    def check_unused(self) -> None:
        """Raise UserError if a run is left without its checkpoint: its evaluation, or all that it logged."""
        finished = self.log if self._is_finished() else None
        if left := next(self.path.glob("eval-c*.json"), finished):
            raise UserError(
                f"{left} is of a run whose checkpoint is gone: move it away, or choose another `output`"
            )

    def last_step(self) -> int:
        """The last step in the last few kilobytes of the metrics; 0 if there is none."""
        for line in reversed(tail(self.metrics).splitlines()):
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # the first line may be cut off
                step = json.loads(line)["step"]
                if isinstance(step, int):
                    return max(step, 0)
        return 0

    def state(self) -> State:
        """How far the run is; an evaluation of an earlier step, or a damaged one, does not count."""
        if self._is_finished() and self._is_evaluated():  # also if the checkpoint was deleted since
            return "done"
        if self.failure.exists():
            return "failed"
        return "begun" if self.checkpoint.is_file() else "to do"

    def _is_evaluated(self) -> bool:
        """Whether the evaluation is of the last step; those of old versions do not say of which they are."""
        try:
            content = json.loads(self.evaluation.read_bytes())
            is_whole = isinstance(content, dict) and "clean_accuracy" in content
            return is_whole and bool(content.get("step", self.last_step()) == self.last_step())
        except (OSError, ValueError, TypeError, RecursionError):
            return False


def partial_evaluation(evaluation: Path) -> Path:
    """Where an unfinished evaluation keeps its finished cells: beside its result."""
    return evaluation.with_name(f"{evaluation.name}.partial")


def tail(file: Path, size: int = 8192) -> bytes:
    """The last `size` bytes of a file; empty if it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - size, 0))
            return stream.read()
    except OSError:
        return b""
