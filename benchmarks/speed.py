"""How fast and how large `rssl` is: ratios of two variants that take turns.

    python benchmarks/speed.py [--only automl,textbook] [--json FILE]

The variants take turns, one at a time, A B, B A, A B, …, and the ratio is taken pair by pair, so that a drift
of the machine's speed cancels. Variants that allocate or lay out memory differently run in processes of their
own. The bars are for the default size with two threads on the CPU. The exit code is 1 if a bar is missed or a
measurement failed. The measurement `higher` needs that library from PyPI and is left out without it; both it
and `textbook` need 16 GiB of memory. A quick look:

    python benchmarks/speed.py --depth 10 --width 1 --batch-size 8 --images 50 --pairs 2
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import variants
from harness import Worker, WorkerError, Works, take_turns
from rich.console import Console
from rich.table import Table
from variants import TASKS, Setting

from rsslcli.core.config import Config
from rsslcli.core.errors import UserError
from rsslcli.core.runtime import describe_device, resolve_device

GIB = 2**30
#: How many pairs a measurement takes, where `--pairs` does not say.
PAIRS = {
    "automl": 9, "precision": 9, "eval-plain": 11, "augmix": 21, "layout": 5, "cost": 3, "textbook": 3,
    "higher": 3, "memory-step": 3,
}  # fmt: skip
OTHER_PAIRS = 7


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach."""

    sign: str
    value: float

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"

    def holds(self, value: float) -> bool:
        """Whether `value` is on the right side of it."""
        return {"≤": value <= self.value, "≥": value >= self.value, "<": value < self.value}[self.sign]


@dataclass(frozen=True)
class Figure:
    """A line of the table.

    Attributes:
        name: which measurement it belongs to, for `--only`.
        what: what was divided by what.
        values: pair by pair.
        bar: what the median has to reach.
        unit: of the values; none for a ratio.
        medians: what was divided and by what, in seconds.
        note: what to know beside it.
        parts: what the first variant does in addition to the second: seconds, by name.
    """

    name: str
    what: str
    values: Sequence[float]
    bar: Bar | None = None
    unit: str = ""
    medians: tuple[float, float] | None = None
    note: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The figure itself."""
        return statistics.median(self.values)


def ratio(name: str, what: str, above: Sequence[float], below: Sequence[float], **more: Any) -> Figure:
    """Seconds by seconds, pair by pair."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    return Figure(name, what, values, medians=(statistics.median(above), statistics.median(below)), **more)


@dataclass(frozen=True)
class Bench:
    """How to measure: the sizes, how many pairs, and how many threads each process may use."""

    setting: Setting
    pairs: int
    threads: int

    def worker(self, setup: Callable[..., Works], *arguments: object) -> Worker:
        """A process of its own for a variant."""
        return Worker(setup, self.setting, *arguments, threads=self.threads)

    @property
    def is_judged(self) -> bool:
        """Whether the bars are for this setting."""
        on_cpu = resolve_device(self.setting.device).type == "cpu"
        return self.setting.is_default and on_cpu and self.threads == 2

    def times(self, *works: tuple[Worker, str]) -> list[list[float]]:
        """The seconds of these works, pair by pair."""
        return take_turns([partial(worker.seconds, work) for worker, work in works], self.pairs)


# The measurements, by name; each may give several figures.


def automl(bench: Bench) -> Iterator[Figure]:
    """What tuning λ costs, and where that goes."""
    for tasks, bar in ((TASKS, Bar("≤", 1.19)), (TASKS[:3], Bar("≤", 1.09))):
        with bench.worker(variants.steps, tasks) as steps, bench.worker(variants.parts, tasks) as parts:
            tuned, fixed, *rest = bench.times(
                (steps, "automl"), (steps, "fixed"), *((parts, work) for work in parts.works)
            )
        shares = {name: statistics.median(seconds) for name, seconds in zip(parts.works, rest, strict=True)}
        more = statistics.median([a - b for a, b in zip(tuned, fixed, strict=True)])
        shares["all else, by subtraction"] = more - sum(shares.values())
        yield ratio(
            "automl",
            f"AutoML step ÷ fixed-λ step: {', '.join(tasks)}",
            tuned,
            fixed,
            bar=bar,
            note=f"floor by counting passes {floor(tasks, bench.setting.batch_size):.2f}",
            parts=shares,
        )


