"""`rssl report` as a person runs it."""

from __future__ import annotations

import re
from pathlib import Path

from helpers import refuse, rssl
from synthetic import make_run


def test_report(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"baseline-{seed}", seed=seed, mean=0.5)
        make_run(
            tmp_path / "runs" / f"[red]rotation-{seed}",
            tasks=("rotation",),
            seed=seed,
            mean=0.51 + 1e-5 * seed,
        )
    (make_run(tmp_path / "runs" / "[bold]new", seed=2) / "eval-c.json").unlink()
    result = rssl("report runs", cwd=tmp_path, COLUMNS="180")
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)
    assert result.stderr == "left out: runs/[bold]new: not evaluated: it has no eval-c.json\n"
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Rotation is better than the baseline by +1.00 [+0.99, +1.01] points in mean")
    (line,) = (line for line in lines if line.startswith(" Rotation"))
    cells = re.split(r" {2,}", line.strip())
    assert "the published corrupted set; 990 images in each cell" in " ".join(result.stdout.split())
    assert cells[:5] == ["Rotation", "76.37 (+2.30)", "2", "51.00 ± 0.00", "+1.00 [+0.99, +1.01]"]
    assert result.stdout.splitlines()[-1] == "open runs/report/report.html"
    assert (tmp_path / "runs" / "report" / "report.html").stat().st_size > 100_000

    refuse("report runs/nowhere", tmp_path, "runs/nowhere: expected a run directory or a folder of them")
