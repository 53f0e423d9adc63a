"""Read finished runs from their directories."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.errors import UserError, sanitize
from rsslcli.core.evaluation.adaptation_settings import describe_adaptation
from rsslcli.core.evaluation.diagnostics import Diagnostics
from rsslcli.core.evaluation.files import load_evaluation, mistakes_path, other_evaluations, read_evaluation
from rsslcli.core.files import other_runs
from rsslcli.core.report.conditions import ORIGINS
from rsslcli.core.run_folder import CONFIG, EVALUATION, METRICS, RunFolder

Floats = npt.NDArray[np.float64]

#: How many levels below a folder are searched for runs.
_DEPTH = 3
#: From a larger metrics file, every epoch is parsed but only about this many bytes of steps, evenly spread.
_PARSED_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 16
_MAX_LOG_LINE = 1 << 10
_MAX_PICTURE_BYTES = 16 << 20
#: Numbers this large are damage, not measurements.
_LIMIT = 1e12
#: How far a stated mean may be from that of its cells.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class History:
    """The course of a training."""

    epochs: Floats  #: (E,), counted from 1
    clean_accuracy: Floats  #: (E,), fractions of 1, after each epoch; NaN if unknown
    loss: Floats  #: (E,), the main task's loss, averaged over the steps of the epoch; NaN if unknown
    #: by the names in `config.weighted`, (P, 2): the time in epochs, from 0, and λ
    lambdas: Mapping[str, Floats]
    steps: int  #: the number of steps
    #: the duration of all steps. An interrupted epoch counts as a whole one at the speed of its resumed
    #: part; NaN if the speed of any epoch is unknown
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished and evaluated run."""

    directory: Path  #: the run directory
    config: Config  #: its settings
    history: History  #: the course of its training
    accuracy: Mapping[str, Floats]  #: by corruption, (5,), fractions of 1, at severity 1 to 5
    clean_accuracy: float  #: accuracy on the clean test set, a fraction of 1
    images: int  #: source images evaluated in each cell of `accuracy`
    clean_images: int  #: how many images `clean_accuracy` covers
    excluded: frozenset[int]  #: the indices of the source images that were left out
    test_data: str  #: fingerprint of the clean test set
    corrupted_data: str  #: fingerprint of its corrupted versions
    origin: str | None  #: where the corrupted set came from, a key of `ORIGINS`; None if not recorded
    dataset: str  #: the data set it was evaluated on
    precision: str  #: the precision of the evaluation
    weights: str = ""  #: fingerprint of the weights; empty if unknown
    train_data: str = ""  #: fingerprint of the training images before any subset is drawn; empty if unknown
    #: the versions and the machine of the training, as its log says: "rssl 0.1.0, torch 2.9.0, NVIDIA H100";
    #: empty if there is no log
    trained_with: str = ""
    diagnostics: Diagnostics | None = None  #: what goes wrong; None if the evaluation did not record it

    @property
    def name(self) -> str:
        """The directory's name, on one line."""
        return sanitize(self.directory.name)

    def mean(self, corruptions: Iterable[str] | None = None) -> float:
        """The mean accuracy over corruptions and severities; NaN if one is missing.

        The default is all that were evaluated, which `coverage(run.accuracy)` names.
        """
        names = self.accuracy if corruptions is None else corruptions
        return float(np.mean([self.accuracy.get(name, np.full(5, np.nan)) for name in names]))


@dataclass(frozen=True)
class LeftOut:
    """A folder that was left out of the comparison, and why."""

    directory: Path
    reason: str


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Read every run in and below `folders`; those that cannot be compared come with the reason.

    Raises:
        UserError: a folder does not exist.
    """
    runs = []
    left_out = []
    errors: list[OSError] = []
    for directory in _find(folders, errors.append):
        try:
            runs.append(read_run(directory))
        except UserError as error:
            left_out.append(LeftOut(directory, sanitize(error)))
        except OSError as error:
            left_out.append(_unreadable(directory, error))
    return runs, [*left_out, *(_unreadable(Path(error.filename), error) for error in errors)]


def _unreadable(directory: Path, error: OSError) -> LeftOut:
    return LeftOut(directory, sanitize(f"cannot be read: {error.strerror or error}"))


def _find(folders: Sequence[Path], on_error: Callable[[OSError], object]) -> list[Path]:
    """The run directories in and below `folders`, each once; a folder without runs stands for itself."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            hint = other_runs(folder)
            raise UserError(
                f"{folder}: expected a run directory or a folder of them" + (f": {hint}" if hint else "")
            )
        for directory in list(run_directories(folder, on_error)) or [folder]:
            found.setdefault(directory.resolve(), directory)
    return list(found.values())