def floor(tasks: Sequence[str], batch: int, meta: int = 25) -> float:
    """AutoML step ÷ fixed-λ step if only trunk passes count, and a backward pass costs two forward passes."""
    sizes = {"rotation": 4, "ir": 0}  # trunk passes beside the clean one, in batches; `ir` needs none
    images = batch * (1 + sum(sizes.get(task, 1) for task in tasks))
    return (3 * images + 3 * meta + 2 * batch * tasks.count("ir")) / (3 * images)


A_QUARTER = ", a quarter of the images"
ONE_VIEW = {"task_options": {"rotation": {"views": 1}}}
#: Cheaper settings of the tasks, by how the table calls them.
CHEAPER: dict[str, dict[str, Any]] = {
    "": {},
    ", one view": ONE_VIEW,
    ", half of the images": {"task_share": 0.5},
    ", one view, half of the images": ONE_VIEW | {"task_share": 0.5},
    A_QUARTER: {"task_share": 0.25},
    ", one view, a quarter of the images": ONE_VIEW | {"task_share": 0.25},
}


def cost(bench: Bench) -> Iterator[Figure]:
    """What tasks cost beside the baseline, and what cheaper settings save."""
    rows = [("rotation", ("rotation",), "fixed", name) for name in ("", ", one view", A_QUARTER)]
    rows += [("four tasks with AutoML", TASKS, "automl", name) for name in CHEAPER]
    for precision in ("float32", "bfloat16"):
        with bench.worker(variants.steps, (), "per-task", precision) as baseline:
            for what, tasks, work, name in rows:
                with bench.worker(variants.steps, tasks, "per-task", precision, CHEAPER[name]) as steps:
                    above, below = bench.times((steps, work), (baseline, "fixed"))
                title = f"step of {what}{name} ÷ of the baseline, {precision}"
                bar = Bar("≤", 6) if name == A_QUARTER and work == "automl" else None
                yield ratio("cost", title, above, below, bar=bar)


def against_rival(bench: Bench, name: str, method: str, what: str, bar: Bar) -> Iterator[Figure]:
    """A step with another way to the meta-gradient ÷ ours; both have the same batch norm."""
    for batch_norm in ("per-task", "joint"):
        with (
            bench.worker(variants.rival, method, batch_norm) as rival,
            bench.worker(variants.steps, TASKS, batch_norm) as steps,
        ):
            theirs, ours = bench.times((rival, "step"), (steps, "automl"))
            errors: dict[str, float] = rival.value("errors")
        note = f"error of the meta-gradient {errors['usual']:.1e}, of ours in float32 {errors['ours']:.1e}"
        others = {scale: error for scale, error in errors.items() if scale not in {"usual", "ours"}}
        if others:
            best = min(others, key=lambda scale: others[scale])
            note += f"; with ε = {best}/‖v‖, the best other of {', '.join(others)}, {others[best]:.1e}"
        if batch_norm == "per-task":
            yield ratio(name, f"{what} ÷ our AutoML step", theirs, ours, bar=bar, note=note)
        else:
            yield ratio(name, f"{what} ÷ our AutoML step, joint batch norm", theirs, ours, note=note)


def textbook(bench: Bench) -> Iterator[Figure]:
    """Double backward."""
    return against_rival(bench, "textbook", "textbook", "textbook double-backward step", Bar("≥", 5))


def finite_differences(bench: Bench) -> Iterator[Figure]:
    """What Auto-λ does."""
    return against_rival(
        bench, "finite-differences", "finite_differences", "finite-difference step", Bar("≥", 2.2)
    )


class NotInstalledError(Exception):
    """A library that only this measurement needs is not there."""


def with_higher(bench: Bench) -> Iterator[Figure]:
    """The library `higher`."""
    if importlib.util.find_spec("higher") is None:
        raise NotInstalledError("the library is not installed: pip install higher")
    return against_rival(bench, "higher", "with_higher", "step with the library higher", Bar("≥", 5))


