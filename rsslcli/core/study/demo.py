"""The first look: two short trainings on the embedded images, each measured on corrupted ones.

AugMix is shown, not the tasks: its effect exceeds the noise at this size (docs/results.md, "The demo").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.store import Dataset
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.bootstrap import paired_interval
from rsslcli.core.evaluation.files import save_whole
from rsslcli.core.evaluation.fingerprint import fingerprint_weights
from rsslcli.core.files import read_json, write_json
from rsslcli.core.presets import make_config
from rsslcli.core.progress import Progress, silent
from rsslcli.core.runtime import resolve_device, set_precision
from rsslcli.core.study.cell import Cell
from rsslcli.core.training import loop
from rsslcli.core.training.events import Event
from rsslcli.core.weights.checkpoint import load_checkpoint

#: What is trained, the baseline first: each by the settings in which it differs from the others.
METHODS: dict[str, dict[str, Any]] = {"baseline": {}, "augmix": {"augment": "augmix"}}
#: What every run has in common, beside the preset `quick`.
_COMMON = {"epochs": 8, "train_size": 3000}
#: In a run directory: which images its classifier gets right.
CORRECT = "correct.json"

#: Which images are right: bool (severities, images) by corruption, and (1, images) for "clean".
Correct = dict[str, npt.NDArray[np.bool_]]


class Difference(NamedTuple):
    """A difference in accuracy, in [-1, 1], and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A line of the comparison. Accuracies are in [0, 1].

    Attributes:
        name: what was trained, a name of `METHODS`.
        clean: accuracy on the clean test images.
        corrupted: mean accuracy over all corruptions and severities.
        difference: how much `corrupted` exceeds that of the baseline; None for the baseline itself.
    """

    name: str
    clean: float
    corrupted: float
    difference: Difference | None


def demo_cells(output: Path, *, seed: int = 0, device: str = "auto") -> list[Cell]:
    """The runs of the demo, in folders of `output`.

    Raises:
        UserError: `output` holds runs with other settings.
    """
    cells = [
        Cell(
            number,
            name,
            make_config("quick", overrides={**_COMMON, **settings, "seed": seed, "device": device}),
            output / name,
            train=(),
        )
        for number, (name, settings) in enumerate(METHODS.items(), 1)
    ]
    for cell in cells:
        cell.status()
    return cells


def train_cell(
    cell: Cell, dataset: Dataset, *, on_event: Callable[[Event], None], should_stop: Callable[[], bool]
) -> None:
    """Train what is left of a run; see `training.loop.train`.

    Raises:
        UserError: the run was trained on other images.
        InterruptedTrainingError: `should_stop` returned true.
    """
    if not cell.folder.is_trained():
        loop.train(
            cell.config, cell.directory, dataset, resume=True, on_event=on_event, should_stop=should_stop
        )
    elif load_checkpoint(cell.directory).train_data != dataset.train.checksum:
        raise UserError(
            f"{cell.directory} was trained on an earlier drawing of '{dataset.name}': choose another `output`"
        )


def evaluate_cell(
    cell: Cell, dataset: Dataset, corrupted: CorruptedSet, progress: Progress = silent
) -> Correct:
    """Find out which images a trained run gets right, unless its folder says so already.

    This writes the evaluation of the run too, as `rssl eval-c` does.
    """
    trained = load_checkpoint(cell.directory)
    network = trained.network()
    weights = fingerprint_weights(network)
    about = {
        "checkpoint": str(cell.directory),
        "dataset": dataset.name,
        "step": trained.step,
        "train_data": trained.train_data,
        "weights": weights,
    }
    subject = [weights, dataset.test.checksum, corrupted.identity]
    shapes = {"clean": (1, len(dataset.test.labels))}
    shapes |= {name: (len(SEVERITIES), corrupted.images_per_cell) for name in corrupted.names}
    file = cell.directory / CORRECT
    correct = _read(file, subject, shapes)
    if correct and cell.status() == "done":
        return correct
    device = resolve_device(cell.config.device)
    set_precision("float32", device, lambda text: None)
    result = evaluate(
        network,
        dataset.test,
        corrupted,
        device=device,
        about=about,
        progress=progress,
    )
    assert result.confidence is not None
    correct = dict(result.confidence.correct)
    digits = {name: ["".join(map(str, row)) for row in right.astype(int)] for name, right in correct.items()}
    write_json(file, {"subject": subject, "correct": digits})
    save_whole(result, cell.folder.evaluation)
    return correct


def compare(found: Mapping[str, Correct]) -> list[Row]:
    """Compare classifiers with the first one, by name."""
    corrupted = {
        name: np.concatenate([right for key, right in correct.items() if key != "clean"])
        for name, correct in found.items()
    }
    baseline = corrupted[next(iter(corrupted))]
    return [
        Row(
            name,
            float(correct["clean"].mean()),
            float(corrupted[name].mean()),
            None if corrupted[name] is baseline else _difference(corrupted[name], baseline),
        )
        for name, correct in found.items()
    ]


def _difference(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> Difference:
    return Difference(float(one.mean() - other.mean()), *paired_interval(one, other))


def _read(file: Path, subject: list[str], shapes: Mapping[str, tuple[int, int]]) -> Correct:
    """What `evaluate_cell` wrote for these weights and images; empty if there is none, or it is damaged."""
    content = read_json(file)
    if content.get("subject") != subject:
        return {}
    try:
        digits = content["correct"]
        correct = {
            name: np.array([[int(digit) for digit in row] for row in digits[name]], bool) for name in shapes
        }
    except (KeyError, TypeError, ValueError):
        return {}
    return correct if all(correct[name].shape == shape for name, shape in shapes.items()) else {}
