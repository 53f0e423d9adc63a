"""Each promise of docs/reliability.md about runs, with a test that tries to break it."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import RSSL, TINY, refuse, rssl, succeed

from rsslcli.core.weights.checkpoint import load_checkpoint

#: `rssl`, with a checkpoint after every step: a random moment is often in the middle of writing one.
EAGER = (
    "import rsslcli.core.training.loop as training; training.CHECKPOINT_SECONDS = 0.0; "
    "from rsslcli.app import main; main()"
)
#: One thread, so that what a step computes does not depend on how threads share it out.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "RSSL_DATA_DIR": "data"}
CONFIG = {"dataset": "mine", "validation_images": 10, "warmup_epochs": 1, "meta_batch_size": 5}


@pytest.fixture(scope="module")
def ready(home: Path) -> Path:
    """The data set `mine` and a configuration for it."""
    (home / "my.yaml").write_text(yaml.safe_dump(CONFIG))
    return home


def train(epochs: int, output: str) -> list[str]:
    options = f"train-automl --tasks rotation,ir --config my.yaml {TINY} --epochs {epochs} --output {output}"
    return options.split()


def launch(
    arguments: list[str], cwd: Path, *, eager: bool = False, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    assert RSSL
    command = [sys.executable, "-c", EAGER] if eager else [RSSL]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,  # noqa: PLW1509
    )


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


def sanitize(process: subprocess.Popen[str]) -> str:
    """The last line of the errors of a process that fails, which has no traceback."""
    _, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr, stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("rssl: error: "), stderr
    return last


def records(run: Path) -> list[dict[str, Any]]:
    """The metrics, but for what tells the time."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    clock = ("images_per_second", "seconds")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def tensors(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors inside a checkpoint."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}")


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (
        dict(tensors(torch.load(run / "checkpoint.pt", weights_only=True))) for run in (one, other)
    )
    assert first.keys() == second.keys()
    assert len(first) > 100
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert records(one) == records(other)


@pytest.mark.parametrize(
    ("kills", "epochs"), [(3, 3), pytest.param(20, 12, marks=pytest.mark.slow)], ids=["3", "20"]
)
def test_killed_at_random_moments_the_run_ends_the_same(ready: Path, kills: int, epochs: int) -> None:
    """Weights, λ, momenta and metrics are bit-identical to those of a run that nothing interrupts."""
    moments = random.Random(kills)
    whole, broken = ready / f"whole{kills}", ready / f"broken{kills}"
    process = launch(train(epochs, whole.name), ready)
    assert process.wait(timeout=300) == 0
    process.communicate()
    arguments = train(epochs, broken.name)
    for kill in range(kills):
        begun = (broken / "log.txt").stat().st_size if kill else 0
        process = launch(arguments, ready, eager=True)
        log = broken / "log.txt"
        wait_for(lambda log=log, begun=begun: log.exists() and log.stat().st_size > begun, process)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 1.2))
        assert process.poll() is None, "the run ended before it was killed: let it be longer"
        process.kill()
        process.communicate()
        arguments = ["train-automl", "--resume", "--output", broken.name]
        if not (broken / "checkpoint.pt").exists():
            arguments = train(epochs, broken.name)
    process = launch(arguments, ready, eager=True)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert_same_run(whole, broken)
    assert [r["step"] for r in records(broken) if "lr" in r] == list(range(1, 10 * epochs + 1))
    assert not list(broken.glob(".*.part")), "what a killed process leaves is cleaned up"


def test_a_killed_evaluation_goes_on(ready: Path) -> None:
    succeed(" ".join(train(2, "graded")), cwd=ready)
    succeed("eval-c graded --output whole.json", cwd=ready)
    moments = random.Random(1)
    partial = ready / "killed.json.partial"
    for _ in range(3):
        known = partial.stat().st_mtime_ns if partial.exists() else 0
        process = launch(["eval-c", "graded", "--output", "killed.json"], ready)
        wait_for(lambda known=known: partial.exists() and partial.stat().st_mtime_ns > known, process)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
    cells = len(json.loads(partial.read_text())["cells"])
    assert 3 <= cells < 96, "killed in the middle"
    succeed("eval-c graded --output killed.json", cwd=ready)
    assert (ready / "killed.json").read_bytes() == (ready / "whole.json").read_bytes()
    assert not partial.exists()


