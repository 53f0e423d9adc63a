"""Evaluations beside their checkpoint: none takes the place of a better one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.evaluation.files import (
    evaluation_path,
    load_evaluation,
    other_evaluations,
    outcomes_in,
    read_evaluation,
    save_whole,
)
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.result import Evaluation

ABOUT = {"step": 9, "weights": "w", "test_data": "t", "corrupted_data": "c", "precision": "float32"}


def evaluation(accuracy: float = 0.5, excluded: tuple[int, ...] = (), **about: Any) -> Evaluation:
    """A whole evaluation of the 10 images but those that are excluded."""
    cells: dict[str, list[float | None]] = {name: [accuracy] * 5 for name in CORRUPTIONS}
    return Evaluation(0.6, 10, cells, 10 - len(excluded), excluded, ABOUT | about)


def contents(folder: Path) -> dict[str, float]:
    """The mean accuracy in each file."""
    return {
        path.name: json.loads(path.read_text())["mean_accuracy"] for path in sorted(folder.glob("*.json"))
    }


def test_a_part_another_data_set_and_another_file_have_names_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "checkpoint.pt"
    assert evaluation_path(run) == tmp_path / "eval-c.json"
    assert evaluation_path(run, part="partial").name == "eval-c-partial.json"
    assert evaluation_path(run, dataset="other").name == "eval-c-other.json"
    assert evaluation_path(run, dataset="other", part="robustbench").name == "eval-c-other-robustbench.json"
    assert evaluation_path(tmp_path / "best.pt").name == "eval-c-best.json"


@pytest.mark.parametrize(
    "change", [{"step": 12, "weights": "v"}, {"corrupted_data": "d"}, {"test_data": "u"}]
)
def test_a_whole_evaluation_of_newer_weights_or_data_replaces_the_older(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "eval-c.json"
    save_whole(evaluation(0.5), path)
    newer = evaluation(0.7, (3,), precision="bfloat16", **change)
    assert save_whole(newer, path) == (path, [])
    assert contents(tmp_path) == {"eval-c.json": pytest.approx(0.7)}


def test_a_calibrated_evaluation_outlives_a_plain_one_on_its_images(tmp_path: Path) -> None:
    path = tmp_path / "eval-c.json"
    calibrated = {"calibrated": {"temperature": 2.0}}
    save_whole(evaluation(0.5, (3,), **calibrated), path)
    for accuracy, excluded in ((0.6, ()), (0.7, (3,)), (0.8, ())):
        save_whole(evaluation(accuracy, excluded), path)
    kept = {file.name for file in tmp_path.iterdir() if "calibrated" in json.loads(file.read_text())}
    assert kept == {"eval-c-9-images.json"}
    assert {0.5, 0.7, 0.8} <= {round(mean, 3) for mean in contents(tmp_path).values()}


@pytest.mark.parametrize("old", [True, False])
def test_a_less_precise_evaluation_goes_beside_the_more_precise(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "eval-c.json"
    save_whole(evaluation(0.5), path)
    if old:  # as written before evaluations had a fingerprint of the weights and a precision
        content = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in ("weights", "precision")}))
    beside, notes = save_whole(evaluation(0.4, precision="bfloat16"), path)
    assert beside.name == "eval-c-bfloat16.json"
    assert notes == ["eval-c.json keeps the evaluation of these weights in higher precision"]
    assert contents(tmp_path) == {
        "eval-c-bfloat16.json": pytest.approx(0.4), "eval-c.json": pytest.approx(0.5)
    }  # fmt: skip
    assert save_whole(evaluation(0.6), path) == (path, [])
    assert contents(tmp_path)["eval-c.json"] == pytest.approx(0.6)


def test_an_evaluation_on_other_images_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "eval-c.json"
    save_whole(evaluation(0.5), path)
    assert save_whole(evaluation(0.4, (1, 2, 3)), path) == (
        path, ["eval-c-10-images.json keeps the evaluation that excluded other images"]
    )  # fmt: skip
    assert contents(tmp_path) == {
        "eval-c-10-images.json": pytest.approx(0.5), "eval-c.json": pytest.approx(0.4)
    }  # fmt: skip
    assert save_whole(evaluation(0.3, (1, 2, 3)), path) == (path, [])
    assert other_evaluations(tmp_path) == ["eval-c-10-images.json"]


def test_a_plain_evaluation_keeps_the_calibrated_one_before(tmp_path: Path) -> None:
    """As after `--calibrate` for a run that tuned λ, whose calibrated evaluation is eval-c.json."""
    path = tmp_path / "eval-c.json"
    calibrated = evaluation(0.5, (1, 2), calibrated={"temperature": 2.0})
    save_whole(calibrated, path)
    assert save_whole(calibrated, path) == (path, [])
    plain = evaluation(0.5, (1, 2))
    notes = ["eval-c-calibrated.json keeps the calibrated evaluation"]
    assert save_whole(plain, path) == (path, notes)
    assert save_whole(plain, path) == (path, [])
    temperatures = {
        name: json.loads((tmp_path / name).read_text()).get("calibrated") for name in contents(tmp_path)
    }
    assert temperatures == {"eval-c-calibrated.json": {"temperature": 2.0}, "eval-c.json": None}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 99_999, b'{"images": 1}', b'{"images": "../x", "excluded": []}']
)
def test_a_damaged_evaluation_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "eval-c.json"
    path.write_bytes(content)
    assert save_whole(evaluation(0.5), path) == (path, [])
    assert contents(tmp_path) == {"eval-c.json": pytest.approx(0.5)}


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": None}, {"accuracy": {}}, {"accuracy": {"rain": [0.5] * 5}},
        {"accuracy": {"fog": [0.5] * 4}}, {"accuracy": {"fog": [0.5] * 6}},
        {"accuracy": {"fog": [0.5] * 4 + [1.2]}}, {"accuracy": {"fog": [True] * 5}},
        {"accuracy": {"fog": [float("nan")] * 5}}, {"accuracy": {"fog": "01010"}}, {"clean_accuracy": None},
        {"clean_accuracy": -0.1}, {"images": 0}, {"images": True}, {"images": 1 << 40}, {"images": 9.0},
        {"clean_images": 0}, {"excluded": None}, {"excluded": [-1]}, {"excluded": [[1]]},
        {"excluded": [1.5]}, {"excluded": "12"},
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "eval-c.json"
    evaluation(0.5).save(path)
    content = json.loads(path.read_text())
    assert load_evaluation(path) == content
    path.write_text(json.dumps(content | change))
    with pytest.raises(ValueError, match="is not an evaluation, or it is damaged"):
        load_evaluation(path)
    assert read_evaluation(path) is None


def test_what_older_versions_did_not_record_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "eval-c.json"
    old = {"accuracy": {"fog": [0.5, None, 0, 1, None]}, "clean_accuracy": 1, "images": 7, "excluded": [2]}
    path.write_text(json.dumps(old))
    assert load_evaluation(path) == old | {"precision": "float32", "clean_images": 7}


def test_cells_of_files_without_metrics_are_read_too(tmp_path: Path) -> None:
    """As older versions wrote them; a number that cannot be one is not used."""
    path = tmp_path / "eval-c.json"
    evaluation(0.5).save(path)
    sizes = {"clean/0": 10, "fog/3": 10, "snow/1": 10, "frost/1": 9}
    half = Outcome(10, 5)
    assert outcomes_in(path, ABOUT, [], sizes) == {"clean/0": Outcome(10, 6), "fog/3": half, "snow/1": half}
    content = json.loads(path.read_text())
    metrics = {name: {"fog": [0.25] * 5, "snow": ["x"] * 5} for name in ("nll", "brier", "ece")}
    path.write_text(json.dumps(content | metrics))
    found = outcomes_in(path, ABOUT, [], sizes)
    assert found["fog/3"] == Outcome(10, 5, nll=0.25, brier=0.25, ece=0.25)
    assert "snow/1" not in found


def test_no_evaluation_on_other_images_takes_the_place_of_another(tmp_path: Path) -> None:
    """They go aside by their number of images, which several may share."""
    path = tmp_path / "eval-c.json"
    for accuracy, excluded in ((0.5, (1,)), (0.6, (2,)), (0.7, (3,)), (0.8, (1,)), (0.9, (4,))):
        save_whole(evaluation(accuracy, excluded), path)
    assert contents(tmp_path) == {
        "eval-c-9-images-2.json": pytest.approx(0.6), "eval-c-9-images-3.json": pytest.approx(0.7),
        "eval-c-9-images.json": pytest.approx(0.8), "eval-c.json": pytest.approx(0.9),
    }  # fmt: skip


def test_none_of_lower_precision_or_calibrated_takes_the_place_of_one_on_other_images(tmp_path: Path) -> None:
    path = tmp_path / "eval-c.json"
    save_whole(evaluation(0.5), path)
    for accuracy, excluded in ((0.6, ()), (0.7, (1,))):
        save_whole(evaluation(accuracy, excluded, precision="bfloat16"), path)
    assert contents(tmp_path) == {
        "eval-c-bfloat16-10-images.json": pytest.approx(0.6), "eval-c-bfloat16.json": pytest.approx(0.7),
        "eval-c.json": pytest.approx(0.5),
    }  # fmt: skip
    calibrated = tmp_path / "b" / "eval-c-calibrated.json"
    calibrated.parent.mkdir()
    save_whole(evaluation(0.5, (1, 2), calibrated={"temperature": 2.0}), calibrated)
    save_whole(evaluation(0.6, (3,), calibrated={"temperature": 3.0}), calibrated.with_name("eval-c.json"))
    _, notes = save_whole(evaluation(0.6, (3,)), calibrated.with_name("eval-c.json"))
    assert notes == ["eval-c-calibrated-9-images.json keeps the calibrated evaluation"]
    assert contents(calibrated.parent) == {
        "eval-c-calibrated-9-images.json": pytest.approx(0.6), "eval-c-calibrated.json": pytest.approx(0.5),
        "eval-c.json": pytest.approx(0.6),
    }  # fmt: skip
