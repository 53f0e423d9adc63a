"""Run directories as they are found: read, or left out with a reason; statistics that others agree with."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from synthetic import FOUR, make_run, make_study

from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS, STANDARD
from rsslcli.core.errors import UserError
from rsslcli.core.report.comparison import Comparison, Study, make_studies
from rsslcli.core.report.provenance import departures
from rsslcli.core.report.runs import Run, read_run, read_runs
from rsslcli.core.report.statistics import t_quantile
from rsslcli.core.report.write import table_1


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to look at and not to change."""
    return make_run(tmp_path_factory.mktemp("pristine") / "automl-s0", tasks=FOUR, weighting="automl")


def studies(folder: Path) -> list[Study]:
    runs, left_out = read_runs([folder])
    assert not left_out
    made, repeated = make_studies(runs)
    assert not repeated
    return made


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 10, 29, 100])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_of_t(degrees: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    assert t_quantile(degrees, confidence) == pytest.approx(
        stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-12
    )


def test_quantiles_of_the_printed_tables() -> None:
    assert [round(t_quantile(n), 3) for n in (1, 2, 3, 4, 9, 30)] == [
        12.706,
        4.303,
        3.182,
        2.776,
        2.262,
        2.042,
    ]


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_the_interval_is_that_of_a_paired_t_test(per_mille: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    differences = [value / 1000 for value in per_mille]
    found = Comparison(tuple(differences))
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (found.mean - found.margin, found.mean + found.margin) == pytest.approx(tuple(interval), abs=1e-9)
    outside = interval.low > 0 or interval.high < 0
    assert found.verdict == (("yes, better" if found.mean > 0 else "yes, worse") if outside else "no")


def test_what_cannot_be_judged() -> None:
    assert (Comparison(()).verdict, Comparison((0.3,)).verdict) == ("no common seed", "needs 2 seeds or more")
    assert math.isnan(Comparison(()).mean)
    assert math.isnan(Comparison((0.3,)).margin)
    assert Comparison((0.01, 0.03)).verdict == "no", "two seeds, 12.7 standard errors"
    assert Comparison((0.0, 0.0)).verdict == "no"


def test_a_run_is_read_as_it_was_written(pristine: Path) -> None:
    run, content = read_run(pristine), json.loads((pristine / "eval-c.json").read_text())
    lines = [json.loads(line) for line in (pristine / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lr" in line]
    epochs = [line for line in lines if "seconds" in line]
    assert run.config == Config(**yaml.safe_load((pristine / "config.yaml").read_text()))
    assert run.mean() == pytest.approx(content["mean_accuracy"])
    assert run.mean(STANDARD) == pytest.approx(content["mean_accuracy_15"])
    assert list(run.accuracy) == list(CORRUPTIONS)
    assert (run.images, run.excluded) == (990, frozenset(content["excluded"]))
    assert run.history.seconds == pytest.approx(sum(line["seconds"] for line in epochs))
    assert run.history.clean_accuracy == pytest.approx([line["clean_accuracy"] for line in epochs])
    assert run.history.loss[2] == pytest.approx(np.mean([s["loss/main"] for s in steps if s["epoch"] == 3]))
    assert run.history.lambdas["bir"] == pytest.approx(
        np.array([[line["step"] / 30, line["lambda/bir"]] for line in steps])
    )


def test_an_epoch_that_was_interrupted_costs_a_whole_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seconds = sum(line.get("seconds", 0) for line in lines)
    resumed = next(line for line in lines if line["epoch"] == 3 and "seconds" in line)
    resumed["seconds"] /= 10  # of the last tenth of its steps, at the same speed
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_run(run).history.seconds == pytest.approx(seconds)
    del resumed["images_per_second"]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert math.isnan(read_run(run).history.seconds)


def test_a_run_of_a_hundred_epochs_is_read_fast(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=FOUR, weighting="automl", epochs=100, steps_per_epoch=1)
    weights = ", ".join(f'"lambda/{task}": 0.5123456789, "loss/{task}": 1.23456789' for task in FOUR)
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 78_101):
            place = f'"step": {step}, "epoch": {(step - 1) // 781 + 1}, "images_per_second": 999.99'
            file.write(f'{{{place}, "lr": 0.1, "loss/main": 1.0123456789, {weights}}}\n')
            if step % 781 == 0:
                file.write(f'{{{place}, "clean_accuracy": 0.9, "seconds": 50.0}}\n')
    began = time.process_time()
    history = read_run(run).history
    assert time.process_time() - began < 2
    assert (len(history.epochs), history.steps) == (100, 78_100)
    assert 2_000 < len(history.lambdas["ir"]) < 40_000
    assert not np.isnan(history.loss).any()


def spoil(run: Path, name: str, **changes: Any) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | changes))


def keep_lines(run: Path, count: int) -> None:
    path = run / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:count]))


