"""The job array of docs/examples/reproduce.slurm, with stand-ins for `sbatch`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import RSSL
from synthetic import make_run

from rsslcli.core.report.comparison import make_studies
from rsslcli.core.report.runs import read_runs
from rsslcli.core.study.grid import choose, plan

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "reproduce.slurm"

#: Runs the tasks of an array at once, as Slurm does on several nodes: sbatch [--array=A-B] SCRIPT OPTIONS…
SBATCH = f"""#!{sys.executable}
import os, pathlib, re, subprocess, sys
arguments = sys.argv[1:]
array = arguments.pop(0) if arguments[0].startswith("--array=") else None
lines = pathlib.Path(arguments[0]).read_text().splitlines()
options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
array = array or next(option for option in options if option.startswith("--array="))
tasks = []
for part in array.partition("=")[2].split(","):
    first, _, last = part.partition("-")
    tasks += range(int(first), int(last or first) + 1)
started = [
    subprocess.Popen(["sh", *arguments], env=os.environ | {{"SLURM_ARRAY_TASK_ID": str(task)}})
    for task in tasks
]
sys.exit(max(process.wait() for process in started))
"""


def submit(folder: Path, *arguments: str, rssl: str) -> subprocess.CompletedProcess[str]:
    """Submit the script as a user does, with `sbatch` and this `rssl` first in the path."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, text in (("sbatch", SBATCH), ("rssl", rssl)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "RSSL_DATA_DIR": "data"}
    return subprocess.run(
        ["sbatch", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_each_task_of_the_array_runs_a_cell_of_its_own(tmp_path: Path) -> None:
    record = (
        f'#!{sys.executable}\nimport json, sys\nopen("calls", "a").write(json.dumps(sys.argv[1:]) + "\\n")\n'
    )
    result = submit(tmp_path, str(SCRIPT), rssl=record)
    assert result.returncode == 0, result.stderr
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    cells = plan("paper", tmp_path)
    chosen = []
    for command, only, number in calls:
        assert (command, only) == ("reproduce", "--only")
        chosen += choose(cells, [number])
    assert sorted(cell.number for cell in chosen) == [cell.number for cell in cells]

    (tmp_path / "calls").unlink()
    submit(tmp_path, "--array=7", str(SCRIPT), "--preset", "small", "--seeds", "5", rssl=record)
    assert json.loads((tmp_path / "calls").read_text()) == [
        "reproduce", "--only", "7", "--preset", "small", "--seeds", "5",
    ]  # fmt: skip


def test_the_arrays_of_the_documents_cover_their_cells(tmp_path: Path) -> None:
    last = str(len(plan("small", tmp_path, seeds=5)))
    for document in (SCRIPT, SCRIPT.parents[1] / "cluster.md"):
        text = document.read_text(encoding="utf-8")
        assert re.findall(r"--array=1-(\d+) reproduce.slurm --preset small --seeds 5", text) == [last]


def test_tasks_at_the_same_time_share_a_study(home: Path) -> None:
    """Two cells in processes of their own, as on two nodes."""
    (home / "array.yaml").write_text(
        "{dataset: mine, epochs: 1, depth: 10, batch_size: 32, train_size: 32, validation_images: 20, "
        "warmup_epochs: 0}"
    )
    options = ["--preset", "quick", "--config", "array.yaml", "--output", "array"]
    result = submit(home, "--array=1-2", str(SCRIPT), *options, rssl=f'#!/bin/sh\nexec {RSSL} "$@"\n')
    assert result.returncode == 0, result.stderr
    # On a busy machine, the second task may start when the first is done. "1 of 3 cells" counts the study's.
    assert set(re.findall(r"^1 (?!of )\w+", result.stdout, re.MULTILINE)) <= {"1 done", "1 skipped"}
    states = {cell.name: cell.status() for cell in plan("quick", home / "array", config=home / "array.yaml")}
    assert {name for name, state in states.items() if state == "done"} == {"baseline-s0", "rotation-s0"}
    assert not list((home / "array").rglob("*.part"))
    assert (home / "array" / "report" / "report.html").is_file()


def test_results_of_several_machines_are_one_study(tmp_path: Path) -> None:
    """Cells from two folders are compared as from one; one that is in both counts once, and is named."""
    for seed in (0, 1):
        for folder in ("all", "here"):
            make_run(tmp_path / folder / f"baseline-s{seed}", seed=seed, mean=0.5 + seed / 100)
        for folder in ("all", "there"):
            make_run(tmp_path / folder / f"ir-s{seed}", tasks=("ir",), seed=seed, mean=0.51 + seed / 50)
    (whole,), _ = make_studies(read_runs([tmp_path / "all"])[0])
    (merged,), left_out = make_studies(read_runs([tmp_path / "here", tmp_path / "there"])[0])
    assert not left_out
    assert [row.label for row in merged.rows] == [row.label for row in whole.rows] == ["Baseline", "IR"]
    assert merged.against_baseline[0][1] == whole.against_baseline[0][1]
    make_run(tmp_path / "there" / "baseline-s1", seed=1, mean=0.7)
    (merged,), (again,) = make_studies(read_runs([tmp_path / "here", tmp_path / "there"])[0])
    assert merged.rows[0].means.tolist() == whole.rows[0].means.tolist()
    assert again.directory == tmp_path / "there" / "baseline-s1"
    assert again.reason == f"has the same configuration and seed as {tmp_path / 'here' / 'baseline-s1'}"
