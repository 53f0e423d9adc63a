"""The parts of the demo: two runs that resume, and what they are compared by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rsslcli.core.data import loading, shapes
from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.data.store import Dataset
from rsslcli.core.errors import InterruptedTrainingError, UserError
from rsslcli.core.study import demo

Data = tuple[Dataset, CorruptedSet]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The embedded data set, a small one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "TRAIN_SIZE", 64)
        patch.setattr(shapes, "TEST_SIZE", 30)
        patch.setattr(loading, "EMBEDDED_LIMIT", 10)
        dataset = load("shapes", tmp_path_factory.mktemp("data"))
        return dataset, load_corrupted(dataset)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_COMMON", {"epochs": 1, "train_size": 32, "batch_size": 16})


def train(cell: demo.Cell, dataset: Dataset, *, stop: bool = False) -> list[object]:
    events: list[object] = []
    demo.train_cell(cell, dataset, on_event=events.append, should_stop=lambda: stop)
    return events


def test_a_baseline_and_augmix_differ_in_one_setting(tmp_path: Path) -> None:
    baseline, augmix = (cell.config.to_dict() for cell in demo.demo_cells(tmp_path, seed=3))
    assert {key for key in baseline if baseline[key] != augmix[key]} == {"augment"}
    assert (baseline["seed"], baseline["dataset"], baseline["tasks"]) == (3, "shapes", [])


def test_a_run_resumes_and_is_not_trained_or_evaluated_twice(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, corrupted = data
    cell = demo.demo_cells(tmp_path)[0]
    with pytest.raises(InterruptedTrainingError):
        train(cell, dataset, stop=True)
    train(cell, dataset)
    assert cell.folder.is_trained()
    assert train(cell, dataset) == []
    found = demo.evaluate_cell(cell, dataset, corrupted)
    content = json.loads(cell.folder.evaluation.read_text())
    assert content["clean_accuracy"] == found["clean"].mean()
    for name, values in content["accuracy"].items():
        assert values == found[name].mean(1).tolist()

    file = cell.directory / demo.CORRECT
    whole = file.read_text()
    for damaged in (
        "",
        "[]",
        "{}",
        whole[:1000],
        whole.replace("fog", "frog"),
        whole.replace('["1', '["').replace('["0', '["'),
    ):
        file.write_text(damaged)
        again = demo.evaluate_cell(cell, dataset, corrupted)
        assert all(np.array_equal(again[key], found[key]) for key in found)
        assert file.read_text() == whole
    monkeypatch.setattr(demo, "evaluate", None)
    again = demo.evaluate_cell(cell, dataset, corrupted)
    assert all(np.array_equal(again[key], found[key]) for key in found)


def test_runs_with_other_settings_or_images_are_refused(data: Data, tmp_path: Path) -> None:
    dataset, _ = data
    cell = demo.demo_cells(tmp_path)[0]
    train(cell, dataset)
    with pytest.raises(UserError, match=r"with another seed .* choose another `output`"):
        demo.demo_cells(tmp_path, seed=1)
    other = Dataset("shapes", dataset.folder, dataset.test, dataset.test)
    with pytest.raises(UserError, match="trained on an earlier drawing of 'shapes': choose another `output`"):
        train(cell, other)


def test_the_comparison_is_with_the_first_one() -> None:
    """Of two images, in two cells: by hand."""
    first = {"clean": [[1, 1]], "fog": [[1, 0], [0, 0]]}
    second = {"clean": [[1, 0]], "fog": [[1, 1], [1, 1]]}
    rows = demo.compare(
        {
            name: {key: np.array(right, bool) for key, right in correct.items()}
            for name, correct in (("baseline", first), ("augmix", second))
        }
    )
    assert [(row.name, row.clean, row.corrupted) for row in rows] == [
        ("baseline", 1.0, 0.25),
        ("augmix", 0.5, 1.0),
    ]
    assert rows[0].difference is None
    assert rows[1].difference == (0.75, 0.5, 1.0)
