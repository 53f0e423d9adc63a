"""What TensorBoard shows of a run: each step once, also over resumes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from rsslcli.core.config import Config
from rsslcli.core.training.events import EpochDone, Started, StepsDone
from rsslcli.core.training.tensorboard import TensorBoardWriter

pytest.importorskip("tensorboard", reason="needs the extra rsslcli[tensorboard]")


def shown(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars that TensorBoard reads: by tag, (step, value)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's own
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        return {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }


def go(run: Path, first: int, last: int, crash: bool = False) -> TensorBoardWriter:
    """Tell a writer of steps, the last of which ends an epoch unless the run crashed."""
    with TensorBoardWriter() as writer:
        writer(
            Started(
                Config(),
                run,
                "cpu",
                images=1,
                validation_images=0,
                step=first - 1,
                steps=9,
                steps_per_epoch=9,
            )
        )
        for step in range(first, last + 1):
            writer(
                StepsDone({"step": step, "epoch": 1, "lr": 0.5, "loss/main": step / 4, "lambda/ir": first})
            )
        if not crash:
            writer(EpochDone({"step": last, "epoch": 1, "clean_accuracy": 0.75, "seconds": 3.0}))
    return writer


def test_every_step_is_shown_once(tmp_path: Path) -> None:
    go(tmp_path, 1, 5, crash=True)  # its checkpoint was of step 3
    go(tmp_path, 4, 6)
    go(tmp_path, 7, 7)
    scalars = shown(tmp_path)
    assert scalars["loss/main"] == [(step, step / 4) for step in range(1, 8)]
    assert scalars["lambda/ir"] == [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 4), (7, 7)]
    assert scalars["clean_accuracy"] == [(6, 0.75), (7, 0.75)]
    assert scalars.keys() == {"lr", "loss/main", "lambda/ir", "clean_accuracy"}


def test_a_run_that_starts_anew_shows_nothing_old(tmp_path: Path) -> None:
    go(tmp_path, 1, 3, crash=True)  # before the first checkpoint
    go(tmp_path, 1, 2)
    assert shown(tmp_path)["loss/main"] == [(1, 0.25), (2, 0.5)]


def test_nothing_is_written_before_the_run_begins(tmp_path: Path) -> None:
    with TensorBoardWriter():
        pass
    assert not list(tmp_path.iterdir())
