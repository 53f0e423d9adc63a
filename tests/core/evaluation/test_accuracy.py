"""Evaluation against an independent loop, to the last image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rsslcli.core.corruptions.names import CORRUPTIONS, EXTRA, STANDARD
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.store import Split, make_split
from rsslcli.core.errors import DivergedError, RsslError, UserError
from rsslcli.core.evaluation import measuring
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.fingerprint import fingerprint
from rsslcli.core.evaluation.result import Evaluation, note_on_chance
from rsslcli.core.networks.wide_resnet import WideResNet

CPU = torch.device("cpu")
COUNT = 30


def corrupted_set(folder: Path, names: tuple[str, ...], labels: np.ndarray) -> CorruptedSet:
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in names:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return open_corrupted(folder, "toy")


@pytest.fixture
def network() -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(10, 1, classes=3)
    network.train()(torch.rand(16, 3, 32, 32))  # running statistics that are not the initial ones
    return network.eval()


def accuracy_by_hand(network: WideResNet, images: np.ndarray, labels: np.ndarray) -> float:
    """One image at a time, in NCHW layout, by the definition."""
    right = 0
    for image, label in zip(images, labels, strict=True):
        x = torch.tensor(np.array(image).transpose(2, 0, 1)[None] / 255.0, dtype=torch.float32)
        with torch.no_grad():
            right += int(np.argmax(network(x).numpy()[0]) == label)
    return right / len(labels)


@pytest.mark.parametrize("excluded", [(), (0, 4, 29)])
@pytest.mark.parametrize("limit", [None, 11])
def test_equals_a_loop_over_single_images(
    network: WideResNet, test_split: Split, tmp_path: Path, excluded: tuple[int, ...], limit: int | None
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog", "snow"), test_split.labels[:COUNT])
    result = evaluate(network, test_split, corrupted, device=CPU, excluded=excluded, limit=limit)
    kept = [i for i in range(COUNT) if i not in excluded][:limit]
    assert result.images == len(kept)
    assert json.loads(result.to_json())["corrupted_origin"] == "imported"
    for name in ("snow", "fog"):
        blocks = np.load(tmp_path / "c" / f"{name}.npy").reshape(5, COUNT, 32, 32, 3)
        expected = [accuracy_by_hand(network, block[kept], test_split.labels[kept]) for block in blocks]
        assert result.accuracy[name] == expected
    clean = kept if limit else [i for i in range(COUNT + 7) if i not in excluded]
    assert result.clean_images == len(clean)
    assert result.clean_accuracy == accuracy_by_hand(
        network, test_split.images[clean], test_split.labels[clean]
    )
    assert list(result.accuracy) == ["snow", "fog"]  # in the benchmark's order


def test_what_tuned_a_run_is_left_out_of_the_clean_images_that_have_no_corrupted_version(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    found = evaluate(network, test_split, corrupted, device=CPU, excluded=(4, COUNT, COUNT + 1))
    assert (found.excluded, found.images) == ((4,), COUNT - 1)
    assert found.clean_images == len(test_split.labels) - 3


def test_a_limit_that_limits_nothing_leaves_the_clean_images_whole(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    whole = evaluate(network, test_split, corrupted, device=CPU)
    assert whole.clean_images == len(test_split.labels) > COUNT
    for limit in (COUNT, COUNT + 3):
        assert evaluate(network, test_split, corrupted, device=CPU, limit=limit) == whole


def test_a_set_that_is_replaced_meanwhile_gives_no_result(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog", "snow"), test_split.labels[:COUNT])

    def replace_fog(_: str, done: int, count: int) -> None:
        if done == 3:
            np.save(tmp_path / "new.npy", np.load(tmp_path / "c" / "fog.npy")[::-1])
            (tmp_path / "new.npy").replace(tmp_path / "c" / "fog.npy")

    with pytest.raises(RsslError, match="was replaced during the evaluation: evaluate again"):
        evaluate(network, test_split, corrupted, device=CPU, progress=replace_fog)


def test_nothing_counts_twice(network: WideResNet, test_split: Split, tmp_path: Path) -> None:
    """Neither images left out, nor corruptions and severities asked for, twice; nor images that are not."""
    corrupted = corrupted_set(tmp_path / "c", ("fog", "snow"), test_split.labels[:COUNT])
    once = evaluate(network, test_split, corrupted, device=CPU, excluded=(4,), corruptions=["fog"])
    total: list[int] = []
    twice = evaluate(
        network, test_split, corrupted, device=CPU, excluded=(4, 4, 10**6), corruptions=["fog", "fog"],
        severities=(1, 2, 3, 4, 5, 5), progress=lambda _, done, count: total.append(count),
    )  # fmt: skip
    assert twice == once
    assert (twice.excluded, twice.images, twice.clean_images) == ((4,), COUNT - 1, COUNT + 6)
    assert set(total) == {6}


def test_clean_images_stay_where_the_corrupted_ones_are_in_another_order(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    other_order = np.roll(test_split.labels[:COUNT], 1)
    assert not np.array_equal(other_order, test_split.labels[:COUNT])
    corrupted = corrupted_set(tmp_path / "c", ("fog",), other_order)
    result = evaluate(network, test_split, corrupted, device=CPU, excluded=(1, 2))
    assert (result.images, result.clean_images) == (COUNT - 2, COUNT + 7)
    limited = evaluate(network, test_split, corrupted, device=CPU, excluded=(1, 2), limit=5)
    assert (limited.images, limited.clean_images) == (5, 5)


def test_a_network_that_was_just_trained_is_tested_with_its_running_statistics(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    expected = evaluate(network, test_split, corrupted, device=CPU)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = evaluate(network.train(), test_split, corrupted, device=CPU)
    assert (found, found.confidence) == (expected, expected.confidence)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_interrupted_evaluation_with_a_temperature_serves_no_other_one(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    partial = tmp_path / "r.json.partial"
    found = {
        temperature: evaluate(
            network, test_split, corrupted, device=CPU, partial=partial, temperature=temperature
        ).about["calibrated"]
        for temperature in (2.0, 3.0)
    }
    again = evaluate(network, test_split, corrupted, device=CPU, temperature=3.0).about["calibrated"]
    assert found[3.0] == again
    assert found[2.0]["mean"] != found[3.0]["mean"]


def test_batches_do_not_change_the_result(
    network: WideResNet, test_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    whole = evaluate(network, test_split, corrupted, device=CPU)
    monkeypatch.setattr("rsslcli.core.evaluation.measuring.BATCH_SIZE", {"cpu": 7})
    assert evaluate(network, test_split, corrupted, device=CPU).accuracy == whole.accuracy


class Close(nn.Module):
    """Scores 1, 1 + 1/512 and 0: bfloat16, which has 8 bits, makes 1 of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1], [1 + 1 / 512], [0]]))
            self.fc.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(torch.ones(len(images), 1))
        return scores


