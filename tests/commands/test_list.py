"""`rssl list` as a person runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import Here

from rsslcli.commands.console import out
from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS


@pytest.fixture
def place(home: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a data set and two runs, one of them evaluated."""
    shutil.copytree(home / "data" / "mine", tmp_path / "data" / "mine")
    config = Config(dataset="mine", tasks=("rotation", "ir"), weighting="automl", epochs=2, warmup_epochs=0)
    for number, name in enumerate(("first", "20260301-100000-automl-rotation-ir")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config.to_yaml())
        (run / "checkpoint.pt").write_bytes(b"weights")
        (run / "log.txt").write_text(
            f"2026-03-0{number + 1}T10:00:00+00:00 rssl\n- epoch 2: clean accuracy 0.7\n- finished\n"
        )
    cells = {"clean_accuracy": 0.71, "mean_accuracy": 0.5, "accuracy": {"fog": [0.5] * 5}}
    evaluation = {**cells, "images": 9, "excluded": []}
    (tmp_path / "runs" / "first" / "eval-c.json").write_text(json.dumps(evaluation))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tables_name_data_sets_and_runs(here: Here, place: Path) -> None:
    code, shown, told = here("list")
    assert code == 0
    rows = [re.split(r" *│ *", line.strip("│ ")) for line in shown.splitlines() if line.startswith("│")]
    assert rows[0][:6] == ["mine", "10", "160", "40", "32x32", "generated, 40 images"]
    size = sum(path.stat().st_size for path in (place / "data" / "mine").rglob("*") if path.is_file())
    assert rows[0][6] == f"{size / 2**20:.1f} MiB"
    what = "automl rotation ir; mine; WRN-40-2"
    assert rows[1:] == [
        ["first", what, "2026-03-01 10:00", "71.00", "50.00", "evaluated"],
        ["20260301-100000-automl-rotation-ir", what, "2026-03-02 10:00", "70.00", "–", "trained"],
    ]
    assert told == "next: rssl eval-c runs/20260301-100000-automl-rotation-ir\n"


