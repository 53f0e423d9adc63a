"""`rssl reproduce` as a user runs it."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from helpers import Here, refuse, rssl, succeed
from rich.console import Console
from synthetic import make_run

from rsslcli.app import app, main
from rsslcli.commands.reproduce import _duration, _prepare, _sizes, _time_of_all, _View
from rsslcli.commands.study_table import print_study
from rsslcli.core.data.corrupted import open_corrupted
from rsslcli.core.report.write import Report, write_report
from rsslcli.core.study.cell import Cell
from rsslcli.core.study.grid import STUDY_SIZES, plan
from rsslcli.core.study.runner import CellEvent, Runner
from rsslcli.core.tasks import registry
from rsslcli.core.tasks.registry import BEST_TASKS


def test_a_study_from_nothing_to_its_report(home: Path) -> None:
    (home / "study.yaml").write_text(
        "{dataset: mine, epochs: 1, depth: 10, batch_size: 32, train_size: 32, validation_images: 20, "
        "warmup_epochs: 0}"
    )
    command = "reproduce --preset quick --config study.yaml --only baseline,automl --output study"
    listed = succeed(f"{command} --dry-run", cwd=home)
    assert re.search(r"1 +│ baseline-s0 +│ to do +│ +\d+[ –\w.]* (min|h)", listed)
    assert "1: rssl train-single --task none --preset quick --config study.yaml" in listed
    assert "2 of 2 cells are left: about" in listed
    assert not (home / "study").exists()

    result = rssl(f"{command} --jobs 2", cwd=home)
    assert result.returncode == 0, result.stderr
    assert "cell 10 automl-s0: done" in result.stderr
    assert "2 done" in result.stdout
    table = result.stdout.partition("2 done")[2]
    assert "Table 1. Accuracy in %" in table
    assert re.search(r"^ *Baseline +1 +\d+\.\d\d ", table, re.MULTILINE)
    assert re.search(r"^ *Four tasks, AutoML +1 +\d+\.\d\d +[+−]\d+\.\d\d ", table, re.MULTILINE)
    page = home / "study" / "report" / "report.html"
    assert str(page.relative_to(home)) in result.stdout
    assert "baseline" in page.read_text(encoding="utf-8")
    found = [
        json.loads((home / "study" / name / "eval-c.json").read_text())
        for name in ("baseline-s0", "automl-s0")
    ]
    assert found[0]["excluded"] == found[1]["excluded"], "both leave out what tuned λ in one of them"
    assert len(found[0]["excluded"]) == 20

    again = rssl(command, cwd=home)
    assert again.returncode == 0
    assert "2 skipped" in again.stdout
    refuse(f"{command} --seeds 1 --preset small", cwd=home, match="baseline-s0 belongs to another study")
    # Nor does a cell with other settings come in beside the finished ones.
    (home / "other.yaml").write_text((home / "study.yaml").read_text().replace("epochs: 1,", "epochs: 2,"))
    other = "reproduce --preset quick --config other.yaml --only rgb --output study"
    for more in ("", " --dry-run"):
        refuse(other + more, cwd=home, match="belongs to another study, with another epochs")
    assert not (home / "study" / "rgb-s0").exists()
    assert json.loads((home / "study" / "plan.json").read_text()) == {"seeds": 1, "added_tasks": []}


def test_a_study_goes_on_without_the_options_that_added_its_rows(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are done stay in the report; those that are not ask for the file of their task."""
    reported: list[str] = []

    def run(self: Runner, cells: Sequence[Cell], **_: object) -> dict[str, int]:
        for cell in cells:
            if not cell.directory.exists():
                make_run(cell.directory, mean=0.5, **cell.config.to_dict())
                (cell.directory / "log.txt").write_text("t finished\n")
                (cell.directory / "checkpoint.pt").touch()
                (cell.directory / "eval-c.json").touch()
        return {"done": len(cells), "failed": 0}

    def report(runs: Sequence[Path], output: Path) -> Report:
        reported[:] = [directory.name for directory in runs]
        return write_report(runs, output)

    monkeypatch.setattr(Runner, "run", run)
    monkeypatch.setattr("rsslcli.core.report.write.write_report", report)
    flip = Path(__file__).parents[2] / "docs" / "examples" / "flip.py"
    (tmp_path / "small.yaml").write_text("train_size: 64")
    command = f"reproduce --preset quick --dataset mine --output {tmp_path / 'study'}"
    command += f" --config {tmp_path / 'small.yaml'}"
    out = here.succeed(f"{command} --only flip,automl-flip --add-task flip --task-file {flip} --seeds 2")
    assert "4 of 24 cells" in out
    registry._registered.clear()
    registry._files.clear()
    out = here.succeed(f"{command} --only baseline")
    assert "6 of 24 cells" in out
    assert {"flip-s1", "automl-flip-s0", "baseline-s1"} <= set(reported)
    assert re.search(r"flip +2 +\d\d\.\d\d ± ", out), "its row is in the table"

    shutil.rmtree(tmp_path / "study" / "flip-s0")
    here.refuse(command, r"flip-s0 is not done: unknown task 'flip'.*as --task-file")
    assert len(reported) == 6
    here.succeed(f"{command} --task-file {flip}")
    assert len(reported) == 24
    registry._registered.clear()
    registry._files.clear()
    here.succeed(f"{command} --seeds 1")
    assert len(reported) == 24, "what is left out of an invocation stays in the report"