def test_precision(test_split: Split, tmp_path: Path) -> None:
    """What bfloat16 cannot tell apart is the first class; and that is another evaluation, to be done anew."""
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    partial = tmp_path / "r.json.partial"

    def stop(description: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Close(), test_split, corrupted, device=CPU, partial=partial, progress=stop)
    labels = test_split.labels[:COUNT]
    for precision, told in {"bfloat16": 0, "float32": 1, "tf32": 1}.items():
        result = evaluate(Close(), test_split, corrupted, device=CPU, partial=partial, precision=precision)
        assert result.accuracy["fog"] == [(labels == told).mean()] * 5
        assert result.about["precision"] == ("bfloat16" if precision == "bfloat16" else "float32")
        assert ("- computed in bfloat16" in result.to_markdown()) == (precision == "bfloat16")


def test_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    accuracy = {name: rng.random(5).tolist() for name in CORRUPTIONS}
    whole = Evaluation(0.5, 10, accuracy, 10, (3,))
    assert whole.mean_accuracy == pytest.approx(sum(map(sum, accuracy.values())) / 95)
    assert whole.mean_accuracy_15 == pytest.approx(sum(sum(accuracy[name]) for name in STANDARD) / 75)
    standard = Evaluation(0.5, 10, {name: accuracy[name] for name in STANDARD}, 10, ())
    assert standard.mean_accuracy is None
    assert standard.mean_accuracy_15 == whole.mean_accuracy_15
    extra = Evaluation(0.5, 10, {name: accuracy[name] for name in EXTRA}, 10, ())
    assert extra.mean_accuracy_15 is None

    whole.save(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["mean_accuracy"] == whole.mean_accuracy
    assert content["accuracy"] == accuracy
    assert content["excluded"] == [3]
    whole.save(tmp_path / "r.csv")
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert len(lines) == 2 + 95
    assert lines[2] == f"gaussian_noise,1,{accuracy['gaussian_noise'][0]},10"
    whole.save(tmp_path / "r.md")
    with pytest.raises(UserError, match=r"r\.xls: the name must end in \.json, \.csv, \.md"):
        whole.save(tmp_path / "r.xls")
    text = (tmp_path / "r.md").read_text()
    assert f"- mean of 19: {100 * whole.mean_accuracy:.2f} %" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 22  # beside the corruptions: the names of the columns, clean, the mean
    assert lines[1] == "| clean | – | – | – | – | – | 50.00 | – |"
    fog = 100 * float(np.mean(accuracy["fog"]))
    (row,) = (line for line in lines if line.startswith("| fog "))
    assert row.endswith(f"| {fog:.2f} | {50 - fog:.2f} |")
    assert lines[-1].startswith("| mean of 19 | ")


@pytest.mark.parametrize(
    ("names", "covers"),
    [
        ([n for n in CORRUPTIONS if n not in ("fog", "snow")], "17 of 19 (missing: snow, fog)"),
        (["fog", "snow"], "2 of 19 (snow, fog)"),
        (STANDARD, "15 of 19 (missing: speckle_noise, gaussian_blur, spatter, saturate)"),
        (CORRUPTIONS, "19"),
    ],
)
def test_a_mean_over_fewer_corruptions_says_which(tmp_path: Path, names: Sequence[str], covers: str) -> None:
    result = Evaluation(0.5, 10, {name: [0.25] * 5 for name in names}, 10, ())
    content = json.loads(result.to_json())
    assert (content["mean_accuracy_evaluated"], content["mean_accuracy_evaluated_of"]) == (0.25, covers)
    assert (content["mean_accuracy"] is None) == (len(names) < 19)
    text = result.to_markdown()
    assert f"- mean of {covers}: 25.00 %\n" in text
    assert f"| mean of {len(names)} | 25.00 |" in text
    assert "| mean |" not in text.replace(" 5 | mean | drop |", "")
    assert result.means()[f"mean of {covers}"] == 0.25
    assert result.mean_at(3, names) == 0.25
    assert (result.mean_at(3) is None) == (len(names) < 19)


@pytest.mark.parametrize(
    ("correct", "labels", "is_noted"),
    [
        (1030, [1000] * 10, True),  # FixMatch's weights in this WideResNet: 10.3 %
        (1900, [1000] * 10, True),
        (1910, [1000] * 10, False),
        (0, [1000] * 10, True),
        (109, [10] * 100, True),
        (110, [10] * 100, False),
        (549, [500] * 2, True),
        (560, [500] * 2, False),
        (3, [2] * 10, True),  # few images, which chance could give, and good weights would not
        (9, [2] * 10, False),
        (0, [1] * 2, False),  # too few to say anything
        (1, [1] * 2, False),
        (910, [900, 100], True),  # hardly better than naming the most frequent class
        (940, [900, 100], False),
    ],
)
def test_a_clean_accuracy_near_chance_is_noted(correct: int, labels: list[int], is_noted: bool) -> None:
    count = sum(labels)
    split = make_split(
        np.zeros((count, 32, 32, 3), np.uint8),
        np.repeat(np.arange(len(labels)), labels),
        [f"class {i}" for i in range(len(labels))],
    )
    note = note_on_chance(Evaluation(correct / count, count, {}, count, ()), split)
    assert (note is not None) == is_noted
    if note:
        assert (
            f"the clean accuracy, {correct / count:.2%}, is near that of guessing, {max(labels) / count:.2%}"
            in note
        )
        assert all(cause in note for cause in ("normalized", "order of the classes", "architecture"))


def test_notes_are_part_of_the_result(network: WideResNet, test_split: Split, tmp_path: Path) -> None:
    """Only weights that were trained elsewhere are expected to be good."""
    with torch.no_grad():
        network.fc.weight.zero_()  # it names one class for every image
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    ours = evaluate(network, test_split, corrupted, device=CPU, notes=["one"])
    assert ours.notes == ("one",)
    theirs = evaluate(network, test_split, corrupted, device=CPU, notes=["one"], foreign=True)
    assert theirs.notes == ("one", note_on_chance(ours, test_split))
    assert "near that of guessing" in theirs.notes[1]
    assert json.loads(theirs.to_json())["notes"] == list(theirs.notes)
    assert [f"- note: {note}" in theirs.to_markdown().splitlines() for note in theirs.notes] == [True, True]


def test_an_interrupted_evaluation_goes_on(
    network: WideResNet, test_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog", "snow"), test_split.labels[:COUNT])
    whole = evaluate(network, test_split, corrupted, device=CPU)
    partial = tmp_path / "r.json.partial"

    def stop(description: str, done: int, total: int) -> None:
        if (description, done) == ("fog", 8):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(network, test_split, corrupted, device=CPU, partial=partial, progress=stop)
    assert len(json.loads(partial.read_text())["cells"]) == 8

    calls = []
    counted = measuring.measure
    monkeypatch.setattr(
        "rsslcli.core.evaluation.accuracy.measure", lambda *given: calls.append(1) or counted(*given)
    )
    result = evaluate(network, test_split, corrupted, device=CPU, partial=partial)
    assert result == whole
    assert len(calls) == 3  # the cells that were missing
    assert evaluate(network, test_split, corrupted, device=CPU, partial=partial) == whole
    assert len(calls) == 3, "nothing is lost before the result is saved"


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"fingerprint": "x", "cells": {"fog/1": 99}}'])
def test_foreign_partial_results_are_not_used(
    network: WideResNet, test_split: Split, tmp_path: Path, content: bytes
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    partial = tmp_path / "r.json.partial"
    partial.write_bytes(content)
    result = evaluate(network, test_split, corrupted, device=CPU, partial=partial)
    assert result == evaluate(network, test_split, corrupted, device=CPU)


def check_not_used(
    network: WideResNet, test: Split, folder: Path, place: Sequence[str | int], value: object
) -> None:
    """A killed evaluation whose record has `value` at a place of a cell ends as an undisturbed one."""
    corrupted = corrupted_set(folder / "c", ("fog",), test.labels[:COUNT])
    partial = folder / "r.json.partial"

    def stop(description: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(network, test, corrupted, device=CPU, partial=partial, progress=stop)
    content = json.loads(partial.read_text())
    *path, last = place
    record = content["cells"]["fog/3"]
    for key in path:
        record = record[key]
    record[last] = value
    partial.write_text(json.dumps(content))
    result = evaluate(network, test, corrupted, device=CPU, partial=partial)
    assert result == evaluate(network, test, corrupted, device=CPU)


@pytest.mark.parametrize("count", [COUNT + 1, -1, 1.5, True, "3", None, float("inf")])
def test_impossible_counts_are_not_used(
    network: WideResNet, test_split: Split, tmp_path: Path, count: object
) -> None:
    check_not_used(network, test_split, tmp_path, ("right",), count)


@pytest.mark.parametrize(("row", "value"), [(0, -1), (0, 1e9), (1, 1e9), (1, float("nan")), (2, 1e9)])
def test_impossible_bins_are_not_used(
    network: WideResNet, test_split: Split, tmp_path: Path, row: int, value: float
) -> None:
    check_not_used(network, test_split, tmp_path, ("details", "bins", row, 0), value)


def test_other_weights_or_images_are_another_evaluation(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    chosen = [np.arange(4), np.arange(3)]
    one = fingerprint(network, corrupted.identity, chosen)
    assert one == fingerprint(network, corrupted.identity, chosen)
    assert one != fingerprint(network, corrupted.identity, [np.arange(4), np.arange(3) + 1])
    assert one != fingerprint(network, corrupted.identity, [np.arange(3), np.arange(4)])
    assert one != fingerprint(network, "other", chosen)
    with torch.no_grad():
        network.bn1.running_mean[0] += 1e-6  # type: ignore[index, operator]
    assert one != fingerprint(network, corrupted.identity, chosen)


def test_single_severities(network: WideResNet, test_split: Split, tmp_path: Path) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    whole = evaluate(network, test_split, corrupted, device=CPU)
    part = evaluate(network, test_split, corrupted, device=CPU, severities=[2, 5])
    assert part.accuracy["fog"] == [
        None if s in (0, 2, 3) else value for s, value in enumerate(whole.accuracy["fog"])
    ]
    assert part.mean(["fog"]) is None
    assert part.mean_at(2, ["fog"]) == whole.accuracy["fog"][1]
    assert part.mean_at(2) is None
    assert part.mean_at(1, ["fog"]) is None
    assert part.means()["mean of 1 of 19 (fog)"] is None
    row = next(line for line in part.to_markdown().splitlines() if line.startswith("| fog "))
    assert row.endswith("| – | – |")
    assert len(part.to_csv().splitlines()) == 4


class Constant(nn.Module):
    """Scores that depend on the first pixel alone: a row of `scores` for each value of it."""

    def __init__(self, scores: list[list[float]]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scores[(images[:, 0, 0, 0] * 255).round().long().clamp(max=len(self.scores) - 1)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("scores", [[NAN] * 3, [0, 1, NAN], [INF, INF, 0], [-INF] * 3])
def test_an_image_without_a_finite_highest_score_is_an_error_and_not_of_the_first_class(
    test_split: Split, tmp_path: Path, scores: list[float]
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog", "snow"), np.zeros(COUNT, np.int64))
    images = np.full((5 * COUNT, 32, 32, 3), 1, np.uint8)
    images[[2 * COUNT + 7, 2 * COUNT + 9]] = 0  # of severity 3
    np.save(tmp_path / "c" / "fog.npy", images)
    test = make_split(np.full((4, 32, 32, 3), 1, np.uint8), [0] * 4, ["ant", "bee", "cow"])
    partial = tmp_path / "r.json.partial"
    model = Constant([scores, [1, -INF, -INF]])
    with pytest.raises(DivergedError, match=r"fog at severity 3: .* of 2 of 30 images .* check the weights"):
        evaluate(model, test, corrupted, device=CPU, corruptions=["fog"], partial=partial)
    cells = json.loads(partial.read_text())["cells"]
    assert {key: cell["right"] for key, cell in cells.items()} == {
        "clean/0": 4,
        "fog/1": COUNT,
        "fog/2": COUNT,
    }
    black = make_split(np.zeros((4, 32, 32, 3), np.uint8), [0] * 4, ["ant", "bee", "cow"])
    with pytest.raises(DivergedError, match=r"clean test set: .* of 4 of 4 images .* evaluate in float32"):
        evaluate(model, black, corrupted, device=CPU, precision="bfloat16")


def test_a_cell_waits_for_the_device_once(
    network: WideResNet, test_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsslcli.core.evaluation.measuring.BATCH_SIZE", {"cpu": 5})
    waits = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def waiting(
            *arguments: object, _original: Callable[..., object] = original, **options: object
        ) -> object:
            waits.append(1)
            return _original(*arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, waiting)
    copied: list[int] = []
    monkeypatch.setattr(measuring, "moved", lambda tensor, _: copied.append(len(tensor)) or tensor)
    correct, undecided = measuring.count_correct(network, test_split.images, test_split.labels, CPU)
    assert len(waits) == 1
    # Images and labels go to the device by `moved`, for which the host does not wait.
    assert sum(copied) == 2 * len(test_split.labels)
    assert (0 <= correct <= COUNT + 7, undecided) == (True, 0)
    none = np.arange(0)  # the share of a rank where there are few images
    assert measuring.count_correct(network, test_split.images, test_split.labels, CPU, none) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_is_evaluated_in_it(
    network: WideResNet, test_split: Split, tmp_path: Path, dtype: torch.dtype
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    model, name, seen = network.to(dtype), str(dtype).split(".")[1], set()
    model.register_forward_hook(lambda _, given, scores: seen.update([given[0].dtype, scores.dtype]))
    model.register_forward_hook(lambda *_: seen.update([True] * torch.is_autocast_enabled("cpu")))
    result = evaluate(model, test_split, corrupted, device=CPU, partial=tmp_path / "r.partial")
    assert seen == {dtype}
    assert (result.about["precision"], f"computed in {name}" in result.to_markdown()) == (name, True)
    images = torch.from_numpy(np.load(tmp_path / "c" / "fog.npy").transpose(0, 3, 1, 2)).to(dtype) / 255
    with torch.inference_mode():
        predicted = model(images).argmax(1).numpy().reshape(5, COUNT)
    expected = (predicted == test_split.labels[:COUNT]).mean(1)
    assert result.accuracy["fog"] == pytest.approx(
        expected.tolist(), abs=0.07
    )  # rounding may turn two images
    with pytest.raises(UserError, match=f"for float32 models, but this one is {name}"):
        evaluate(model, test_split, corrupted, device=CPU, precision="bfloat16")


def test_a_kind_of_device_without_a_batch_size_of_its_own_is_evaluated_too(
    network: WideResNet, test_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    whole = evaluate(network, test_split, corrupted, device=CPU)
    monkeypatch.setattr("rsslcli.core.evaluation.measuring.BATCH_SIZE", {"cuda": 500})
    assert evaluate(network, test_split, corrupted, device=CPU) == whole


def test_scores_that_fit_one_image_alone_are_refused(test_split: Split, tmp_path: Path) -> None:
    class OneRow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :3].reshape(1, -1)

    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    with pytest.raises(UserError, match=r"scores \(N, classes\); for 37 images it gave \(1, 111\), float32"):
        evaluate(OneRow(), test_split, corrupted, device=CPU)


def test_refuses(network: WideResNet, test_split: Split, tmp_path: Path) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog",), test_split.labels[:COUNT])
    with pytest.raises(UserError, match="has no 'frost': it has fog"):
        evaluate(network, test_split, corrupted, device=CPU, corruptions=["frost"])
    with pytest.raises(UserError, match="no image is left"):
        evaluate(network, test_split, corrupted, device=CPU, excluded=range(COUNT))


def test_corrupted_images_that_are_the_clean_ones_are_noted(
    network: WideResNet, test_split: Split, tmp_path: Path
) -> None:
    corrupted = corrupted_set(tmp_path / "c", ("fog", "snow"), test_split.labels[:COUNT])
    assert evaluate(network, test_split, corrupted, device=CPU).notes == ()
    np.save(tmp_path / "c" / "snow.npy", np.tile(test_split.images[:COUNT], (5, 1, 1, 1)))
    found = evaluate(network, test_split, open_corrupted(tmp_path / "c", "toy"), device=CPU, notes=["one"])
    assert found.notes[0] == "one"
    assert "are the clean ones, pixel for pixel, in snow at severity 1, snow at" in found.notes[1]
