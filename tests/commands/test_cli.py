"""The commands as a person runs them: through the installed `rssl`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import RSSL, TINY, refuse, rssl, succeed
from PIL import Image

from rsslcli.core.checkpoint import load_checkpoint
from rsslcli.core.corruptions.names import CORRUPTIONS, STANDARD
from rsslcli.core.networks import WideResNet


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A finished AutoML run on `mine`, through a configuration file and overrides."""
    config = {"dataset": "mine", "validation_images": 10, "warmup_epochs": 1, "meta_batch_size": 5}
    (home / "my.yaml").write_text(yaml.safe_dump(config | {"epochs": 50}))
    out = succeed(
        f"train-automl --tasks rotation,ir --config my.yaml {TINY} --epochs 3 --output run", cwd=home
    )
    assert "next: rssl eval-c run" in out
    return home / "run"


def test_prepare_again_does_nothing(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*.np*")}
    out = succeed("prepare-data --dataset mine --source images --corruptions generate", cwd=home)
    assert "already prepared" in out
    assert {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*.np*")} == before


def test_run_directory(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["epochs"], config["validation_images"], config["tasks"]) == (3, 10, ["rotation", "ir"])
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss/rotation" in record for record in steps) == 30
    assert {record["lambda/ir"] for record in steps if record.get("step", 99) <= 10 and "lr" in record} == {
        0.5
    }
    assert (run / "log.txt").read_text().count("clean accuracy") == 3


def test_eval_c(home: Path, run: Path) -> None:
    out = succeed("eval-c run", cwd=home)
    for name in CORRUPTIONS:
        assert name in out
    result = json.loads((run / "eval-c.json").read_text())
    assert (result["images"], len(result["excluded"])) == (30, 10)
    assert list(result["accuracy"]) == list(CORRUPTIONS)
    every = [value for values in result["accuracy"].values() for value in values]
    assert len(every) == 95
    assert result["mean_accuracy"] == pytest.approx(np.mean(every))
    assert f"{100 * result['mean_accuracy']:.2f}%" in out
    assert result["dataset"] == "mine"

    succeed(
        "eval-c run/checkpoint.pt --limit 7 --corruptions fog,snow --output part.md",
        cwd=home,
    )
    assert "| fog |" in (home / "part.md").read_text()
    assert json.loads((run / "eval-c.json").read_text()) == result


def test_stricter_protocol(home: Path) -> None:
    """Tune on the extra four, test on the other fifteen, end to end."""
    settings = "--validation-corruptions extra --warmup-epochs 0 --epochs 1 --config my.yaml"
    succeed(f"train-automl --tasks ir {TINY} {settings} --output strict", cwd=home)
    out = succeed(
        f"eval-c strict --severity 3 --corruptions {','.join(STANDARD)} --output strict.json", cwd=home
    )
    result = json.loads((home / "strict.json").read_text())
    assert list(result["accuracy"]) == list(STANDARD)
    assert "speckle_noise" not in out


def test_corrupted_images_from_an_archive(home: Path) -> None:
    without = shutil.ignore_patterns("corrupted")
    shutil.copytree(home / "data" / "mine", home / "data" / "second", ignore=without)
    with tarfile.open(home / "C.tar", "w") as archive:
        for path in (home / "data" / "mine" / "corrupted").glob("*.npy"):
            archive.add(path, f"C/{path.name}")
    command = "prepare-data --dataset second --corruptions"
    assert "19 corruptions of 40 images" in succeed(f"{command} download --source C.tar", cwd=home)
    for path in (home / "data" / "mine" / "corrupted").glob("*.npy"):
        copy = home / "data" / "second" / "corrupted" / path.name
        assert np.array_equal(np.load(copy), np.load(path))
    refuse(f"{command} generate", cwd=home, match="was not generated: move it away")
    refuse(f"{command} download", cwd=home, match="--corruptions generate")


def test_eval_c_of_a_plain_state_dict(home: Path, run: Path) -> None:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in WideResNet(10, 1).state_dict().items()}}, home / "w.pt"
    )
    out = succeed("eval-c w.pt --dataset mine --corruptions fog --output w.json", cwd=home)
    assert "40 images per cell" in out
    assert json.loads((home / "w.json").read_text())["excluded"] == []
    command = "eval-c w.pt --dataset mine --corruptions fog --same-images-as run --output w.json"
    assert "30 images per cell, 10 left out" in succeed(command, cwd=home)
    excluded = json.loads((home / "w.json").read_text())["excluded"]
    assert excluded == list(load_checkpoint(run).excluded)


def test_resume(home: Path, run: Path) -> None:
    out = succeed("train-automl --resume --output run", cwd=home)
    assert "clean accuracy" in out
    refuse("train-automl --output run --dataset mine --tasks ir", cwd=home, match="--resume")
    refuse("train-automl --resume", cwd=home, match="needs --output")
    refuse("train-automl --resume --output none", cwd=home, match="no run to go on with")
    refuse(
        "train-automl --resume --output run --epochs 9 --lr 1",
        cwd=home,
        match="leave out --epochs, --lr",
    )


