"""What a study will take: operations counted, their speed measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsslcli.core.estimate import Sizes, estimate
from rsslcli.core.study import plan


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
    assert found["baseline-s0"].seconds == pytest.approx((training + evaluation) / 1e9, rel=1e-3)
    rotation = steps * 64 * 5 * (3 * forward - 2 * first) + 6 * 500 * forward
    assert found["rotation-s0"].seconds == pytest.approx((rotation + evaluation) / 1e9, rel=1e-3)
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


def test_the_estimate_learns_from_finished_cells(tmp_path: Path) -> None:
    cells = plan("quick", tmp_path)
    run = cells[0].directory
    run.mkdir()
    for name in ("checkpoint.pt", "eval-c.json"):
        (run / name).touch()
    (run / "log.txt").write_text("t finished\n")
    (run / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 30}\n{"epoch": 2, "seconds": 70}\n')
    sizes = Sizes(train=2000, test=500, corrupted=0)
    found = estimate(cells[:2], sizes, speed=1.0)
    without = estimate(cells[1:2], sizes, speed=1.0)
    ratio = without["rotation-s0"].seconds / estimate(cells[1:2], sizes, speed=2.0)["rotation-s0"].seconds
    assert ratio == pytest.approx(2)
    assert 90 < found["baseline-s0"].seconds < 115
    assert 4 < found["rotation-s0"].seconds / found["baseline-s0"].seconds < 5
