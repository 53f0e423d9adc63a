"""What goes wrong in an evaluation, against NumPy, image by image."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.store import Split
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.details import Details
from rsslcli.core.evaluation.diagnostics import Diagnostics, Reliability, cut_sheet, diagnose
from rsslcli.core.evaluation.files import mistakes_path, save_whole
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.result import Evaluation

COUNT = 30
LEFT_OUT = (3, 8)
#: Score i is of class SCORED[i]: the network has its classes in another order than the data set.
SCORED = (2, 0, 1)


@pytest.fixture
def corrupted(tmp_path: Path, test_split: Split) -> CorruptedSet:
    random = np.random.default_rng(1)
    for name in ("fog", "snow"):
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(test_split.labels[:COUNT], 5))
    return open_corrupted(tmp_path, "toy")


@pytest.fixture
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3, dtype=torch.float64))


@pytest.fixture
def result(classifier: nn.Module, test_split: Split, corrupted: CorruptedSet) -> Evaluation:
    cpu = torch.device("cpu")
    score_of = [SCORED.index(label) for label in range(3)]
    return evaluate(
        classifier, test_split, corrupted, device=cpu, score_of=score_of, excluded=LEFT_OUT, temperature=2.0
    )


def probabilities(classifier: nn.Module, images: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The probability of each class of the data set."""
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)
        scores = classifier(x).numpy() / temperature
    p = np.exp(scores - scores.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True))[:, [SCORED.index(label) for label in range(3)]]


def known(result: Evaluation) -> Diagnostics:
    assert result.diagnostics is not None
    return result.diagnostics


def corrupted_cells(corrupted: CorruptedSet) -> tuple[list[int], dict[tuple[str, int], np.ndarray]]:
    kept = [index for index in range(COUNT) if index not in LEFT_OUT]
    return kept, {(n, s): corrupted.cell(n, s)[kept] for n in ("fog", "snow") for s in range(1, 6)}


def test_the_confusion_matrix_counts_every_image_by_the_classes_of_the_data_set(
    result: Evaluation, classifier: nn.Module, test_split: Split, corrupted: CorruptedSet
) -> None:
    kept, cells = corrupted_cells(corrupted)
    expected = np.zeros((3, 3), np.int64)
    for images in cells.values():
        for label, said in zip(
            test_split.labels[kept], probabilities(classifier, images).argmax(1), strict=True
        ):
            expected[label, said] += 1
    found = known(result)
    np.testing.assert_array_equal(found.confusion["corrupted"], expected)
    assert found.confusion["clean"].sum() == len(test_split.labels) - len(LEFT_OUT)
    assert np.trace(found.confusion["clean"]) == round(result.clean_accuracy * result.clean_images)
    names = test_split.classes
    wrong = {(names[a], names[b]): n for (a, b), n in np.ndenumerate(expected) if a != b and n}
    assert {(a, b): n for a, b, n in found.confused["corrupted"]} == wrong
    counts = [n for *_, n in found.confused["corrupted"]]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_reliability_bins_the_images_of_all_cells_by_their_highest_probability(
    result: Evaluation, classifier: nn.Module, test_split: Split, corrupted: CorruptedSet, temperature: float
) -> None:
    kept, cells = corrupted_cells(corrupted)
    p = np.concatenate([probabilities(classifier, images, temperature) for images in cells.values()])
    right = p.argmax(1) == np.tile(test_split.labels[kept], len(cells))
    highest = p.max(1)
    found = (known(result).reliability if temperature == 1 else known(result).calibrated)["corrupted"]
    gap = 0.0
    for index in range(15):
        inside = (highest > index / 15) & (highest <= (index + 1) / 15)
        assert found.images[index] == inside.sum()
        if inside.any():
            assert found.confidence[index] == pytest.approx(highest[inside].mean())
            assert found.accuracy[index] == pytest.approx(right[inside].mean())
            gap += abs(highest[inside].sum() - right[inside].sum())
    assert found.ece == pytest.approx(gap / len(p))


def test_the_surest_mistakes_are_of_different_images_with_the_highest_probabilities(
    result: Evaluation, classifier: nn.Module, test_split: Split, corrupted: CorruptedSet
) -> None:
    kept, cells = corrupted_cells(corrupted)
    best: dict[int, tuple[float, int, int]] = {}
    for (name, severity), images in cells.items():
        if name == "snow":
            for index, p in zip(kept, probabilities(classifier, images), strict=True):
                if p.argmax() != test_split.labels[index]:
                    best[index] = max(best.get(index, (0.0, 0, 0)), (p.max(), severity, p.argmax()))
    expected = sorted(((*rest, index) for index, rest in best.items()), reverse=True)[:4]
    found = known(result).mistakes["snow"]
    assert [(m.severity, m.image) for m in found] == [(s, i) for _, s, _, i in expected]
    for mistake, (p, _, said, index) in zip(found, expected, strict=True):
        assert mistake.probability == pytest.approx(p, rel=1e-5)
        assert mistake.label == test_split.classes[test_split.labels[index]]
        assert mistake.predicted == test_split.classes[said]
    assert all(m.severity == 0 for m in known(result).mistakes["clean"])