DAMAGE = {
    "not a run: it has no config.yaml": lambda run: (run / "config.yaml").unlink(),
    "unknown option 'epoks': did you mean 'epochs'": lambda run: (run / "config.yaml").write_text("epoks: 3"),
    "not trained": lambda run: (run / "metrics.jsonl").unlink(),
    "not finished: 7 of 8 epochs": lambda run: keep_lines(run, -1),
    "not finished: 0 of 8 epochs": lambda run: (run / "metrics.jsonl").write_bytes(b"\0\xff{[" * 9999),
    "not evaluated: it has no": lambda run: (run / "eval-c.json").unlink(),
    "its eval-c.json is damaged": lambda run: (run / "eval-c.json").write_text("[" * 99_999),
    "eval-c.json is damaged": lambda run: spoil(run, "eval-c.json", clean_accuracy=math.nan),
    "eval-c.json is d": lambda run: spoil(run, "eval-c.json", accuracy={"<b>": [0.5] * 5}),
    "eval-c.json is da": lambda run: spoil(run, "eval-c.json", accuracy={"fog": [0.5] * 4 + [1.2]}),
    "not evaluated at every severity: fog lacks 2, 4, 5": lambda run: spoil(
        run, "eval-c.json", accuracy={"fog": [0.5, None, 0.5, None, None], "snow": [0.5] * 5}
    ),
    "its eval-c.json is dam": lambda run: spoil(run, "eval-c.json", accuracy={}),
    "its eval-c.json is damage": lambda run: spoil(run, "eval-c.json", images=-5),
    "its eval-c.json is dama": lambda run: spoil(run, "eval-c.json", accuracy={"fog": [True] * 5}),
    "its mean is not that of its cells": lambda run: spoil(run, "eval-c.json", mean_accuracy=0.9),
    "eval-c.json is dam": lambda run: spoil(run, "eval-c.json", accuracy={"fog": [0.5] * 6}),
    "evaluated before its training was finished": lambda run: spoil(run, "eval-c.json", step=120),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_what_is_left_out_and_why(reason: str, tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    DAMAGE[reason](make_run(tmp_path / "bad"))
    runs, left_out = read_runs([tmp_path / "good", tmp_path / "bad"])
    assert [run.name for run in runs] == ["good"]
    assert [entry.directory.name for entry in left_out] == ["bad"]
    assert reason in left_out[0].reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["metrics.jsonl", "eval-c.json", "config.yaml"]),
    st.integers(0, 10**6),
    st.binary(max_size=40)
    | st.sampled_from([b"NaN", b"1e999", b"-1", b"{}", b"null", b"9" * 5000, b"\n", b"[]"]),
    st.integers(0, 60),
)
@example("metrics.jsonl", 0, b'{"step": 1, "epoch": 8, "clean_accuracy": 1e999, "seconds": -1}\n', 0)
@example("metrics.jsonl", 0, b'{"step": true, "epoch": 1e300, "loss/main": NaN, "lambda/ir": 1e308}\n', 0)
def test_damaged_files_never_crash(
    pristine: Path, tmp_path: Path, name: str, at: int, junk: bytes, gone: int
) -> None:
    for file in pristine.iterdir():
        content = file.read_bytes()
        if file.name == name:
            place = at % (len(content) + 1)
            content = content[:place] + junk + content[place + gone :]
        (tmp_path / file.name).write_bytes(content)
    runs, left_out = read_runs([tmp_path])
    assert len(runs) + len(left_out) == 1
    for run in runs:
        assert 0 <= run.mean() <= 1
        assert np.isfinite(run.history.loss).all() or name == "metrics.jsonl"
        assert len(make_studies(runs)[0]) == 1
    for entry in left_out:
        assert entry.reason.isprintable()
        assert len(entry.reason) < 400


