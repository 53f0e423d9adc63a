"""The grid of the paper's experiments: what is in it, what is left of it, and how its cells are run."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rsslcli.core.errors import UserError
from rsslcli.core.study import grid
from rsslcli.core.study import runner as study
from rsslcli.core.study.cell import Cell
from rsslcli.core.study.grid import check_fit, choose, plan, save_plan
from rsslcli.core.study.runner import CellEvent, Runner

FLIP = Path(__file__).parents[3] / "docs" / "examples" / "flip.py"

#: Stands for `rssl`: leaves the files that a training and an evaluation leave, or does what a file says.
FAKE = """
import json, os, pathlib, sys, time
args = sys.argv[1:]
evaluates = args[0] == "eval-c"
run = pathlib.Path(args[1] if evaluates else args[args.index("--output") + 1])
orders = run.parent / f"{run.name}.{'eval' if evaluates else 'train'}"
with open(run.parent / "calls", "a") as calls:
    began = time.time()
run.mkdir(exist_ok=True)
order = orders.read_text() if orders.exists() else ""
print("threads", os.environ.get("OMP_NUM_THREADS"), "gpu", os.environ.get("CUDA_VISIBLE_DEVICES"))
if order == "fail":
    sys.exit("rssl: error: no luck")
if order == "wait":
    (run / "waiting").touch()
    import signal
    signal.signal(signal.SIGTERM, lambda *_: ((run / "checkpoint.pt").touch(), sys.exit(143)))
    time.sleep(60)
time.sleep(0.3)
if evaluates:
    (run / "eval-c.json").write_text('{"clean_accuracy": 0.5}')
else:
    (run / "checkpoint.pt").touch()
    (run / "log.txt").write_text("today finished\\n")
with open(run.parent / "calls", "a") as calls:
    calls.write(json.dumps([began, time.time(), *args]) + "\\n")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder, where cells are run by FAKE."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(study, "PROGRAM", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def calls(folder: Path) -> list[list[str]]:
    """The arguments of the commands that ended well, in order."""
    file = folder / "calls"
    return [json.loads(line)[2:] for line in file.read_text().splitlines()] if file.exists() else []


def test_the_paper_s_grid() -> None:
    cells = plan("paper", Path("s"))
    assert [cell.number for cell in cells] == list(range(1, 31))
    assert [cell.name for cell in cells[:10]] == [
        "baseline-s0", "rotation-s0", "color-s0", "ir-s0", "bir-s0", "inpaint-s0", "rgb-s0", "jigsaw-s0",
        "fixed-s0", "automl-s0",
    ]  # fmt: skip
    assert {cell.config.seed for cell in cells if cell.method == "automl"} == {0, 1, 2}
    for cell in cells:
        assert (cell.config.epochs, cell.config.depth, cell.config.width) == (100, 40, 2)
        assert cell.config.automl == (cell.method == "automl")
    assert cells[8].config.tasks == cells[9].config.tasks == ("rotation", "bir", "color", "ir")


def test_the_small_grid_has_two_seeds_of_the_rows_on_which_no_claim_rests() -> None:
    cells = {cell.name: cell for cell in plan("small", Path("s"))}
    claims = (
        "baseline", "rotation", "fixed", "automl", "rotation-joint", "automl-relative", "augmix",
        "augmix-rotation", "augmix-fixed", "augmix-automl", "augmix-automl-relative",
    )  # fmt: skip
    assert set(list(cells)[:33]) == {f"{method}-s{seed}" for method in claims for seed in range(3)}
    aside = (
        "color", "ir", "bir", "inpaint", "rgb", "jigsaw",
        "rotation-all", "automl-strict", "uncertainty", "random", "upgrad",
    )  # fmt: skip
    assert set(list(cells)[33:]) == {f"{method}-s{seed}" for method in aside for seed in range(2)}
    assert len(plan("small", Path("s"), seeds=1)) == len(claims) + len(aside)


