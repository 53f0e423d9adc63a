"""Variants of a computation, each in a process of its own, that take turns.

How memory is allocated and laid out decides a good part of the speed, and some of it is set for a whole
process and cannot be undone; so variants do not share one. Only one works at a time, the others wait.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

#: What a process can be asked to do, by name.
Works = Mapping[str, Callable[[], object]]


class WorkerError(Exception):
    """A process could not do its work."""


class Worker:
    """A process that sets itself up and then works when it is told to; a context manager.

    Args:
        setup: a function at the top of a module that returns the works.
        arguments: passed to `setup`.
        threads: how many threads PyTorch may use there.

    Raises:
        WorkerError: the setup failed. All methods raise it when the process fails.
    """

    def __init__(self, setup: Callable[..., Works], *arguments: object, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, setup, arguments), daemon=True)
        self._process.start()
        theirs.close()
        #: The names of its works.
        self.works: list[str] = self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def seconds(self, work: str) -> float:
        """How long the work takes, done once."""
        return float(self._ask(work, False))

    def value(self, work: str) -> Any:
        """What the work returns: plain data."""
        return self._ask(work, True)

    def _ask(self, work: str, wants_value: bool) -> Any:
        with suppress(OSError):  # where the process is gone, the answer will say so
            self._pipe.send((work, wants_value))
        return self._answer()

    def _answer(self) -> Any:
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerError(f"its process ended with code {self._process.exitcode}") from None
        if not fine:
            raise WorkerError(answer)
        return answer


def _serve(
    pipe: Connection, threads: int, setup: Callable[..., Works], arguments: tuple[object, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    torch.set_num_threads(threads)
    try:
        works = setup(*arguments)
        pipe.send((True, list(works)))
        while True:
            work, wants_value = pipe.recv()
            gc.collect()  # or this turn would pay for what an earlier one left behind
            _synchronize()
            began = time.perf_counter()
            value = works[work]()
            _synchronize()
            seconds = time.perf_counter() - began
            pipe.send((True, value if wants_value else seconds))
    except EOFError:
        pass  # the parent is gone
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _synchronize() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def take_turns(variants: Sequence[Callable[[], float]], rounds: int, warmups: int = 1) -> list[list[float]]:
    """What each variant measures, round by round; zip two variants' lists for pairs.

    In every other round the order is reversed, so that none always follows the same one.
    """
    for _ in range(warmups):
        for variant in variants:
            variant()
    measured: list[list[float]] = [[] for _ in variants]
    for number in range(rounds):
        order = range(len(variants))
        for i in reversed(order) if number % 2 else order:
            measured[i].append(variants[i]())
    return measured


def memory_of(field: str, process: int | str = "self") -> int:
    """A field of Linux's record of a process, such as VmRSS, in bytes; 0 if there is none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def peak_memory() -> int:
    """The most memory that this process has occupied so far, in bytes.

    Linux's own record begins with the program; `ru_maxrss` begins with what the parent had at the fork.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return memory_of("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Let `peak_memory` begin anew with what is occupied now, where Linux allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
