"""Temperature scaling: the fit against a search, and which images it takes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rsslcli.core.data.augment import to_float
from rsslcli.core.data.corrupted import open_corrupted
from rsslcli.core.data.store import Split, make_split
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.calibration import (
    Calibration,
    calibrate,
    calibration_path,
    draw_images,
    fit_temperature,
    read_temperature,
    what_it_harms,
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


def test_a_temperature_that_harms_is_told() -> None:
    def result(nll: float) -> Any:
        confidence = SimpleNamespace(means=lambda: {"nll": (1.5, 2.0)})
        return SimpleNamespace(confidence=confidence, about={"calibrated": {"clean": {"nll": nll}}})

    assert not what_it_harms(result(1.4))
    assert what_it_harms(result(1.6)).endswith("it raises the NLL from 1.5000 to 1.6000")


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
    for wrong in (0.0, -1.0, 0.01, 1e9, "2", None, float("nan"), True):
        path.write_text(json.dumps({"temperature": wrong, "weights": "w"}))
        assert read_temperature(run, "w") is None
    path.write_bytes(b"{")
    assert read_temperature(run, "w") is None
    # What the file of weights itself carries stands in for what is not beside it.
    assert [read_temperature(run, "w", carried) for carried in (2.5, 0.0, "2", math.nan)] == [2.5] + 3 * [
        None
    ]
    Calibration(1.5, 8, "drawn", "w").save(run)
    assert [read_temperature(run, weights, 2.5) for weights in "wv"] == [1.5, 2.5]


def test_a_classifier_without_mistakes_is_not_calibrated(test_split: Split, tmp_path: Path) -> None:
    """No temperature is best for it; also, images that are left out anyway stay left out."""
    np.save(tmp_path / "fog.npy", np.zeros((150, 32, 32, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(test_split.labels[:30], 5))
    corrupted = open_corrupted(tmp_path, "toy")
    where: dict[str, Any] = {"device": torch.device("cpu"), "score_of": range(3), "weights": "w"}

    class Lookup(torch.nn.Module):
        """Knows the images, but for those in `wrong`."""

        def __init__(self, wrong: Sequence[int]) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            labels = (test_split.labels + np.isin(np.arange(37), wrong)) % 3
            images = to_float(torch.from_numpy(test_split.images)).flatten(1)
            self.known = list(zip(images, labels.tolist(), strict=True))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = [
                next(label for image, label in self.known if torch.equal(image, one)) for one in x.flatten(1)
            ]
            return self.scale * torch.eye(3)[found]

    with pytest.raises(UserError, match="no temperature is best for the 6 images"):
        calibrate(Lookup(()), test_split, corrupted, (), **where)
    with pytest.raises(UserError, match="right on all of them, or no better than guessing"):
        calibrate(Lookup(range(37)), test_split, corrupted, (), **where)
    drawn = draw_images(30)
    found, left_out = calibrate(Lookup(drawn[:1]), test_split, corrupted, (35, 36), **where)
    assert (found.images, left_out) == (6, sorted({*drawn, 35, 36}))
    found, left_out = calibrate(Lookup((4,)), test_split, corrupted, (3, 4, 5, 36), **where)
    assert (found.images, left_out) == (3, [3, 4, 5, 36])


def test_the_scores_are_those_of_the_classes_and_of_evaluation_mode(tmp_path: Path) -> None:
    """Against the fit on scores and labels written out; every fourth image is a mistake."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3072, 3))
    model(torch.rand(20, 3, 32, 32) ** 2)  # running statistics that are not those of the images
    images = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), dtype=np.uint8)
    score_of = (2, 0, 1)
    model.eval()
    with torch.no_grad():
        scores = model(to_float(torch.from_numpy(images))).double().numpy()
    right = (scores.argmax(1) + (np.arange(37) % 4 == 0)) % 3  # the index of the right score
    split = make_split(images, [score_of.index(score) for score in right], ["ant", "bee", "cow"])
    np.save(tmp_path / "fog.npy", np.zeros((150, 32, 32, 3), np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(split.labels[:30], 5))
    corrupted = open_corrupted(tmp_path, "toy")
    where: dict[str, Any] = {"device": torch.device("cpu"), "score_of": score_of, "weights": "w"}
    chosen = list(range(24))
    found, _ = calibrate(model.train(), split, corrupted, chosen, **where)
    grid = np.geomspace(0.02, 50, 4001)
    best = grid[np.argmin([loss(scores[chosen], right[chosen], t) for t in grid])]
    assert found.temperature == pytest.approx(best, rel=0.01)
