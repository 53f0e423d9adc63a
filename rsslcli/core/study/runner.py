"""Run the cells of a study, each as two ordinary `rssl` commands: one trains, one evaluates.

The files in a cell's folder show what is done. So a study resumes with the missing cells however it was
stopped, and machines that share a disk can share a study.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from rsslcli.core.errors import RsslError, UserError, rssl_command
from rsslcli.core.files import remove, replacing
from rsslcli.core.locks import locked
from rsslcli.core.study.cell import Cell, last_line, log_file

#: The lock of a cell's folder that the process which runs the cell holds.
_CELL_LOCK = ".cell.lock"
#: How to start a command: with this same `rssl`.
PROGRAM = (sys.executable, "-m", "rsslcli")


def threads_each(jobs: int) -> int:
    """CPU threads per cell when `jobs` cells run at once: OMP_NUM_THREADS, or else a share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and int(given):
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)  # fewer than all in a container or under taskset
    return max(len(affinity(0) if affinity else range(os.cpu_count() or 1)) // jobs, 1)


@dataclass(frozen=True)
class CellEvent:
    """A change in the state of a cell."""

    cell: Cell  #: the cell
    kind: str  #: "started", "running", "done", "failed", "skipped", "busy" (in another process) or "stopped"
    progress: float = 0.0  #: the completed fraction of what is "running", from 0 to 1
    text: str = ""  #: "training" or "evaluating" if "running", else the details


@dataclass
class _Job:
    """A running cell: its remaining commands, and the process of the current one."""

    cell: Cell
    slot: int
    remaining: list[list[str]]
    process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    lock: ExitStack = field(default_factory=ExitStack)  #: held until the cell ends


@dataclass
class Runner:
    """Runs cells in separate processes, `jobs` at a time."""

    jobs: int = 1  #: how many cells run at once; they share the GPUs or, without any, the CPU threads
    gpus: int = 0  #: the number of GPUs, assigned to jobs in turn
    images: int = 0  #: the number of training images in the data set, from which progress is computed
    options: Sequence[str] = ()  #: arguments that every command gets, such as those for the data folder
    on_event: Callable[[CellEvent], None] = lambda event: None  #: called with every event
    #: polled several times a second; once true, running cells save and stop
    should_stop: Callable[[], bool] = lambda: False
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, cells: Sequence[Cell], *, retry: bool = False) -> dict[str, int]:
        """Run the cells that are not done; failed cells run again only with `retry`.

        Returns:
            How many cells ended as "done", "failed", "skipped", "busy" or "stopped".
        """
        waiting = list(cells)
        running: list[_Job] = []
        self.counts = dict.fromkeys(("done", "failed", "skipped", "busy", "stopped"), 0)
        try:
            while waiting or running:
                stop = self.should_stop()
                if stop:
                    waiting.clear()
                while waiting and len(running) < self.jobs:
                    job = self._start(waiting.pop(0), {job.slot for job in running}, retry)
                    running += [job] if job else []
                ended = [job for job in running if not self._goes_on(job, stop)]
                running = [job for job in running if job not in ended]
                for job in ended:
                    job.lock.close()
                if running:
                    time.sleep(0.2)
        finally:
            for job in running:  # this process is interrupted: leave nothing running unseen
                if job.process:
                    job.process.kill()
                    job.process.wait()
        return self.counts

    def _start(self, cell: Cell, taken: set[int], retry: bool) -> _Job | None:
        """Start a cell in the lowest free slot; None if it is done, failed before or busy."""
        if self._is_skipped(cell, retry):
            return None
        lock = ExitStack()
        try:
            # The training holds a lock too, but only while it runs: this one lasts until the cell ends.
            lock.enter_context(locked(cell.directory, name=_CELL_LOCK))
            with locked(cell.directory):
                if self._is_skipped(cell, retry):  # another process may have ended it a moment ago
                    lock.close()
                    return None
                remove(cell.folder.failure)
        except UserError:
            lock.close()
            self._ended(cell, "busy", "another process is running it")
            return None
        except RsslError as error:  # its folder cannot be written: others may go on
            lock.close()
            self._ended(cell, "failed", str(error))
            return None
        job = _Job(cell, min(set(range(self.jobs)) - taken), cell.commands(self.options), lock=lock)
        self.on_event(CellEvent(cell, "started", text=rssl_command(*job.remaining[0])))
        if self._next_command(job):
            return job
        lock.close()
        return None

    def _is_skipped(self, cell: Cell, retry: bool) -> bool:
        """Whether the cell is done or failed before; then reports it."""
        status = cell.status()
        if status == "done":
            self._ended(cell, "skipped", "done before")
        elif status == "failed" and not retry:
            self._ended(cell, "failed", f"before: {last_line(cell.folder.failure)}")
        else:
            return False
        return True

    def _next_command(self, job: _Job) -> bool:
        """Start the next command of the job; its output is appended to the cell's log file.

        Where it cannot be started, reports that and returns false.
        """
        environment = os.environ | {"NO_COLOR": "1"}
        if self.gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(self.gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[job.slot % min(self.gpus, len(visible))]
        else:
            environment.setdefault("OMP_NUM_THREADS", str(threads_each(self.jobs)))
        log = log_file(job.cell)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                command = job.remaining.pop(0)
                output.write(f"$ {rssl_command(*command)}\n".encode())
                output.flush()
                # A new session, so that Ctrl-C reaches it only once: through this process.
                job.process = subprocess.Popen(
                    [*PROGRAM, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            self._ended(job.cell, "failed", f"cannot start its command, or write {log}: {error.strerror}")
            return False
        return True

    def _goes_on(self, job: _Job, stop: bool) -> bool:
        """Whether the job continues; starts its next command, or reports how it ended."""
        assert job.process
        if stop and not job.stopping:
            job.process.send_signal(signal.SIGTERM)
            job.stopping = True
        code = job.process.poll()
        if code is None:
            trained, evaluated = job.cell.position(self.images)
            if job.remaining:
                self.on_event(CellEvent(job.cell, "running", trained, "training"))
            else:
                self.on_event(CellEvent(job.cell, "running", evaluated, "evaluating"))
            return True
        if code == 0 and job.remaining and not job.stopping:
            return self._next_command(job)
        if code == 0 and not job.remaining:
            self._ended(job.cell, "done", "")
        elif job.stopping:
            how = "saved" if code in (0, 128 + signal.SIGTERM) else "ended at once, without saving"
            self._ended(job.cell, "stopped", f"{how}: run the same command to resume")
        else:
            self._fail(job.cell, code)
        return False

    def _fail(self, cell: Cell, code: int) -> None:
        """Record why a cell failed in its folder, and report it."""
        message = f"ended by signal {-code}" if code < 0 else last_line(log_file(cell))
        text = f"{message} (exit code {code}; see {log_file(cell)})"
        try:
            with replacing(cell.folder.failure) as file:
                file.write(f"{text}\n".encode())
        except RsslError as error:  # a full disk: the others go on
            text += f"; {error}"
        self._ended(cell, "failed", text)

    def _ended(self, cell: Cell, kind: str, text: str) -> None:
        """Count and report the end of a cell."""
        self.counts[kind] += 1
        self.on_event(CellEvent(cell, kind, float(kind == "done"), text))
