"""The commands under `torchrun`, with two ranks on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY, succeed

from rsslcli import app
from rsslcli.core.weights.checkpoint import load_checkpoint

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "rsslcli"]
TRAIN = f"train-automl --tasks rotation,ir --config my.yaml {TINY} --epochs 3"


@pytest.fixture(scope="module")
def ranks_home(home: Path) -> Path:
    """The data set `mine` and a configuration for it."""
    (home / "my.yaml").write_text("{validation_images: 10, warmup_epochs: 1, meta_batch_size: 5}")
    return home


def start(arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCH, *arguments.split()],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=240)
    finally:
        process.kill()


def steps(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if "lr" in record]


def wait_for_steps(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has recorded so many steps."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(steps(run)) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"no {count} steps: {process.communicate(timeout=10)[1]}")


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, in their order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(pid) for pid in children)


def test_trains_and_evaluates_with_one_voice(ranks_home: Path) -> None:
    out, stderr = finish(process := start(f"{TRAIN} --output ranks", ranks_home))
    assert process.returncode == 0, stderr
    assert out.count("clean accuracy") == 1
    assert stderr.count("next: rssl eval-c ranks\n") == 1
    assert stderr.count("epoch   3/3") == 1
    assert steps(ranks_home / "ranks") == list(range(1, 31))
    assert "2 ranks" in (ranks_home / "ranks" / "log.txt").read_text()

    out, stderr = finish(process := start("eval-c ranks --output two.json", ranks_home))
    assert process.returncode == 0, stderr
    assert out.count("written to two.json") == 1
    succeed("eval-c ranks --output one.json", cwd=ranks_home)
    one, two = (json.loads((ranks_home / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two


def test_a_mistake_is_told_once(ranks_home: Path) -> None:
    _, stderr = finish(process := start("train-automl --tasks nonsense", ranks_home))
    assert process.returncode != 0
    assert stderr.count("rssl: error: unknown task 'nonsense'") == 1


@pytest.mark.parametrize("mistake", ["--tasks nonsense", "--nonsense"])
def test_other_ranks_let_the_first_one_speak(
    mistake: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When one ends, torchrun ends the others: the first one may still be starting."""
    waited: list[float] = []
    monkeypatch.setattr(app, "IS_FIRST_HERE", False)
    monkeypatch.setattr(app.time, "sleep", waited.append)
    monkeypatch.setattr(sys, "argv", ["rssl", "train-automl", *mistake.split()])
    with pytest.raises(SystemExit, match="2"):
        app.main()
    assert waited == [10]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks' processes in /proc")
def test_a_rank_that_dies_ends_the_job_and_resume_goes_on(ranks_home: Path) -> None:
    run = ranks_home / "died"
    process = start(f"{TRAIN} --epochs 40 --output died", ranks_home)
    wait_for_steps(run, 12, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, stderr = finish(process)
    assert process.returncode != 0
    assert "rssl: error: another rank of this job ended" in stderr
    saved, recorded = load_checkpoint(run).step, len(steps(run))
    assert 10 <= saved <= recorded
    process = start("train-automl --output died --resume", ranks_home)
    wait_for_steps(run, recorded + 5, process)  # what the metrics say of steps that were lost is no progress
    process.send_signal(signal.SIGTERM)
    finish(process)
    after = load_checkpoint(run).step
    assert after > saved
    assert steps(run) == list(range(1, after + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks' processes in /proc")
def test_a_signal_saves_the_run_at_the_same_step_and_one_process_goes_on(ranks_home: Path) -> None:
    run = ranks_home / "ranks-stopped"
    process = start(f"{TRAIN} --output ranks-stopped", ranks_home)
    wait_for_steps(run, 3, process)
    process.send_signal(signal.SIGTERM)
    _, stderr = finish(process)
    assert "all saved in ranks-stopped; resume with: torchrun --nproc-per-node " in stderr
    assert 0 < load_checkpoint(run).step < 30
    succeed("train-automl --output ranks-stopped --resume", cwd=ranks_home)
    assert steps(run) == list(range(1, 31))
