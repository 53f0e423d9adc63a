"""How sure a classifier is of corrupted images, against NumPy in double precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rsslcli.core.corruptions.names import CORRUPTIONS, EXTRA, STANDARD
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.store import Split, make_split
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.bootstrap import interval
from rsslcli.core.evaluation.confidence import Confidence, describe_means, scaled_means
from rsslcli.core.evaluation.measuring import image_values
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.result import Evaluation
from rsslcli.core.networks.wide_resnet import WideResNet

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow", "doe")


def scores_and_labels(count: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=random)
    scores = 3 * torch.randn(count, 4, generator=random)
    scores[torch.arange(count), labels] += 2
    return scores, labels


def outcome(scores: torch.Tensor, labels: torch.Tensor) -> Outcome:
    return Outcome.of(image_values(scores, labels).double().numpy())


def by_hand(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """The three metrics by their definitions, image by image."""
    nll = []
    brier = []
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(scores.double().numpy(), labels.tolist(), strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        nll.append(-math.log(p[label]))
        brier.append(sum((p[k] - (k == label)) ** 2 for k in range(len(p))))
        bins.setdefault(math.ceil(p.max() * 15), []).append((p.max(), p.argmax() == label))
    gaps = (
        len(found) * abs(np.mean([p for p, _ in found]) - np.mean([right for _, right in found]))
        for found in bins.values()
    )
    return float(np.mean(nll)), float(np.mean(brier)), sum(gaps) / len(labels)


@pytest.mark.parametrize("sharpness", [0.1, 1, 20])
def test_the_metrics_are_their_definitions(sharpness: float) -> None:
    scores, labels = scores_and_labels()
    found = outcome(sharpness * scores, labels)
    np.testing.assert_allclose(
        (found.nll, found.brier, found.ece), by_hand(sharpness * scores, labels), rtol=1e-5
    )
    predicted = scores.argmax(1)
    assert (found.right, found.undecided) == (int((predicted == labels).sum()), 0)
    np.testing.assert_array_equal(found.correct, (predicted == labels).numpy())


def test_half_precision_scores_are_measured_in_single() -> None:
    scores, labels = scores_and_labels()
    rounded = scores.bfloat16()
    assert outcome(rounded, labels) == outcome(rounded.float(), labels)


def test_certain_and_uniform_scores() -> None:
    labels = torch.tensor([0, 1, 2, 3] * 5)
    sure = outcome(100.0 * torch.eye(4)[labels], labels)
    assert (sure.nll, sure.brier, sure.ece) == pytest.approx((0, 0, 0), abs=1e-6)
    wrong = outcome(1000.0 * torch.eye(4)[(labels + 1) % 4], labels)
    assert (wrong.nll, wrong.brier, wrong.ece) == pytest.approx((1000, 2, 1))
    uniform = outcome(torch.zeros(20, 4), labels)
    assert (uniform.nll, uniform.brier, uniform.ece) == pytest.approx((math.log(4), 0.75, 0), abs=1e-6)


def test_a_right_class_with_probability_0_has_an_infinite_loss_which_json_writes_as_null() -> None:
    scores = torch.tensor([[0.0, -math.inf, 1, 2]] * 2)
    found = outcome(scores, torch.tensor([1, 3]))
    assert (found.nll, found.undecided) == (math.inf, 0)
    confidence = Confidence.of(found, {"fog": [found] * 5}, np.array([1, 3]), np.array([1, 3]), CLASSES)
    content = json.loads(json.dumps(confidence.to_dict()))
    assert (content["nll"]["fog"], content["mean_nll"]) == ([None] * 5, None)
    assert content["per_class_accuracy"]["fog"] == [None, 0, None, 1]


def test_an_outcome_survives_its_file_and_a_damaged_one_is_refused() -> None:
    whole = outcome(*scores_and_labels(count=43))
    plain = json.loads(json.dumps(whole.to_dict()))
    assert Outcome.from_dict(plain, 43) == whole
    assert Outcome.from_dict(Outcome(9, 4).to_dict()) == Outcome(9, 4)
    for change in (
        {"right": whole.right + 1}, {"right": 2.0}, {"images": 44}, {"bits": plain["bits"][:-4]},
        {"bits": "!"}, {"nll": "1"}, {"undecided": -1}, {"ece": [1]},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            Outcome.from_dict(plain | change, 43)
    with pytest.raises(KeyError):
        Outcome.from_dict({}, 43)


COUNT = 30


@pytest.fixture
def test_split() -> Split:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (COUNT + 6, 32, 32, 3), dtype=np.uint8)
    return make_split(images, random.integers(0, 4, COUNT + 6), list(CLASSES))


@pytest.fixture
def corrupted(tmp_path: Path, test_split: Split) -> CorruptedSet:
    folder = tmp_path / "c"
    folder.mkdir()
    random = np.random.default_rng(1)
    for name in ("fog", "snow"):
        np.save(folder / f"{name}.npy", random.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(test_split.labels[:COUNT], 5))
    return open_corrupted(folder, "toy")


@pytest.fixture
def network() -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(10, 1, classes=4)
    network.train()(torch.rand(16, 3, 32, 32))
    return network.eval()


def scores_of(network: WideResNet, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        scores: torch.Tensor = network(torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)))
    return scores


def test_an_evaluation_says_how_sure_the_network_is(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet
) -> None:
    result = evaluate(network, test_split, corrupted, device=CPU, excluded=(3, 8))
    kept = [i for i in range(COUNT) if i not in (3, 8)]
    labels = torch.from_numpy(test_split.labels[kept])
    confidence = result.confidence
    assert confidence is not None
    blocks = np.load(corrupted.folder / "fog.npy").reshape(5, COUNT, 32, 32, 3)[:, kept]
    scores = [scores_of(network, block) for block in blocks]
    numbers = np.array([by_hand(cell, labels) for cell in scores]).T
    for metric, expected in zip((confidence.nll, confidence.brier, confidence.ece), numbers, strict=True):
        np.testing.assert_allclose(metric["fog"], expected, rtol=2e-5)
    right = np.array([(cell.argmax(1) == labels).numpy() for cell in scores])
    np.testing.assert_array_equal(confidence.correct["fog"], right)
    for index in range(4):
        of_class = right[:, labels.numpy() == index].mean()
        assert confidence.per_class["fog"][index] == pytest.approx(of_class)
    clean = [i for i in range(COUNT + 6) if i not in (3, 8)]
    clean_labels = torch.from_numpy(test_split.labels[clean])
    expected = by_hand(scores_of(network, test_split.images[clean]), clean_labels)
    assert [confidence.nll["clean"], confidence.brier["clean"]] == [
        [pytest.approx(number, rel=2e-5)] for number in expected[:2]
    ]
    assert confidence.means()["nll"] == (
        pytest.approx(expected[0]), pytest.approx(np.mean([*confidence.nll["fog"], *confidence.nll["snow"]])),
    )  # fmt: skip
    both = np.concatenate([confidence.correct["snow"], confidence.correct["fog"]])
    assert confidence.intervals == {
        "clean_accuracy": interval(confidence.correct["clean"]),
        "mean_accuracy_evaluated": interval(both),
    }


def test_intervals_cover_the_means_of_the_usual_sets_of_corruptions() -> None:
    random = np.random.default_rng(0)

    def cell() -> Outcome:
        right = random.random(50) < 0.5
        return Outcome(50, int(right.sum()), bits=np.packbits(right).tobytes())

    rows = {name: [cell() for _ in range(5)] for name in CORRUPTIONS}
    labels = np.zeros(50, np.int64)
    found = Confidence.of(cell(), rows, labels, labels, ("ant",))
    usual = Confidence.of(cell(), {name: rows[name] for name in STANDARD}, labels, labels, ("ant",))
    assert found.intervals.keys() == {
        "clean_accuracy", "mean_accuracy", "mean_accuracy_15", "mean_accuracy_evaluated"
    }  # fmt: skip
    assert found.intervals["mean_accuracy_15"] == usual.intervals["mean_accuracy_evaluated"]
    assert found.intervals["mean_accuracy"] == found.intervals["mean_accuracy_evaluated"]
    assert found.means() == dict.fromkeys(("nll", "brier", "ece"), (None, None))
    assert found.describe() == ""
    # Without a severity, or without a record of each image, there is no mean to have an interval.
    rows[EXTRA[0]][2] = None  # type: ignore[call-overload]
    part = Confidence.of(Outcome(50, 20), rows, labels, labels, ("ant",))
    assert part.intervals.keys() == {"mean_accuracy_15"}


def test_means_are_over_all_cells_or_not_known() -> None:
    def cell(*numbers: float) -> Outcome:
        nll, brier, ece = numbers or (None, None, None)
        return Outcome(10, 5, nll=nll, brier=brier, ece=ece, scaled=numbers or None)

    cells = {"fog/1": cell(1.0, 0.5, 0.1), "clean/0": cell(0.2, 0.1, 0.03), "fog/2": cell(2.0, 0.7, 0.2)}
    expected = {
        "clean": {"nll": 0.2, "brier": 0.1, "ece": 0.03},
        "mean": {"nll": 1.5, "brier": 0.6, "ece": 0.15},
    }
    found = scaled_means(cells)
    assert {name: pytest.approx(row) for name, row in found.items()} == expected
    assert scaled_means(cells | {"snow/1": cell()}) == {"clean": found["clean"]}

    labels = np.zeros(10, np.int64)
    rows: dict[str, list[Outcome | None]] = {"fog": [cells["fog/1"], cells["fog/2"]]}
    known = Confidence.of(cells["clean/0"], rows, labels, labels, ("ant",))
    assert known.means() == {
        name: (expected["clean"][name], pytest.approx(expected["mean"][name])) for name in expected["mean"]
    }
    words = "NLL 1.5000 (clean 0.2000) · Brier score 0.6000 (clean 0.1000) · ECE 15.00% (clean 3.00%)"
    assert known.describe() == describe_means(found["clean"], found["mean"]) == words
    part = Confidence.of(cells["clean/0"], rows | {"snow": [cell()]}, labels, labels, ("ant",))
    assert part.means() == {name: (number, None) for name, number in expected["clean"].items()}


@pytest.mark.parametrize("method", [None, "bn"])
def test_an_interrupted_evaluation_is_as_sure_as_a_whole_one(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path, method: str | None
) -> None:
    def run(stop_at: int | None = None) -> Evaluation:
        def stop(description: str, done: int, total: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        adaptation = Adaptation(batch_size=10) if method else None
        return evaluate(
            network, test_split, corrupted, device=CPU, adaptation=adaptation,
            partial=tmp_path / "r.json.partial", progress=stop,
        )  # fmt: skip

    whole = run()
    (tmp_path / "r.json.partial").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=8)
    again = run()
    assert again == whole
    assert again.to_json() == whole.to_json()
    if method:
        adapted = json.loads(whole.to_json())["adapted"]
        assert adapted["interval_95"]["clean_accuracy"] != json.loads(whole.to_json())["interval_95"]
        assert len(adapted["nll"]["fog"]) == 5
    else:
        assert "confidence" not in whole.to_json()


def test_the_markdown_says_how_sure_the_numbers_and_the_network_are(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet
) -> None:
    result = evaluate(network, test_split, corrupted, device=CPU)
    assert result.confidence is not None
    low, high = result.confidence.intervals["clean_accuracy"]
    text = result.to_markdown()
    assert (
        f"- clean: {100 * result.clean_accuracy:.2f} % (95 %: {100 * low:.2f} to {100 * high:.2f})\n" in text
    )
    assert f"- means over the cells: {result.confidence.describe()}\n" in text
    assert text.count("(95 %:") == 2
