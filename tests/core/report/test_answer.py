"""The sentence that a report leads with, for studies whose outcome is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import FOUR, make_run

from rsslcli.core.report import figures
from rsslcli.core.report.answer import answer, beside_baseline, other_rows
from rsslcli.core.report.comparison import Study, make_studies
from rsslcli.core.report.page import Answer, Heading, to_html, to_markdown
from rsslcli.core.report.provenance import cost, provenance
from rsslcli.core.report.runs import read_runs
from rsslcli.core.report.write import write_report

#: The mean accuracies of three seeds, in percent.
MEANS = {
    "baseline": (50.0, 51.0, 52.0),
    "rotation": (50.9, 52.2, 52.9),
    "augmix": (59.0, 60.1, 60.9),
    "augmix-automl": (60.1, 61.0, 62.2),
    "ir": (48.0, 49.1, 49.9),
    "bir": (50.4, 50.3, 52.5),
    "fixed": (49.0, 50.0, 51.0),
    "cheap": (50.0, 51.0, 52.0),
    "cheap-automl": (50.5, 51.5, 52.5),
}
SETTINGS = {
    "rotation": {"tasks": ("rotation",)},
    "augmix": {"augment": "augmix"},
    "augmix-automl": {"augment": "augmix", "tasks": FOUR, "weighting": "automl"},
    "ir": {"tasks": ("ir",)},
    "bir": {"tasks": ("bir",)},
    "fixed": {"tasks": FOUR},
    "cheap": {"tasks": FOUR, "task_share": 0.25},
    "cheap-automl": {
        "tasks": FOUR, "task_share": 0.25, "weighting": "automl", "automl_variants": ("relative",)
    },
}  # fmt: skip


def make(folder: Path, *methods: str, seeds: int = 3, **more: object) -> Study:
    for method in methods:
        for seed in range(seeds):
            about = SETTINGS.get(method, {}) | more
            make_run(folder / f"{method}-s{seed}", seed=seed, mean=MEANS[method][seed] / 100, **about)
    (study,), left_out = make_studies(read_runs([folder])[0])
    assert not left_out
    return study


def test_the_best_method_that_exceeds_the_noise(tmp_path: Path) -> None:
    study = make(tmp_path, "baseline", "rotation", "augmix", "augmix-automl", "ir", "bir")
    assert answer(study) == (
        "AugMix + four tasks, AutoML is better than the baseline by +10.10 [+9.85, +10.35] points in mean "
        "accuracy over the 19 corruptions (3 seeds, 95 % interval). Its difference to AugMix alone is +1.10 "
        "[+0.60, +1.60]: beyond the noise."
    )
    assert other_rows(study) == (
        "Also better than the baseline: AugMix (+9.00); Rotation (+1.00). Worse than the baseline: "
        "IR (−2.00). Within the noise: BIR (+0.07)."
    )


def test_tasks_that_add_nothing_to_augmix_do_not_lead(tmp_path: Path) -> None:
    for seed, gain in enumerate((-0.4, 0.3, 0.4)):
        mean = (MEANS["augmix"][seed] + gain) / 100
        make_run(tmp_path / f"more-s{seed}", seed=seed, augment="augmix", tasks=("ir",), mean=mean)
    study = make(tmp_path, "baseline", "augmix")
    assert answer(study) == (
        "AugMix is better than the baseline by +9.00 [+8.75, +9.25] points in mean accuracy over the 19 "
        "corruptions (3 seeds, 95 % interval). AugMix + IR differs from it by +0.10 [−0.98, +1.18]: within "
        "the noise."
    )
    assert other_rows(study) == "Also better than the baseline: AugMix + IR (+9.10)."


def test_nothing_that_exceeds_the_noise(tmp_path: Path) -> None:
    study = make(tmp_path, "baseline", "bir", "ir")
    assert answer(study) == (
        "No method is better than the baseline beyond the noise: the best one, BIR, differs from it by +0.07 "
        "[−1.59, +1.72] points in mean accuracy over the 19 corruptions (3 seeds, 95 % interval)."
    )
    assert other_rows(study) == "Worse than the baseline: IR (−2.00)."
    make_run(tmp_path / "augmix-s0", augment="augmix", mean=0.59)
    (study,), _ = make_studies(read_runs([tmp_path])[0])
    assert "the best one with two seeds or more, BIR, differs from it by +0.07" in answer(study)
    assert other_rows(study).endswith(" Not judged: AugMix (+9.00, one seed).")


def test_an_interval_without_zero_that_the_correction_denies(tmp_path: Path) -> None:
    for seed, (gain, other) in enumerate(((0.6, 0.5), (1.0, -0.4), (1.4, 0.1))):
        make_run(tmp_path / f"baseline-s{seed}", seed=seed, mean=0.5)
        make_run(tmp_path / f"rotation-s{seed}", seed=seed, mean=0.5 + gain / 100, tasks=("rotation",))
        make_run(tmp_path / f"ir-s{seed}", seed=seed, mean=0.5 + other / 100, tasks=("ir",))
    (study,), _ = make_studies(read_runs([tmp_path])[0])
    assert answer(study) == (
        "No method is better than the baseline beyond the noise: the best one, Rotation, differs from it by "
        "+1.00 [+0.01, +1.99] points in mean accuracy over the 19 corruptions (3 seeds, 95 % interval), "
        "which counts only if it is compared alone."
    )


def test_what_cannot_be_said(tmp_path: Path) -> None:
    assert answer(make(tmp_path / "1", "baseline", "rotation", "ir", seeds=1)) == (
        "One seed cannot show whether a method is better than the baseline. The best here, Rotation, differs "
        "by +0.90 points in mean accuracy over the 19 corruptions; with another seed the difference may have "
        "another sign."
    )
    assert answer(make(tmp_path / "2", "baseline")) == (
        "Only the baseline is here: its accuracy, mean over the 19 corruptions, is 51.00 % (3 seeds). "
        "Nothing is compared with it yet."
    )
    assert answer(make(tmp_path / "3", "augmix", "augmix-automl")).startswith("Nothing can be compared")
    make(tmp_path / "4", "baseline")
    unlike = make(tmp_path / "4", "rotation", excluded=9)
    assert answer(unlike) == ("Nothing can be judged: the rows have different images than the baseline.")
    make_run(tmp_path / "4" / "ir", tasks=("ir",), excluded=10)
    (study,), _ = make_studies(read_runs([tmp_path / "4"])[0])
    assert answer(study).startswith(
        "One seed cannot show whether a method is better than the baseline. The best"
    )
    make(tmp_path / "5", "baseline", seeds=1)
    make_run(tmp_path / "5" / "other", seed=7, tasks=("ir",))
    (study,), _ = make_studies(read_runs([tmp_path / "5"])[0])
    assert answer(study) == "Nothing can be judged: no row has a seed in common with the baseline."


def test_the_answer_leads_the_page_and_the_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_PLOTS", {"training": figures._PLOTS["training"]})
    study = make(tmp_path / "runs", "baseline", "rotation")
    report = write_report([tmp_path / "runs"], tmp_path / "out")
    text = answer(study)
    page = report.page.read_text()
    assert page.index("<h1>") < page.index(f'<p class="answer">{text}</p>') < page.index("<h2>")
    second = report.markdown.read_text().split("\n\n")[1]
    assert second.replace("\\", "") == f"**{text}**"
    make_run(tmp_path / "runs" / "other", depth=10)
    page = write_report([tmp_path / "runs"], tmp_path / "out").page.read_text()
    assert f'<p class="answer">Study 1: {text}</p>' in page
    assert '<p class="answer">Study 2: Only the baseline is here' in page
    blocks = [Heading("x", 1), Answer("<b>")]
    assert "<b>" not in to_html(blocks)
    assert to_markdown(blocks).endswith("**\\<b\\>**\n")


def test_the_best_row_is_not_one_that_another_beats_in_the_seeds_that_both_have(tmp_path: Path) -> None:
    """A mean over other seeds may be higher by these seeds alone."""
    for seed, (base, augmix, both) in enumerate([(0.5, 0.61, 0.60), (0.5, 0.61, 0.605), (0.5, 0.58, None)]):
        make_run(tmp_path / f"b{seed}", seed=seed, mean=base + 0.001 * seed)
        make_run(tmp_path / f"a{seed}", seed=seed, augment="augmix", mean=augmix)
        if both:
            make_run(tmp_path / f"r{seed}", seed=seed, augment="augmix", tasks=("rotation",), mean=both)
    (study,), _ = make_studies(read_runs([tmp_path])[0])
    means = {row.label: found.mean for row, found in study.against_baseline}
    assert means["AugMix + rotation"] > means["AugMix"]
    assert answer(study).startswith("AugMix is better than the baseline by ")
    assert "AugMix + rotation" in other_rows(study)


def test_the_baseline_beside_a_run_is_compared_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "baseline", "rotation", "augmix")
    assert beside_baseline(tmp_path / "augmix-s1") == (
        f"+9.10 points over the baseline {tmp_path / 'baseline-s1'}, mean over the 19 corruptions; one seed "
        "cannot show whether that exceeds the noise"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "augmix-s1")
    monkeypatch.chdir(tmp_path / "augmix-s1")
    for way in (Path(), tmp_path / "elsewhere" / "link"):
        assert beside_baseline(way).startswith(f"+9.10 points over the baseline {tmp_path / 'baseline-s1'}, ")
    assert beside_baseline(tmp_path / "baseline-s1") == "", "it is the baseline"
    assert beside_baseline(tmp_path / "nowhere") == ""
    other = make_run(tmp_path / "other", tasks=("ir",), seed=1, depth=10)
    assert beside_baseline(other) == "", "a baseline with other settings is none"
    unlike = make_run(tmp_path / "unlike", tasks=("ir",), seed=1, excluded=3)
    assert beside_baseline(unlike) == (
        f"not compared with {tmp_path / 'baseline-s1'}: it has different images"
    )
    (tmp_path / "baseline-s1" / "eval-c.json").write_text("{")
    assert beside_baseline(tmp_path / "augmix-s1") == "", "damaged files are none"
    lower = tmp_path / "lower"
    make_run(lower / "rotation", tasks=("rotation",), mean=0.6)
    make_run(lower / "baseline", seed=1)
    (make_run(lower / "damaged") / "eval-c.json").write_text("{")
    assert beside_baseline(lower / "rotation") == "", "no baseline has its seed"
    old = make_run(lower / "old" / "baseline", mean=0.5)
    assert beside_baseline(lower / "rotation").startswith(f"+10.00 points over the baseline {old}, ")


def test_where_numbers_come_from_is_told_as_far_as_it_is_recorded(tmp_path: Path) -> None:
    study = make(tmp_path, "baseline", "augmix-automl", seeds=2, origin="generated", precision="bfloat16")
    rows = dict(provenance(study).rows)
    assert rows["trained on"] == "5,000 training images of cifar10"
    assert rows["tested on"] == (
        "a corrupted set generated by rssl, not a published one (fingerprint bbbbbbbb)"
    )
    assert rows["images per cell"] == "990 in each of 95 cells; 990 clean ones"
    assert rows["λ tuned on"] == "the same corruptions, other images"
    assert rows["precision"] == "training bfloat16; evaluation float32"
    assert rows["training's machine"] == "not recorded"
    log = "2026-01-01T00:00:00+00:00 rssl 0.2.0, torch 2.9.0, NVIDIA H100: baseline on cifar10, 5000 images\n"
    (tmp_path / "baseline-s0" / "log.txt").write_text(log)
    (tmp_path / "baseline-s1" / "log.txt").write_bytes(b"\xff\0" * 9999)
    (study,), _ = make_studies(read_runs([tmp_path])[0])
    rows = dict(provenance(study).rows)
    assert rows["training's machine"] == (
        "not recorded (3 runs); rssl 0.2.0, torch 2.9.0, NVIDIA H100 (1 run)"
    )


def test_times_that_say_little_are_called_so(tmp_path: Path) -> None:
    study = make(tmp_path, "baseline", "rotation")
    assert len(list(cost(study))) == 1
    path = tmp_path / "rotation-s1" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["images_per_second"] /= 3
    path.write_text("\n".join(map(json.dumps, lines)))
    (study,), _ = make_studies(read_runs([tmp_path])[0])
    text, _ = cost(study)
    assert getattr(text, "text", "") == (
        "These times say little: the slowest training of the row Rotation took 3.0 times as long as the "
        "fastest one."
    )


def test_tasks_on_top_of_augmix_are_compared_with_augmix(tmp_path: Path) -> None:
    study = make(tmp_path, "baseline", "rotation", "augmix", "augmix-automl")
    found = {(row.label, other.label): each.mean for row, other, each in study.what_is_added}
    assert found == {("AugMix + four tasks, AutoML", "AugMix"): pytest.approx(0.011)}


def test_rows_with_the_same_tasks_are_compared_with_the_one_that_differs_least(tmp_path: Path) -> None:
    study = make(tmp_path, "baseline", "fixed", "cheap", "cheap-automl")
    found = {(row.label, other.label): 100 * each.mean for row, other, each in study.what_is_added}
    fixed = "Four tasks, fixed λ"
    cheap = f"{fixed} (task_share 0.25)"
    tuned = "Four tasks, AutoML (task_share 0.25)"
    assert found == {(cheap, fixed): pytest.approx(1), (tuned, cheap): pytest.approx(0.5)}
