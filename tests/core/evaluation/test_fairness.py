"""No run is tested on what tuned it, nor on what tuned the run that it is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rsslcli.core.config import Config
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.validation import validation_source
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.fairness import images_to_leave_out
from rsslcli.core.evaluation.result import Evaluation
from rsslcli.core.weights.checkpoint import Checkpoint

COUNT = 20


@pytest.fixture
def corrupted(tmp_path: Path) -> CorruptedSet:
    np.save(tmp_path / "fog.npy", np.zeros((5 * COUNT, 32, 32, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(COUNT) % 3, 5))
    return open_corrupted(tmp_path, "toy")


def run_of(corrupted: CorruptedSet, *excluded: int, seed: int = 0) -> Checkpoint:
    """A run that tuned λ on these images; a baseline without any."""
    config = Config(validation_images=4, seed=seed)
    if excluded:
        config = replace(config, tasks=("ir",), weighting="automl")
    return Checkpoint(
        config=config, classes=("ant", "bee", "cow"), step=1, classifier={}, heads={}, optimizer={},
        lambdas=torch.zeros(len(config.tasks)), excluded=excluded, train_data="",
        validation_data=corrupted.identity if excluded else "",
    )  # fmt: skip


def test_what_tuned_either_run_is_left_out(corrupted: CorruptedSet) -> None:
    mine, rival, baseline = (run_of(corrupted, *given) for given in ((9, 3), (3, 1), ()))
    notes: list[str] = []
    assert images_to_leave_out(mine, corrupted, note=notes.append) == [3, 9]
    assert images_to_leave_out(mine, corrupted, rival=rival, note=notes.append) == [1, 3, 9]
    assert images_to_leave_out(baseline, corrupted, rival=rival, note=notes.append) == [1, 3]
    assert images_to_leave_out(mine, corrupted, rival=baseline, note=notes.append) == [3, 9]
    assert images_to_leave_out(None, corrupted, rival=rival, note=notes.append) == [1, 3]
    assert images_to_leave_out(baseline, corrupted, note=notes.append) == []
    assert not notes


def test_a_baseline_leaves_out_what_would_tune_it_beside_what_tuned_the_other(
    corrupted: CorruptedSet,
) -> None:
    mine, rival = run_of(corrupted, seed=5), run_of(corrupted, 0, 1)
    drawn = validation_source(mine.config, COUNT)
    assert len(drawn) == 4
    assert images_to_leave_out(mine, corrupted, leave_out_validation=True) == list(drawn)
    found = images_to_leave_out(mine, corrupted, rival=rival, leave_out_validation=True)
    assert found == sorted({*drawn, 0, 1})
    with pytest.raises(UserError, match="weights from elsewhere have no seed"):
        images_to_leave_out(None, corrupted, leave_out_validation=True)


def test_each_run_that_was_tuned_on_another_set_is_named(corrupted: CorruptedSet) -> None:
    mine, rival = (replace(run_of(corrupted, index), validation_data="other") for index in (3, 5))
    notes: list[str] = []
    assert images_to_leave_out(mine, corrupted, rival=rival, note=notes.append) == [3, 5]
    assert [text.partition(" was tuned on another corrupted set")[0] for text in notes] == [
        "λ", "λ of the run to compare with"
    ]  # fmt: skip


def test_what_a_baseline_was_evaluated_without_joins_what_tuned_the_run(
    corrupted: CorruptedSet, tmp_path: Path
) -> None:
    path = tmp_path / "eval-c.json"
    Evaluation(0.5, 18, {"fog": [0.5] * 5}, 18, (2, 7), {"corrupted_data": corrupted.identity}).save(path)
    mine = run_of(corrupted, 3)
    rival = run_of(corrupted)
    assert images_to_leave_out(mine, corrupted, rival=rival, of_rival=path) == [2, 3, 7]
    # A run that tuned λ itself says which images that took.
    assert images_to_leave_out(mine, corrupted, rival=run_of(corrupted, 4), of_rival=path) == [3, 4]
