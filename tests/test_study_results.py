"""The finished cells of the studies that the repository keeps are read, and none is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import study_section
from PIL import Image
from synthetic import make_run

from rsslcli.core.report import figures
from rsslcli.core.report.comparison import make_studies
from rsslcli.core.report.page import to_markdown
from rsslcli.core.report.runs import read_run, read_runs
from rsslcli.core.report.write import write_report

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


@pytest.mark.parametrize("name", study_section.PARTS)
def test_the_document_shows_what_the_cells_say(name: str) -> None:
    expected = study_section.PARTS[name](study_section.read_study())
    assert study_section.shown(name) == expected, "refresh it: python tests/study_section.py"


def test_rows_of_two_processors_are_compared_by_way_of_their_own_baselines() -> None:
    """The files' own numbers, for four seeds of the one processor and one of the other."""
    kept = {"automl": SMALL, "rotation": SMALL, "baseline": SMALL, "amx": study_section.AMX}

    def percent(row: str, seed: int) -> float:
        path = kept[row] / f"{row.replace('amx', 'baseline')}-s{seed}" / "eval-c.json"
        return 100 * json.loads(path.read_text())["mean_accuracy"]

    def gain(row: str, seed: int, baseline: str) -> float:
        return percent(row, seed) - percent(baseline, seed)

    differences = [
        gain("automl", seed, "amx" if seed else "baseline") - gain("rotation", seed, "baseline")
        for seed in range(5)
    ]
    table = study_section.between_processors(study_section.read_study())
    _, seeds, _, by_gain = table.rows[0]
    assert seeds == "0, 1, 2, 3, 4"
    assert float(by_gain.split()[0].replace("−", "-")) == pytest.approx(np.mean(differences), abs=0.0051)


def test_the_runs_of_both_processors_differ_in_nothing_else() -> None:
    ours = {run.directory.name: run for run in read_runs([SMALL])[0]}
    others, left_out = read_runs([study_section.AMX])
    assert not left_out
    assert {run.directory.name for run in others} == {f"baseline-s{seed}" for seed in range(5)}
    for run in others:
        same = ours[run.directory.name]
        assert (run.config, run.corrupted_data, run.images) == (same.config, same.corrupted_data, same.images)


def test_cells_are_kept_with_what_a_report_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """λ per epoch and the machine too; a cell that is not evaluated is left out."""
    four = ("rotation", "bir", "color", "ir")
    run = make_run(tmp_path / "study" / "automl-s0", tasks=four, weighting="automl")
    (run / "checkpoint.pt").touch()
    (run / "log.txt").write_text("2026-01-01 rssl 1.0.0, torch 2.9.0, CPU: automl\n2026-01-01 finished\n")
    (run / "eval-c.json").touch()
    (run / "eval-c-adapted-bn.json").write_text('{"adapted": {"mean_accuracy": 0.5}, "diagnostics": {}}')
    (make_run(tmp_path / "study" / "ir-s0", tasks=("ir",)) / "eval-c.json").unlink()
    monkeypatch.setattr(study_section, "SMALL", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    study_section.collect(tmp_path / "study")
    (kept,), left_out = read_runs([tmp_path / "kept"])
    whole = read_run(run)
    assert not left_out
    assert kept.trained_with == "rssl 1.0.0, torch 2.9.0, CPU"
    assert (kept.mean(), kept.history.seconds) == (whole.mean(), whole.history.seconds)
    ends = [whole.history.lambdas["ir"][step - 1, 1] for step in range(30, 241, 30)]
    assert kept.history.lambdas["ir"][:, 1].tolist() == ends
    adapted = tmp_path / "kept" / "automl-s0" / "eval-c-adapted-bn.json"
    assert json.loads(adapted.read_text()) == {"adapted": {"mean_accuracy": 0.5}}
    size = sum(path.stat().st_size for path in (tmp_path / "kept" / "automl-s0").iterdir())
    assert size < 20_000


def test_the_report_has_the_tables_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the comparisons that the text discusses."""
    monkeypatch.setattr(figures, "_PLOTS", {"training": figures._PLOTS["training"]})
    report = write_report([SMALL], tmp_path).markdown.read_text(encoding="utf-8")
    discussed = to_markdown([study_section.discussed(study_section.read_study())])
    shown = study_section.shown("tables").replace(discussed.strip(), "")
    lines = [line for line in shown.splitlines() if line.startswith(("|", "**"))]
    assert len(lines) > 70
    assert [line for line in lines if line not in report.splitlines()] == []


@pytest.mark.parametrize("name", study_section.PICTURES)
def test_the_pictures_are_of_these_cells(name: str) -> None:
    with Image.open(study_section.PICTURES[name]) as picture:
        drawn = picture.text["numbers"]  # type: ignore[attr-defined]
    assert drawn == study_section.digest(study_section.read_study())
