"""What a study will take: operations counted, their speed measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rsslcli.core.evaluation import measuring
from rsslcli.core.study.cell import Cell
from rsslcli.core.study.estimate import Sizes, Speed, _measure, estimate
from rsslcli.core.study.grid import plan


def test_the_estimate_counts_what_is_computed(tmp_path: Path) -> None:
    """Against a count by hand of the convolutions of a WRN-10-1 on 32×32 pixels."""
    first = 32 * 32 * 3 * 16 * 9
    blocks = [  # pixels of the output, channels in and out, of the two convolutions and of the shortcut
        (1024, 16, 16), (1024, 16, 16), (256, 16, 32), (256, 32, 32), (64, 32, 64), (64, 64, 64),
    ]  # fmt: skip
    shortcuts = 256 * 16 * 32 + 64 * 32 * 64
    forward = 2 * (first + sum(9 * p * i * o for p, i, o in blocks) + shortcuts + 64 * 10)
    cells = plan("quick", tmp_path)
    sizes = Sizes(train=2000, test=500, corrupted=300)
    found = estimate(cells[:2], sizes, speed=1e9)
    # The backward pass takes two forward ones, but for the gradient of the images, which nobody asks for.
    steps = 2000 // 64 * 6
    training = steps * 64 * (3 * forward - 2 * first) + 6 * 500 * forward
    evaluation = (500 + 95 * 300) * forward
    assert found["baseline-s0"].low == pytest.approx((training + evaluation) / 1e9, rel=1e-3)
    rotation = steps * 64 * 2 * (3 * forward - 2 * first) + 6 * 500 * forward
    assert found["rotation-s0"].low == pytest.approx((rotation + evaluation) / 1e9, rel=1e-3)
    assert found["baseline-s0"].high == found["baseline-s0"].low
    started = estimate(cells[:1], sizes, speed=1e9, startup=3)
    assert started["baseline-s0"].low == pytest.approx(found["baseline-s0"].low + 6), "a cell is two commands"
    weights = first // 1024 + sum(9 * i * o for _, i, o in blocks) + 16 * 32 + 32 * 64 + 650 + 2 * 336
    assert found["baseline-s0"].bytes == pytest.approx(2 * 4 * weights + steps * 150, rel=0.01)


def test_every_setting_of_the_machine_is_estimated(tmp_path: Path) -> None:
    """Precision, compilation and device change the speed, not the operations that are counted."""
    sizes = Sizes(train=200, test=50, corrupted=30)
    file = tmp_path / "machine.yaml"
    found = []
    for line in ("{}", "precision: bfloat16", "compile: true", "device: cuda"):
        file.write_text(line)
        found.append(estimate(plan("quick", tmp_path, config=file)[:4], sizes, speed=1e9))
    assert found == [found[0]] * len(found)


def finish(cell: Cell, seconds: int) -> None:
    """Leave the files of a cell whose training took so long."""
    cell.directory.mkdir(parents=True)
    (cell.directory / "checkpoint.pt").touch()
    (cell.directory / "eval-c.json").write_text('{"clean_accuracy": 0.5}')
    (cell.directory / "log.txt").write_text("t finished\n")
    epochs, steps = cell.config.epochs, 31
    speed = epochs * steps * cell.config.batch_size / seconds
    records = (
        {"step": epoch * steps, "epoch": epoch, "clean_accuracy": 0.5, "images_per_second": speed}
        for epoch in range(1, epochs + 1)
    )
    (cell.directory / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def test_the_estimate_learns_from_finished_cells(tmp_path: Path) -> None:
    """From the fastest to the slowest of the same kind of cell, and a bit more; else from similar cells."""
    cells = plan("quick", tmp_path, seeds=3)
    baselines = [cell for cell in cells if cell.method == "baseline"]
    finish(baselines[0], 100)
    finish(baselines[1], 200)
    sizes = Sizes(train=2000, test=500, corrupted=0)
    found = estimate(cells[:2] + baselines[1:], sizes, speed=1e12)
    assert found["baseline-s2"] == found["baseline-s0"]
    assert 80 < found["baseline-s2"].low < 100
    assert 200 < found["baseline-s2"].high < 240
    assert 1.8 < found["rotation-s0"].low / found["baseline-s0"].low < 2
    assert 1.8 < found["rotation-s0"].high / found["baseline-s0"].high < 2


def test_cells_with_tasks_that_are_not_known_here_are_left_out(tmp_path: Path) -> None:
    cell = plan("quick", tmp_path)[1]
    unknown = replace(cell, config=replace(cell.config, tasks=("flip",)))
    sizes = Sizes(train=200, test=50, corrupted=30)
    assert estimate([unknown], sizes, speed=1e9) == {}
    assert estimate([unknown, cell], sizes, speed=1e9).keys() == {"rotation-s0"}


def test_waiting_for_a_processor_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with something else slows the mean, not the best speed."""
    monkeypatch.setattr("rsslcli.core.study.estimate._KIND_SECONDS", 0.2)

    def call() -> None:
        time.sleep(0.02)
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass

    speed = _measure(call, 1000, torch.device("cpu"))
    assert 1000 / 0.015 < speed.best <= 1000 / 0.01
    assert speed.mean < 1000 / 0.03