def test_table_1_fits_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the paper's figures and intervals over seeds, in 80 columns, no number is cut."""
    for seed in range(3):
        for name, tasks in (("baseline", ()), ("rotation", ("rotation",)), ("automl", BEST_TASKS)):
            weighting = "automl" if len(tasks) > 1 else "fixed"
            make_run(tmp_path / f"{name}-s{seed}", tasks=tasks, weighting=weighting, seed=seed)
    (study,) = write_report([tmp_path], tmp_path / "report").studies
    text = io.StringIO()
    monkeypatch.setattr("rsslcli.commands.study_table.out", Console(file=text, width=80))
    print_study(study)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text.getvalue()
    for row in study.rows:
        (line,) = (line for line in lines if line.startswith(f" {row.label} "))
        assert f"{row.paper:.2f}" in line
        assert f"{100 * row.means.mean():.2f} ± " in line
        assert ("[" in line) == ("]" in line), "an interval is on one line"


def test_table_1_shows_as_many_columns_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        make_run(tmp_path / f"baseline-s{seed}", seed=seed)
        make_run(tmp_path / f"rotation-s{seed}", tasks=("rotation",), seed=seed)
    (study,) = write_report([tmp_path], tmp_path / "report").studies
    widths = {80: (), 100: ("seeds",), 120: ("seeds", "clean", "the usual 15"), 200: ("(− baseline)",)}
    for width, columns in widths.items():
        text = io.StringIO()
        monkeypatch.setattr("rsslcli.commands.study_table.out", Console(file=text, width=width))
        print_study(study)
        head = text.getvalue().partition("───")[0].partition("computed in")[2]
        assert all(column in head for column in columns), width
        assert ("seeds" in head, "the usual 15" in head) == (width > 80, width > 100)
        assert max(map(len, text.getvalue().splitlines())) <= width


def test_a_bar_tells_the_time_that_is_left(tmp_path: Path) -> None:
    """By what this invocation has done of the training, or of the evaluation."""
    cell, clock = plan("quick", tmp_path)[0], [0.0]
    view = _View()
    view._bar.get_time = lambda: clock[0]
    for seconds, progress, phase, left in (
        (0, 0.6, "training", None), (10, 0.7, "training", None), (20, 0.8, "training", 20),
        (21, 0.0, "evaluating", None), (22, 0.2, "evaluating", None), (23, 0.4, "evaluating", 3),
    ):  # fmt: skip
        clock[0] = seconds
        view(CellEvent(cell, "running", progress, phase))
        (task,) = view._bar.tasks
        assert task.description == f"baseline-s0 {phase}"
        assert task.percentage == pytest.approx(100 * progress)
        if left is not None:
            assert task.time_remaining == pytest.approx(left, abs=1)
    view(CellEvent(cell, "done"))
    assert view._bar.tasks == []


def test_a_study_is_estimated_at_the_size_that_it_would_have(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before its data is prepared."""
    for preset, expected in (
        ("paper", (50_000, 10_000, 9_900)),
        ("small", (50_000, 10_000, 500)),
        ("quick", (4_000, 1_000, 400)),
    ):
        found = _sizes(preset, plan(preset, tmp_path)[0], None, tmp_path)
        assert (found.train, found.test, found.corrupted) == expected
    found = _sizes("paper", plan("paper", tmp_path, dataset="mine")[0], None, home / "data")
    assert (found.train, found.test, found.corrupted) == (160, 40, 20)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (61, 119, "2 min"),
        (1100, 2100, "19–35 min"),
        (1000, 9000, "17 min–2.5 h"),
        (9000, 15_000, "2.5–4.2 h"),
        (86_400, 864_000, "24.0 h–10.0 days"),
        (864_000, 8_640_000, "10.0–100.0 days"),
    ],
)
def test_durations_are_ranges(low: float, high: float, text: str) -> None:
    assert _duration(low, high) == text


def test_the_commands_of_the_grid_train_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each cell's command line, read as the program reads it, resolves to the cell's configuration."""
    for preset in STUDY_SIZES:
        for cell in plan(preset, tmp_path, seeds=1):
            arguments = [*cell.commands()[0], "--print-config"]
            arguments += ["--data-dir", str(tmp_path)]
            app(arguments, standalone_mode=False)
            assert yaml.safe_load(capsys.readouterr().out) == cell.config.to_dict(), arguments


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--preset smal", "unknown preset 'smal': did you mean 'small'"),
        ("--only rotaton --dry-run", "unknown cell 'rotaton': did you mean 'rotation"),
        ("--jobs 0", "--jobs 0: expected at least 1"),
        ("--only ,", "--only names no cell: give numbers, names or methods, or leave it out for all"),
        ("--add-task flip", "unknown task 'flip'"),
        ("--dataset nosuch --dry-run --only baseline", "no prepared data set 'nosuch'"),
    ],
)
def test_mistakes(
    arguments: str, match: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["rssl", "reproduce", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(match, capsys.readouterr().err)


def test_a_set_whose_generation_was_stopped_is_completed_first(home: Path, here: Here) -> None:
    """Else AutoML would be tuned, and every cell tested, on a part of the corruptions."""
    make = "prepare-data --dataset half --source images --corruptions generate --only fog,snow"
    here.succeed(f"{make} --data-dir half")
    folder = home / "half" / "half" / "corrupted"
    images = open_corrupted(folder, "half").images_per_cell
    assert _prepare("quick", "half", None, home / "half") > 0
    whole = open_corrupted(folder, "half")
    assert (len(whole.names), whole.images_per_cell) == (19, images)


def test_the_time_of_a_study_is_no_less_than_that_of_its_longest_cell() -> None:
    assert _time_of_all([60.0, 20.0, 20.0], 2) == 60
    assert _time_of_all([60.0, 50.0, 40.0], 2) == 75
    assert _time_of_all([], 2) == 0
