"""The paper's experiments as a grid of cells (Table 1 and Figure 2); each cell is two ordinary commands.

A cell's folder holds its run. What has been done shows from the files there, so that a study which was
stopped, however, goes on with the cells that are missing, and machines that share a disk can share a study.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import remove, replacing
from rsslcli.core.locks import locked
from rsslcli.core.study.cell import Cell, last_line, log_file, shell_line

#: What runs a command: this very `rssl`.
PROGRAM = (sys.executable, "-m", "rsslcli")


def threads_each(jobs: int) -> int:
    """The CPU threads of a cell where `jobs` run at once."""
    return max((os.cpu_count() or 1) // jobs, 1)


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
        options: arguments that every command gets, such as those for the data folder.
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
            text = "done before" if status == "done" else f"failed before: {last_line(cell.folder.failure)}"
            self._ended(cell, "skipped", text)
            return None
        try:
            with locked(cell.directory):
                remove(cell.folder.failure)
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
        log = log_file(job.cell)
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
        message = f"ended by signal {-code}" if code < 0 else last_line(log_file(cell))
        text = f"{message} (exit code {code}; see {log_file(cell)})"
        with replacing(cell.folder.failure) as file:
            file.write(f"{text}\n".encode())
        self._ended(cell, "failed", text)

    def _ended(self, cell: Cell, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.on_event(CellEvent(cell, kind, float(kind == "done"), text))
