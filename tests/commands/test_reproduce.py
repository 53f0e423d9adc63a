"""`rssl reproduce` as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import refuse, rssl, succeed

from rsslcli.app import app, main
from rsslcli.core.study import PRESETS, plan


def test_a_study_from_nothing_to_its_report(home: Path) -> None:
    (home / "study.yaml").write_text(
        "{dataset: mine, epochs: 1, depth: 10, batch_size: 32, train_size: 32, validation_images: 20, "
        "warmup_epochs: 0}"
    )
    command = "reproduce --preset quick --config study.yaml --only baseline,automl --output study"
    listed = succeed(f"{command} --dry-run", cwd=home)
    assert re.search(r"1 +│ baseline-s0 +│ to do +│ \d+ min", listed)
    assert "1: rssl train-single --task none --preset quick --config study.yaml" in listed
    assert "2 of 2 cells are left: about" in listed
    assert not (home / "study").exists()

    result = rssl(f"{command} --jobs 2", cwd=home)
    assert result.returncode == 0, result.stderr
    assert "cell 10 automl-s0: done" in result.stderr
    assert "2 done" in result.stdout
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
    refuse(f"{command} --seeds 1 --preset small", cwd=home, match="baseline-s0 is of another study")


def test_the_commands_of_the_grid_train_what_it_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each cell's command line, read as the program reads it, resolves to the cell's configuration."""
    for preset in PRESETS:
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
        ("--add-task flip", "unknown task 'flip'"),
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
