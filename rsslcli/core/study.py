"""The paper's experiments as a grid of cells (Table 1 and Figure 2); each cell is two ordinary commands.

A cell's folder holds its run. What has been done shows from the files there, so that a study which was
stopped, however, goes on with the cells that are missing, and machines that share a disk can share a study.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsslcli.core.config import Config, check_effective, config_layers, merge, read_config_file
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.errors import RsslError, UserError, one_line, quoted, unknown
from rsslcli.core.files import remove, replacing
from rsslcli.core.locks import locked
from rsslcli.core.tasks import BEST_TASKS, TASKS, check_task_names, check_task_words

#: What runs a command: this very `rssl`.
PROGRAM = (sys.executable, "-m", "rsslcli")


@dataclass(frozen=True)
class Method:
    """A way to train: a row of the study.

    Attributes:
        tasks: the self-supervision tasks; none is the baseline.
        automl: whether Algorithm 1 tunes λ.
        batch_norm: the mode, where it is not the preset's.
    """

    tasks: tuple[str, ...]
    automl: bool = False
    batch_norm: str | None = None


#: The paper's experiments: the columns of Table 1, then Figure 2.
PAPER_METHODS = {
    "baseline": Method(()),
    **{task: Method((task,)) for task in TASKS},
    "fixed": Method(BEST_TASKS),
    "automl": Method(BEST_TASKS, automl=True),
}
_JOINT = {"rotation-joint": Method(("rotation",), batch_norm="joint")}


@dataclass(frozen=True)
class Preset:
    """A size of the study.

    Attributes:
        methods: the rows.
        seeds: how many seeds each method gets.
        single_seed: methods that get only the first seed, where time is short.
        dataset: what it is run on.
        corruptions: where the corrupted test set comes from, "download" or "generate".
        corrupted_images: source images of a generated one; None is the whole test set.
    """

    methods: Mapping[str, Method]
    seeds: int
    single_seed: tuple[str, ...] = ()
    dataset: str = "cifar10"
    corruptions: str = "download"
    corrupted_images: int | None = None


#: By the name of the training preset that it uses.
PRESETS = {
    "paper": Preset(PAPER_METHODS, seeds=3),
    "small": Preset(
        PAPER_METHODS | _JOINT,
        seeds=3,
        single_seed=tuple(task for task in TASKS if task != "rotation"),
        corruptions="generate",
        corrupted_images=600,
    ),
    "quick": Preset(PAPER_METHODS, seeds=1, dataset="shapes", corruptions="generate"),
}


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Attributes:
        number: counts from 1, in the order in which cells are run.
        method: the row.
        config: what is trained.
        directory: the run directory; its last part is the cell's name, such as "automl-s0".
        train: arguments of the command that trains it.
        task_files: where tasks of one's own are defined.
    """

    number: int
    method: str
    config: Config
    directory: Path
    train: tuple[str, ...]
    task_files: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The method and the seed."""
        return self.directory.name

    @property
    def failure(self) -> Path:
        """Where it is written why the cell failed."""
        return self.directory / "failed.txt"

    def status(self) -> str:
        """How far the cell is: "done", "failed", "begun" or "to do".

        Raises:
            UserError: the folder holds a run with other settings.
        """
        file = self.directory / "config.yaml"
        if file.is_file():
            self._check_same(read_config_file(file))
        if self.failure.exists():
            return "failed"
        evaluated, checkpoint = self.directory / "eval-c.json", self.directory / "checkpoint.pt"
        if not checkpoint.is_file():
            return "to do"
        if not self.is_trained() or not evaluated.is_file():
            return "begun"
        return "done" if evaluated.stat().st_mtime >= checkpoint.stat().st_mtime else "begun"

    def is_trained(self) -> bool:
        """Whether the training ended: its log says so once the last checkpoint is written."""
        log = self.directory / "log.txt"
        return (self.directory / "checkpoint.pt").is_file() and _tail(log).endswith(b" finished\n")

    def position(self, images: int) -> tuple[float, float]:
        """The shares of its training and of its evaluation that are done, from 0 to 1.

        Args:
            images: training images of the data set, which decide how many steps there are.
        """
        config, step = self.config, 0
        for record in reversed(_last_records(self.directory / "metrics.jsonl")):
            if isinstance(record.get("step"), int):
                step = max(record["step"], 0)
                break
        steps = min(config.train_size or images, images) // config.batch_size * config.epochs
        try:
            found = json.loads((self.directory / "eval-c.json.partial").read_bytes())
            evaluated = len(found["correct"]) / CELLS_OF_AN_EVALUATION
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            evaluated = 0.0
        return min(step / steps, 1.0) if steps else 0.0, min(evaluated, 1.0)

    def check_can_run(self) -> None:
        """Raise UserError where the cell is not done and this process does not know its tasks."""
        if self.status() != "done":
            try:
                check_task_names(self.config.tasks)
            except UserError as error:
                raise UserError(f"{self.directory} is not done: {error}") from None

    def seconds(self) -> float | None:
        """How long its training took, where that is known."""
        try:
            lines = (self.directory / "metrics.jsonl").read_bytes().splitlines()
            records = [json.loads(line) for line in lines if b'"seconds"' in line]
            return float(sum(record["seconds"] for record in records)) if records else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def commands(self, options: Sequence[str] = ()) -> list[list[str]]:
        """What is left to run: the arguments of `rssl`, command by command.

        Args:
            options: those that every command gets, such as --data-dir.
        """
        directory = str(self.directory)
        evaluate = ["eval-c", directory, "--leave-out-validation", *options]
        files = [part for file in self.task_files for part in ("--task-file", str(file))]
        if self.is_trained():
            return [evaluate]
        if (self.directory / "checkpoint.pt").is_file():
            resume = [self.train[0], "--resume", "--output", directory]
            if self.train[0] == "train-automl" and not self.config.automl:
                resume.append("--fixed")
            return [[*resume, *files, *options], evaluate]
        return [[*self.train, *files, "--output", directory, *options], evaluate]

    def _check_same(self, there: Mapping[str, Any]) -> None:
        mine = self.config.to_dict()
        # Neither changes a number: the device, and the warm-up of a cell in which no λ is tuned.
        apart = {"device"} if self.config.automl else {"device", "warmup_epochs"}
        for key, value in there.items():
            if key not in apart and mine.get(key, value) != value:
                raise UserError(
                    f"{self.directory} is of another study, with another {key} ({quoted(value)} there, "
                    f"{quoted(mine[key])} here): choose another --output"
                )


#: The clean test set, and all corruptions at all severities.
CELLS_OF_AN_EVALUATION = 1 + len(CORRUPTIONS) * len(SEVERITIES)


def plan(
    preset: str,
    output: Path,
    *,
    dataset: str | None = None,
    seeds: int | None = None,
    add_tasks: Sequence[str] = (),
    task_files: Sequence[Path] = (),
    config: Path | None = None,
) -> list[Cell]:
    """The cells of a study, those first without which nothing can be compared.

    Seeds and tasks that former invocations have added stay: see `save_plan`.

    Args:
        preset: a name in `PRESETS`, which is a training preset too.
        output: the study's folder; each cell has one in it.
        dataset: what to run it on; the preset's by default.
        seeds: how many seeds, from 0 on; the preset's number by default.
        add_tasks: tasks beside the paper's: each gets a row of its own, and joins the four best under AutoML.
        task_files: the files, already loaded, that define those which are not installed.
        config: a YAML file of options for every cell.

    Raises:
        UserError: an unknown preset or task, or options that do not fit.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    size = PRESETS[preset]
    count = size.seeds if seeds is None else seeds
    if not 1 <= count <= MAX_SEEDS:
        raise UserError(f"--seeds {count}: expected at least 1 and at most {MAX_SEEDS}")
    check_task_names(add_tasks)
    before, added = _read_plan(output)
    added = list(dict.fromkeys([*added, *([tuple(add_tasks)] if add_tasks else ())]))
    methods = dict(size.methods)
    for tasks in added:
        for task in tasks:
            if task in size.methods:
                raise UserError(f"--add-task {task}: the study has that task already")
        methods |= {task: Method((task,)) for task in tasks}
        methods["-".join(("automl", *tasks))] = Method((*BEST_TASKS, *tasks), automl=True)
    # Seed by seed, so that a study which is stopped early has whole comparisons; lone seeds come last.
    rows = [name for name in methods if name not in size.single_seed]
    order = [(name, seed) for seed in range(max(count, before)) for name in rows]
    order += [(name, 0) for name in size.single_seed]
    common = {} if dataset is None and config is not None else {"dataset": dataset or size.dataset}
    return [
        _make_cell(number, name, methods[name], preset, config, common | {"seed": seed}, output, task_files)
        for number, (name, seed) in enumerate(order, 1)
    ]


