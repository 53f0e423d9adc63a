"""The commands as a person runs them: through the installed `rssl`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
import yaml
from helpers import RSSL, TINY, Here, on_a_terminal, refuse, rssl, succeed
from PIL import Image

from rsslcli.app import COMMANDS, app
from rsslcli.commands.console import suggest_next
from rsslcli.commands.training_run import _new_directory
from rsslcli.commands.visualize_corruptions import _origin
from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS, STANDARD
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.errors import UserError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.weights.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A finished AutoML run on `mine`, through a configuration file and overrides."""
    config = {"dataset": "mine", "validation_images": 10, "warmup_epochs": 1, "meta_batch_size": 5}
    (home / "my.yaml").write_text(yaml.safe_dump(config | {"epochs": 50}))
    options = f"--tasks rotation,ir --config my.yaml {TINY} --epochs 3 --output run --tensorboard"
    result = rssl(f"train-automl {options}", cwd=home)
    assert result.returncode == 0, result.stderr
    expected = r"clean accuracy [\d.]+% on 30 test images   λ: rotation [\d.]+  ir [\d.]+\n"
    assert re.fullmatch(expected, result.stdout)
    assert result.stderr.endswith("next: rssl eval-c run\n")
    for text in (result.stdout, result.stderr):  # no terminal: no bars, no control characters
        assert text.replace("\n", "").isprintable()
    return home / "run"


def test_prepare_again_does_nothing(home: Path, here: Here) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "data").rglob("*.np*")}
    out = here.succeed("prepare-data --dataset mine --source images --corruptions generate")
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


def test_eval_c(home: Path, run: Path, here: Here) -> None:
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
    assert (run / "eval-c.jpg").is_file(), "the images of the surest mistakes, for the report"
    assert sum(result["diagnostics"]["reliability"]["corrupted"]["images"]) == 95 * 30

    here.succeed("eval-c run/checkpoint.pt --limit 7 --corruptions fog,snow --output part.md")
    assert "| fog |" in (home / "part.md").read_text()
    assert json.loads((run / "eval-c.json").read_text()) == result


def test_stricter_protocol(home: Path, here: Here) -> None:
    """Tune on the extra four, test on the other fifteen, end to end."""
    settings = "--validation-corruptions extra --warmup-epochs 0 --epochs 1 --config my.yaml"
    here.succeed(f"train-automl --tasks ir {TINY} {settings} --output strict")
    out = here.succeed(f"eval-c strict --severity 3 --corruptions {','.join(STANDARD)} --output strict.json")
    result = json.loads((home / "strict.json").read_text())
    assert list(result["accuracy"]) == list(STANDARD)
    assert "│ speckle_noise" not in out
    assert "mean of 15 of 19 (missing: speckle_noise, gaussian_blur, spatter, saturate)" in out


def test_corrupted_images_from_an_archive(home: Path, here: Here) -> None:
    without = shutil.ignore_patterns("corrupted")
    shutil.copytree(home / "data" / "mine", home / "data" / "second", ignore=without)
    with tarfile.open(home / "C.tar", "w") as archive:
        for path in (home / "data" / "mine" / "corrupted").glob("*.npy"):
            archive.add(path, f"C/{path.name}")
    command = "prepare-data --dataset second --corruptions"
    assert "19 corruptions of 40 images" in here.succeed(f"{command} download --source C.tar")
    for path in (home / "data" / "mine" / "corrupted").glob("*.npy"):
        copy = home / "data" / "second" / "corrupted" / path.name
        assert np.array_equal(np.load(copy), np.load(path))
    here.refuse(f"{command} generate", match="was not generated: move it away")
    here.refuse(f"{command} download", match="--corruptions generate")


def test_eval_c_of_a_plain_state_dict(home: Path, run: Path, here: Here) -> None:
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in WideResNet(10, 1).state_dict().items()}}, home / "w.pt"
    )
    evaluate = "eval-c w.pt --dataset mine --corruptions fog --classes-by-position --output w.json"
    out = here.succeed(evaluate)
    assert "40 images per cell" in out
    assert json.loads((home / "w.json").read_text())["excluded"] == []
    assert "30 images per cell, 10 left out" in here.succeed(f"{evaluate} --same-images-as run")
    excluded = json.loads((home / "w.json").read_text())["excluded"]
    assert excluded == list(load_checkpoint(run).excluded)


