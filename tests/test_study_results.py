"""The finished cells of the studies that the repository keeps are read, and none is passed over."""

from __future__ import annotations

from pathlib import Path

from rsslcli.core.report.comparison import make_studies
from rsslcli.core.report.runs import read_runs

SMALL = Path(__file__).parents[1] / "results" / "small"


def test_every_cell_of_the_small_study_is_in_its_report() -> None:
    cells = [path.name for path in SMALL.iterdir() if path.is_dir()]
    runs, unread = read_runs([SMALL])
    assert not unread
    assert sorted(run.directory.name for run in runs) == sorted(cells)
    studies, left_out = make_studies(runs)
    assert len(studies) == 1
    assert not left_out
    assert {run.origin for run in runs} == {"generated"}
    assert {run.images for run in runs} == {900}