def test_threads_that_wait_for_each_other_are_not_taken_for_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine one thread may be the best measure of what several could do."""
    timed: list[int] = []
    of_two: list[Speed] = []

    def time_it(call: object, operations: float, device: object) -> Speed:
        timed.append(torch.get_num_threads())
        return Speed(9.0, 4.0) if timed[-1] == 1 else of_two[0]

    monkeypatch.setattr("rsslcli.core.study.estimate._time", time_it)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for found, expected, measured in (
            (Speed(5.0, 1.0), Speed(9.0, 1.0), [2, 1]),
            (Speed(12.0, 1.0), Speed(12.0, 1.0), [2, 1]),
            (Speed(5.0, 4.8), Speed(5.0, 4.8), [2]),
        ):
            timed.clear()
            of_two[:] = [found]
            assert _measure(lambda: None, 1.0, torch.device("cpu")) == expected
            assert timed == measured
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_what_takes_too_long_is_estimated_by_what_is_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second left, the cheapest kind is measured and stands for all; with one, each kind is."""
    measured: list[float] = []

    def measure(call: object, operations: float, device: object) -> Speed:
        measured.append(operations)
        return Speed(2e9, 1e9)

    monkeypatch.setattr("rsslcli.core.study.estimate._measure", measure)
    cells, sizes = plan("quick", tmp_path)[:3], Sizes(train=200, test=50, corrupted=0)
    for budget, expected in ((0.0, 1), (1e9, 3)):
        monkeypatch.setattr("rsslcli.core.study.estimate.MEASURE_SECONDS", budget)
        measured.clear()
        found = estimate(cells, sizes)
        assert len(measured[1:]) == expected  # the first is the evaluation
        assert measured[1] == min(measured[1:])
        assert all(of.high == pytest.approx(2 * of.low) for of in found.values())


def test_an_evaluation_is_estimated_in_float32_where_training_is_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled: list[bool] = []

    def measure(call: Callable[[], object], operations: float, device: object) -> Speed:
        call()
        return Speed(1e9, 1e9)

    original = measuring.autocast
    monkeypatch.setattr(
        measuring, "autocast", lambda device, on: (enabled.append(on), original(device, on))[1]
    )
    monkeypatch.setattr("rsslcli.core.study.estimate._measure", measure)
    file = tmp_path / "b.yaml"
    file.write_text("precision: bfloat16")
    estimate(plan("quick", tmp_path, config=file)[:1], Sizes(train=200, test=50, corrupted=30))
    assert enabled
    assert not any(enabled)
