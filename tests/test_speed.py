"""`benchmarks/speed.py`: it runs, the rivals' meta-gradients are right, and its exit code tells."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import baselines
import pytest
import speed
import torch
import variants
from harness import WorkerError
from speed import Bar, Bench, Figure

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"
TINY = variants.Setting(depth=10, width=1, batch_size=8, images=20, device="cpu")


def test_the_script_runs_at_the_smallest_size(tmp_path: Path) -> None:
    rows = ["overhead", "eval-bare", "memory-eval"]
    size = "--depth 10 --width 1 --batch-size 8 --images 20 --pairs 1 --threads 1 --device cpu"
    options = [*size.split(), "--only", ",".join(rows), "--json", str(tmp_path / "speed.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *options]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["not_measured"] == {}
    assert [figure["name"] for figure in found["figures"]] == [*rows, "memory-eval"]
    assert all(math.isfinite(figure["median"]) and figure["median"] > 0 for figure in found["figures"])
    assert {figure["met"] for figure in found["figures"]} == {None}, "bars are for the default size"


@pytest.mark.parametrize("batch_norm", ["per-task", "joint"])
def test_the_textbook_meta_gradient_is_ours_in_float64(batch_norm: str) -> None:
    trainer, problem = variants._trainer(TINY, variants.TASKS, batch_norm)
    trainer.step(0, trainer.epoch_order(0)[:8])
    problem = replace(problem, lambdas=torch.full_like(problem.lambdas, 0.5)).to(torch.float64)
    torch.testing.assert_close(
        baselines.textbook(problem), baselines.ours(problem, beta=1e-3), rtol=1e-8, atol=0
    )


def figures(*names: str) -> Iterator[Figure]:
    for name in names:
        if name == "fails":
            raise WorkerError("it failed")
        if name == "missing":
            raise speed.NotInstalledError("it is not installed")
        yield Figure("automl", name, [{"met": 1.0, "missed": 9.0}[name]], Bar("≤", 2))


@pytest.mark.parametrize(
    ("threads", "what", "code"),
    [(2, "met", 0), (2, "missed", 1), (1, "missed", 0), (1, "fails", 1), (2, "missing", 0)],
)
def test_a_missed_bar_or_a_failure_is_exit_code_1(
    threads: int, what: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs: list[int] = []

    def measure(bench: Bench) -> Iterator[Figure]:
        pairs.append(bench.pairs)
        return figures(what)

    before = torch.get_num_threads()
    monkeypatch.setitem(speed.MEASUREMENTS, "automl", measure)
    arguments = ["speed.py", "--only", "automl", "--device", "cpu", "--threads", str(threads)]
    try:
        for more in ([], ["--pairs", "3"]):
            monkeypatch.setattr(sys, "argv", arguments + more)
            assert speed.main() == code
    finally:
        torch.set_num_threads(before)
    assert pairs == [9, 3]


@pytest.mark.parametrize("wrong", ["--pairs 0", "--pairs x", "--device cuda", "--depth 11", "--only x"])
def test_wrong_options_are_one_line(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["speed.py", *wrong.split()])
    with pytest.raises(SystemExit) as ended:
        speed.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1
