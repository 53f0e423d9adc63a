"""What the report shows of a run's mistakes, and that it shows nothing where none are recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_run
from test_write import Page

from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.evaluation.details import Details
from rsslcli.core.evaluation.diagnostics import Diagnostics, diagnose
from rsslcli.core.evaluation.files import mistakes_path
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.report import figures
from rsslcli.core.report.comparison import make_studies
from rsslcli.core.report.diagnosis import diagnosis
from rsslcli.core.report.diagnosis_figures import confusion
from rsslcli.core.report.page import Block, Gallery, Table
from rsslcli.core.report.runs import read_run, read_runs
from rsslcli.core.report.write import write_report

CLASSES = ("cat", "<b>dog</b>", "newt")


def invented(temperature: float | None = None, classes: tuple[str, ...] = CLASSES) -> Diagnostics:
    """Records of 60 images in each of the 96 cells; with a temperature, all probabilities are 0.4."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % len(classes)

    def outcome() -> Outcome:
        said = random.integers(0, len(classes), 60).astype(np.float64)
        scaled = None if temperature is None else np.full(60, 0.4)
        right = (said == labels).astype(np.float64)
        return Outcome(
            60, int(right.sum()), details=Details.of(said, right, random.uniform(0.4, 1, 60), scaled)
        )

    found = diagnose(
        {"clean": [outcome()], **{name: [outcome() for _ in range(5)] for name in CORRUPTIONS}},
        lambda name: labels,
        lambda name: np.arange(60),
        lambda name, severity, index: np.full((32, 32, 3), 40 * severity, np.uint8),
        classes,
        np.arange(len(classes)),
    )
    assert found is not None
    return found


def record(run: Path, found: Diagnostics, name: str = "eval-c.json") -> Path:
    """Add the records to a run's evaluation, or leave them in another one."""
    content = json.loads((run / "eval-c.json").read_text())
    content |= {"classes": list(found.classes), "diagnostics": found.to_dict()}
    (run / name).write_text(json.dumps(content))
    if found.sheet is not None and name == "eval-c.json":
        mistakes_path(run / name).write_bytes(found.sheet)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"baseline-s{seed}", seed=seed, mean=0.5)
    make_run(tmp_path / "runs" / "rotation-s0", tasks=("rotation",), seed=0, mean=0.6)
    return tmp_path / "runs"


def images(page: Page) -> list[str]:
    """The kinds of the page's images: all are inside the page."""
    sources = [
        str(attrs.get("src") or attrs.get("srcset")) for tag, attrs in page.tags if tag in {"img", "source"}
    ]
    assert all(source.startswith("data:image/") for source in sources)
    return [source[len("data:image/") :].partition(";")[0] for source in sources]


def test_a_run_with_records_shows_its_confusions_reliability_and_surest_mistakes(runs: Path) -> None:
    record(runs / "baseline-s0", invented())
    found = invented(temperature=2.0)
    record(runs / "rotation-s0", found)
    report = write_report([runs], runs / "report")
    page = Page(report.page)
    assert "What goes wrong" in page.text
    assert "In the run rotation-s0, seed 0 of “Rotation”" in page.text, "the most accurate row"
    for name in ("confusion.png", "reliability.png", "mistakes.jpg"):
        assert (runs / "report" / name) in report.figures
        assert (runs / "report" / name).is_file()
    assert images(page).count("jpeg") == 4 * 20, "four of the clean images and of each corruption"
    assert report.page.stat().st_size < 2_000_000
    # Not `Page.table`: a class is in several rows.
    (rows,) = (rows for caption, rows in page.tables.items() if caption.startswith("The most frequent conf"))
    label, said, count = found.confused["corrupted"][0]
    assert rows[1] == [label, said, f"{count:,}"]
    assert "of 5,700 corrupted images" in page.text
    mistake = found.mistakes["fog"][0]
    assert f"{mistake.label} → {mistake.predicted}" in page.text
    assert f"{100 * mistake.probability:.1f} %, severity {mistake.severity}" in page.text
    text = report.markdown.read_text()
    assert "](mistakes.jpg)" in text
    assert "- fog: " in text
    calibrated = 100 * found.calibrated["corrupted"].ece
    assert (
        f"ECE {100 * found.reliability['corrupted'].ece:.1f} %, calibrated: ECE {calibrated:.1f} %." in text
    )


