"""A run directory: the names of its files and its state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rsslcli.core.run_folder import RunFolder, partial_evaluation, tail


def test_the_files_tell_how_far_a_run_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.state() == "to do"
    folder.path.mkdir()
    folder.checkpoint.write_bytes(b"")
    folder.log.write_text("12:00 rssl 1.0\n")
    assert not folder.is_trained()
    assert folder.state() == "begun"
    folder.log.write_text("12:00 rssl 1.0\n12:01 finished\n")
    assert folder.is_trained()
    assert folder.state() == "begun"
    folder.evaluation.write_text('{"clean_accuracy": 0.5}')
    assert folder.state() == "done"
    folder.checkpoint.unlink()
    assert folder.state() == "done", "to save space"
    assert not folder.is_trained()
    folder.failure.write_text("no luck\n")
    assert folder.state() == "done", "whatever failed before"
    folder.evaluation.unlink()
    assert folder.state() == "failed"


@pytest.mark.parametrize(
    ("content", "state"),
    [
        ('{"step": 31, "clean_accuracy": 0.5}', "done"),
        ('{"clean_accuracy": 0.5}', "done"),
        ('{"step": 30, "clean_accuracy": 0.5}', "begun"),
        ('{"step": 31}', "begun"),
        ('{"step": 3', "begun"),
        ("[]", "begun"),
        ('"clean_accuracy"', "begun"),
    ],
)
def test_an_evaluation_of_another_step_does_not_count(tmp_path: Path, content: str, state: str) -> None:
    """The files' times say nothing: a copy may have any."""
    folder = RunFolder(tmp_path)
    folder.evaluation.write_text(content)
    folder.metrics.write_text('{"step": 30}\n{"step": 31, "clean_accuracy": 0.5}\n')
    folder.log.write_text("12:01 finished\n")
    folder.checkpoint.write_bytes(b"")
    os.utime(folder.evaluation, (1, 1))
    assert folder.state() == state


def test_the_names_of_a_runs_files_stay_as_old_runs_have_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    files = (folder.config, folder.metrics, folder.checkpoint, folder.log, folder.evaluation, folder.failure)
    assert [file.name for file in files] == [
        "config.yaml",
        "metrics.jsonl",
        "checkpoint.pt",
        "log.txt",
        "eval-c.json",
        "failed.txt",
    ]
    assert folder.tensorboard.name == "tensorboard"
    assert partial_evaluation(folder.evaluation).name == "eval-c.json.partial"


def test_the_tail_of_a_file_is_its_last_bytes(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert tail(file) == b""
    file.write_bytes(b"0123456789")
    assert tail(file, 4) == b"6789"
    assert tail(file) == b"0123456789"