def test_rows_of_the_small_grid_depart_from_its_preset_in_what_they_say() -> None:
    cells = {cell.method: cell for cell in plan("small", Path("s"), seeds=1)}
    usual = cells["fixed"].config
    for name in ("uncertainty", "random", "upgrad"):
        assert cells[name].config == replace(usual, weighting=name)
    automl = replace(usual, weighting="automl")
    assert cells["augmix-automl"].config == replace(automl, augment="augmix")
    relative = replace(automl, automl_variants=("relative",))
    assert cells["automl-relative"].config == relative
    assert cells["automl-strict"].config == replace(automl, validation_corruptions="extra")
    assert cells["rotation"].config.batch_norm == "per-task"
    assert cells["rotation-joint"].config.batch_norm == "joint"
    assert cells["augmix-automl-relative"].train == (
        "train-automl", "--tasks", "rotation,bir,color,ir", "--weighting", "automl", "--augment", "augmix",
        "--automl-variants", "relative", "--preset", "small", "--dataset", "cifar10",
        "--seed", "0",
    )  # fmt: skip


def test_rows_of_a_preset_with_more_than_four_tasks_are_not_taken_for_added_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    five = grid.Method((*grid.BEST_TASKS, "rgb"), "automl")
    preset = replace(grid.STUDY_SIZES["quick"], methods={**grid.PAPER_METHODS, "five": five})
    monkeypatch.setitem(grid.STUDY_SIZES, "quick", preset)
    tmp_path.mkdir(exist_ok=True)
    for _ in range(2):
        save_plan(plan("quick", tmp_path))
    assert json.loads((tmp_path / "plan.json").read_text())["added_tasks"] == []


def test_a_file_does_not_change_what_a_row_is(tmp_path: Path) -> None:
    """Any run's config.yaml has a weighting; the network is every cell's, and its code is named to each."""
    (tmp_path / "my.yaml").write_text("weighting: fixed\n")
    network = "docs.examples.small_network:small"
    cells = plan("quick", tmp_path, config=tmp_path / "my.yaml", network=network)
    (automl,) = (cell for cell in cells if cell.method == "automl")
    assert automl.config.automl
    assert automl.config.network == network
    words = " ".join(automl.train)
    assert "--weighting automl" in words
    assert f"--network {network}" in words
    assert "--weighting" not in " ".join(next(cell.train for cell in cells if cell.method == "fixed"))
    automl.folder.path.mkdir()
    automl.folder.checkpoint.touch()
    train, evaluate = (" ".join(command) for command in automl.commands())
    assert f"--resume --network {network}" in train
    assert f"--network {network}" in evaluate


