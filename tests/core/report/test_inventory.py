"""A run's entry in the list says how far it is, from a few lines of its files."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from rsslcli.core.config import Config
from rsslcli.core.locks import is_locked, locked
from rsslcli.core.report.inventory import list_runs
from rsslcli.core.report.runs import read_runs

STARTED = "2026-03-01T10:00:00+02:00 rssl 0.1.0, torch 2.6.0: rotation on cifar10\n"


def make(folder: Path, *log: str, checkpoint: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(Config(tasks=("rotation",), epochs=3, warmup_epochs=0).to_yaml())
    (folder / "log.txt").write_text("".join((STARTED, *log)))
    if checkpoint:
        (folder / "checkpoint.pt").write_bytes(b"weights")
    return folder


def epoch(number: int, accuracy: str) -> str:
    return f"2026-03-01T10:0{number}:00+00:00 epoch {number}: clean accuracy {accuracy}\n"


DONE = (epoch(1, "0.3000"), epoch(3, "0.7500 on 9 of 10 test images"), "2026-03-01T11:00:00+00:00 finished\n")


def evaluate(run: Path, **content: object) -> None:
    known = {"clean_accuracy": 0.76, "mean_accuracy": 0.5, "images": 9, "excluded": [], "dataset": "cifar10"}
    (run / "eval-c.json").write_text(json.dumps({"accuracy": {"fog": [0.5] * 5}} | known | content))


def test_the_states_of_runs(tmp_path: Path) -> None:
    make(tmp_path / "a-begun", checkpoint=False)
    make(tmp_path / "b-interrupted", epoch(1, "0.3000"))
    make(tmp_path / "c-trained", *DONE)
    evaluate(make(tmp_path / "deep" / "d-evaluated", *DONE))
    old = make(tmp_path / "e-evaluated-before", *DONE)
    evaluate(old, step=30)  # which its metrics do not have
    (make(tmp_path / "f-failed", epoch(1, "0.3000")) / "failed.txt").write_text("no\x1b memory\n")
    (make(tmp_path / "g-damaged", *DONE) / "config.yaml").write_text("epochs: many\n")
    (tmp_path / "no run").mkdir()
    found = {entry.directory.name: entry for entry in list_runs(tmp_path)}
    assert [(name, entry.state, entry.epochs, entry.clean_accuracy, entry.mean_accuracy)
            for name, entry in found.items()] == [
        ("a-begun", "interrupted", 0, None, None),
        ("b-interrupted", "interrupted", 1, 0.3, None),
        ("c-trained", "trained", 3, 0.75, None),
        ("d-evaluated", "evaluated", 3, 0.76, 0.5),
        ("e-evaluated-before", "trained", 3, 0.75, None),
        ("f-failed", "failed", 1, 0.3, None),
        ("g-damaged", "damaged", 0, None, None),
    ]  # fmt: skip
    assert found["d-evaluated"].begun == datetime(2026, 3, 1, 8, tzinfo=timezone.utc)
    assert found["f-failed"].problem == f"{tmp_path}/f-failed failed: no\\x1b memory"
    assert found["g-damaged"].problem.endswith(
        "g-damaged/config.yaml: epochs: expected a whole number, got 'many'"
    )


def test_a_run_is_training_while_its_folder_is_locked(tmp_path: Path) -> None:
    run = make(tmp_path / "run", epoch(1, "0.3000"))
    assert not is_locked(run)
    with locked(run):
        assert is_locked(run)
        assert list_runs(tmp_path)[0].state == "training"
    assert list_runs(tmp_path)[0].state == "interrupted"


def test_later_runs_come_last(tmp_path: Path) -> None:
    for name, time in (("a", "2026-03-02T10:00:00+00:00"), ("b", "2026-03-01T10:00:00+00:00"), ("c", "junk")):
        (make(tmp_path / name) / "log.txt").write_text(f"{time} rssl\n")
    os.utime(tmp_path / "c", (10, 10))
    entries = list_runs(tmp_path)
    assert [entry.directory.name for entry in entries] == ["c", "b", "a"]
    assert entries[0].begun == datetime(1970, 1, 1, 0, 0, 10, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("content", "accuracies"),
    [
        ({"mean_accuracy": None}, (0.76, None)),
        ({"clean_accuracy": 7}, (0.75, None)),
        ({"mean_accuracy": "0.5"}, (0.76, None)),
        ({"images": "many"}, (0.75, None)),
        ({"dataset": "a\nb"}, (0.76, 0.5)),
    ],
)
def test_a_damaged_evaluation_gives_no_number(
    tmp_path: Path, content: dict[str, object], accuracies: tuple[float | None, float | None]
) -> None:
    evaluate(make(tmp_path / "run", *DONE), **content)
    (entry,) = list_runs(tmp_path)
    assert (entry.clean_accuracy, entry.mean_accuracy) == accuracies
    assert entry.evaluated_on is None or entry.evaluated_on.isprintable()


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a shared disk: a test that runs as root has to pretend."""
    evaluate(make(tmp_path / "seen", *DONE))
    (tmp_path / "hidden").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "hidden":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    hidden = next(entry for entry in list_runs(tmp_path) if entry.state == "damaged")
    assert (hidden.directory, len(list_runs(tmp_path))) == (tmp_path / "hidden", 2)
    assert hidden.problem.endswith("hidden cannot be read: Permission denied")
    _, left_out = read_runs([tmp_path])
    assert ("hidden", "cannot be read: Permission denied") in [(x.directory.name, x.reason) for x in left_out]
