"""mCE and relative mCE, against their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES, STANDARD
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.relative import Reference, describe_relative, read_reference
from rsslcli.core.evaluation.result import Evaluation

ABOUT = {"test_data": "t", "corrupted_data": "c", "precision": "float32"}
CONDITIONS = {**ABOUT, "images": 8, "clean_images": 10, "excluded": [1, 2]}


def accuracies(seed: int, names: tuple[str, ...] = CORRUPTIONS) -> dict[str, list[float | None]]:
    random = np.random.default_rng(seed)
    return {name: random.uniform(0.2, 0.8, 5).tolist() for name in names}


def saved(folder: Path, accuracy: dict[str, list[float | None]], **changes: Any) -> Path:
    """An evaluation in a run directory, as it is written."""
    folder.mkdir(exist_ok=True)
    Evaluation(0.9, 10, accuracy, 8, (1, 2), ABOUT | changes).save(folder / "eval-c.json")
    return folder


def test_the_errors_are_the_authors_ratios(tmp_path: Path) -> None:
    mine = accuracies(0)
    theirs = accuracies(1)
    found = read_reference(saved(tmp_path / "run", theirs)).compare(0.95, mine)
    plain, relative = {}, {}
    for name in CORRUPTIONS:
        plain[name] = 100 * sum(1 - a for a in mine[name]) / sum(1 - a for a in theirs[name])  # type: ignore[operator]
        relative[name] = (
            100
            * sum((1 - a) - (1 - 0.95) for a in mine[name])  # type: ignore[operator]
            / sum((1 - a) - (1 - 0.9) for a in theirs[name])  # type: ignore[operator]
        )
    assert found["ce"] == pytest.approx(plain)
    assert found["relative_ce"] == pytest.approx(relative)
    assert found["mce"] == pytest.approx(np.mean([*plain.values()]))
    assert found["mce_15"] == pytest.approx(np.mean([plain[name] for name in STANDARD]))
    assert found["relative_mce_15"] == pytest.approx(np.mean([relative[name] for name in STANDARD]))
    assert describe_relative(found) == (
        f"corruption errors relative to {tmp_path / 'run'}: mCE {found['mce_15']:.2f}%, "
        f"relative mCE {found['relative_mce_15']:.2f}%, over the usual 15 corruptions"
    )
    itself = read_reference(tmp_path / "run").compare(0.9, theirs)
    assert (itself["mce"], itself["relative_mce_15"]) == (pytest.approx(100), pytest.approx(100))


def test_a_reference_without_errors_or_losses_gives_no_ratio() -> None:
    perfect = Reference("perfect", 0.5, {"fog": [1.0] * 5, "snow": [0.5] * 5}, {})
    found = perfect.compare(0.5, {"fog": [0.5] * 5, "snow": [0.5] * 5})
    assert (found["ce"], found["relative_ce"]) == ({"fog": None, "snow": 100}, dict.fromkeys(("fog", "snow")))
    assert (found["mce"], found["relative_mce"]) == (None, None)
    assert "mCE undefined, relative mCE undefined, over 2 corruptions" in describe_relative(found)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"test_data": "u"}, "other test data"),
        ({"corrupted_data": "d"}, "another corrupted set"),
        ({"images": 9}, "another number of images"),
        ({"clean_images": 9}, "another number of clean images"),
        ({"excluded": [1, 3]}, "other images left out: `same_images_as`"),
        ({"excluded": [1, 3], "images": 9, "clean_images": 9}, "other images left out: `same_images_as`"),
        ({"precision": "bfloat16"}, "another precision"),
    ],
)
def test_a_reference_on_other_images_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    reference = read_reference(saved(tmp_path / "run", accuracies(0)))
    reference.check(CONDITIONS, CORRUPTIONS, SEVERITIES)
    with pytest.raises(UserError, match=match):
        reference.check(CONDITIONS | change, CORRUPTIONS, SEVERITIES)


def test_a_reference_must_have_every_cell(tmp_path: Path) -> None:
    cells = accuracies(0, ("fog", "snow"))
    cells["snow"][3] = None
    reference = read_reference(saved(tmp_path / "run", cells))
    reference.check(CONDITIONS, ["fog"], SEVERITIES)
    with pytest.raises(UserError, match="was not evaluated on snow"):
        reference.check(CONDITIONS, ["fog", "snow"], SEVERITIES)
    with pytest.raises(UserError, match="all 5 severities: leave out `severity`"):
        reference.check(CONDITIONS, ["fog"], (1, 2))


@pytest.mark.parametrize(
    "content", ["", "[]", '{"accuracy": 3}', {"accuracy": {"fog": [0.1] * 4}}, {"clean_accuracy": "x"},
                {"accuracy": {"fog": [2.0] * 5}}, {"accuracy": {"fog": 7}}],
)  # fmt: skip
def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path, content: object) -> None:
    run = saved(tmp_path / "run", accuracies(0))
    file = run / "eval-c.json"
    text = content if isinstance(content, str) else json.dumps(json.loads(file.read_text()) | content)  # type: ignore[operator]
    file.write_text(text)
    with pytest.raises(UserError, match="is not an evaluation, or it is damaged"):
        read_reference(file)
    file.unlink()
    with pytest.raises(UserError, match=f"no evaluation to compare with at .* with `rssl eval-c {run}`"):
        read_reference(run)
