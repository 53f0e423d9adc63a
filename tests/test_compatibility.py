"""Runs and prepared data that version 0.1 wrote are read, and give the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import rsslcli
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.report.runs import read_run
from rsslcli.core.run_folder import RunFolder
from rsslcli.core.weights.checkpoint import load_checkpoint

WRITTEN = Path(__file__).parent / "written_by_0_1"
#: The score of the first class minus that of the second, for each test image.
SCORES = (0.13865, 0.50932, 0.18155, 0.11789, 0.23881, 0.50792, 0.60010, 0.08315)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A copy, since commands lock the folders that they use."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "written"))


def test_a_prepared_set_and_its_corruptions_are_read(written: Path) -> None:
    dataset = load("mine", written / "data")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (32, 8)
    corrupted = load_corrupted(dataset)
    assert corrupted.names == ("fog", "speckle_noise")
    assert corrupted.images_per_cell == 8


def test_a_run_is_read_and_evaluates_as_it_did(written: Path) -> None:
    run = written / "run"
    assert RunFolder(run).is_trained()
    checkpoint = load_checkpoint(run)
    assert checkpoint.config.tasks == ("rotation",)
    before = json.loads((run / "eval-c.json").read_text())
    found = rsslcli.evaluate(rsslcli.load_classifier(run), "mine", data_dir=written / "data")
    after = json.loads(found.to_json())
    for key in ("images", "clean_images", "excluded", "test_data", "corrupted_data"):
        assert after[key] == before[key], key
    # Rounding may turn one image or the other on another processor.
    cells = [(after["accuracy"][name], before["accuracy"][name]) for name in before["accuracy"]]
    assert np.abs(np.subtract(*zip(*cells, strict=True))).mean() < 0.1
    assert abs(after["clean_accuracy"] - before["clean_accuracy"]) <= 0.25


def test_the_scores_of_its_network_are_those_of_version_0_1(written: Path) -> None:
    """It says the same class of every image, so that the accuracies alone would not show another network."""
    images = load("mine", written / "data").test.images
    with torch.inference_mode():
        first, second = rsslcli.load_classifier(written / "run")(to_float(torch.from_numpy(images))).unbind(1)
    # As the code of commit 8e20b75 computes them.
    assert (first - second).tolist() == pytest.approx(SCORES, abs=1e-3)


def test_a_run_without_all_corruptions_is_read_for_the_report(written: Path) -> None:
    run = read_run(written / "run")
    assert run.config.automl
    assert set(run.accuracy) == {"fog", "speckle_noise"}
