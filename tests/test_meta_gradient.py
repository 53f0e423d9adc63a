"""The table of `benchmarks/meta_gradient.py`, on metrics whose meta-gradient is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from meta_gradient import lines, main

from rsslcli.core.config import Config
from rsslcli.core.errors import UserError


def write_run(folder: Path, config: Config, inner_products: np.ndarray) -> None:
    """A run of ten steps an epoch, in which λ moves by β α ⟨gᵢ, v⟩ after the warm-up."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    values = np.full(len(config.tasks), 0.5)
    records: list[dict[str, float]] = []
    for step, products in enumerate(inner_products):
        epoch = 1 + step // 10
        rate = 0.1 / epoch
        if epoch > config.warmup_epochs:
            moved = values + config.meta_lr * config.lookahead_scale * rate * products
            values = np.maximum(moved, 0)
        weights = {f"lambda/{task}": value for task, value in zip(config.tasks, values, strict=True)}
        records.append({"step": step + 1, "epoch": epoch, "lr": rate, "loss/main": 1.0} | weights)
        if step % 10 == 9:
            records.append({"step": step + 1, "epoch": epoch, "seconds": 1.0})
    records.insert(20, records[15])  # repeated after a resume
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_drift_is_the_mean_inner_product_over_its_standard_error(tmp_path: Path) -> None:
    config = Config(
        tasks=("rotation", "ir"),
        weighting="automl",
        epochs=11,
        warmup_epochs=1,
        meta_lr=0.3,
        lookahead_scale=2.0,
    )
    products = np.random.default_rng(0).normal([0.0, 0.05], 0.01, (110, 2))
    write_run(tmp_path / "run", config, products)
    rotation, ir, *spans = lines(tmp_path / "run")
    for index, line in enumerate((rotation, ir)):
        tuned = products[10:, index]
        assert line.task == config.tasks[index]
        assert (line.first, line.last) == (2, 11)
        assert line.drift == pytest.approx(tuned.mean())
        assert line.t == pytest.approx(tuned.mean() / (tuned.std(ddof=1) / 10))
        assert line.up == pytest.approx((tuned > 0).mean())
    assert abs(rotation.t) < 3
    assert ir.t > 30
    assert [(line.first, line.last) for line in spans[::2]] == [(2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert spans[0].drift == pytest.approx(products[10:30, 0].mean())
    assert spans[-1].value == ir.value


def test_steps_that_are_cut_off_at_zero_leave_no_figure_but_their_share(tmp_path: Path) -> None:
    config = Config(tasks=("ir",), weighting="automl", epochs=11, warmup_epochs=1, meta_lr=1.0)
    products = np.random.default_rng(0).normal(1.0, 0.01, (110, 1))
    products[10:70] -= 1.5
    write_run(tmp_path / "run", config, products)
    whole, *spans = lines(tmp_path / "run")
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    values = [record["lambda/ir"] for record in records if "loss/main" in record]
    assert min(values) == 0
    assert np.isnan([whole.drift, whole.t, whole.up]).all()
    assert 0.1 < whole.at_zero < 0.6
    assert spans[-1].at_zero == 0
    assert spans[-1].drift == pytest.approx(1, abs=0.02)


def test_runs_whose_weights_say_nothing_of_it_are_refused(tmp_path: Path) -> None:
    for name, settings in {
        "fixed": {"weighting": "fixed"},
        "kept": {"weighting": "automl", "automl_variants": ("constant-sum",)},
    }.items():
        write_run(
            tmp_path / name, Config(tasks=("ir",), epochs=3, warmup_epochs=1, **settings), np.ones((30, 1))
        )
        with pytest.raises(UserError, match="meta-gradient alone"):
            list(lines(tmp_path / name))


def test_a_run_without_metrics_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(Config(tasks=("ir",), weighting="automl").to_yaml())
    monkeypatch.setattr("sys.argv", ["meta_gradient.py", str(tmp_path)])
    assert main() == 1
    assert capsys.readouterr().err.count("\n") == 1