def test_options_of_a_study(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 3\ndataset: mine")
    cells = plan("quick", tmp_path, seeds=2, config=tmp_path / "my.yaml", add_tasks=["jigsaw2"][:0])
    assert len(cells) == 20
    assert {cell.config.epochs for cell in cells} == {3}
    assert {cell.config.dataset for cell in cells} == {"mine"}
    assert {cell.config.dataset for cell in plan("quick", tmp_path, dataset="x")} == {"x"}
    with pytest.raises(UserError, match="unknown preset 'papr': did you mean 'paper'"):
        plan("papr", tmp_path)
    with pytest.raises(UserError, match="`seeds` 0"):
        plan("paper", tmp_path, seeds=0)
    with pytest.raises(UserError, match="`add_task` ir: the study has that task"):
        plan("paper", tmp_path, add_tasks=["ir"])


def test_choosing_cells() -> None:
    cells = plan("paper", Path("s"))
    assert choose(cells, []) == cells
    assert [cell.name for cell in choose(cells, ["2", "automl-s1", "ir"])] == [
        "rotation-s0", "ir-s0", "ir-s1", "automl-s1", "ir-s2",
    ]  # fmt: skip
    with pytest.raises(UserError, match="unknown cell 'automl-s7': did you mean 'automl-s"):
        choose(cells, ["automl-s7"])
    with pytest.raises(UserError, match="unknown cell '31'"):
        choose(cells, ["31"])


def cell_in(folder: Path, method: str = "rotation") -> Cell:
    return choose(plan("quick", folder), [method])[0]


def test_the_files_tell_what_is_left(tmp_path: Path) -> None:
    cell = cell_in(tmp_path)
    run = cell.directory
    evaluate = ["eval-c", str(run), "--leave-out-validation", "--data-dir", "d"]
    options = ["--data-dir", "d"]
    assert cell.status() == "to do"
    assert cell.commands(options) == [
        ["train-single", "--task", "rotation", "--preset", "quick", "--dataset", "shapes", "--seed", "0",
         "--output", str(run), *options],
        evaluate,
    ]  # fmt: skip

    run.mkdir()
    (run / "config.yaml").write_text(cell.config.to_yaml())
    (run / "log.txt").write_text("t begins\n")
    assert cell.status() == "to do"
    (run / "checkpoint.pt").touch()
    assert cell.status() == "begun"
    resume = ["train-single", "--resume", "--output", str(run), *options]
    assert cell.commands(options) == [resume, evaluate]
    # The last epoch is in the metrics, but a kill came before the checkpoint was written.
    (run / "metrics.jsonl").write_text('{"epoch": 6, "step": 186, "clean_accuracy": 0.5}\n')
    assert cell.position(4000) == (1, 0)
    assert cell.commands(options) == [resume, evaluate]

    (run / "log.txt").write_text("t begins\nt finished\n")
    assert cell.commands(options) == [evaluate]
    (run / "eval-c.json.partial").write_text('{"cells": {"a/1": {}, "a/2": {}}}')
    assert cell.position(4000) == (1, 2 / 96)
    (run / "eval-c.json").write_text('{"step": 186, "clean_accuracy": 0.5}')
    assert cell.status() == "done"
    (run / "eval-c.json").write_text('{"step": 155, "clean_accuracy": 0.5}')  # of before
    assert cell.status() == "begun"
    cell.folder.failure.write_text("no luck")
    assert cell.status() == "failed"
    (run / "config.yaml").write_text(cell.config.to_yaml().replace("epochs: 6", "epochs: 7"))
    with pytest.raises(UserError, match="belongs to another study, with another epochs"):
        cell.status()
    # A file of an earlier version lacks settings that came later: they have their defaults.
    lines = replace(cell.config, ema=0.0).to_yaml().splitlines()
    (run / "config.yaml").write_text("\n".join(line for line in lines if not line.startswith("ema")))
    assert cell.status() == "failed"
    with pytest.raises(UserError, match="belongs to another study, with another ema"):
        replace(cell, config=replace(cell.config, ema=0.9)).status()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\n", b'{"epoch": 2}\n{"ep', b"[" * 9000, b'{"step": "x"}\n', b'{"step": -9}', b"1\n"],
)
def test_damaged_metrics_are_no_progress(tmp_path: Path, content: bytes) -> None:
    cell = cell_in(tmp_path)
    cell.directory.mkdir()
    for name in ("metrics.jsonl", "eval-c.json.partial"):
        (cell.directory / name).write_bytes(content)
    assert cell.position(4000) == (0, 0)
    assert cell.seconds() is None


def test_progress_goes_step_by_step(tmp_path: Path) -> None:
    """Of the 2,000 images of the preset, or of all there are where those are fewer."""
    cell = cell_in(tmp_path)
    cell.directory.mkdir()
    with (cell.directory / "metrics.jsonl").open("w") as metrics:
        for step, expected in ((3, 3 / 186), (31, 31 / 186), (100, 100 / 186), (999, 1)):
            metrics.write(json.dumps({"step": step, "epoch": 1}) + "\n")
            metrics.flush()
            assert cell.position(4000) == (pytest.approx(expected), 0)
    assert cell.position(640) == (1, 0)
    assert cell.position(0) == (0, 0), "the data set is not known"


def test_events_tell_how_far_training_and_evaluation_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cell, "position", lambda self, images: (images / 100, 0.25))
    events: list[CellEvent] = []
    Runner(images=50, on_event=events.append).run([cell_in(folder)])
    seen = dict.fromkeys((event.text, event.progress) for event in events if event.kind == "running")
    assert list(seen) == [("training", 0.5), ("evaluating", 0.25)]