def test_runs_are_found_once_below_folders_and_links(tmp_path: Path) -> None:
    run = make_run(tmp_path / "study" / "deep" / "baseline-s0")
    make_run(tmp_path / "study" / ".hidden" / "run", seed=1)
    (tmp_path / "study" / "loop").symlink_to(tmp_path / "study")
    (tmp_path / "study" / "empty").mkdir()
    (tmp_path / "study" / "notes.txt").touch()
    runs, left_out = read_runs([tmp_path / "study", run, tmp_path / "study" / "empty"])
    assert [entry.name for entry in runs] == ["baseline-s0"]
    assert [(entry.directory.name, entry.reason) for entry in left_out] == [
        ("empty", "not a run: it has no config.yaml")
    ]
    for missing in (tmp_path / "nowhere", tmp_path / "study" / "notes.txt"):
        with pytest.raises(UserError, match="expected a run directory or a folder of them"):
            read_runs([missing])


def test_rows_in_the_paper_s_order_with_its_figures(tmp_path: Path) -> None:
    (study,) = studies(make_study(tmp_path, seeds=2))
    assert [(row.label, row.paper, len(row.runs)) for row in study.rows] == [
        ("Baseline", 74.07, 2),
        ("Rotation", 76.37, 2),
        ("Rotation (batch_norm joint)", 76.37, 2),
        ("Color", 75.06, 1),
        ("IR", 74.73, 1),
        ("BIR", 75.84, 1),
        ("Inpaint", 74.69, 1),
        ("RGB guess", 74.15, 1),
        ("Jigsaw", 73.41, 1),
        ("Four tasks, fixed λ", None, 2),
        ("Four tasks, AutoML", 78.68, 2),
    ]
    assert study.baseline is study.rows[0]
    assert study.title == "cifar10, WRN-16-1, 8 epochs, 5,000 training images"
    assert study.warnings == ()


def test_runs_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    make_run(tmp_path / "a0")
    make_run(tmp_path / "a1", seed=1, device="cpu", compile=True)
    make_run(tmp_path / "a2", tasks=("ir", "bir", "color", "rotation"), weighting="automl", meta_lr=0.2)
    make_run(tmp_path / "a3", tasks=FOUR, weighting="automl", device="cpu")
    make_run(tmp_path / "a4", tasks=("jigsaw", "rgb"), task_options={"ir": {"scale": 2.0}})
    make_run(tmp_path / "b0", epochs=9)
    make_run(tmp_path / "c0", dataset="mine")
    first, *others = studies(tmp_path)
    assert [(row.label, sorted(row.runs)) for row in first.rows] == [
        ("Baseline", [0, 1]),
        ("Four tasks, AutoML", [0]),
        ("Four tasks, AutoML (meta_lr 0.2)", [0]),
        ("Jigsaw + RGB guess, fixed λ", [0]),
    ]
    assert {(study.settings["epochs"], study.settings["dataset"]) for study in others} == {
        (9, "cifar10"),
        (8, "mine"),
    }
    assert {study.rows[0].paper for study in others} == {74.07, None}, "the paper's figures are of CIFAR-10"


def test_rows_beyond_the_paper_are_named_and_have_none_of_its_figures(tmp_path: Path) -> None:
    augmix: dict[str, Any] = {"augment": "augmix"}
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", tasks=("rotation",), ema=0.999)
    make_run(tmp_path / "c", tasks=FOUR, weighting="random")
    make_run(tmp_path / "d", tasks=FOUR, weighting="automl", automl_variants=("cosine",))
    make_run(tmp_path / "e", **augmix)
    make_run(tmp_path / "f", tasks=("rotation",), **augmix)
    make_run(tmp_path / "g", tasks=FOUR, weighting="automl", tune_jsd=True, **augmix)
    (study,) = studies(tmp_path)
    assert [(row.label, row.paper) for row in study.rows] == [
        ("Baseline", 74.07),
        ("Rotation (ema 0.999)", None),
        ("Four tasks, AutoML (cosine)", None),
        ("Four tasks, random loss weighting", None),
        ("AugMix", None),
        ("AugMix + rotation", None),
        ("AugMix + four tasks, AutoML of λ and JSD", None),
    ]
    listed = {(row[0], row[1], row[3]) for row in departures(study)}
    assert ("ema", "0.999", "Rotation (ema 0.999)") in listed
    assert ("automl_variants", "[cosine]", "Four tasks, AutoML (cosine)") in listed