def _make_cell(
    number: int,
    name: str,
    method: Method,
    preset: str,
    config: Path | None,
    options: Mapping[str, Any],
    output: Path,
    task_files: Sequence[Path],
) -> Cell:
    """A cell with its configuration and the command that trains it; see `plan`."""
    chosen = {"tasks": list(method.tasks), "automl": method.automl, "batch_norm": method.batch_norm}
    # Rows of former invocations stay, whether or not this one knows their tasks: see `Cell.check_can_run`.
    resolved = merge(config_layers(preset, config, {**chosen, **options}), known_tasks=False)
    check_task_names(resolved.task_options)
    check_effective(resolved)
    several = method.automl or len(method.tasks) > 1
    train = ["train-automl", "--tasks", ",".join(method.tasks)] if several else ["train-single", "--task"]
    train += [] if several else [method.tasks[0] if method.tasks else "none"]
    train += ["--fixed"] if several and not method.automl else []
    train += ["--batch-norm", method.batch_norm] if method.batch_norm else []
    train += ["--preset", preset, *(("--config", str(config)) if config else ())]
    train += ["--dataset", resolved.dataset, "--seed", str(resolved.seed)]
    return Cell(number, name, resolved, output / f"{name}-s{resolved.seed}", tuple(train), tuple(task_files))