def test_added_rows_and_seeds_stay_without_the_options_that_added_them(tmp_path: Path) -> None:
    """Also where this process does not know the tasks; what is not done then needs their file."""
    from rsslcli.core.tasks import registry

    registry.load_task_file(FLIP)
    first = plan("quick", tmp_path, seeds=2, add_tasks=["flip"])
    save_plan(first)
    registry._registered.clear()
    again = plan("quick", tmp_path)
    assert [(cell.number, cell.name, cell.config) for cell in again] == [
        (cell.number, cell.name, cell.config) for cell in first
    ]
    assert {"flip-s0", "automl-flip-s1"} <= {cell.name for cell in again}
    flip = choose(again, ["flip"])[0]
    with pytest.raises(UserError, match=r"flip-s0 is not done: unknown task 'flip'.*`task_file`"):
        flip.check_can_run()
    flip.directory.mkdir()
    (flip.directory / "config.yaml").write_text(flip.config.to_yaml())
    (flip.directory / "log.txt").write_text("t finished\n")
    (flip.directory / "checkpoint.pt").touch()
    (flip.directory / "eval-c.json").write_text('{"clean_accuracy": 0.5}')
    flip.check_can_run()
    choose(again, ["ir"])[0].check_can_run()


def test_a_study_grows_and_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsslcli.core.tasks.registry._registered", {"flip": object, "turn": object})
    save_plan(plan("quick", tmp_path, add_tasks=["flip"]))
    save_plan(plan("quick", tmp_path, add_tasks=["turn"], seeds=3))
    save_plan(plan("quick", tmp_path, add_tasks=["flip"], seeds=1))
    methods = dict.fromkeys(cell.method for cell in plan("quick", tmp_path))
    assert list(methods)[-4:] == ["flip", "automl-flip", "turn", "automl-turn"]
    assert len(plan("quick", tmp_path)) == 3 * len(methods)
    assert len(plan("quick", tmp_path, seeds=5)) == 5 * len(methods)
    plan("quick", tmp_path / "other", seeds=1)
    assert not (tmp_path / "other").exists(), "what is only planned leaves nothing"


