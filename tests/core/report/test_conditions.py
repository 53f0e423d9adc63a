"""Accuracies that were not measured alike are never averaged or compared without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import FOUR, make_run

from rsslcli.core.corruptions.names import CORRUPTIONS, EXTRA, STANDARD
from rsslcli.core.report.comparison import Study, make_studies
from rsslcli.core.report.conditions import ORIGINS
from rsslcli.core.report.provenance import departures
from rsslcli.core.report.runs import read_runs


def only_study(folder: Path) -> Study:
    runs, left_out = read_runs([folder])
    (study,), repeated = make_studies(runs)
    assert not [*left_out, *repeated]
    return study


def change(run: Path, **values: Any) -> None:
    path = run / "eval-c.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


UNLIKE = {
    "test data": {"test_data": "c" * 64},
    "corrupted sets": {"corrupted_data": "c" * 64},
    "precisions": {"precision": "bfloat16"},
    "images": {"images": 500},
    "test data and images": {"test_data": "c" * 64, "clean_images": 500},
}


@pytest.mark.parametrize("word", UNLIKE)
def test_runs_that_were_not_evaluated_alike_are_not_judged(word: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"baseline-s{seed}", seed=seed, mean=0.5)
        make_run(tmp_path / f"ir-s{seed}", tasks=("ir",), seed=seed, mean=0.6 + 0.001 * seed)
    alike = only_study(tmp_path)
    assert alike.rows[1].minus(alike.rows[0]).verdict == "yes, better"
    assert alike.warnings == ()

    change(tmp_path / "ir-s1", **UNLIKE[word])
    study = only_study(tmp_path)
    found = study.rows[1].minus(study.rows[0])
    assert found.verdict == f"not judged: different {word}"
    assert found.mean == pytest.approx(0.1005), "the difference is shown"
    assert [row.label for row in study.rows] == ["Baseline", "IR *"], "a mean over unlike runs is marked"
    assert "baseline-s0, baseline-s1, ir-s0; ir-s1" in study.warnings[0]
    assert "shown but not judged. A row marked * averages such runs." in study.warnings[-1]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("one", "other", "known"),
    [
        ("CPU (AMD EPYC 9004), 1 threads", "CPU (Intel Xeon), 2 threads", True),
        ("CUDA, NVIDIA A100", "CUDA, NVIDIA H100", True),
        ("CPU (Intel Xeon), 1 thread", "CPU (Intel Xeon), 2 threads", False),
        ("CPU (x86_64), 2 threads", "CPU (Intel Xeon), 2 threads", False),  # of an older version
    ],
)
def test_training_in_bfloat16_on_different_processors_is_told(
    precision: str, one: str, other: str, known: bool, tmp_path: Path
) -> None:
    for name, tasks, machine in (("baseline", (), one), ("ir", ("ir",), other)):
        run = make_run(tmp_path / name, tasks=tasks, precision=precision)
        (run / "log.txt").write_text(
            f"2026-11-27T18:14:30+00:00 rssl 0.1.0, torch 2.14.1, {machine}: {name}\n"
        )
    warnings = only_study(tmp_path).warnings
    told = "Trained in bfloat16 on different processors: baseline; ir. Their arithmetic differs"
    assert [text.startswith(told) for text in warnings] == [True] * (known and precision == "bfloat16")


def test_the_very_same_images_must_be_left_out_in_a_pair(tmp_path: Path) -> None:
    make_run(tmp_path / "baseline", mean=0.5)
    change(make_run(tmp_path / "ir", tasks=("ir",), mean=0.6), excluded=[*range(10)])
    study = only_study(tmp_path)
    assert study.rows[1].minus(study.rows[0]).verdict == "not judged: different images"
    assert study.warnings[0].startswith("Not all runs of seed 0 left out the same images: ")
    assert study.warnings[-1].endswith("shown but not judged."), "no row averages unlike runs"


def test_seeds_leave_out_other_images_and_can_be_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"baseline-s{seed}", seed=seed)
    study = only_study(tmp_path)
    assert len({run.excluded for run in study.runs}) == 2
    assert [row.label for row in study.rows] == ["Baseline"]
    assert study.warnings == ()


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_conditions_name_the_corrupted_set_the_images_and_the_precision(
    origin: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "run", origin=origin)
    assert only_study(tmp_path).conditions == (
        f"{ORIGINS[origin]}; 990 images in each cell, after leaving out 10 kept for tuning λ; "
        "computed in float32"
    )


@pytest.mark.parametrize("origin", [None, "<b>published</b>", 3, ["published"]])
def test_an_origin_that_is_not_recorded_is_not_guessed(origin: object, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", origin=None)
    assert "corrupted_origin" not in (run / "eval-c.json").read_text(), "as old versions wrote it"
    if origin is not None:
        change(run, corrupted_origin=origin)
    assert only_study(tmp_path).conditions.startswith("a corrupted set whose origin is not recorded; 990")


def test_one_evaluation_tells_the_origin_for_all_of_the_same_set(tmp_path: Path) -> None:
    make_run(tmp_path / "old", origin=None)
    make_run(tmp_path / "new", seed=1, origin="generated")
    assert only_study(tmp_path).conditions.startswith(ORIGINS["generated"] + ";")


def test_conditions_that_vary_are_given_as_they_vary(tmp_path: Path) -> None:
    make_run(tmp_path / "a", origin="generated", excluded=0)
    change(make_run(tmp_path / "b", seed=1), corrupted_data="c" * 64, precision="bfloat16", images=1990)
    conditions = only_study(tmp_path).conditions
    assert conditions.startswith(
        f"2 different corrupted sets ({ORIGINS['generated']} and {ORIGINS['published']})"
    )
    assert "; 1,000 to 1,990 images in each cell, after leaving out 0 to 10 kept for tuning λ" in conditions
    assert conditions.endswith("computed in bfloat16 and float32")


def test_missing_corruptions_are_named_and_there_is_no_mean_of_them(tmp_path: Path) -> None:
    cells = json.loads((make_run(tmp_path / "run") / "eval-c.json").read_text())["accuracy"]
    change(tmp_path / "run", accuracy={name: cells[name] for name in STANDARD})
    study = only_study(tmp_path)
    assert study.over == f"15 of 19 corruptions (missing: {', '.join(EXTRA)})"
    assert study.warnings == (
        f"Not evaluated on {', '.join(EXTRA)}: run. So there is no mean over all 19 corruptions.",
    )
    change(tmp_path / "run", accuracy={name: cells[name] for name in CORRUPTIONS if name != "fog"})
    study = only_study(tmp_path)
    assert study.over == "18 of 19 corruptions (missing: fog)"
    assert study.warnings == (
        "Not evaluated on fog: run. So there is no mean over all 19 corruptions, and none over the usual 15.",
    )


def test_runs_that_were_trained_on_other_images_are_not_compared(tmp_path: Path) -> None:
    """As after the data set was prepared anew, with the same test images; older evaluations do not say."""
    make_run(tmp_path / "baseline")
    make_run(tmp_path / "rotation", tasks=("rotation",))
    make_run(tmp_path / "old", tasks=("ir",))
    for name, data in (("baseline", "aa"), ("rotation", "bb")):
        change(tmp_path / name, train_data=data)
    study = only_study(tmp_path)
    assert (
        study.warnings[0]
        == "Not all runs were evaluated after training on the same data: baseline; rotation."
    )
    (_, rotation), (_, old) = study.against_baseline
    assert rotation.verdict == "not judged: different training images"
    assert old.verdict == "needs 2 seeds or more"


@pytest.mark.parametrize("settings", [{"warmup_epochs": 8}, {"meta_lr": 0}, {"lookahead_scale": 0}])
def test_automl_that_never_tuned_is_not_called_automl(settings: dict[str, Any], tmp_path: Path) -> None:
    make_run(tmp_path / "idle", tasks=FOUR, weighting="automl", **settings)
    make_run(tmp_path / "good", tasks=FOUR, weighting="automl")
    study = only_study(tmp_path)
    assert {row.label: row.paper for row in study.rows} == {
        "Four tasks, AutoML": 78.68,
        "Four tasks, fixed λ (AutoML that never tuned)": None,
    }
    assert study.warnings == ("AutoML changed no λ in idle: those runs trained with fixed λ.",)


def test_tasks_whose_weight_stays_zero_are_told(tmp_path: Path) -> None:
    make_run(tmp_path / "idle", tasks=("rotation",), initial_lambda=0.0)
    make_run(tmp_path / "from zero", tasks=FOUR, weighting="automl", initial_lambda=0.0)
    study = only_study(tmp_path)
    assert [(row.label, row.paper) for row in study.rows] == [
        ("Rotation (λ is 0)", None),
        ("Four tasks, AutoML", None),  # the paper's begins at 0.5
    ]
    assert study.warnings == ("The tasks had no effect in idle: λ is fixed at 0.",)


def test_every_setting_that_departs_from_the_preset_or_tells_rows_apart(tmp_path: Path) -> None:
    tuning = {
        "meta_lr": 1.0, "meta_batch_size": 10, "lookahead_scale": 2.0, "warmup_epochs": 3,
        "validation_images": 50, "validation_corruptions": "extra",
    }  # fmt: skip
    make_run(tmp_path / "baseline", device="cpu")
    make_run(tmp_path / "ir", tasks=("ir",), initial_lambda=0.25, task_options={"ir": {"scale": 3.0}})
    make_run(tmp_path / "automl", tasks=FOUR, weighting="automl", initial_lambda=0.25, **tuning)
    make_run(
        tmp_path / "longer",
        tasks=FOUR,
        weighting="automl",
        batch_norm="joint",
        **tuning | {"warmup_epochs": 4},
    )
    automl = "Four tasks, AutoML"
    first = f"{automl} (initial_lambda 0.25, warmup_epochs 3)"
    second = f"{automl} (batch_norm joint, warmup_epochs 4)"
    assert departures(only_study(tmp_path)) == [
        ["epochs", "8", "100", "all"],
        ["train_size", "5000", "all", "all"],
        ["depth", "16", "40", "all"],
        ["width", "1", "2", "all"],
        ["batch_norm", "joint", "per-task", second],
        ["initial_lambda", "0.25", "0.5", f"IR (initial_lambda 0.25, ir.scale 3); {first}"],
        ["task_options", "ir.scale 3", "none", "IR (initial_lambda 0.25, ir.scale 3)"],
        ["meta_lr", "1.0", "0.1", "all with AutoML"],
        ["meta_batch_size", "10", "25", "all with AutoML"],
        ["lookahead_scale", "2.0", "1.0", "all with AutoML"],
        ["warmup_epochs", "4", "5", second],
        ["warmup_epochs", "3", "5", first],
        ["validation_images", "50", "100", "all with AutoML"],
        ["validation_corruptions", "extra", "all", "all with AutoML"],
        ["device", "cpu", "auto", "Baseline"],
    ]


def test_the_preset_itself_departs_in_nothing(tmp_path: Path) -> None:
    preset = {"epochs": 100, "depth": 40, "width": 2, "train_size": None, "warmup_epochs": 5}
    make_run(tmp_path / "automl", tasks=FOUR, weighting="automl", steps_per_epoch=1, **preset)
    assert departures(only_study(tmp_path)) == []