def test_a_killed_generation_goes_on(ready: Path) -> None:
    folder = ready / "data" / "again"
    shutil.copytree(ready / "data" / "mine", folder, ignore=shutil.ignore_patterns("corrupted"))
    command = ["prepare-data", "--dataset", "again", "--corruptions", "generate"]
    for kill in range(3):
        process = launch(command, ready)
        wait_for(lambda kill=kill: len(list(folder.glob("corrupted/*.npy"))) > 3 * kill, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
    assert len(list(folder.glob("corrupted/*.npy"))) < 20, "killed in the middle"
    succeed(" ".join(command), cwd=ready)
    for path in (ready / "data" / "mine" / "corrupted").glob("*.npy"):
        assert (folder / "corrupted" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(ready: Path, number: signal.Signals, code: int) -> None:
    run = ready / f"signal{code}"
    process = launch(train(50, run.name), ready)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 2, process)
    process.send_signal(number)
    message = sanitize(process)
    assert process.returncode == code
    found = re.search(
        r"stopped at step (\d+) of 500, all saved in signal\d+; resume with: (rssl .*)$", message
    )
    assert found, message
    assert found[2] == f"rssl train-automl --resume --output {run.name}"
    assert load_checkpoint(run).step == int(found[1]) == records(run)[-1]["step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(ready: Path, number: signal.Signals) -> None:
    # A step of many seconds.
    options = "--dataset mine --depth 40 --width 4 --batch-size 160 --epochs 1 --output slow"
    process = launch(["train-single", "--task", "rotation", *options.split()], ready)
    assert process.stderr
    wait_for((ready / "slow" / "log.txt").exists, process)
    time.sleep(1.0)
    process.send_signal(number)
    for line in process.stderr:
        if "once more to stop at once" in line:
            break
    else:
        pytest.fail("no word of the first signal")
    process.send_signal(number)
    began = time.monotonic()
    assert process.wait(timeout=60) == -number  # as the shell shows it: 128 + the signal
    assert time.monotonic() - began < 2
    process.communicate()
    assert not (ready / "slow" / "checkpoint.pt").exists()
    shutil.rmtree(ready / "slow")


def half_done(ready: Path, name: str) -> Path:
    """A run that was stopped after its first steps."""
    run = ready / name
    process = launch(train(3, name), ready)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 1, process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    return run


def test_a_file_size_limit_leaves_the_last_checkpoint(ready: Path) -> None:
    run = half_done(ready, "limited")
    before = (run / "checkpoint.pt").read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = launch(["train-automl", "--resume", "--output", "limited"], ready, before=limit)
    assert "cannot write limited/checkpoint.pt" in sanitize(process)
    assert process.returncode == 1
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not list(run.glob(".*.part"))
    succeed("train-automl --resume --output limited", cwd=ready)
    assert [r["step"] for r in records(run) if "lr" in r] == list(range(1, 31))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, as root")
def test_a_full_disk_leaves_the_last_checkpoint(ready: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        half = half_done(ready, "full")
        shutil.copytree(half, tmp_path / "full", ignore=shutil.ignore_patterns(".lock"))
        before = (tmp_path / "full" / "checkpoint.pt").read_bytes()
        free = shutil.disk_usage(tmp_path).free
        (tmp_path / "rest").write_bytes(bytes(max(free - 150_000, 0)))
        arguments = ["train-automl", "--resume", "--output", str(tmp_path / "full")]
        process = launch(arguments, ready)
        assert re.search(r"cannot write .*(No space left|checkpoint\.pt)", sanitize(process))
        assert process.returncode == 1
        assert (tmp_path / "full" / "checkpoint.pt").read_bytes() == before
        (tmp_path / "rest").unlink()
        succeed(" ".join(arguments), cwd=ready)
        assert [r["step"] for r in records(tmp_path / "full") if "lr" in r] == list(range(1, 31))
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(ready: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    arguments = " ".join(train(1, str(tmp_path / "run")))
    refuse(arguments, cwd=ready, match="cannot write .*Permission denied", code=1)


def test_a_file_in_the_place_of_the_folder(ready: Path) -> None:
    (ready / "taken").write_text("precious")
    refuse(" ".join(train(2, "taken/run")), cwd=ready, match="cannot write into taken/run", code=1)
    assert (ready / "taken").read_text() == "precious"


def test_a_folder_deleted_while_the_run_goes_on(ready: Path) -> None:
    run = ready / "deleted"
    process = launch(train(50, "deleted"), ready)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 1, process)
    shutil.rmtree(run)
    assert re.search(r"deleted(/metrics.jsonl)? was deleted during the run", sanitize(process))
    assert process.returncode == 1
    assert not run.exists(), "nothing half a run is put in its place"


def test_a_second_process_in_the_run_folder_is_refused(ready: Path) -> None:
    run = ready / "shared"
    process = launch(train(50, "shared"), ready)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 1, process)
    refuse("train-automl --resume --output shared", cwd=ready, match="shared is in use by another rssl")
    refuse(" ".join(train(2, "shared")), cwd=ready, match="in use|holds a run already")
    assert process.poll() is None
    process.terminate()
    assert "all saved" in sanitize(process)
    # The lock went with the process.
    assert rssl("train-automl --resume --output shared --epochs 1", cwd=ready).returncode == 2


def test_two_processes_prepare_the_same_data(ready: Path, tmp_path: Path) -> None:
    shutil.copytree(ready / "images", tmp_path / "images")
    command = "prepare-data --dataset mine --source images --corruptions generate"
    both = [launch(command.split(), tmp_path) for _ in range(2)]
    results = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    for path in (ready / "data" / "mine" / "corrupted").glob("*.npy"):
        assert (tmp_path / "data" / "mine" / "corrupted" / path.name).read_bytes() == path.read_bytes()


LONG_RUN = """
import os, resource, sys
from pathlib import Path
from rsslcli.core.config import Config
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.runtime import keep_freed_memory
from rsslcli.core.training.events import StepsDone
from rsslcli.core.training.loop import train

def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def note(event) -> None:
    if isinstance(event, StepsDone):
        step = event.record["step"]
        for mark in marks:
            if step >= mark and mark not in seen:
                seen[mark] = (resident(), len(os.listdir("/proc/self/fd")))

keep_freed_memory()
marks, seen = [int(sys.argv[1]), int(sys.argv[2])], {}
data = load("mine", Path("data"))
config = Config(
    dataset="mine", tasks=("rotation", "ir"), weighting="automl", warmup_epochs=1,
    epochs=int(sys.argv[2]) // 20 + 1, depth=10, width=1, batch_size=8,
    meta_batch_size=5, validation_images=10, device="cpu",
)
train(config, Path(sys.argv[3]), data, load_corrupted(data), on_event=note)
(early, files), (late, files_late) = (seen[mark] for mark in marks)
print(early, late, files, files_late)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("early", "late"), [(80, 200), pytest.param(200, 2000, marks=pytest.mark.slow)], ids=["200", "2000"]
)
def test_long_runs_hold_steady(ready: Path, early: int, late: int) -> None:
    """Memory grows by less than 2 %, and no file stays open."""
    out = subprocess.run(
        [sys.executable, "-c", LONG_RUN, str(early), str(late), f"long{late}"],
        cwd=ready,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    before, after, files, files_after = map(int, out.stdout.split())
    assert after < 1.02 * before, f"{before / 2**20:.1f} MiB, then {after / 2**20:.1f}"
    assert files_after == files
