"""Figures that are there, of a sane size, not empty, and drawn from odd numbers too."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import FOUR, make_run

from rsslcli.core import plots
from rsslcli.core.plots import MAX_ROWS, draw
from rsslcli.core.results import Study, make_studies, read_runs


def study(folder: Path) -> Study:
    return make_studies(read_runs([folder])[0])[0][0]


def test_figures_of_damaged_and_diverged_runs(tmp_path: Path) -> None:
    """Losses and λ that are missing, huge or nonsense leave gaps, and nothing else."""
    make_run(tmp_path / "baseline")
    for seed in (0, 1):
        path = make_run(tmp_path / f"automl{seed}", tasks=FOUR, automl=True, seed=seed) / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.pop("lambda/bir", None)
            line |= {"loss/main": 1e11 * line["step"], "lambda/ir": float("nan")}
            if line["epoch"] == 4:
                line |= {"epoch": 5, "clean_accuracy": -3}
        path.write_text("\n".join(map(json.dumps, lines)))
    figures = draw(study(tmp_path), "x-")
    assert list(figures) == ["difference", "figure-2a", "figure-2b", "corruptions", "severities", "training"]
    for name, figure in figures.items():
        assert figure.name == f"x-{name}.png"
        with Image.open(io.BytesIO(figure.png)) as picture:
            assert 500 < picture.width < 2000
            assert 250 < picture.height < 2500
            pixels = np.asarray(picture.convert("RGB"))
        assert (pixels[[0, -1]] == 255).all(), "on white, and nothing is cut off above or below"
        assert (pixels[:, [0, -1]] == 255).all(), "nor at the sides"
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert "λ of rotation ends at" in figures["figure-2b"].alt
    assert "λ of ir" not in figures["figure-2b"].alt


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(plots, "_PLOTS", {name: plots._PLOTS[name]})


def test_more_rows_than_a_picture_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "corruptions")
    make_run(tmp_path / "baseline")
    for index in range(MAX_ROWS + 2):
        make_run(tmp_path / str(index), tasks=("ir",), initial_lambda=index / 10)
    figures = draw(study(tmp_path))
    assert figures["corruptions"].caption.endswith(f" The first {MAX_ROWS} of {MAX_ROWS + 3} rows.")
    with Image.open(io.BytesIO(figures["corruptions"].png)) as picture:
        assert picture.width < 2000


@pytest.mark.parametrize("warmup", [0, 7])
def test_the_warm_up_is_marked(tmp_path: Path, warmup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "figure-2b")
    make_run(tmp_path / "a", tasks=("ir", "rgb"), automl=True, warmup_epochs=warmup)
    figure = draw(study(tmp_path))["figure-2b"]
    assert figure == draw(study(tmp_path))["figure-2b"], "the same runs give the same bytes"
    with Image.open(io.BytesIO(figure.png)) as picture:
        shaded = (np.asarray(picture.convert("RGB")) == 0xEC).all(2).mean()
    assert (shaded > 0.4) == (warmup > 0)