def test_what_differs_between_compared_rows_is_in_their_names(tmp_path: Path) -> None:
    """λ, share and EMA differ between rows of other tasks or weightings, which names alone do not show."""
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", ema=0.99)
    make_run(tmp_path / "c", tasks=("rotation",), ema=0.99)
    make_run(tmp_path / "d", tasks=FOUR, task_share=0.25)
    make_run(tmp_path / "e", tasks=FOUR, weighting="automl", automl_variants=("relative",), meta_lr=1.0)
    make_run(tmp_path / "f", tasks=("ir",), task_options={"ir": {"scale": 3}})
    (study,) = studies(tmp_path)
    ema, rotation, ir, fixed, automl = [row.label for row in study.rows[1:]]
    assert (ema, rotation, ir) == ("Baseline (ema 0.99)", "Rotation (ema 0.99)", "IR (ir.scale 3)")
    assert (fixed, automl) == ("Four tasks, fixed λ (task_share 0.25)", "Four tasks, AutoML")
    assert [(row.label, other.label) for row, other, _ in study.what_is_added] == [
        (rotation, ema), (fixed, rotation), (automl, fixed), (automl, rotation),
    ]  # fmt: skip


def test_a_number_is_one_number_however_it_is_written(tmp_path: Path) -> None:
    for seed, sigma in enumerate((2, 2.0)):
        make_run(tmp_path / f"b{seed}", seed=seed, tasks=("bir",), task_options={"bir": {"sigma": sigma}})
        make_run(tmp_path / f"a{seed}", seed=seed)
    make_run(tmp_path / "c", tasks=("ir",), task_options={"ir": {"hidden": True}})
    (study,) = studies(tmp_path)
    assert [row.label for row in study.rows] == ["Baseline", "IR", "BIR"]
    assert [len(row.runs) for row in study.rows] == [2, 1, 2]


def test_a_fifth_task_is_compared_with_the_four(tmp_path: Path) -> None:
    """What it adds to them is the question of whoever adds it."""
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", tasks=FOUR, weighting="automl")
    make_run(tmp_path / "c", tasks=(*FOUR, "rgb"), weighting="automl")
    (study,) = studies(tmp_path)
    _, four, five = study.rows
    assert [(row, other) for row, other, _ in study.what_is_added] == [(five, four)]