def test_resume(home: Path, run: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    out = succeed("train-automl --resume --output run", cwd=home)
    assert "clean accuracy" in out
    assert len(list((run / "tensorboard").iterdir())) == 2  # as before, without being told again
    here.refuse("train-automl --output run --dataset mine --tasks ir", match="--resume")
    here.refuse("train-automl --fixed --resume --output run --tasks none", match="leave out --tasks,")
    here.refuse("train-single --resume --output run --task none", match="leave out --task,")
    monkeypatch.setattr("rsslcli.commands.training_run.find_spec", lambda name: None)
    here.refuse("train-automl --resume --output run", match="--tensorboard needs TensorBoard: pip install")
    shutil.rmtree(run / "tensorboard")
    here.refuse(
        "train-automl --resume --output run --epochs 9 --lr 1 --lambda 1",
        match="leave out --epochs, --lr, --lambda",
    )
    here.refuse("train-single --resume --output run", match="train-automl: resume it with that command")
    code, printed, _ = here("train-automl --resume --output run --print-config --device cpu")
    assert code == 0
    assert yaml.safe_load(printed) == yaml.safe_load((run / "config.yaml").read_text()) | {"device": "cpu"}


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


def test_baseline_and_fixed(home: Path, here: Here) -> None:
    here.succeed(f"train-single --task none {TINY} --epochs 1 --output baseline")
    assert "lambda" not in (home / "baseline" / "metrics.jsonl").read_text()
    here.succeed(f"train-automl --fixed --tasks jigsaw,rgb {TINY} --epochs 1 --output fixed")
    records = [json.loads(line) for line in (home / "fixed" / "metrics.jsonl").read_text().splitlines()]
    assert {record["lambda/rgb"] for record in records if "lr" in record} == {0.5}


def test_visualize_tasks(home: Path, here: Here) -> None:
    out = here.succeed("visualize-tasks --output figure.png --images 3")
    assert "figure.png" in out
    with Image.open(home / "figure.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 7 * 100


def test_visualize_corruptions_of_a_test_image_and_of_a_file(home: Path, here: Here) -> None:
    out = here.succeed("visualize-corruptions --corruptions fog,contrast")
    assert "written to corruptions.png" in out
    with Image.open(home / "corruptions.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 2 * 5 * 96, "two groups stand side by side"
        picture.resize((70, 80)).save(home / "own-image.jpg")
    out = here.succeed("visualize-corruptions --corruptions contrast --file own-image.jpg --output own.png")
    assert out.splitlines()[0] == "corrupted images: generated for this picture; written to own.png"


def test_the_origin_of_a_picture_names_the_fewer_corruptions() -> None:
    data: Any = SimpleNamespace(corrupted_folder="d/corrupted")
    begin = "corrupted images: from d/corrupted"
    rest = [*CORRUPTIONS[2:]]
    few = [*CORRUPTIONS[:2]]
    assert _origin(data, few, rest) == f"{begin}: {', '.join(few)}; the other 17 generated for this picture"
    assert _origin(data, rest, few) == f"{begin}, but generated for this picture: {', '.join(few)}"
    assert _origin(data, rest, []) == begin


#: Mistakes that are found before torch is loaded: arguments, and what the one line says.
EARLY = [
    ("train-automl --tasks rotaton", "unknown task 'rotaton': did you mean 'rotation'?"),
    ("train-automl --tasks rotation,rotation", "named twice"),
    ("train-automl --tasks ,", "name at least one"),
    ("train-automl --fixed --tasks ,", "name at least one"),
    ("train-automl --tasks none", "AutoML sets the weights of tasks; choose at least one"),
    ("train-single --task rotation,ir", "one task, not rotation,ir: use train-automl --fixed"),
    ("train-single --task all", "unknown task 'all': choose from rotation"),
    ("train-single", "--task is missing"),
    ("train-automl --preset fast", "unknown preset 'fast': choose from paper"),
    ("train-automl --preset quik", "unknown preset 'quik': did you mean 'quick'?"),
    ("train-automl --epochs many", "--epochs"),
    ("train-automl --epochs", r"requires an argument \(see rssl train-automl --help\)$"),
    ("train-automl --lambda -1", r"--lambda: .* 0, got -1.0 \(see rssl train-automl --help\)$"),
    ("train-automl --weight-decay 1", "weight_decay has no option: set it in a file for --config"),
    ("eval-c w.pt --weight-decay 1", "unknown option '--weight-decay'"),
    ("train-automl --output=", "--output is empty: give a path, or leave it out"),
    ("train-automl --config=", "--config is empty"),
    ("train-automl --data-dir=", "--data-dir is empty"),
    ("train-automl --epochs 0", "epochs: expected at least 1, got 0"),
    ("train-automl --epochs -1", "epochs: expected at least 1, got -1"),
    ("train-automl --epochs 5 --warmup-epochs 9", "--warmup-epochs: AutoML tunes nothing.* expected below 5"),
    ("train-automl --epochs 5 --warmup-epochs 9 --print-config", "--warmup-epochs: .* expected below 5"),
    ("train-automl --config untuned.yaml", "--warmup-epochs: .* in 5 epochs of 5: expected below 5"),
    ("train-automl --meta-lr 0", "--meta-lr: .* expected above 0"),
    ("train-automl --fixed --lambda 0", "--lambda: .* rotation, bir, color, ir would have no effect"),
    ("train-single --task ir --lambda 0", "--lambda: .* ir would have no effect"),
    ("train-automl --depth 11", "depth"),
    ("train-automl --batch-norm both", "unknown batch_norm 'both': choose from per-task, joint, all"),
    ("train-automl --batch-norm jiont", "unknown batch_norm 'jiont': did you mean 'joint'?"),
    ("train-automl --device gpu", "unknown device 'gpu': did you mean 'cpu'"),
    ("train-automl --device mps", "unknown device 'mps': choose from auto, cpu, cuda"),
    ("eval-c w.pt --device gpu", "unknown device 'gpu': did you mean 'cpu'"),
    ("predict w.pt a.png --device mps", "unknown device 'mps': choose from auto, cpu, cuda"),
    ("demo --device gpu", "unknown device 'gpu': did you mean 'cpu'"),
    ("eval-c w.pt --precision bfloat", "unknown precision 'bfloat': did you mean 'bfloat16'?"),
    ("train-automl --precision bfloat", "unknown precision 'bfloat': did you mean 'bfloat16'?"),
    ("train-automl --validation-corruptions few", "validation_corruptions 'few': choose from all, extra"),
    ("train-automl --wrong 1", r"unknown option '--wrong' \(see rssl train-automl --help\)$"),
    ("train-automl --epoch 1", "unknown option '--epoch': did you mean '--epochs'?"),
    ("train-single --task none --meta-lr 1", "unknown option '--meta-lr'"),
    ("--versoin", "unknown option '--versoin': did you mean '--version'?"),
    ("train-atoml", "unknown command 'train-atoml': did you mean 'train-automl'?"),
    ("train", "unknown command 'train': choose from train-single, train-automl$"),
    ("xyz", "unknown command 'xyz': choose from demo, prepare-data"),
    ("train-automl --config none.yaml", "none.yaml"),
    ("train-automl --config .", "cannot read the configuration .: Is a directory"),
    ("train-automl --config typo.yaml", "unknown option 'epoch': did you mean 'epochs'?"),
    ("train-automl --config code.yaml", "not plain YAML"),
    ("train-automl --tasks ir", "no prepared data set 'cifar10'.*prepare-data --dataset cifar10"),
    ("train-automl --dataset mime", "no prepared data set 'mime' in data: did you mean 'mine'"),
    ("train-automl --resume", "needs --output"),
    ("train-automl --resume --output none", "no run to continue"),
    ("eval-c", "Missing argument"),
    ("eval-c none.pt", "no checkpoint at none.pt"),
    ("eval-c w.pt --same-images-as none", "no checkpoint at none"),
    ("eval-c w.pt --dataset mime", "no prepared data set 'mime' in data: did you mean 'mine'"),
    ("eval-c w.pt --dataset mine --corruptions fgo", "unknown corruption 'fgo': did you mean 'fog'?"),
    ("eval-c w.pt --dataset mine --severity 0,1", "--severity 0,1: expected numbers from 1 to 5"),
    ("eval-c w.pt --output folder.json", "--output folder.json: expected a file, but it is a folder"),
    ("eval-c w.pt --output table.xls", "must end in .json, .csv, .md"),
    ("prepare-data", "--dataset"),
    ("prepare-data --dataset mine --corruptions generate --only rain", "unknown corruption 'rain'"),
    ("prepare-data --dataset mine --corruptions generate --severity 6", "6"),
    ("prepare-data --dataset mine --only fog", "add --corruptions generate"),
    ("prepare-data --dataset mine --corruptions genrate", "genrate"),
    ("visualize-tasks --output figure.jpg", r"end in \.png"),
    ("visualize-tasks --dataset none", "no prepared data set 'none'"),
    ("visualize-tasks --tasks drawing", "unknown task 'drawing'"),
    ("visualize-tasks --checkpoint none", "no checkpoint at none"),
    ("visualize-corruptions --output figure.jpg", r"end in \.png"),
    ("visualize-corruptions --corruptions mist", "unknown corruption 'mist'"),
    ("visualize-corruptions --file a.jpg --image 3", "leave out --dataset and --image"),
    ("export none --output model.onnx", "no checkpoint at none"),
]  # fmt: skip
#: Mistakes that take a look at data or weights.
LATE = [
    ("train-automl --config tasks.yaml", "tasks.yaml: task 'bir' has no option 'sigmas': it takes"),
    ("train-automl --config tasks.yaml --print-config", "tasks.yaml: task 'bir' has no option 'sigmas'"),
    ("reproduce --config tasks.yaml --dry-run", "tasks.yaml: task 'bir' has no option 'sigmas'"),
    ("eval-c noise.pt", "noise.pt cannot be read as a checkpoint"),
    ("eval-c other.pt", "other.pt.*neither a checkpoint"),
    ("eval-c w.pt --dataset bare", "no corrupted test set for 'bare'.*--corruptions generate"),
    ("prepare-data --dataset mine --source nowhere", "no such source"),
    ("visualize-tasks --dataset mine --images 0", "0 images"),
    (
        "visualize-corruptions --dataset mine --image 100000",
        "--image 100000: 'mine' has test images 0 to",
    ),
    ("visualize-corruptions --file nowhere.jpg", "nowhere.jpg is no file"),
]


@pytest.fixture(scope="module")
def odd_files(home: Path) -> Path:
    """`home`, with files that are not what they are taken for, and a data set that is only half there."""
    (home / "typo.yaml").write_text("epoch: 3\n")
    (home / "folder.json").mkdir()
    (home / "tasks.yaml").write_text("task_options: {bir: {sigmas: 2}}\n")
    (home / "untuned.yaml").write_text("epochs: 5\nwarmup_epochs: 5\n")
    (home / "code.yaml").write_text("epochs: !!python/object/apply:os.system ['touch pwned']\n")
    (home / "noise.pt").write_bytes(bytes(range(256)) * 10)
    torch.save({"weights": [1, 2, 3]}, home / "other.pt")
    torch.save(WideResNet(10, 1).state_dict(), home / "w.pt")
    without = shutil.ignore_patterns("corrupted")
    shutil.copytree(home / "data" / "mine", home / "data" / "bare", ignore=without)
    return home


@pytest.mark.parametrize(("arguments", "match"), EARLY + LATE)
def test_mistakes_get_one_line_and_exit_code_2(
    odd_files: Path, here: Here, arguments: str, match: str
) -> None:
    assert here.refuse(arguments, match) == ""
    assert not (odd_files / "pwned").exists()


def test_typer_exports_no_class_of_usage_errors() -> None:
    assert not hasattr(typer, "UsageError"), "app.py can use it now instead of BadParameter.__mro__"


@pytest.mark.xfail(
    tuple(map(int, typer.__version__.split(".")[:2])) >= (0, 29),
    reason="this typer loads pydantic; once it no longer does, remove `<0.29` in pyproject.toml",
)
def test_help_completion_and_early_mistakes_load_nothing_heavy(odd_files: Path) -> None:
    code = (
        "import contextlib, io, json, os, sys\n"
        "from rsslcli.app import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['rssl', *arguments.split()]\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()), \\\n"
        "            contextlib.redirect_stdout(io.StringIO()):\n"
        "        main()\n"
        "    assert not {'torch', 'pydantic'} & set(sys.modules), arguments\n"
        "os.environ |= {'_RSSL_COMPLETE': 'complete_bash', 'COMP_WORDS': 'rssl train-automl --dataset ',\n"
        "               'COMP_CWORD': '3'}\n"
        "sys.argv = ['rssl']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'torch', 'pydantic'} & set(sys.modules)\n"
    )
    calm = ["", "--help", "--version", "train-automl --help", "train-automl --preset quick --print-config"]
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calm + [arguments for arguments, _ in EARLY])],
        capture_output=True,
        text=True,
        cwd=odd_files,
        env=os.environ | {"RSSL_DATA_DIR": "data"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert {"bare", "mine", "shapes"} <= set(result.stdout.split())


def test_help_teaches_by_example(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and options in sections that fit the terminal, then examples that can be typed."""
    monkeypatch.setenv("COLUMNS", "80")
    group = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands
    for name in ("", *commands):
        page = here.succeed(f"{name} --help")
        explained, _, examples = page.partition("\nExamples:\n")
        assert all(len(line) <= 80 for line in explained.splitlines())
        whole = examples.replace(" \\\n", " ")
        lines = [line.strip() for line in whole.splitlines() if not line.strip().startswith("#")]
        assert len(lines) >= 2, name
        for line in lines:
            _, command, *options = line.split()
            assert name in ("", command)
            known = {option for parameter in commands[command].params for option in parameter.opts}
            assert {option for option in options if option.startswith("--")} <= known
    page = here.succeed("")
    assert page == here.succeed("--help")
    headings = re.findall(r"^(\w[\w ]*):$", page, re.MULTILINE)
    assert headings == [*COMMANDS, "Options", "Examples"]
    assert re.findall(r"^  ([a-z][a-z-]*) {2,}\w", page, re.MULTILINE) == list(commands)


def test_version_and_module(tmp_path: Path) -> None:
    assert re.fullmatch(r"rssl \d+\.\d+\.\d+\n", succeed("--version", cwd=tmp_path))
    module = subprocess.run(
        [sys.executable, "-m", "rsslcli", "train-automl", "--wrong"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert module.returncode == 2
    refuse("train-automl --wrong", cwd=tmp_path, match=re.escape(module.stderr.strip()))


def test_data_dir_from_the_environment(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSSL_DATA_DIR", "elsewhere")
    here.refuse("eval-c w.pt --dataset none", match="no prepared data set 'none' in elsewhere")
    here.refuse("eval-c w.pt --dataset none --data-dir there", match="no prepared data set 'none' in there")


def test_unwritable_output_is_a_failure(home: Path, run: Path, here: Here) -> None:
    (home / "file").write_text("not a folder")
    code, _, err = here("eval-c run --corruptions fog --output file/x.json")
    assert code == 1
    assert re.fullmatch("rssl: error: cannot write file/x.json.partial: .*\n", err)


@pytest.mark.parametrize(
    ("arguments", "origins"),
    [
        (
            "train-automl --preset precursor --epochs 3 --lr 1e-3 --device cpu",
            "epochs: command line, lr: command line, batch_norm: preset precursor, weighting: default",
        ),
        (
            "train-automl --config options.yaml --fixed --tasks jigsaw,bir",
            "lr: options.yaml, task_options: options.yaml, tasks: command line, weighting: the command",
        ),
        (
            "train-single --task none --preset quick --lambda 0.25 --compile",
            "initial_lambda: command line, compile: command line, dataset: preset quick, seed: default",
        ),
    ],
)
def test_print_config_is_read_back(home: Path, here: Here, arguments: str, origins: str) -> None:
    """What it prints is a file for --config that gives the same, and says where each value comes from."""
    (home / "options.yaml").write_text("task_options: {bir: {sigma: 2.5}, ir: {hidden: true}}\nlr: 0.2\n")
    code, first, err = here(f"{arguments} --print-config")
    assert (code, err) == (0, "")
    (home / "printed.yaml").write_text(first)
    command = re.sub(r" --(?!fixed).*", "", arguments.replace(" --fixed", "")) + " --fixed" * (
        "--fixed" in arguments
    )
    code, second, _ = here(f"{command} --config printed.yaml --print-config")
    assert code == 0
    assert yaml.safe_load(first) == yaml.safe_load(second)
    forced = {"the command"} if "--fixed" in arguments or "single" in arguments else set()
    assert set(re.findall(r"  # (.+)$", second, re.MULTILINE)) == {"printed.yaml"} | forced
    said = re.findall(r"^(\w+):.*?  # (.+)$", first, re.MULTILINE)
    assert [name for name, _ in said] == [option.name for option in dataclasses.fields(Config)]
    assert {f"{name}: {origin}" for name, origin in said} >= set(origins.split(", "))
    assert not (home / "runs").exists()


def test_options_without_effect_get_a_note(home: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise UserError("enough")

    monkeypatch.setattr("rsslcli.core.training.loop.train", stop)
    for command, notes in (
        ("train-automl --fixed --meta-lr 1 --warmup-epochs 2", {"--meta-lr", "--warmup-epochs"}),
        ("train-automl --fixed --validation-corruptions extra", {"--validation-corruptions"}),
        ("train-single --task none --task-share 0.5 --batch-norm joint", {"--task-share", "--batch-norm"}),
        ("train-single --task ir --lambda 1 --batch-norm joint", set()),
        ("train-automl --meta-lr 1 --lambda 0", set()),
        ("train-automl --weighting random --lambda 1", {"--lambda"}),
        ("train-automl --weighting uncertainty --lambda 1", set()),
    ):
        code, _, err = here(f"{command} {TINY} --output unused")
        assert code == 2
        assert set(re.findall(r"^note: (--[a-z-]+) has no effect: ", err, re.MULTILINE)) == notes


def test_runs_that_start_in_the_same_second_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long = Config(
        tasks=("rotation", "color", "ir", "bir", "inpaint", "rgb", *(f"task{n}" for n in range(20)))
    )
    made = {_new_directory(Config()) for _ in range(4)} | {_new_directory(long)}
    assert len(made) == 5
    assert all(
        re.fullmatch(r"runs/\d{8}-\d{6}-(baseline(-[2-4])?|fixed-26-tasks)", str(path)) for path in made
    )
    assert all(path.is_dir() for path in made)


def test_runs_that_cannot_be_written_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("nowhere/runs")
    with pytest.raises(OSError, match="runs"):
        _new_directory(Config())


def test_the_place_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSSL_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_data_dir() == Path("/cache/rssl")
    (tmp_path / "data" / "photos").mkdir(parents=True)  # a folder of that name, but not ours
    assert default_data_dir() == Path("/cache/rssl")
    (tmp_path / "data" / "photos" / "train.npz").touch()
    assert default_data_dir() == Path("data")
    monkeypatch.setenv("RSSL_DATA_DIR", "/elsewhere")
    assert default_data_dir() == Path("/elsewhere")
    monkeypatch.delenv("RSSL_DATA_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir("/")
    assert default_data_dir() == Path.home() / ".cache" / "rssl"


def test_what_to_type_next_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RSSL_DATA_DIR", "here")
    suggest_next("eval-c", Path("my [runs]/it's :cat:"), data_dir=Path("here"))
    suggest_next("eval-c", "x" * 200, data_dir=Path("other place"))
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert shlex.split(first) == ["next:", "rssl", "eval-c", "my [runs]/it's :cat:"]
    assert shlex.split(second) == ["next:", "rssl", "eval-c", "x" * 200, "--data-dir", "other place"]


def test_plain_output(home: Path, run: Path) -> None:
    """Through a pipe nothing is cut or colored; NO_COLOR and a dumb terminal keep escapes off a terminal."""
    code = (
        "import os, sys\n"
        "from rich.table import Table\n"
        "from rsslcli.commands.console import out, progress_bar\n"
        "table = Table('a' * 90, 'b' * 90)\n"
        "out.print(table, style='bold red')\n"
        "with progress_bar() as progress:\n"
        "    progress('x', 1, 2)\n"
    )
    command = [sys.executable, "-c", code]
    piped = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "40"}
    )
    assert "a" * 90 in piped.stdout
    assert piped.stdout.replace("\n", "").isprintable()
    assert piped.stderr == ""
    for setting, bars in (({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False), ({}, True)):
        code, shown = on_a_terminal(command, {"TERM": "xterm-256color", "COLUMNS": "250"} | setting)
        assert code == 0
        assert ("\x1b[1;31m" in shown) == (setting == {})
        assert bool(re.search(r"\x1b\[[\d;]*m", shown)) == (setting == {})
        assert ("\x1b" in shown) == bars