def precision(bench: Bench) -> Iterator[Figure]:
    """What bfloat16 gives."""
    with (
        bench.worker(variants.steps) as whole,
        bench.worker(variants.steps, TASKS, "per-task", "bfloat16") as rounded,
    ):
        for work, what in (("automl", "AutoML"), ("fixed", "fixed-λ")):
            exact, fast = bench.times((whole, work), (rounded, work))
            yield ratio("precision", f"{what} step in float32 ÷ in bfloat16", exact, fast)


def overhead(bench: Bench) -> Iterator[Figure]:
    """What is not the network: augmentation, task inputs, optimizer, bookkeeping."""
    with bench.worker(variants.steps) as steps:
        step, passes = bench.times((steps, "fixed"), (steps, "passes"))
    yield ratio(
        "overhead", "fixed-λ step ÷ its bare passes on ready tensors", step, passes, bar=Bar("≤", 1.05)
    )


def layout(bench: Bench) -> Iterator[Figure]:
    """What memory layout and allocation give."""
    b = bench.setting.batch_size
    with bench.worker(variants.trunk) as ours, bench.worker(variants.plain_trunk) as plain:
        for work, what, bar in (
            ("mix", f"passes of {b}, {4 * b}, {b}, {b} images", Bar("≤", 0.8)),
            ("one", f"a pass of {b} images", None),
            ("four", f"a pass of {4 * b} images", None),
        ):
            mine, theirs = bench.times((ours, work), (plain, work))
            yield ratio("layout", f"our trunk ÷ the same in plain PyTorch: {what}", mine, theirs, bar=bar)


def augmix(bench: Bench) -> Iterator[Figure]:
    """What AugMix costs: against torchvision, and against the passes of the network that its views need."""
    b = bench.setting.batch_size
    what = f"two AugMix views of {b} images"
    with bench.worker(variants.augmix_views) as ours:
        with bench.worker(variants.torchvision_views) as theirs:
            rival, views = bench.times((theirs, "views"), (ours, "views"))
        yield ratio(
            "augmix", f"{what}: torchvision's v2.AugMix on the CPU ÷ ours", rival, views, bar=Bar("≥", 3)
        )
        with bench.worker(variants.trunk) as trunk:
            views, passes = bench.times((ours, "views"), (trunk, "three"))
        yield ratio("augmix", f"{what} ÷ a pass of {3 * b} images", views, passes, bar=Bar("≤", 0.15))


def eval_bare(bench: Bench) -> Iterator[Figure]:
    """What reading and counting cost."""
    with tempfile.TemporaryDirectory() as folder:
        variants.make_evaluation_set(Path(folder), bench.setting.images)
        with bench.worker(variants.evaluation, Path(folder)) as ours:
            bare, whole = bench.times((ours, "bare"), (ours, "evaluate"))
    yield ratio("eval-bare", "eval-c images/s ÷ bare forward loop's", bare, whole, bar=Bar("≥", 0.95))


def eval_plain(bench: Bench) -> Iterator[Figure]:
    """What a plain script takes."""
    with tempfile.TemporaryDirectory() as folder:
        variants.make_evaluation_set(Path(folder), bench.setting.images)
        with (
            bench.worker(variants.evaluation, Path(folder)) as ours,
            bench.worker(variants.plain_evaluation, Path(folder)) as plain,
        ):
            script, whole, rounded = bench.times(
                (plain, "script"), (ours, "evaluate"), (ours, "evaluate in bfloat16")
            )
    what = "images/s ÷ a plain script's"
    yield ratio("eval-plain", f"eval-c {what}", script, whole, bar=Bar("≥", 1.4))
    yield ratio("eval-plain", f"eval-c --precision bfloat16 {what}, in float32", script, rounded)