def test_a_repetition_is_no_other_seed(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", device="cpu")
    made, left_out = make_studies(read_runs([tmp_path])[0])
    assert [len(row.runs) for row in made[0].rows] == [1]
    assert [(e.directory.name, e.reason) for e in left_out] == [
        ("b", f"has the same configuration and seed as {tmp_path / 'a'}")
    ]


def test_only_common_seeds_are_compared(tmp_path: Path) -> None:
    for seed, mean in ((0, 0.50), (1, 0.52), (2, 0.60)):
        make_run(tmp_path / f"baseline{seed}", seed=seed, mean=mean)
    for seed, mean in ((1, 0.53), (2, 0.63), (7, 0.3)):
        make_run(tmp_path / f"ir{seed}", tasks=("ir",), seed=seed, mean=mean)
    make_run(tmp_path / "rgb", tasks=("rgb",), seed=9)
    (study,) = studies(tmp_path)
    base, ir, rgb = study.rows
    assert ir.minus(base).differences == pytest.approx([0.01, 0.03])
    assert rgb.minus(base).verdict == "no common seed"


def test_other_images_are_warned_of(tmp_path: Path) -> None:
    make_run(tmp_path / "baseline-s0", excluded=0)
    make_run(tmp_path / "automl-s0", tasks=FOUR, weighting="automl")
    make_run(tmp_path / "baseline-s1", seed=1)
    spoil(make_run(tmp_path / "ir-s1", tasks=("ir",), seed=1), "eval-c.json", corrupted_data="c" * 64)
    (study,) = studies(tmp_path)
    corrupted, images, left_out, seed, judged = study.warnings
    assert corrupted == (
        "Not all runs were evaluated on the same corrupted set: automl-s0, baseline-s0, baseline-s1; ir-s1."
    )
    assert "number of images" in images
    assert "equally many" in left_out
    assert seed.startswith("Not all runs of seed 0 ")
    assert "automl-s0; baseline-s0." in seed
    assert "again, leaving out the images that tune λ in AutoML runs." in seed
    assert "shown but not judged. A row marked * averages such runs." in judged


def test_another_precision_is_warned_of(tmp_path: Path) -> None:
    """A result without a word of it was made when there was none but float32."""
    make_run(tmp_path / "baseline-s0")
    spoil(make_run(tmp_path / "baseline-s1", seed=1), "eval-c.json", precision="float32")
    assert studies(tmp_path)[0].warnings == ()
    spoil(make_run(tmp_path / "baseline-s2", seed=2), "eval-c.json", precision="bfloat16")
    warning, _ = studies(tmp_path)[0].warnings
    assert "same precision" in warning
    assert "baseline-s0, baseline-s1; baseline-s2." in warning


def test_automl_that_tuned_nothing_is_warned_of(tmp_path: Path) -> None:
    """New runs of the kind are refused, but those of former versions are read."""
    make_run(tmp_path / "baseline-s0")
    make_run(tmp_path / "automl-s0", tasks=FOUR, weighting="automl")
    assert studies(tmp_path)[0].warnings == ()
    make_run(tmp_path / "automl-s1", tasks=FOUR, weighting="automl", seed=1, warmup_epochs=8)
    warning = "AutoML changed no λ in automl-s1: those runs trained with fixed λ."
    assert warning in [text for study in studies(tmp_path) for text in study.warnings]


def test_an_evaluation_on_other_images_is_a_study_of_its_own(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    spoil(make_run(tmp_path / "b", tasks=("ir",)), "eval-c.json", dataset="cifar10.1")
    made = studies(tmp_path)
    assert [study.settings.get("evaluated on") for study in made] == [None, "cifar10.1"]
    assert [study.rows[0].paper for study in made] == [74.07, None]


def test_fifteen_corruptions_alone_make_a_study_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = make_run(tmp_path / name, seed=int(name == "b"))
        cells = json.loads((run / "eval-c.json").read_text())["accuracy"]
        spoil(run, "eval-c.json", accuracy={c: cells[c] for c in STANDARD})
    (study,) = studies(tmp_path)
    run: Run = study.rows[0].runs[0]
    assert study.corruptions == STANDARD
    assert run.mean() == run.mean(STANDARD)
    assert math.isnan(run.mean(CORRUPTIONS))
    assert study.rows[0].paper is None
    missing = "missing: speckle_noise, gaussian_blur, spatter, saturate"
    assert table_1(study).caption.startswith(
        f"Table 1. Accuracy in %, mean over 15 of 19 corruptions ({missing}) at 5 severities. "
    )


def test_a_partial_evaluation_alone_is_named_as_the_reason(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "eval-c.json").rename(run / "eval-c-partial.json")
    with pytest.raises(UserError, match=r"not fully evaluated: it has only eval-c-partial\.json"):
        read_run(run)


def test_a_label_has_the_settings_in_which_its_row_differs(tmp_path: Path) -> None:
    several = {"tasks": ("rotation", "ir"), "weighting": "automl"}
    for name, chosen in {
        "rotation": {"tasks": ("rotation",)},
        "views": {"tasks": ("rotation",), "task_options": {"rotation": {"views": 1}}},
        "automl": several,
        "relative": several | {"automl_variants": ("relative", "cosine"), "task_share": 0.5},
    }.items():
        make_run(tmp_path / name, seed=0, mean=0.5, **chosen)
    (study,) = studies(tmp_path)
    assert [row.label.partition(" (")[2] for row in study.rows] == [
        "", "rotation.views 1)", "", "task_share 0.5, relative and cosine)"
    ]  # fmt: skip