def test_runs_without_records_have_no_such_headings(runs: Path) -> None:
    record(runs / "rotation-s0", invented())
    own = runs / "report" / "own.png"
    assert (runs / "report" / "mistakes.jpg") in write_report([runs], own.parent).figures
    own.write_bytes(b"not of a report")
    shutil.rmtree(runs / "rotation-s0")
    make_run(runs / "rotation-s0", tasks=("rotation",), seed=0, mean=0.6)
    report = write_report([runs], own.parent)
    beside = {path.name for path in own.parent.iterdir()}
    assert beside == {path.name for path in (*report.figures, report.page, report.markdown, own)}
    page = Page(report.page)
    for words in ("What goes wrong", "onfusion", "Reliability", "mistakes"):
        assert words not in page.text
        assert words not in report.markdown.read_text()
    assert set(images(page)) == {"svg+xml"}
    assert not {"confusion.png", "reliability.png", "mistakes.jpg"} & {path.name for path in report.figures}


def test_calibrated_bins_may_come_from_the_evaluation_that_left_images_out(runs: Path) -> None:
    run = record(runs / "rotation-s0", invented())
    record(run, invented(temperature=2.0), "eval-c-calibrated.json")
    found = read_run(run).diagnostics
    assert found is not None
    assert found.calibrated["clean"].images[5] == 60, "0.4 is in the bin (5/15, 6/15]"
    other = json.loads((run / "eval-c-calibrated.json").read_text()) | {"weights": "others"}
    (run / "eval-c-calibrated.json").write_text(json.dumps(other))
    found = read_run(run).diagnostics
    assert found is not None
    assert found.calibrated == {}


def blocks(runs: Path) -> list[Block]:
    """The blocks without the figures."""
    (study,) = make_studies(read_runs([runs])[0])[0]
    return list(diagnosis(study, {}, ""))


def gallery(runs: Path) -> Gallery:
    (found,) = (block for block in blocks(runs) if isinstance(block, Gallery))
    return found


def test_a_missing_foreign_or_damaged_sheet_leaves_the_words(runs: Path) -> None:
    run = record(runs / "rotation-s0", invented())
    sheet = mistakes_path(run / "eval-c.json")
    whole = sheet.read_bytes()
    assert gallery(runs).jpeg == whole
    content = json.loads((run / "eval-c.json").read_text())
    for damaged, is_named in ((None, False), (whole[:-9], False), (b"", False), (b"no picture", True)):
        sheet.unlink(missing_ok=True)
        if damaged is not None:
            sheet.write_bytes(damaged)
        if is_named:
            content["diagnostics"]["mistakes_sheet"] = hashlib.sha256(damaged or b"").hexdigest()[:16]
            (run / "eval-c.json").write_text(json.dumps(content))
        found = gallery(runs)
        assert (found.jpeg, len(found.rows)) == (None, 20)
        assert all(tile.jpeg is None and tile.lines for _, tiles in found.rows for tile in tiles)


@pytest.mark.parametrize("entry", [None, [], {}, {"confused": {}}, {"mistakes": {"fog": 3}}])
def test_damaged_records_are_passed_over(runs: Path, entry: object) -> None:
    path = runs / "rotation-s0" / "eval-c.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": ["a"], "diagnostics": entry}))
    run = read_run(runs / "rotation-s0")
    assert run.diagnostics is None
    assert run.mean() == pytest.approx(0.6)


def test_many_classes_have_a_table_of_confusions_but_no_matrix(runs: Path) -> None:
    record(runs / "rotation-s0", invented(classes=tuple(f"class {index}" for index in range(21))))
    (study,) = make_studies(read_runs([runs])[0])[0]
    assert confusion(study, study.rows, figures._WIDE) is None
    (table,) = (block for block in blocks(runs) if isinstance(block, Table))
    assert table.caption.startswith("The most frequent confusions")
    assert len(table.rows) == 10