def memory_step(bench: Bench) -> Iterator[Figure]:
    """The peak of a training step; each is of a new process, since a peak does not go back."""
    found: dict[str, list[dict[str, int]]] = {"automl": [], "fixed": []}
    for _ in range(bench.pairs):
        for kind, peaks in found.items():
            with bench.worker(variants.steps) as steps:
                peaks.append(steps.value(f"{kind} memory"))
    pairs = list(zip(found["automl"], found["fixed"], strict=True))
    added = [(a["peak"] - a["before"]) / (b["peak"] - b["before"]) for a, b in pairs]
    whole = [a["peak"] / b["peak"] for a, b in pairs]
    automl, fixed = (statistics.median(each["peak"] for each in found[kind]) / GIB for kind in found)
    what = "peak memory of AutoML steps ÷ of fixed-λ steps"
    yield Figure("memory-step", f"{what}, without what the process has before", added, Bar("<", 1.5))
    yield Figure("memory-step", what, whole, note=f"{automl:.2f} GiB ÷ {fixed:.2f} GiB")


def memory_eval(bench: Bench) -> Iterator[Figure]:
    """The peak of the whole command on files of full size, a whole sweep with a small network."""
    images = 10_000 if bench.setting.is_default else bench.setting.images
    depth, width = bench.setting.depth, bench.setting.width
    cases = (
        (10, 1, f"two corruptions × 5 × {images:,} images", ("--corruptions", ",".join(variants.FULL))),
        (
            depth,
            width,
            "1,000 images of each file",
            ("--limit", "1000", "--severity", "1"),
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        variants.make_full_set(Path(folder), images)
        for depth, width, what, options in cases:
            with bench.worker(variants.command, Path(folder), depth, width, *options) as command:
                peak = command.value("peak") / GIB
            name = f"peak host memory of eval-c, WRN-{depth}-{width}, {what}"
            yield Figure("memory-eval", name, [peak], Bar("<", 1.5), unit="GiB")


def startup(bench: Bench) -> Iterator[Figure]:
    """Commands that need no network."""
    for arguments in (["--help"], ["train-automl", "--tasks", "nonsense"], ["eval-c", "--nonsense"]):

        def seconds(arguments: Sequence[str] = arguments) -> float:
            began = time.perf_counter()
            _rssl(arguments)
            return time.perf_counter() - began

        (values,) = take_turns([seconds], bench.pairs)
        imports = _rssl(arguments, "-X", "importtime").stderr
        torch_is = "is" if re.search(r"\| +torch$", imports, re.MULTILINE) else "is not"
        what, note = f"rssl {' '.join(arguments)}", f"torch {torch_is} imported"
        yield Figure("startup", what, values, Bar("<", 0.4), unit="s", note=note)


def _rssl(arguments: Sequence[str], *python: str) -> subprocess.CompletedProcess[str]:
    # As the installed script starts, in the interpreter at hand.
    code = "import sys; from rsslcli.app import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, *python, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


MEASUREMENTS: dict[str, Callable[[Bench], Iterable[Figure]]] = {
    "automl": automl,
    "cost": cost,
    "textbook": textbook,
    "finite-differences": finite_differences,
    "higher": with_higher,
    "overhead": overhead,
    "precision": precision,
    "layout": layout,
    "augmix": augmix,
    "eval-bare": eval_bare,
    "eval-plain": eval_plain,
    "memory-step": memory_step,
    "memory-eval": memory_eval,
    "startup": startup,
}


def main() -> int:
    """Measure, print and save; return 1 if a measurement failed or a bar is missed."""
    options = _parse()
    setting = Setting(options.depth, options.width, options.batch_size, options.images, options.device)
    bench = Bench(setting, OTHER_PAIRS, options.threads)
    torch.set_num_threads(bench.threads)
    judged = bench.is_judged
    figures: list[Figure] = []
    missing: dict[str, str] = {}
    failed = False
    err = Console(stderr=True)
    for name in options.only:
        err.print(f"measuring {name}")
        pairs = options.pairs or PAIRS.get(name, OTHER_PAIRS)
        try:
            for figure in MEASUREMENTS[name](replace(bench, pairs=pairs)):
                figures.append(figure)
                err.print(f"  {figure.what}: {_spread(figure)}", soft_wrap=True)
        except (NotInstalledError, WorkerError) as error:
            failed = failed or isinstance(error, WorkerError)
            missing[name] = str(error).strip()
            err.print(f"{name} is not measured: {missing[name]}", markup=False)
    about = {
        "device": describe_device(resolve_device(options.device)),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "network": f"WRN-{setting.depth}-{setting.width}",
        "batch_size": setting.batch_size,
        "images_per_cell": setting.images,
    }
    _print(about, figures, missing, judged)
    if options.json:
        content = {
            "about": about,
            "figures": [_plain(figure, judged) for figure in figures],
            "not_measured": missing,
        }
        options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return int(failed or any(_met(figure, judged) is False for figure in figures))


def _parse() -> argparse.Namespace:
    default = Setting()

    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in MEASUREMENTS:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(MEASUREMENTS)}")
        return chosen

    def positive(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise argparse.ArgumentTypeError(f"'{text}' is no positive number")
        return int(text)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=names, default=list(MEASUREMENTS), help=", ".join(MEASUREMENTS))
    pairs = ", ".join(f"{name} {count}" for name, count in PAIRS.items())
    parser.add_argument("--pairs", type=positive, help=f"default: {pairs}, others {OTHER_PAIRS}")
    parser.add_argument("--depth", type=positive, default=default.depth)
    parser.add_argument("--width", type=positive, default=default.width)
    parser.add_argument("--batch-size", type=positive, default=default.batch_size)
    images = "images per cell that eval-c is timed on"
    parser.add_argument("--images", type=positive, default=default.images, help=images)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=default.device)
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=positive, default=threads, help="threads of each process")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    try:
        resolve_device(options.device)
        Config(depth=options.depth, width=options.width, batch_size=options.batch_size)
    except UserError as error:
        parser.error(str(error))
    return options


