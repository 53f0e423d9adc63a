"""The runs in a folder, and how far each is. Reads a few lines of each, and imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.errors import UserError, sanitize
from rsslcli.core.evaluation.files import other_evaluations, read_evaluation
from rsslcli.core.locks import is_locked
from rsslcli.core.report.runs import run_directories
from rsslcli.core.run_folder import RunFolder, tail

_EPOCH = re.compile(r"epoch (\d{1,6}): clean accuracy ([01]\.\d{1,9})")
_MAX_LINE_BYTES = 1 << 12


@dataclass(frozen=True)
class RunEntry:
    """A run directory.

    Attributes:
        directory: where it is.
        state: "training" while a process trains it, "interrupted", "trained", "evaluated", "failed" as a cell
            of a study, or "damaged".
        begun: when its training began, in UTC.
        config: its settings; None if it is damaged.
        epochs: how many epochs are done.
        clean_accuracy: on the clean test set, a fraction of 1: of the evaluation, else after the last epoch.
        mean_accuracy: of the whole evaluation, over all 19 corruptions; None without one.
        evaluated_on: the data set of that evaluation.
        other_evaluations: the files of others, such as partial ones.
        problem: where and why it failed or is damaged, in one line.
    """

    directory: Path
    state: str
    begun: datetime
    config: Config | None = None
    epochs: int = 0
    clean_accuracy: float | None = None
    mean_accuracy: float | None = None
    evaluated_on: str | None = None
    other_evaluations: tuple[str, ...] = ()
    problem: str = ""


def list_runs(folder: Path) -> list[RunEntry]:
    """The runs in and below a folder, at most three levels down, by the time when they began."""
    errors: list[OSError] = []
    entries = [_describe(RunFolder(directory)) for directory in run_directories(folder, errors.append)]
    for error in errors:
        run = RunFolder(Path(error.filename))
        problem = f"{sanitize(run.path)} cannot be read: {error.strerror}"
        entries.append(RunEntry(run.path, "damaged", _begun(run), problem=problem))
    return sorted(entries, key=lambda entry: (entry.begun, entry.directory))


def _describe(run: RunFolder) -> RunEntry:
    begun = _begun(run)
    try:
        config = Config(**read_config_file(run.config))
    except (UserError, OSError) as error:
        problem = str(error)
        if str(run.config) not in problem:
            problem = f"{run.config}: {problem}"
        return RunEntry(run.path, "damaged", begun, problem=sanitize(problem))
    done = _EPOCH.findall(tail(run.log).decode(errors="replace"))
    epochs, clean = (int(done[-1][0]), float(done[-1][1])) if done else (0, None)
    evaluation = read_evaluation(run.evaluation) or {}
    state = "training" if is_locked(run.path) else "interrupted"
    reached = run.state()
    if reached == "failed":
        state = "failed"
    elif evaluation and (reached == "done" or not run.checkpoint.exists()):  # kept without its weights
        state = "evaluated"
        clean = evaluation["clean_accuracy"]
    elif run.is_trained():
        state = "trained"
    is_evaluated = state == "evaluated"
    return RunEntry(
        run.path,
        state,
        begun,
        config,
        epochs,
        clean,
        _fraction(evaluation.get("mean_accuracy")) if is_evaluated else None,
        sanitize(evaluation.get("dataset", config.dataset)) if is_evaluated else None,
        tuple(map(sanitize, other_evaluations(run.path))),
        _failure(run) if state == "failed" else "",
    )


def _failure(run: RunFolder) -> str:
    reason = sanitize(tail(run.failure).decode(errors="replace")) or "no reason is known"
    return f"{sanitize(run.path)} failed: {reason}"


def _begun(run: RunFolder) -> datetime:
    """The time in the first line of the log; without one, of the last change to the directory."""
    try:
        with run.log.open("rb") as file:
            found = datetime.fromisoformat(file.readline(_MAX_LINE_BYTES).decode().partition(" ")[0])
            return found.astimezone(timezone.utc)
    except (OSError, ValueError, OverflowError):
        return datetime.fromtimestamp(run.path.stat().st_mtime, timezone.utc)


def _fraction(value: object) -> float | None:
    return value if isinstance(value, float) and 0 <= value <= 1 else None
