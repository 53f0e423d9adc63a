"""What a person sees on a terminal, and what is left in a file, a pipe or on a full disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from helpers import RSSL, Here, on_a_terminal, succeed

from rsslcli.app import app, main
from rsslcli.commands import hints
from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.data.corrupted import open_corrupted

TINY = "--dataset mine --depth 10 --width 1 --batch-size 16 --epochs 1"
#: Runs each command in a process of its own, as far as its output is concerned, but loads PyTorch once.
DRIVER = """
import json, os, sys
import torch
from rsslcli.app import main
for command in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        sys.argv[1:] = command.split()
        main()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"exit {code}", file=sys.stderr, flush=True)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RSSL_DATA_DIR": "data"}


def every_command(home: Path, name: str) -> list[str]:
    """A command line of each kind; what they write has `name` in its name."""
    without = shutil.ignore_patterns("corrupted", ".lock")
    shutil.copytree(home / "data" / "mine", home / "data" / name, ignore=without)
    return [
        f"prepare-data --dataset {name} --corruptions generate",
        f"visualize-tasks --dataset mine --images 1 --output {name}.png",
        f"train-single --task rotation {TINY} --output {name}",
        f"eval-c {name}",
        f"eval-c {name} --severity 1 --output {name}.md",
        f"report {name} --output {name}/report",
        f"export {name} --output {name}.pt2",
        "train-automl --print-config",
        "train-automl --help",
        "--version",
    ]


def check_files(home: Path, name: str) -> None:
    """All that those commands write is there and whole."""
    assert open_corrupted(home / "data" / name / "corrupted", name).names == CORRUPTIONS
    assert (home / f"{name}.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert list(json.loads((home / name / "eval-c.json").read_text())["accuracy"]) == list(CORRUPTIONS)
    assert "| saturate |" in (home / f"{name}.md").read_text()
    assert (home / name / "report" / "report.html").read_text().rstrip().endswith("</html>")
    assert torch.export.load(home / f"{name}.pt2")


def drive(lines: list[str], home: Path, stdout: Any, **environment: str) -> tuple[str, list[str]]:
    """Stdout of the commands together, and what each wrote to stderr, which ends in its exit code."""
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(lines)],
        cwd=home,
        env=os.environ | ENVIRONMENT | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    told = re.split(r"(?<=^exit )(.+)\n", result.stderr, flags=re.MULTILINE)
    return result.stdout, [before + code for before, code in zip(told[::2], told[1::2], strict=False)]


