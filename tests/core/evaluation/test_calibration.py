"""Temperature scaling: the fit against a search, and which images it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rsslcli.core.evaluation.calibration import (
    Calibration,
    calibration_path,
    draw_images,
    fit_temperature,
    read_temperature,
)


def loss(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    logits = scores / temperature
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_fit_finds_the_temperature_that_labels_were_drawn_with(truth: float) -> None:
    random = np.random.default_rng(0)
    scores = 4 * random.normal(size=(20_000, 6))
    # Adding Gumbel noise and taking the highest draws from the softmax.
    labels = (scores / truth + random.gumbel(size=scores.shape)).argmax(1)
    found = fit_temperature(scores, labels)
    assert found == pytest.approx(truth, rel=0.03)
    grid = found * np.linspace(0.9, 1.1, 81)
    assert grid[np.argmin([loss(scores, labels, t) for t in grid])] == pytest.approx(found, rel=0.003)


def test_a_classifier_that_is_always_right_gets_the_lowest_temperature() -> None:
    scores = np.eye(4)
    assert fit_temperature(scores, np.arange(4)) == pytest.approx(0.01)
    assert fit_temperature(scores, (np.arange(4) + 1) % 4) == pytest.approx(100)


def test_the_drawn_images_are_always_the_same_fifth() -> None:
    found = draw_images(40)
    assert found == sorted(set(found)) == draw_images(40)
    assert (len(found), len(draw_images(10_000))) == (8, 1000)


def test_only_the_calibration_of_the_same_weights_is_used(tmp_path: Path) -> None:
    run = tmp_path / "checkpoint.pt"
    assert read_temperature(run, "w") is None
    path = Calibration(1.5, 8, "drawn", "w").save(run)
    assert path == tmp_path / "calibration.json"
    assert (read_temperature(run, "w"), read_temperature(run, "v")) == (1.5, None)
    assert calibration_path(tmp_path / "best.pt").name == "calibration-best.json"
    for wrong in (0.0, -1.0, 1e9, "2", None, float("nan"), True):
        path.write_text(json.dumps({"temperature": wrong, "weights": "w"}))
        assert read_temperature(run, "w") is None
    path.write_bytes(b"{")
    assert read_temperature(run, "w") is None