def run_directories(folder: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """The run directories in a folder, at most `_DEPTH` levels down; a run contains no other runs.

    `on_error` is called with the error of each folder that cannot be read.
    """

    def tell(error: OSError) -> None:
        if on_error is not None and not isinstance(error, FileNotFoundError):
            on_error(error)

    # Links are followed; the depth limit ends loops.
    for place, folders, files in os.walk(folder, onerror=tell, followlinks=True):
        is_run = not {CONFIG, METRICS, EVALUATION}.isdisjoint(files)
        if is_run:
            yield Path(place)
        deep = len(Path(place).relative_to(folder).parts) >= _DEPTH
        folders[:] = [] if is_run or deep else sorted(name for name in folders if name[0] != ".")


def read_run(directory: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is not a run, its training is not finished, it is not evaluated, or a file is damaged;
            the message is the bare reason, without the directory.
        OSError: a file cannot be read.
    """
    folder = RunFolder(directory)
    if not folder.is_run():
        raise UserError(f"not a run: it has no {CONFIG}")
    config = Config(**read_config_file(folder.config))
    if not folder.metrics.is_file():
        raise UserError(f"not trained: it has no {METRICS}")
    history = read_history(folder.metrics, config)
    if not folder.evaluation.is_file():
        others = other_evaluations(directory)
        raise UserError(
            f"not fully evaluated: it has only {', '.join(others)}"
            if others
            else f"not evaluated: it has no {EVALUATION}"
        )
    try:
        content = load_evaluation(folder.evaluation)
        test_data = content["test_data"]
        corrupted_data = content["corrupted_data"]
    except (ValueError, KeyError):
        raise UserError(f"its {EVALUATION} is damaged") from None
    accuracy = {name: _cells(content, name) for name in content["accuracy"]}
    if reason := _incomplete(accuracy):
        raise UserError(reason)
    stated = content.get("mean_accuracy")
    mean = np.mean([cells.mean() for cells in accuracy.values()])
    if isinstance(stated, float) and len(accuracy) == len(CORRUPTIONS) and abs(stated - mean) > _ROUNDING:
        raise UserError(f"its {EVALUATION} contradicts itself: its mean is not that of its cells")
    if content.get("step", history.steps) != history.steps:
        raise UserError("evaluated before its training was finished: evaluate it again")
    return Run(
        directory=directory,
        config=config,
        history=history,
        accuracy={name: accuracy[name] for name in CORRUPTIONS if name in accuracy},
        clean_accuracy=float(content["clean_accuracy"]),
        images=content["images"],
        clean_images=content["clean_images"],
        excluded=frozenset(content["excluded"]),
        test_data=sanitize(test_data),
        corrupted_data=sanitize(corrupted_data),
        origin=next((origin for origin in ORIGINS if origin == content.get("corrupted_origin")), None),
        dataset=str(content.get("dataset", config.dataset)),
        precision=sanitize(content["precision"]),
        weights=str(content.get("weights", "")),
        train_data=sanitize(content.get("train_data", "")),
        trained_with=_trained_with(folder.log),
        diagnostics=_diagnostics(content, folder.evaluation),
    )


def adapted_runs(run: Run) -> dict[str, Run]:
    """The run with its accuracies after adaptation at test time, by how it adapted, in words.

    They are those of the evaluations beside its own, of the same weights, images and precision.
    """
    found = {}
    keys = ("test_data", "corrupted_data", "precision", "images", "clean_images")
    for path in sorted(run.directory.glob(f"{Path(EVALUATION).stem}-adapted-*.json")):
        content = read_evaluation(path) or {}
        is_same = all(content.get(key) == getattr(run, key) for key in keys)
        is_same = is_same and content.get("weights", "") == run.weights
        if not is_same or {*content["excluded"]} != run.excluded or "adapted" not in content:
            continue
        adapted = content["adapted"]
        accuracy = {name: _cells(adapted, name) for name in run.accuracy if name in adapted["accuracy"]}
        if content.get("step", run.history.steps) != run.history.steps or len(accuracy) < len(run.accuracy):
            continue
        if not _incomplete(accuracy):
            with suppress(KeyError, TypeError, ValueError, OverflowError):  # its settings are damaged
                words = sanitize(describe_adaptation(adapted), 200)
                clean = float(adapted["clean_accuracy"])
                found[words] = dataclasses.replace(run, accuracy=accuracy, clean_accuracy=clean)
    return found


def _cells(content: Mapping[str, Any], corruption: str) -> Floats:
    """The accuracies at each severity; null, which means not evaluated, becomes NaN."""
    return np.array(content["accuracy"][corruption], np.float64)


def _diagnostics(content: Mapping[str, Any], evaluation: Path) -> Diagnostics | None:
    """What an evaluation recorded of its mistakes; None if it recorded none, or they are damaged."""
    try:
        found = Diagnostics.from_dict(content["diagnostics"], content["classes"])
        if not found.calibrated and (calibrated := read_evaluation(_calibrated(evaluation))):
            keys = ("weights", "test_data", "corrupted_data", "precision")
            same = all(calibrated.get(key) == content.get(key) for key in keys)
            other = Diagnostics.from_dict(calibrated["diagnostics"], calibrated["classes"]) if same else found
            found = dataclasses.replace(found, calibrated=other.calibrated)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    try:
        with mistakes_path(evaluation).open("rb") as file:
            sheet = file.read(_MAX_PICTURE_BYTES)
    except OSError:
        return found
    is_its = hashlib.sha256(sheet).hexdigest().startswith(found.sheet_digest or "-")
    return dataclasses.replace(found, sheet=sheet) if is_its else found


def _calibrated(evaluation: Path) -> Path:
    """Where an evaluation with a temperature is, if it could not use all images."""
    return evaluation.with_name(f"{evaluation.stem}-calibrated.json")


def _trained_with(log: Path) -> str:
    """The versions and the machine in the first line of a log."""
    try:
        with log.open("rb") as file:
            line = file.readline(_MAX_LOG_LINE).decode(errors="replace")
    except OSError:
        return ""
    found = re.match(r"\S+ (rssl \S+, torch \S+, [^:]+): ", line)
    return sanitize(found[1]) if found else ""


def _incomplete(accuracy: Mapping[str, Floats]) -> str:
    """Why an incomplete evaluation is left out; empty if each corruption has all 5 severities."""
    lacking = []
    for name, values in accuracy.items():
        known = {s for s, value in zip(SEVERITIES, values, strict=True) if not math.isnan(value)}
        if missing := ", ".join(str(s) for s in SEVERITIES if s not in known):
            lacking.append(f"{name} lacks {missing}")
    more = f"; and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return f"not evaluated at every severity: {'; '.join(lacking[:3])}{more}" if lacking else ""


def read_history(path: Path, config: Config) -> History:
    """Read the course of a training from its metrics file, skipping damaged lines.

    Raises:
        UserError: not all epochs are done.
    """
    # A long run has millions of steps: parse every epoch's record, but only every `stride`-th line of steps.
    stride = 1 + path.stat().st_size // _PARSED_BYTES
    epochs: dict[int, dict[str, float]] = {}
    steps: list[dict[str, float]] = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b"")):
            is_epoch = b'"clean_accuracy"' in line
            if is_epoch or number % stride == 0:
                record = _numbers(line)
                if 1 <= record.get("epoch", 0) <= config.epochs and record.get("step", 0) >= 1:
                    if is_epoch:  # a later record replaces that of an epoch that was repeated
                        epochs[int(record["epoch"])] = record
                    else:
                        steps.append(record)
    done = max(epochs, default=0)
    if done < config.epochs:
        raise UserError(f"not finished: {done} of {config.epochs} epochs are done")
    total = int(epochs[done]["step"])
    per_epoch = total / done
    # Average the losses of each epoch's steps, and place the values of λ on a time axis in epochs.
    losses = defaultdict(list)
    lambdas = defaultdict(list)
    for record in steps:
        epoch = int(record["epoch"])
        time = record["step"] / per_epoch
        if epoch - 1 <= time <= epoch:  # else its numbers contradict each other
            losses[epoch].append(record.get("loss/main", math.nan))
            for task in config.weighted:
                if f"lambda/{task}" in record:
                    lambdas[task].append((time, record[f"lambda/{task}"]))
    # The duration follows from the speed of each epoch, and is unknown if one has none.
    order = sorted(epochs)
    accuracy = np.array([epochs[epoch].get("clean_accuracy", math.nan) for epoch in order])
    speeds = np.array([epochs[epoch].get("images_per_second", 0) for epoch in order])
    known = len(order) == done and bool((speeds > 0).all())
    return History(
        epochs=np.array(order, np.float64),
        clean_accuracy=np.where((accuracy >= 0) & (accuracy <= 1), accuracy, np.nan),
        loss=np.array([np.mean(losses[epoch] or math.nan) for epoch in order]),
        lambdas={task: np.array(sorted(points)) for task, points in lambdas.items()},
        steps=total,
        seconds=float((per_epoch * config.batch_size / speeds).sum()) if known else math.nan,
    )


def _numbers(line: bytes) -> dict[str, float]:
    """The plausible numbers in a line of metrics; empty if the line is damaged."""
    try:
        items = json.loads(line).items()
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {k: v for k, v in items if isinstance(v, int | float) and -_LIMIT < v < _LIMIT}