#: What the invocations of a study have added to its preset, in the study's folder.
PLAN = "plan.json"
_MAX_PLAN_BYTES = 1 << 16
MAX_SEEDS = 1000


def save_plan(cells: Sequence[Cell]) -> None:
    """Keep in the study's folder how many seeds it has and which tasks were added to it.

    So the same study goes on without the options that added them. The files that define tasks are not kept:
    they are code, and only the user names code to run.

    Raises:
        RsslError: the file cannot be written.
    """
    output = cells[0].directory.parent
    seeds = 1 + max(cell.config.seed for cell in cells)
    automl = dict.fromkeys(cell.config.tasks for cell in cells if cell.config.automl)
    added = [tasks[len(BEST_TASKS) :] for tasks in automl if len(tasks) > len(BEST_TASKS)]
    if (seeds, added) != _read_plan(output):
        with replacing(output / PLAN) as file:
            file.write(json.dumps({"seeds": seeds, "added_tasks": added}).encode() + b"\n")


def _read_plan(output: Path) -> tuple[int, list[tuple[str, ...]]]:
    """What `save_plan` has kept: the number of seeds, and the groups of tasks that were added together."""
    try:
        with (output / PLAN).open("rb") as file:
            content = json.loads(file.read(_MAX_PLAN_BYTES))
        seeds, added = content["seeds"], [tuple(tasks) for tasks in content["added_tasks"]]
        for tasks in added:
            check_task_words(tasks)
        if type(seeds) is not int or not 1 <= seeds <= MAX_SEEDS or not all(added):
            raise ValueError
    except FileNotFoundError:
        return 0, []
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        raise UserError(
            f"{output / PLAN} is damaged: delete it, and name added tasks and seeds once more"
        ) from None
    return seeds, added


