"""Corruption errors relative to another evaluation: mCE and relative mCE (Hendrycks & Dietterich 2019).

For a corruption c, with errors E at the severities s and those of the reference, E′:
CE_c = Σ_s E_{s,c} / Σ_s E′_{s,c}, and relative CE_c = Σ_s (E_{s,c} − E_clean) / Σ_s (E′_{s,c} − E′_clean).
mCE and relative mCE are their means over the corruptions, in percent. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsslcli.core.corruptions.names import SEVERITIES, STANDARD
from rsslcli.core.errors import UserError, counted, rssl_command, sanitize
from rsslcli.core.evaluation.details import mean_of_all
from rsslcli.core.evaluation.files import read_evaluation
from rsslcli.core.run_folder import EVALUATION

if TYPE_CHECKING:
    from rsslcli.core.evaluation.result import Evaluation

#: What must be equal for errors to be compared: the entry of an evaluation, and the words for it.
_CONDITIONS = {
    "test_data": "other test data",
    "corrupted_data": "another corrupted set",
    "excluded": "other images left out: `same_images_as` and `leave_out_validation` choose the same",
    "images": "another number of images",
    "clean_images": "another number of clean images",
    "precision": "another precision",
}


@dataclass(frozen=True)
class Reference:
    """An evaluation whose errors others are divided by.

    Attributes:
        name: the path that the user gave.
        clean_accuracy: its accuracy on the clean test set.
        accuracy: by corruption, its accuracies at severities 1 to 5.
        conditions: what must be equal for its errors to be compared.
    """

    name: str
    clean_accuracy: float
    accuracy: Mapping[str, Sequence[float]]
    conditions: Mapping[str, Any]

    def check(self, conditions: Mapping[str, Any], names: Sequence[str], severities: Sequence[int]) -> None:
        """Raise UserError unless an evaluation under these conditions can be compared.

        Args:
            conditions: the entries of its JSON object that say on what it is evaluated.
            names: its corruptions.
            severities: theirs.
        """
        for key, words in _CONDITIONS.items():
            if self.conditions.get(key) != conditions.get(key):
                raise UserError(f"{self.name} cannot be the reference, it was evaluated with {words}")
        if set(severities) != {*SEVERITIES}:
            raise UserError("errors relative to another run need all 5 severities: leave out `severity`")
        if missing := [name for name in names if name not in self.accuracy]:
            raise UserError(f"{self.name} cannot be the reference, it was not evaluated on {missing[0]}")

    def add_to(self, result: Evaluation) -> Evaluation:
        """An evaluation with the entry `relative_to`, see `compare`."""
        relative = self.compare(result.clean_accuracy, result.accuracy)
        return replace(result, about={**result.about, "relative_to": relative})

    def compare(
        self, clean_accuracy: float, accuracy: Mapping[str, Sequence[float | None]]
    ) -> dict[str, Any]:
        """The errors of an evaluation relative to this one, in percent.

        Returns:
            "mce" and "relative_mce", the means over the evaluated corruptions, "mce_15" and
            "relative_mce_15" over the usual 15 if all were evaluated, and "ce" and "relative_ce" by
            corruption. None stands for a ratio to a reference that makes no errors, or loses nothing to the
            corruption, and for a mean over such.
        """
        plain: dict[str, float | None] = {}
        relative: dict[str, float | None] = {}
        for name, found in accuracy.items():
            errors = 1 - np.array(found, np.float64)
            rival = 1 - np.array(self.accuracy[name], np.float64)
            plain[name] = _percent(errors.sum(), rival.sum())
            relative[name] = _percent(
                (errors - (1 - clean_accuracy)).sum(), (rival - (1 - self.clean_accuracy)).sum()
            )
        result: dict[str, Any] = {
            "run": self.name,
            "mce": mean_of_all(plain.values()),
            "relative_mce": mean_of_all(relative.values()),
        }
        if accuracy.keys() >= {*STANDARD}:
            result["mce_15"] = mean_of_all(plain[name] for name in STANDARD)
            result["relative_mce_15"] = mean_of_all(relative[name] for name in STANDARD)
        return result | {"ce": plain, "relative_ce": relative}


def describe_relative(found: Mapping[str, Any]) -> str:
    """What `Reference.compare` found, in a line; over the usual 15 corruptions if all were evaluated."""
    usual = "_15" if "mce_15" in found else ""
    mce, relative = (
        "undefined" if (value := found[f"{name}{usual}"]) is None else f"{value:.2f}%"
        for name in ("mce", "relative_mce")
    )
    over = "the usual 15 corruptions" if usual else counted(len(found["ce"]), "corruption")
    return f"corruption errors relative to {found['run']}: mCE {mce}, relative mCE {relative}, over {over}"


def read_reference(path: Path) -> Reference:
    """Read the evaluation of a run, or the JSON file of any evaluation.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = path / EVALUATION if path.is_dir() else path
    if not file.is_file():
        advice = f": evaluate it with `{rssl_command('eval-c', str(path))}`" if path.is_dir() else ""
        raise UserError(f"no evaluation to compare with at {file}{advice}")
    content = read_evaluation(file)
    if content is None:
        raise UserError(f"{file} is not an evaluation, or it is damaged")
    cells = {name: row for name, row in content["accuracy"].items() if None not in row}
    conditions = {key: content.get(key) for key in _CONDITIONS}
    return Reference(sanitize(path), float(content["clean_accuracy"]), cells, conditions)


def _percent(errors: float, rival: float) -> float | None:
    # Sums of fractions may miss 0 by their rounding.
    return None if rival < 1e-12 else float(100 * errors / rival)