def test_every_command_says_and_saves_all_where_stdout_is_ascii(home: Path) -> None:
    lines = every_command(home, "plain-text")
    out, told = drive(lines, home, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert [text.splitlines()[-1] for text in told] == ["exit 0"] * len(lines)
    assert (out + "".join(told)).isascii()
    assert "Weight lambda of each task" in out
    assert re.search(r"mean of 19 [\d.]+% \([\d.]+-[\d.]+\) \* mean of the usual 15", out)
    assert "| gaussian_noise " in out
    check_files(home, "plain-text")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_every_command_saves_all_where_stdout_is_full(home: Path) -> None:
    """They end with exit code 1 and one line, whether or not Python buffers stdout."""
    lines = every_command(home, "full-disk")
    with Path("/dev/full").open("w") as full:
        _, told = drive(lines, home, full)
    for line, text in zip(lines, told, strict=True):
        *_, error, code = text.splitlines()
        assert code == "exit 1", line
        assert re.match(r"rssl: error: (cannot write to stdout: )?No space left on device", error), line
        assert "Traceback" not in text
        assert "Exception ignored" not in text
    check_files(home, "full-disk")


def test_a_reader_that_ends_loses_nothing_but_text(home: Path) -> None:
    """As with `| head -1`: the work goes on, all is saved, and one line says so."""
    lines = [f"train-single --task none {TINY} --output unread", "eval-c unread", "--version"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        _, told = drive(lines, home, writer)
    finally:
        os.close(writer)
    for text in told:
        *_, error, code = text.splitlines()
        assert (error, code) == (
            "rssl: error: the program that read the output has ended; all files are saved",
            "exit 1",
        )
        assert "Exception ignored" not in text
    assert (home / "unread" / "log.txt").read_text().endswith(" finished\n")
    assert (home / "unread" / "eval-c.json").is_file()


def test_a_hint_to_train_fits_the_data_and_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned, robust = "train-automl --dataset mine", "train-single --task none --preset robust --dataset mine"
    small = "--depth 16 --width 1"
    for device, images, name, with_tasks, expected in (
        ("cpu", 288, "mine", True, f"{tuned} {small} --batch-size 16 --epochs 60"),
        ("cuda", 288, "mine", False, f"{robust} {small} --batch-size 16 --epochs 60"),
        ("cpu", 10, "mine", False, f"{robust} {small} --batch-size 10 --epochs 60"),
        ("cpu", 50_000, "mine", True, f"{tuned} --preset small"),
        ("cpu", 50_000, "mine", False, f"{robust} {small}"),
        ("cuda", 50_000, "mine", False, robust),
        ("cpu", 50_000, "cifar100", False, "train-automl --dataset cifar100 --preset small"),
        ("cuda", 50_000, "cifar10", False, "train-automl --dataset cifar10"),
        ("cpu", 4_000, "shapes", False, "train-automl --preset quick"),
    ):
        monkeypatch.setattr("rsslcli.core.runtime.resolve_device", lambda _, d=device: torch.device(d))
        hints.suggest_training(name, images, tmp_path, with_tasks=with_tasks)
        assert capsys.readouterr().err == f"next: rssl {expected} --data-dir {tmp_path}\n"


def test_a_hint_to_evaluate_makes_runs_comparable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that tunes no λ is tested on the images that the AutoML runs beside it are tested on."""
    monkeypatch.setenv("RSSL_DATA_DIR", str(tmp_path))
    run, baseline = tmp_path / "runs" / "plain", Config(dataset="mine", seed=3)
    studied = Config(dataset="cifar10", seed=3)

    def hint(config: Config) -> str:
        hints.suggest_evaluation(run, config, tmp_path)
        return capsys.readouterr().err.removeprefix("next: rssl ").strip()

    def beside(name: str, **settings: Any) -> Path:
        other = tmp_path / "runs" / name
        other.mkdir(parents=True)
        config = Config(**({"dataset": "mine", "tasks": ("ir",), "weighting": "automl"} | settings))
        (other / "config.yaml").write_text(config.to_yaml())
        (other / "checkpoint.pt").touch()
        return other

    lost = f"note: mine is not in {tmp_path}: to evaluate {run}, name its folder with --data-dir"
    assert hint(baseline) == lost
    monkeypatch.setattr("rsslcli.core.data.store.is_prepared", lambda *_: True)
    assert hint(baseline) == "prepare-data --dataset mine --corruptions generate"
    for name in ("mine", "cifar10"):
        (tmp_path / name / "corrupted").mkdir(parents=True)
        (tmp_path / name / "corrupted" / "labels.npy").touch()
    assert hint(Config(dataset="mine", tasks=("ir",), weighting="automl")) == f"eval-c {run}"
    assert hint(studied) == f"eval-c {run} --leave-out-validation", "AutoML runs may follow"
    beside("another", dataset="cifar100", seed=1)
    beside("fixed", weighting="fixed", seed=2)
    assert hint(baseline) == f"eval-c {run}"
    other = beside("tuned", seed=5)
    assert hint(baseline) == f"eval-c {run} --same-images-as {other}"
    run.mkdir()
    run = run / "best.pt"
    run.touch()
    assert hint(baseline) == f"eval-c {run} --same-images-as {other}"
    run = run.parent
    beside("twin", seed=3)
    assert hint(baseline) == f"eval-c {run} --leave-out-validation"
    (run / "checkpoint.pt").touch()
    (run / "log.txt").write_text("12:00 finished\n")
    (run / "eval-c.json").write_text('{"clean_accuracy": 0.5}')
    assert hint(baseline) == f"report {run.parent}", "it is evaluated"


#: Shows the bar of a training, as the engine's events move it.
BAR = """
import sys
from pathlib import Path
from rsslcli.commands.training_run import TrainingView
from rsslcli.core.config import Config
from rsslcli.core.training.events import Started, StepsDone

tasks = ("rotation", "bir", "color", "ir")
config = Config(tasks=tasks, weighting="automl")
record = {"epoch": 99, "loss/main": 1.5, **{f"lambda/{task}": 0.5 for task in tasks}}
with TrainingView(config) as view:
    view(Started(config, Path("runs/x"), "CPU", 50_000, 9_500, 0, 78_100, 781))
    for step in (1, 77_000):
        view(StepsDone(record | {"step": step}))
        view.bar.refresh()
"""


@pytest.mark.parametrize(
    ("columns", "loss", "lambdas"), [(50, False, False), (80, True, False), (140, True, True)]
)
def test_the_training_bar_keeps_the_time_left_where_it_is_narrow(
    columns: int, loss: bool, lambdas: bool
) -> None:
    code, shown = on_a_terminal([sys.executable, "-c", BAR], {"COLUMNS": str(columns)})
    assert code == 0, shown
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    bar = next(part for part in re.split(r"[\r\n]+", plain) if "77000/78100" in part)
    assert "epoch 99/100" in bar
    assert re.search(r"77000/78100 (\d+:\d\d:\d\d|-:--:--)", bar)
    assert ("loss 1.500" in bar) == loss
    assert ("λ rotation 0.500 bir 0.500 color 0.500 ir 0.500" in bar) == lambdas
    assert len(bar.rstrip()) <= columns - 3  # room for ^C


@pytest.mark.parametrize(
    ("arguments", "begun"),
    [
        ("eval-c stopped --output stopped.json", "/96"),
        ("prepare-data --dataset stopped --corruptions generate", "/95"),
        ("eval-c stopped --output stopped.json", "loading PyTorch"),
    ],
)
def test_ctrl_c_leaves_one_line_that_goes_on(home: Path, arguments: str, begun: str) -> None:
    """The bar is gone, nothing follows it, and the line can be pasted."""
    if not (home / "stopped").exists():
        succeed(f"train-single --task none {TINY} --output stopped", cwd=home)
    shutil.rmtree(home / "data" / "stopped", ignore_errors=True)
    without = shutil.ignore_patterns("corrupted", ".lock")
    shutil.copytree(home / "data" / "mine", home / "data" / "stopped", ignore=without)
    assert RSSL
    code, shown = on_a_terminal([RSSL, *arguments.split()], ENVIRONMENT, cwd=home, interrupt_at=begun)
    assert code == 130, shown
    after = shown.partition("^C")[2]
    *_, rest = re.split(r"\x1b\[2K", after)  # which erases a line
    assert re.sub(r"\x1b\[[\d;]*m", "", rest) == f"rssl: error: stopped; to continue: rssl {arguments}\r\n"
    assert "┏" not in after
    assert after.count("\x1b[?25h") == 1  # the cursor is back


#: A bar, and two signals while it is there.
SIGNALS = """
import os, signal, time
from rsslcli.commands.console import err, stop_on_signal
from rsslcli.commands.terminal import Bar
bar = Bar(err, "working")
bar.add_task("")
with bar, stop_on_signal(bar):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_ctrl_c_leaves_the_cursor_on_the_terminal() -> None:
    code, shown = on_a_terminal([sys.executable, "-c", SIGNALS], {})
    assert code == -2
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert shown.endswith("stopping after this step; once more to stop at once\r\n")


#: What the first signal does, and the second one.
CLOSED = """
import os, signal, sys
from rsslcli.commands.console import interrupt, stop_on_signal
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
with stop_on_signal(second=interrupt) as received:
    os.kill(os.getpid(), signal.SIGHUP)
    print(len(received))
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        print("goes on")
    except KeyboardInterrupt:
        print("cleans up")
"""


@pytest.mark.parametrize(("how", "printed"), [("closed", "1 cleans up"), ("nohup", "0 goes on")])
def test_a_closed_terminal_stops_a_study_unless_the_user_said_nohup(how: str, printed: str) -> None:
    shown = subprocess.run([sys.executable, "-c", CLOSED, how], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == printed.split()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("NCCL error in: x.cpp:1\nLast error:\nFailed to CUDA calloc 608 bytes"),
        MemoryError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_too_little_memory_is_told_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("rsslcli.app.app", fail)
    monkeypatch.setattr("sys.argv", ["rssl", "train-single"])
    if "shapes" in str(error):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            main()
        return
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("rssl: error: out of memory: choose a lower --batch-size")
    monkeypatch.setattr("sys.argv", ["rssl", "eval-c", "runs/a"])  # which has no such option
    with pytest.raises(SystemExit):
        main()
    on_host = isinstance(error, MemoryError) or "CPU" in str(error)
    first = "smaller images or a smaller" if on_host else "--device cpu, smaller images or a smaller"
    assert capsys.readouterr().err == f"rssl: error: out of memory: choose {first} network\n"


def test_a_gpu_that_fails_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE`")

    monkeypatch.setattr("rsslcli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = "rssl: error: the GPU failed: CUDA error: an illegal memory access was encountered\n"
    assert capsys.readouterr().err == told


def test_help_is_folded_between_words(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    group: Any = typer.main.get_command(app)
    for name in ("", *group.commands):
        words = []
        for columns in (60, 80, 120):
            monkeypatch.setenv("COLUMNS", str(columns))
            page = here.succeed(f"{name} --help")
            assert all(len(line) <= columns for line in page.splitlines())
            words.append([word for word in page.split() if word not in ("\\", "#")])
        assert words[0] == words[1] == words[2], name


def test_help_is_a_command_too(here: Here) -> None:
    assert here.succeed("help") == here.succeed("--help")
    assert here.succeed("help eval-c") == here.succeed("eval-c --help")
    here.refuse("help evalc", match="unknown command 'evalc': did you mean 'eval-c'")


def test_tables_are_folded_between_words() -> None:
    code = (
        "from rich.table import Table\n"
        "from rsslcli.commands.console import out\n"
        "table = Table('trained with', 'exceeds the noise?', 'mean')\n"
        "table.add_row('Four tasks, AutoML', 'not judged: different images', 'incomparable')\n"
        "out.print(table)\n"
    )
    status, shown = on_a_terminal([sys.executable, "-c", code], {"COLUMNS": "50"})
    assert status == 0, shown
    for word in ("trained", "AutoML", "different", "incomparable", "exceeds"):
        assert word in shown


@pytest.mark.parametrize("arguments", ["eval-c --help", "eval-c --severity 9 x", "eval-c x --severty 3"])
def test_colors_are_for_terminals(home: Path, arguments: str) -> None:
    assert RSSL
    command = [RSSL, *arguments.split()]
    for setting, colored in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        _, shown = on_a_terminal(command, setting, cwd=home)
        assert ("\x1b[" in shown) == colored, setting
    for setting, colored in (({}, False), ({"FORCE_COLOR": "1"}, True)):
        clean = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
        result = subprocess.run(command, capture_output=True, cwd=home, env=clean | setting, check=False)
        assert (b"\x1b[" in result.stdout + result.stderr) == colored, setting


def test_forced_colors_draw_no_bars_and_fold_nothing_in_a_log() -> None:
    code = (
        "from rich.table import Table\n"
        "from rsslcli.commands.console import out, progress_bar, waiting\n"
        "with waiting(), progress_bar() as progress:\n"
        "    progress('x', 1, 2)\n"
        "out.print(Table('a' * 90, 'b' * 90))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40"},
    )
    assert result.stderr == ""
    assert "a" * 90 in result.stdout
    assert "\x1b[1;36m" in result.stdout


def test_a_wait_is_shown_on_a_terminal_and_leaves_nothing() -> None:
    code = (
        "import time\n"
        "from rsslcli.commands.console import waiting\n"
        "with waiting('loading PyTorch'):\n"
        "    time.sleep(0.3)\n"
    )
    status, shown = on_a_terminal([sys.executable, "-c", code], {})
    assert status == 0
    assert "loading PyTorch" in shown
    assert re.search(r"\r\n\x1b\[\?25h\r\x1b\[1A\x1b\[2K\Z", shown)  # up, and the line erased


def test_a_run_that_is_not_there_is_answered_with_the_one_meant(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here.refuse("eval-c first", match="no checkpoint at first: train one with")
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    for command in ("eval-c {}", "report {}", "export {} --output x.pt2", "visualize-tasks --checkpoint {}"):
        for typed in ("frist", "runs/frist"):
            here.refuse(command.format(typed), match=r"did you mean 'runs/first'\?$")
        here.refuse(command.format("xyz"), match="choose from runs/first, runs/second$")
    here.refuse("train-automl --resume --output runs/frist", match=r"did you mean 'runs/first'\?$")
    for number in range(9):
        (tmp_path / "runs" / f"{number}").mkdir()
        (tmp_path / "runs" / f"{number}" / "config.yaml").touch()
    here.refuse("eval-c xyz", match="no checkpoint at xyz: train one with")


def test_a_mistake_in_an_option_names_the_help_page(here: Here) -> None:
    here.refuse("eval-c x --severity 9", match=r"--severity 9: .* \(see rssl eval-c --help\)$")
    here.refuse("eval-c x --limit 0", match=r"--limit 0: .* \(see rssl eval-c --help\)$")