def test_the_sheet_shows_the_images_of_the_mistakes(
    result: Evaluation, test_split: Split, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    found = known(result)
    path = tmp_path / "eval-c.json"
    save_whole(result, path)
    sheet = mistakes_path(path).read_bytes()
    assert len(sheet) < 300_000
    rows = cut_sheet(sheet, len(found.mistakes))
    for row, (name, mistakes) in zip(rows, found.mistakes.items(), strict=True):
        for jpeg, mistake in zip(row, mistakes, strict=False):
            shown = np.asarray(Image.open(io.BytesIO(jpeg)), np.float64)
            source = test_split.images if name == "clean" else corrupted.cell(name, mistake.severity)
            gaps = np.abs(source.astype(np.float64) - shown).mean((1, 2, 3))
            assert gaps.argmin() == mistake.image, "it is nearest to this image"


def test_it_survives_its_file_and_a_damaged_one_is_refused(result: Evaluation) -> None:
    entry = json.loads(result.to_json())["diagnostics"]
    classes = json.loads(result.to_json())["classes"]
    found = Diagnostics.from_dict(entry, classes)
    assert found.to_dict() == known(result).to_dict()
    negative = {"clean": [[1, 2, 3]] * 2 + [[0, 0, -1]]}
    bins = entry["reliability"]["clean"]
    mistake = entry["mistakes"]["fog"][0]
    for change in (
        {"confusion": {"clean": [[1]]}}, {"confusion": negative}, {"confused": {"clean": [1]}},
        {"reliability": []}, {"reliability": {"clean": bins}},
        *({"reliability": {"corrupted": bins, "clean": bins | other}} for other in (
            {"images": [1]}, {"images": [0] * 15}, {"images": [10**400] * 15}, {"accuracy": [2.0] * 15},
        )),
        {"reliability": {"corrupted": bins, "clean": bins, "calibrated": {"clean": bins}}},
        {"mistakes": {"fog": [{"severity": 1}]}},
        *({"mistakes": {"fog": [mistake | other]}} for other in ({"probability": 3}, {"severity": 9})),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            Diagnostics.from_dict(entry | change, classes)


@pytest.mark.parametrize("size", [(100, 100), (4 * 65, 65), (4 * 32, 33)])
def test_a_picture_that_is_no_sheet_is_refused(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JPEG")
    with pytest.raises(ValueError, match="sheet"):
        cut_sheet(file.getvalue(), 1)
    with pytest.raises(OSError, match="cannot identify"):
        cut_sheet(b"GIF89a", 1)


def test_of_many_classes_the_most_frequent_confusions_are_kept_but_no_matrix() -> None:
    labels = np.arange(300) % 30
    said = np.where(labels == 7, 8, labels).astype(np.float64)
    details = Details.of(said, (said == labels).astype(np.float64), np.full(300, 0.9), None)
    outcome = Outcome(300, 290, details=details)
    found = diagnose(
        {"clean": [outcome], "fog": [outcome, None, None, None, None]},
        lambda name: labels,
        lambda name: np.arange(300),
        lambda name, severity, index: np.zeros((96, 96, 3), np.uint8),
        [f"class {index}" for index in range(30)],
        np.arange(30),
    )
    assert found is not None
    assert found.confusion == {}
    assert found.confused["corrupted"] == [("class 7", "class 8", 10)]
    assert found.sheet is not None
    assert Image.open(io.BytesIO(found.sheet)).size == (4 * 64, 2 * 64), "large images are reduced"


def test_nothing_is_said_where_a_cell_has_no_details(
    classifier: nn.Module, test_split: Split, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    """As where the unadapted accuracies are taken from an earlier evaluation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    cpu = torch.device("cpu")
    about = {"weights": "w"}
    first = evaluate(network, test_split, corrupted, device=cpu, about=about)
    assert first.diagnostics is not None
    assert first.diagnostics.calibrated == {}
    first.save(tmp_path / "eval-c.json")
    again = evaluate(
        network, test_split, corrupted, device=cpu, about=about, adaptation=Adaptation("bn"),
        earlier=tmp_path / "eval-c.json",
    )  # fmt: skip
    assert again.diagnostics is None
    assert "diagnostics" not in json.loads(again.to_json())


def test_bins_without_images_are_unknown_not_zero() -> None:
    empty = (tuple([0.0] * 14 + [2.0]), tuple([0.0] * 14 + [1.9]), tuple([0.0] * 14 + [1.0]))
    found = Reliability.of([empty, empty])
    assert found.to_dict()["accuracy"] == [None] * 14 + [0.5]
    assert found.ece == pytest.approx(0.45)