@pytest.mark.parametrize(
    "content",
    [
        "", "[" * 9000, "1", "{}", '{"seeds": 1e9, "added_tasks": []}', '{"seeds": 10000, "added_tasks": []}',
        '{"seeds": 0, "added_tasks": []}', '{"seeds": 1, "added_tasks": 5}',
        '{"seeds": 1, "added_tasks": [[]]}', '{"seeds": 1, "added_tasks": [["../x"]]}',
        '{"seeds": 1, "added_tasks": [[["x"]]]}', '{"seeds": true, "added_tasks": []}', '{"seeds": 1, "added',
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan.json is damaged: delete it"):
        plan("quick", tmp_path)


def test_a_study_that_needs_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    cells = plan("quick", tmp_path, dataset="mine")
    check_fit(cells, 2000)
    with pytest.raises(UserError, match=r"mine has 1999 training images, .* `train_size` is 2000"):
        check_fit(cells, 1999)
    (tmp_path / "my.yaml").write_text("train_size: 60")
    with pytest.raises(UserError, match="mine has 63 training images, and the study's `batch_size` is 64"):
        check_fit(plan("quick", tmp_path, dataset="mine", config=tmp_path / "my.yaml"), 63)


def test_a_plan_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot read .*file/plan\.json: Not a directory"):
        plan("quick", tmp_path / "file")


def test_cells_that_would_tune_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("epochs: 3\nwarmup_epochs: 3")
    with pytest.raises(UserError, match="`warmup_epochs`: AutoML tunes nothing"):
        plan("quick", tmp_path, config=tmp_path / "my.yaml")


def test_the_warm_up_of_a_cell_that_tunes_no_lambda_does_not_matter(tmp_path: Path) -> None:
    """So a study of a former version goes on, whose cells with few epochs had the preset's warm-up."""
    for method, name in (("baseline", ""), ("automl", "another warmup_epochs")):
        cell = cell_in(tmp_path, method)
        cell.directory.mkdir()
        text = cell.config.to_yaml()
        (cell.directory / "config.yaml").write_text(text.replace("warmup_epochs: 2", "warmup_epochs: 3"))
        if name:
            with pytest.raises(UserError, match=rf"{name} \(3 there, 2 here\)"):
                cell.status()
        else:
            assert cell.status() == "to do"


def test_resuming_fixed_weights_says_so(tmp_path: Path) -> None:
    cell = cell_in(tmp_path, "fixed")
    cell.directory.mkdir()
    (cell.directory / "checkpoint.pt").touch()
    output = str(cell.directory)
    assert cell.commands()[0] == ["train-automl", "--resume", "--output", output]


def test_cells_run_at_once_and_are_skipped_when_done(folder: Path) -> None:
    cells = plan("quick", folder)[:4]
    events: list[CellEvent] = []
    counts = Runner(jobs=2, options=["--data-dir", "d"], on_event=events.append).run(cells)
    assert counts == {"done": 4, "failed": 0, "skipped": 0, "busy": 0, "stopped": 0}
    assert all(cell.status() == "done" for cell in cells)
    assert len(calls(folder)) == 8
    times = [json.loads(line)[:2] for line in (folder / "calls").read_text().splitlines()]
    overlaps = [(a, b) for i, (_, a) in enumerate(times) for b, _ in times[i + 1 :] if b < a]
    assert overlaps, "two at a time"
    at_once = max(sum(b <= moment < e for b, e in times) for moment, _ in times)
    assert at_once == 2
    log = (folder / "logs" / "baseline-s0.txt").read_text()
    assert log.startswith("$ rssl train-single --task none")
    assert f"threads {max(os.cpu_count() // 2, 1)}" in log  # type: ignore[operator]
    assert [e.kind for e in events if e.cell.name == "rotation-s0" and e.kind != "running"] == [
        "started",
        "done",
    ]
    assert Runner().run(cells)["skipped"] == 4
    assert len(calls(folder)) == 8


def test_each_job_has_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    Runner(jobs=2, gpus=2).run(plan("quick", folder)[:2])
    logs = [(folder / "logs" / f"{name}-s0.txt").read_text() for name in ("baseline", "rotation")]
    assert ["gpu 0" in logs[0], "gpu 1" in logs[1]] == [True, True]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    Runner(jobs=1, gpus=2).run(plan("quick", folder)[2:3])
    assert "gpu 5" in (folder / "logs" / "color-s0.txt").read_text()


def test_a_failure_leaves_the_others_alone_and_is_retried_when_asked(folder: Path) -> None:
    cells = plan("quick", folder)[:2]
    (folder / "baseline-s0.eval").write_text("fail")
    events: list[CellEvent] = []
    counts = Runner(on_event=events.append).run(cells)
    assert (counts["failed"], counts["done"]) == (1, 1)
    (failure,) = (event for event in events if event.kind == "failed")
    assert failure.text.startswith("rssl: error: no luck (exit code 1; see ")
    assert cells[0].status() == "failed"
    (folder / "baseline-s0.eval").unlink()
    before = len(calls(folder))
    events.clear()
    counts = Runner(on_event=events.append).run(cells)
    assert (counts["skipped"], counts["failed"]) == (1, 1), "it is not passed over for a success"
    assert events[0].text.startswith("before: rssl: error: no luck")
    assert Runner().run(cells, retry=True) == {"done": 1, "failed": 0, "skipped": 1, "busy": 0, "stopped": 0}
    assert [call[0] for call in calls(folder)[before:]] == ["eval-c"], "its training was done"


def test_a_stop_saves_what_runs_and_starts_nothing_more(folder: Path) -> None:
    cells = plan("quick", folder)[:2]
    (folder / "baseline-s0.train").write_text("wait")
    waiting = folder / "baseline-s0" / "waiting"
    counts = Runner(should_stop=waiting.exists).run(cells)
    assert counts == {"done": 0, "failed": 0, "skipped": 0, "busy": 0, "stopped": 1}
    assert (cells[0].status(), cells[1].status()) == ("begun", "to do")


def test_a_cell_that_another_process_has_is_left_to_it(folder: Path) -> None:
    cells = plan("quick", folder)[:1]
    (folder / "baseline-s0.train").write_text("wait")
    from rsslcli.core.locks import locked

    with locked(cells[0].directory):
        assert Runner().run(cells)["busy"] == 1
    assert calls(folder) == []


def test_no_process_outlives_an_interrupted_runner(folder: Path) -> None:
    (folder / "baseline-s0.train").write_text("wait")
    waiting = folder / "baseline-s0" / "waiting"

    def interrupt(event: CellEvent) -> None:
        if waiting.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runner(on_event=interrupt).run(plan("quick", folder)[:1])
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_killed_cell_is_a_failure(folder: Path) -> None:
    (folder / "baseline-s0.train").write_text("wait")
    run, pids = folder / "baseline-s0", []

    def kill(event: CellEvent) -> None:
        if (run / "waiting").exists() and not pids:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            pids.extend(map(int, children))
            os.kill(pids[0], signal.SIGKILL)

    if sys.platform != "linux":
        pytest.skip("finds the process in /proc")
    assert Runner(on_event=kill).run(plan("quick", folder)[:1])["failed"] == 1
    assert "ended by signal 9" in (run / "failed.txt").read_text()


def test_a_cell_belongs_to_one_process_until_it_ends(folder: Path) -> None:
    """Also between its training and its evaluation, which hold no lock together."""
    cell = cell_in(folder)
    others = []

    def another(event: CellEvent) -> None:
        if event.kind in ("started", "running"):
            others.append(Runner().run([cell]))

    assert Runner(on_event=another).run([cell])["done"] == 1
    assert len(others) > 2
    assert all(counts["busy"] == 1 for counts in others)
    assert not cell.folder.failure.exists()
    assert len(calls(folder)) == 2
    assert Runner().run([cell])["skipped"] == 1


def test_a_finished_cell_is_done_whatever_failed_before(folder: Path) -> None:
    cell = cell_in(folder)
    assert Runner().run([cell])["done"] == 1
    cell.folder.failure.write_text("an evaluation that was repeated by hand\n")
    assert Runner().run([cell])["skipped"] == 1


def test_a_folder_that_cannot_be_written_leaves_the_others_alone(folder: Path) -> None:
    cells = plan("quick", folder)[:3]
    cells[1].directory.touch()  # a file where the folder should be
    (folder / "logs").mkdir()
    (folder / "logs" / f"{cells[2].name}.txt").mkdir()
    events: list[CellEvent] = []
    counts = Runner(jobs=2, on_event=events.append).run(cells)
    assert (counts["done"], counts["failed"]) == (1, 2)
    failed = [event.text for event in events if event.kind == "failed"]
    assert any("cannot write into" in text for text in failed)
    assert any("cannot start its command, or write" in text for text in failed)


def test_a_plan_loses_nothing_that_another_process_added(tmp_path: Path) -> None:
    few = plan("quick", tmp_path)
    save_plan(plan("quick", tmp_path, seeds=5))
    save_plan(few)
    assert json.loads((tmp_path / "plan.json").read_text())["seeds"] == 5


def test_threads_are_those_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [study.threads_each(jobs) for jobs in (1, 2, 4, 9)] == [6, 3, 1, 1]
    for given, expected in (("4", 4), ("3,1", 3), ("0", 6), ("many", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert study.threads_each(1) == expected


def test_no_more_gpus_than_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the names in CUDA_VISIBLE_DEVICES, torch uses those before one that is none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1")
    Runner(jobs=2, gpus=1).run(plan("quick", folder)[:2])
    logs = "".join(path.read_text() for path in (folder / "logs").iterdir())
    assert "gpu 0" in logs
    assert "gpu -1" not in logs