def choose(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that `only` names: by number, by name ("automl-s0"), or by method ("automl").

    Raises:
        UserError: one that is not there.
    """
    chosen: set[int] = set()
    for name in only:
        found = {cell.number for cell in cells if name in (str(cell.number), cell.name, cell.method)}
        if not found:
            methods = dict.fromkeys(cell.method for cell in cells)
            raise unknown("cell", name, [*methods, *(cell.name for cell in cells)])
        chosen |= found
    return [cell for cell in cells if not only or cell.number in chosen]


def threads_each(jobs: int) -> int:
    """The CPU threads of a cell where `jobs` run at once."""
    return max((os.cpu_count() or 1) // jobs, 1)


def shell_line(arguments: Sequence[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["rssl", *arguments])


@dataclass(frozen=True)
class CellEvent:
    """What happens to a cell.

    Attributes:
        cell: which one.
        kind: "started", "running", "done", "failed", "skipped", "busy" (another process has it) or "stopped".
        progress: the share of what is "running" that is done, from 0 to 1.
        text: of "running", "training" or "evaluating"; else it says more.
    """

    cell: Cell
    kind: str
    progress: float = 0.0
    text: str = ""


@dataclass
class _Job:
    """A cell at work: what is left of its commands, and the process of the present one."""

    cell: Cell
    slot: int
    remaining: list[list[str]]
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False


@dataclass
class Runner:
    """Runs cells in processes of their own, `jobs` at a time.

    Attributes:
        jobs: cells at once: one per GPU, or CPU threads shared out among them.
        gpus: how many there are; jobs take turns on them.
        images: training images of the data set, by which the progress of a training is told.
        options: what every command gets, such as --data-dir.
        on_event: told what happens.
        should_stop: asked several times a second; if true, running cells save and stop.
    """

    jobs: int = 1
    gpus: int = 0
    images: int = 0
    options: Sequence[str] = ()
    on_event: Callable[[CellEvent], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], *, retry: bool = False) -> dict[str, int]:
        """Run the cells that are not done; those that failed only with `retry`.

        Returns:
            How many cells ended as "done", "failed", "skipped", "busy" or "stopped".
        """
        waiting, running = list(cells), list[_Job]()
        self.counts = dict.fromkeys(("done", "failed", "skipped", "busy", "stopped"), 0)
        try:
            while waiting or running:
                stop = self.should_stop()
                if stop:
                    waiting.clear()
                while waiting and len(running) < self.jobs:
                    job = self._start(waiting.pop(0), {job.slot for job in running}, retry)
                    running += [job] if job else []
                running = [job for job in running if self._goes_on(job, stop)]
                if running:
                    time.sleep(0.2)
        finally:
            for job in running:  # this process is interrupted: nothing runs on unseen
                if job.process:
                    job.process.kill()
                    job.process.wait()
        return self.counts

    def _start(self, cell: Cell, taken: set[int], retry: bool) -> _Job | None:
        status = cell.status()
        if status == "done" or (status == "failed" and not retry):
            text = "done before" if status == "done" else f"failed before: {_last_line(cell.failure)}"
            self._ended(cell, "skipped", text)
            return None
        try:
            with locked(cell.directory):
                remove(cell.failure)
        except UserError:
            self._ended(cell, "busy", "another process is at it")
            return None
        job = _Job(cell, min(set(range(self.jobs)) - taken), cell.commands(self.options))
        self.on_event(CellEvent(cell, "started", text=shell_line(job.remaining[0])))
        self._next_command(job)
        return job

    def _next_command(self, job: _Job) -> None:
        """Start the next command of the job; what it prints goes into a file beside the run's folder."""
        environment = os.environ | {"NO_COLOR": "1"}
        if self.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[job.slot % len(visible)]
        else:
            environment.setdefault("OMP_NUM_THREADS", str(threads_each(self.jobs)))
        log = _log(job.cell)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                command = job.remaining.pop(0)
                output.write(f"$ {shell_line(command)}\n".encode())
                output.flush()
                # A session of its own, so that Ctrl-C reaches it once: by way of this process.
                job.process = subprocess.Popen(
                    [*PROGRAM, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise RsslError(f"cannot run a cell with its output in {log}: {error.strerror}") from None

    def _goes_on(self, job: _Job, stop: bool) -> bool:
        """Whether the job goes on; starts its next command, or says how it ended."""
        assert job.process
        if stop and not job.stopping:
            job.process.send_signal(signal.SIGTERM)
            job.stopping = True
        code = job.process.poll()
        if code is None:
            trained, evaluated = job.cell.position(self.images)
            now = ("training", trained) if job.remaining else ("evaluating", evaluated)
            self.on_event(CellEvent(job.cell, "running", now[1], now[0]))
            return True
        if code == 0 and job.remaining and not job.stopping:
            self._next_command(job)
            return True
        if code == 0 and not job.remaining:
            self._ended(job.cell, "done", "")
        elif job.stopping:
            self._ended(job.cell, "stopped", "saved: the same command goes on")
        else:
            self._fail(job.cell, code)
        return False

    def _fail(self, cell: Cell, code: int) -> None:
        message = f"ended by signal {-code}" if code < 0 else _last_line(_log(cell))
        text = f"{message} (exit code {code}; see {_log(cell)})"
        with replacing(cell.failure) as file:
            file.write(f"{text}\n".encode())
        self._ended(cell, "failed", text)

    def _ended(self, cell: Cell, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.on_event(CellEvent(cell, kind, float(kind == "done"), text))


def _log(cell: Cell) -> Path:
    return cell.directory.parent / "logs" / f"{cell.name}.txt"


def _last_line(file: Path) -> str:
    """The last words in a file."""
    lines = _tail(file).decode(errors="replace").splitlines()
    return one_line(next((line for line in reversed(lines) if line.strip()), "no reason is known"), 500)


def _tail(file: Path, size: int = 8192) -> bytes:
    """The last bytes of a file; none where it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(os.fstat(stream.fileno()).st_size - size, 0))
            return stream.read()
    except OSError:
        return b""


def _last_records(file: Path) -> list[dict[str, Any]]:
    """The records in the last part of a metrics file."""
    records = []
    for line in _tail(file).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # cut off
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