def test_a_signal_saves_the_run(home: Path) -> None:
    assert RSSL
    process = subprocess.Popen(
        [RSSL, *f"train-single --task none {TINY} --epochs 400 --output stopped".split()],
        cwd=home,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = home / "stopped" / "log.txt"
    deadline = time.monotonic() + 120
    while not (log.exists() and "epoch 1:" in log.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert re.search(r"stopped at step \d+ of 4000, all saved", stderr.splitlines()[-1])
    assert torch.load(home / "stopped" / "checkpoint.pt", weights_only=True)["step"] > 0


def test_baseline_and_fixed(home: Path) -> None:
    succeed(f"train-single --task none {TINY} --epochs 1 --output baseline", cwd=home)
    assert "lambda" not in (home / "baseline" / "metrics.jsonl").read_text()
    succeed(f"train-automl --fixed --tasks jigsaw,rgb {TINY} --epochs 1 --output fixed", cwd=home)
    records = [json.loads(line) for line in (home / "fixed" / "metrics.jsonl").read_text().splitlines()]
    assert {record.get("lambda/rgb", 0.5) for record in records} == {0.5}


def test_visualize_tasks(home: Path) -> None:
    out = succeed("visualize-tasks --output figure.png --images 3", cwd=home)
    assert "figure.png" in out
    with Image.open(home / "figure.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 7 * 100
    refuse("visualize-tasks --output figure.jpg", cwd=home, match=r"end in \.png")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("train-automl --tasks rotaton", "unknown task 'rotaton': did you mean 'rotation'?"),
        ("train-automl --tasks rotation,rotation", "named twice"),
        ("train-automl --tasks ,", "name at least one"),
        ("train-single --task all", "unknown task 'all': choose from rotation"),
        ("train-single", "--task is missing"),
        ("train-automl --preset fast", "unknown preset 'fast'"),
        ("train-automl --epochs many", "--epochs"),
        ("train-automl --epochs 0", "epochs: expected at least 1"),
        ("train-automl --depth 11", "depth"),
        ("train-automl --batch-norm both", "batch_norm: expected one of per-task, joint"),
        ("train-automl --device tpu", "device: expected one of auto, cpu, cuda"),
        ("train-automl --wrong 1", "No such option"),
        ("trian", "No such command"),
        ("train-automl --config none.yaml", "none.yaml"),
        ("train-automl --config typo.yaml", "unknown option 'epoch': did you mean 'epochs'?"),
        ("train-automl --config code.yaml", "not plain YAML"),
        ("train-automl --tasks ir", "no prepared data set 'cifar10'.*prepare-data --dataset cifar10"),
        ("eval-c", "Missing argument"),
        ("eval-c none.pt", "no checkpoint at none.pt"),
        ("eval-c noise.pt", "noise.pt cannot be read as a checkpoint"),
        ("eval-c other.pt", "other.pt.*neither a checkpoint"),
        ("eval-c w.pt --dataset bare", "no corrupted test set for 'bare'.*--corruptions generate"),
        ("eval-c w.pt --dataset none", "no prepared data set 'none'"),
        ("eval-c w.pt --dataset mine --corruptions rain", "'rain'"),
        ("eval-c w.pt --dataset mine --severity 0,1", "--severity 0,1: expected numbers from 1 to 5"),
        ("train-automl --validation-corruptions few", "expected one of all, extra"),
        ("eval-c w.pt --output table.xls", "must end in .json, .csv, .md"),
        ("prepare-data --dataset mine --source nowhere", "no such source"),
        ("prepare-data", "--dataset"),
        ("prepare-data --dataset mine --corruptions generate --only rain", "rain"),
        ("prepare-data --dataset mine --corruptions generate --severity 6", "6"),
        ("prepare-data --dataset mine --only fog", "add --corruptions generate"),
        ("visualize-tasks --dataset none", "no prepared data set 'none'"),
        ("visualize-tasks --dataset mine --tasks drawing", "unknown task 'drawing'"),
        ("visualize-tasks --dataset mine --images 0", "0 images"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(home: Path, arguments: str, match: str) -> None:
    (home / "typo.yaml").write_text("epoch: 3\n")
    (home / "code.yaml").write_text("epochs: !!python/object/apply:os.system ['touch pwned']\n")
    (home / "noise.pt").write_bytes(bytes(range(256)) * 10)
    torch.save({"weights": [1, 2, 3]}, home / "other.pt")
    torch.save(WideResNet(10, 1).state_dict(), home / "w.pt")
    if not (home / "data" / "bare").exists():
        shutil.copytree(
            home / "data" / "mine", home / "data" / "bare", ignore=shutil.ignore_patterns("corrupted")
        )
    refuse(arguments, cwd=home, match=match)
    assert not (home / "pwned").exists()


def test_help_version_and_module(tmp_path: Path) -> None:
    out = succeed("--help", cwd=tmp_path)
    for command in ("prepare-data", "train-single", "train-automl", "eval-c", "visualize-tasks"):
        assert command in out
        assert "--help" in succeed(f"{command} --help", cwd=tmp_path)
    assert re.fullmatch(r"rssl \d+\.\d+\.\d+\n", succeed("--version", cwd=tmp_path))
    module = subprocess.run(
        [sys.executable, "-m", "rsslcli", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert module.stdout == succeed("--version", cwd=tmp_path)


def test_help_and_usage_errors_load_no_torch(tmp_path: Path) -> None:
    for arguments in (["--help"], ["train-automl", "--tasks", "x"], ["eval-c"], ["train-automl", "--help"]):
        code = (
            "import sys, contextlib, io\n"
            f"sys.argv = ['rssl', *{arguments!r}]\n"
            "from rsslcli.app import main\n"
            "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
            "    main()\n"
            "assert 'torch' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_data_dir_from_the_environment(home: Path) -> None:
    result = rssl("visualize-tasks --dataset none", cwd=home, RSSL_DATA_DIR="elsewhere")
    assert result.returncode == 2
    assert "no prepared data set 'none' in elsewhere" in result.stderr


def test_unwritable_output_is_a_failure(home: Path, run: Path) -> None:
    (home / "file").write_text("not a folder")
    refuse("eval-c run --corruptions fog --output file/x.json", cwd=home, match="file", code=1)
