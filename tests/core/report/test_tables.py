"""The tables that compare the rows of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_run

from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.report.comparison import Study, make_studies
from rsslcli.core.report.runs import adapted_runs, read_run, read_runs
from rsslcli.core.report.tables import adapted, table_1

BN = "bn: prior 512, batches of at most 200 images, shuffled by seed 0"


def adapt(run: Path, gain: float, name: str = "bn", **changes: Any) -> Path:
    """Save an evaluation with adaptation beside a run's own, as eval-c does; each cell gains alike."""
    content = json.loads((run / "eval-c.json").read_text())
    cells = {name: [value + gain for value in row] for name, row in content["accuracy"].items()}
    after = {**Adaptation().to_dict(), "clean_accuracy": 0.6, "accuracy": cells}
    path = run / f"eval-c-adapted-{name}.json"
    path.write_text(json.dumps(content | {"adapted": after} | changes))
    return path


def study_in(folder: Path) -> Study:
    (study,), _ = make_studies(read_runs([folder])[0])
    return study


def test_adaptation_is_compared_by_seed(tmp_path: Path) -> None:
    for seed, (base, tuned) in enumerate(((0.50, 0.52), (0.51, 0.55))):
        for name, tasks, mean in (("baseline", (), base), ("rotation", ("rotation",), tuned)):
            adapt(make_run(tmp_path / f"{name}-s{seed}", tasks=tasks, seed=seed, mean=mean - 0.1), 0.1)
    make_run(tmp_path / "ir", tasks=("ir",))
    (table,) = adapted(study_in(tmp_path))
    assert table.caption.endswith(f"over the 19 corruptions at 5 severities ({BN})")
    # Two differences of 2 and 4 points: Student's quantile with one degree of freedom is 12.706.
    assert table.rows == [
        ["Baseline", "2", "50.50 ± 0.71", "+10.00", "–", "–", "60.00 ± 0.00"],
        ["Rotation", "2", "53.50 ± 2.12", "+10.00", "+3.00 [−9.71, +15.71]", "no", "60.00 ± 0.00"],
    ]


def test_each_way_to_adapt_has_a_table_and_no_baseline_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "ir", tasks=("ir",))
    make_run(tmp_path / "baseline")
    adapt(run, 0.05)
    other = adapt(run, 0.02, "bn-prior0")
    other.write_text(other.read_text().replace('"prior": 512.0', '"prior": 0.0'))
    tables = [*adapted(study_in(tmp_path))]
    assert [table.caption.partition("(")[2] for table in tables] == [
        "bn: prior 0, batches of at most 200 images, shuffled by seed 0)", f"{BN})"
    ]  # fmt: skip
    assert [[row[3:6] for row in table.rows] for table in tables] == [
        [["+2.00", "–", "no baseline"]], [["+5.00", "–", "no baseline"]]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 5}, {"excluded": []}, {"test_data": "u"}, {"corrupted_data": "d"}, {"step": 7},
        {"precision": "bfloat16"}, {"weights": "w"}, {"adapted": {}}, {"clean_images": 3},
        {"adapted": {"clean_accuracy": 0.5, "accuracy": {"fog": [0.5] * 5}}},
    ],
    ids=str,
)  # fmt: skip
def test_only_evaluations_of_the_same_images_and_weights_count(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = adapt(make_run(tmp_path / "run"), 0.1)
    whole = read_run(tmp_path / "run")
    (found,) = adapted_runs(whole).values()
    assert found.mean() == pytest.approx(whole.mean() + 0.1)
    assert found.clean_accuracy == 0.6
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert adapted_runs(whole) == {}


def test_damaged_settings_of_an_adaptation_are_passed_over(tmp_path: Path) -> None:
    path = adapt(make_run(tmp_path / "run"), 0.1)
    content = json.loads(path.read_text())
    for damaged in ({"prior": 10**400}, {"prior": "many"}, {"stream": []}, {"seed": "\x1b[31m" * 99}):
        path.write_text(json.dumps(content | {"adapted": content["adapted"] | damaged}))
        assert not any("\x1b" in words for words in adapted_runs(read_run(path.parent)))
    path.write_text(json.dumps(content | {"adapted": content["adapted"] | {"accuracy": {"fog": "x"}}}))
    assert adapted_runs(read_run(path.parent)) == {}


def test_differences_that_are_not_those_of_the_means_are_called_so(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"baseline-s{seed}", seed=seed, mean=0.5 + 0.1 * seed)
        make_run(tmp_path / f"ir-s{seed}", seed=seed, tasks=("ir",), mean=0.51 + 0.1 * seed)
    assert "seeds that a row shares" not in table_1(study_in(tmp_path)).caption
    make_run(tmp_path / "baseline-s2", seed=2, mean=0.7)
    table = table_1(study_in(tmp_path))
    assert table.caption.endswith("Differences are means over the seeds that a row shares with the baseline.")
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert row["− baseline [95 % interval]"].startswith("+1.00")
    assert float(row["ours, mean ± sd"].split()[0]) < 100 * np.mean([0.5, 0.6, 0.7])