def test_json_holds_everything(here: Here, place: Path) -> None:
    content = json.loads(here.succeed("list runs --json"))
    (dataset,) = content["datasets"]
    assert len(dataset["classes"]) == 10
    assert dataset["corrupted"] == {"origin": "generated", "corruptions": 19, "images": 40}
    first, second = content["runs"]
    assert (first["directory"], first["state"], first["mean_accuracy"]) == ("runs/first", "evaluated", 0.5)
    assert second["config"]["tasks"] == ["rotation", "ir"]
    assert Config(**second["config"]).automl


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "train-single --resume --output runs/last"),
        ({"tasks": ("ir",)}, "train-single --resume --output runs/last"),
        ({"tasks": ("rotation", "ir")}, "train-automl --resume --output runs/last"),
        ({"tasks": ("ir",), "weighting": "random"}, "train-automl --resume --output runs/last"),
        ({"network": "nets:make"}, "train-single --resume --output runs/last --network nets:make"),
    ],
)
def test_an_interrupted_run_is_continued_by_its_own_command(
    here: Here, place: Path, settings: dict[str, object], expected: str
) -> None:
    run = place / "runs" / "last"
    run.mkdir()
    (run / "config.yaml").write_text(Config(dataset="mine", **settings).to_yaml())
    (run / "log.txt").write_text("2026-03-09T10:00:00+00:00 rssl\n")
    _, _, told = here("list")
    assert told == f"next: rssl {expected}\n"
    _, _, told = here(f"list --data-dir {place / 'data'}")
    assert told == f"next: rssl {expected} --data-dir {place / 'data'}\n"


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal(
    here: Here, place: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    (place / "runs" / "first" / "log.txt").write_text("2026-03-01T10:00:00+00:00 rssl\n")
    config = Config(dataset="mine", network="mobilenet_v3_small", epochs=2)
    (place / "runs" / "first" / "config.yaml").write_text(config.to_yaml())
    shutil.copytree(place / "runs" / "first", place / "runs" / "-".join(["long"] * 30))
    monkeypatch.setattr(out, "width", width)
    shown = here.succeed("list")
    assert all(len(line) <= width for line in shown.splitlines())
    assert shown.count("trained") == 2  # a heading and a state
    assert shown.count("mobilenet v3") + shown.count("mobilenet_v3") == 2
    assert "20260301-100000-" in shown
    assert ("epoch 0/2, interrupted" in shown) is (width == 120)
    assert "interrupted" in shown


def test_a_damaged_data_set_and_an_incomplete_corrupted_set_are_told(here: Here, place: Path) -> None:
    shutil.copytree(place / "data" / "mine", place / "data" / "part")
    (place / "data" / "part" / "corrupted" / "labels.npy").unlink()
    shutil.copytree(place / "data" / "mine", place / "data" / "few")
    for name in CORRUPTIONS[3:]:
        (place / "data" / "few" / "corrupted" / f"{name}.npy").unlink()
    shutil.copytree(place / "data" / "mine", place / "data" / "resized")
    for cell in (place / "data" / "resized" / "corrupted").glob("*.npy"):
        if cell.name != "labels.npy":
            np.save(cell, np.load(cell).repeat(2, 1).repeat(2, 2))
    for name, content in (("cut", b"PK"), ("foreign", None)):
        (place / "data" / name).mkdir()
        shutil.copy(place / "data" / "mine" / "test.npz", place / "data" / name)
        if content is None:
            np.savez(place / "data" / name / "train.npz", images=np.zeros((2, 3)))
        else:
            (place / "data" / name / "train.npz").write_bytes(content)
    code, shown, told = here("list")
    assert code == 0
    rows = [line.split("│") for line in shown.partition("\nruns in")[0].splitlines() if line.startswith("│")]
    cells = {row[1].strip(): row[6].strip() for row in rows}
    assert cells == {
        "cut": "damaged",
        "few": "generated, 3 of 19, 40 images",
        "foreign": "damaged",
        "mine": "generated, 40 images",
        "part": "not usable",
        "resized": "not usable",
    }
    assert "note: data/cut/train.npz is damaged or not a prepared split\n" in told
    assert "note: data/part/corrupted/labels.npy is missing: " in told
    assert "resized/corrupted are 64x64, the test images 32x32: prepare them again" in told


def test_a_corrupted_set_of_other_test_images_is_told(here: Here, place: Path) -> None:
    corrupted = place / "data" / "mine" / "corrupted" / "labels.npy"
    np.save(corrupted, np.load(corrupted)[::-1])
    code, shown, told = here("list")
    assert (code, "not usable" in shown) == (0, True)
    assert "were made for other test images than those of 'mine': prepare them again with `rssl" in told


def test_a_command_that_keeps_nothing_starts_over_after_ctrl_c(
    here: Here, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rsslcli.core.report.inventory.list_runs", interrupted)
    here.refuse("list --json", match="^rssl: error: stopped; to run it again: rssl list --json$", code=130)


def test_a_run_that_is_kept_without_its_weights_is_evaluated(here: Here, place: Path) -> None:
    (place / "runs" / "first" / "checkpoint.pt").unlink()
    shown = here.succeed("list runs --json")
    assert [run["state"] for run in json.loads(shown)["runs"]] == ["evaluated", "trained"]


def test_without_anything_it_says_how_to_begin(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, told = here("list")
    assert (code, shown) == (0, "no data sets in data\nno runs in runs\n")
    assert told == "next: rssl train-automl --preset quick\n"
    here.refuse("list nowhere", match="nowhere: expected a folder of runs")


def test_with_data_alone_it_says_what_to_train(
    here: Here, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place / "data")
    _, _, told = here(f"list --data-dir {place / 'data'}")
    assert told.startswith("next: rssl train-single --task none --preset robust --dataset mine --depth 16 ")


def test_it_loads_no_torch(place: Path) -> None:
    code = (
        "import sys; from rsslcli.app import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )  # fmt: skip
    command = [sys.executable, "-c", code, "list", "--data-dir", "data"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