def _print(
    about: Mapping[str, object], figures: Sequence[Figure], missing: Mapping[str, str], judged: bool
) -> None:
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=160)
    table = Table(title=", ".join(f"{key} {value}" for key, value in about.items()), title_justify="left")
    for column in ("name", "what ÷ what"):
        table.add_column(column)
    for column in ("median (min–max)", "pairs", "seconds", "bar", "met"):
        table.add_column(column, justify="right", no_wrap=True)
    for figure in figures:
        note = f"\n{figure.note}" if figure.note else ""
        table.add_row(
            figure.name,
            figure.what + note,
            _spread(figure),
            str(len(figure.values)),
            " ÷ ".join(f"{seconds:.3g}" for seconds in figure.medians or ()),
            str(figure.bar or ""),
            {True: "yes", False: "no", None: ""}[_met(figure, judged)],
        )
    for name, reason in missing.items():
        table.add_row(name, f"not measured: {reason.splitlines()[-1]}")
    out.print(table)
    for figure in figures:
        if figure.parts and figure.medians:
            parts = Table("what the first does in addition", title=figure.what, title_justify="left")
            parts.add_column("seconds", justify="right")
            parts.add_column("of the second", justify="right")
            for name, seconds in figure.parts.items():
                parts.add_row(name, f"{seconds:.4f}", f"{100 * seconds / figure.medians[1]:.1f} %")
            out.print(parts)


def _spread(figure: Figure) -> str:
    low, high = min(figure.values), max(figure.values)
    return f"{figure.median:.3f} ({low:.3f}–{high:.3f}) {figure.unit}".rstrip()


def _met(figure: Figure, judged: bool) -> bool | None:
    return figure.bar.holds(figure.median) if judged and figure.bar else None


def _plain(figure: Figure, judged: bool) -> dict[str, Any]:
    return {
        "name": figure.name,
        "what": figure.what,
        "median": figure.median,
        "min": min(figure.values),
        "max": max(figure.values),
        "values": list(figure.values),
        "unit": figure.unit or "ratio",
        "median_seconds": figure.medians,
        "bar": str(figure.bar) if figure.bar else None,
        "met": _met(figure, judged),
        "note": figure.note,
        "parts_seconds": dict(figure.parts),
    }


if __name__ == "__main__":
    sys.exit(main())
