"""Estimate how long a study will take, and how much disk space."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rsslcli.core.config import Config
from rsslcli.core.data.gathering import ImageSource
from rsslcli.core.data.store import DEFAULT_SIZE
from rsslcli.core.evaluation.measuring import batch_size, count_correct
from rsslcli.core.networks.build import build_network
from rsslcli.core.runtime import resolve_device, set_precision, using_threads
from rsslcli.core.study.cell import CELLS_OF_AN_EVALUATION, Cell
from rsslcli.core.tasks.registry import is_known
from rsslcli.core.training.step import Trainer, TrainingData

#: Seconds to measure speed, in total and per kind of cell. A step that takes longer is still completed.
MEASURE_SECONDS = 8.0
_KIND_SECONDS = 0.7
#: The machine is busy if the mean step takes this many times the CPU time of the fastest.
_BUSY = 1.5
#: How much a cell may differ from finished cells of other seeds, as a factor.
_MARGIN = 1.15


@dataclass(frozen=True)
class Estimate:
    """The cost of a cell."""

    low: float  #: seconds of training and evaluation on its share of the machine if nothing else runs
    high: float  #: seconds if the machine stays as busy as it was during the measurement
    bytes: int  #: disk space


@dataclass(frozen=True)
class Sizes:
    """The size of a study's data set."""

    train: int  #: training images
    test: int  #: clean test images
    corrupted: int  #: source images per corruption and severity
    classes: int = 10  #: how many classes there are
    side: int = DEFAULT_SIZE  #: height and width of the images, in pixels


@dataclass(frozen=True)
class Speed:
    """Floating-point operations per second: the best and the mean."""

    best: float
    mean: float


def estimate(
    cells: Sequence[Cell],
    sizes: Sizes,
    *,
    threads: int = 1,
    startup: float = 0.0,
    speed: float | None = None,
) -> dict[str, Estimate]:
    """Estimate the cost of each cell, by name; cells with tasks that are not registered here are left out.

    The floating-point operations of a step and of an evaluation are counted on PyTorch's `meta` device. The
    speed is taken from the study's finished cells, else from `speed`, else measured on a few steps of as many
    kinds of cell as time allows. Evaluations run in float32, whatever the precision of the training.

    Args:
        cells: the cells of a study.
        sizes: the size of its data set.
        threads: CPU threads per cell.
        startup: seconds until a command begins its work; a cell is two commands.
        speed: floating-point operations per second, if known.
    """
    kinds: dict[str, str] = {}
    work: dict[str, _Work] = {}
    for cell in cells:
        if all(map(is_known, cell.config.tasks)):
            settings = dataclasses.replace(cell.config, seed=0)
            kinds[cell.name] = kind = settings.to_yaml()
            if kind not in work:
                work[kind] = _count(settings, sizes)
    if not work:
        return {}
    finished = _finished_speeds(cells, kinds, work)
    constant = None if speed is None else Speed(speed, speed)
    assumed = dict.fromkeys(work, constant) if constant else None
    with using_threads(threads):
        evaluating = constant or _evaluation_speed(cells[0].config, sizes)
        training = finished or assumed or _training_speeds(work, sizes)
    found = {}
    for name, kind in kinds.items():
        cost = work[kind]
        trains = _nearest(work, training, kind)
        low = 2 * startup + cost.training / trains.best + cost.evaluation / evaluating.best
        slower = evaluating.best / evaluating.mean
        high = 2 * startup * slower + cost.training / trains.mean + cost.evaluation / evaluating.mean
        found[name] = Estimate(low, high, cost.bytes)
    return found


@dataclass(frozen=True)
class _Work:
    """Operations of a training, of its most expensive step and of an evaluation; bytes that they write."""

    config: Config
    training: float
    step: float
    evaluation: float
    bytes: int


def _finished_speeds(
    cells: Sequence[Cell], kinds: Mapping[str, str], work: Mapping[str, _Work]
) -> dict[str, Speed]:
    """The training speed of finished cells, by kind."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.name in kinds and cell.status() == "done" and (seconds := cell.seconds()):
            kind = kinds[cell.name]
            found.setdefault(kind, []).append(work[kind].training / seconds)
    return {kind: Speed(max(speeds) * _MARGIN, min(speeds) / _MARGIN) for kind, speeds in found.items()}


def _nearest(work: Mapping[str, _Work], speeds: Mapping[str, Speed], kind: str) -> Speed:
    """The speed of `kind` if known, else that of the kind whose steps cost most nearly the same."""
    if kind in speeds:
        return speeds[kind]
    return speeds[min(speeds, key=lambda other: abs(work[other].step - work[kind].step))]


def _count(config: Config, sizes: Sizes) -> _Work:
    """Count the operations and bytes of a cell by running its steps on tensors without content."""
    images = min(config.train_size or sizes.train, sizes.train)
    trainer = _trainer(config, images, sizes, torch.device("meta"))
    chosen = torch.empty(config.batch_size, dtype=torch.int64, device="meta")

    def operations(step: int) -> int:
        with FlopCounterMode(display=False) as counter:
            trainer.step(step, chosen)
        return int(counter.get_total_flops())

    warmup = min(config.warmup_epochs if config.automl else config.epochs, config.epochs)
    tuned = (config.epochs - warmup) * trainer.steps_per_epoch
    last = operations(trainer.steps - 1)
    training = warmup * trainer.steps_per_epoch * (operations(0) if tuned else last) + tuned * last
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        trainer.model.eval()(torch.empty((1, 3, sizes.side, sizes.side), device="meta"))
    one = counter.get_total_flops()
    tested = min(sizes.test, images)
    evaluation = one * (sizes.test + (CELLS_OF_AN_EVALUATION - 1) * sizes.corrupted)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    metrics = trainer.steps * (150 + 60 * len(config.tasks))
    return _Work(config, training + one * tested * config.epochs, last, evaluation, 2 * weights + metrics)


def _trainer(config: Config, images: int, sizes: Sizes, device: torch.device) -> Trainer:
    """A trainer on `images` images of noise."""

    def noise(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(high, shape, dtype=dtype, device=device)

    data = TrainingData(
        ImageSource(noise(256, images, sizes.side, sizes.side, 3, dtype=torch.uint8)),
        noise(sizes.classes, images),
        ImageSource(noise(256, config.meta_batch_size, sizes.side, sizes.side, 3, dtype=torch.uint8)),
        noise(sizes.classes, config.meta_batch_size),
    )
    return Trainer(config, data, sizes.classes)


def _training_speeds(work: Mapping[str, _Work], sizes: Sizes) -> dict[str, Speed]:
    """Measure a few steps of each kind of cell, without `torch.compile`, which takes minutes to start.

    The cheapest kind is always measured, then the most expensive ones while time remains; a large network on
    a CPU may allow only one.
    """
    first, *others = sorted(work, key=lambda kind: work[kind].step)
    found: dict[str, Speed] = {}
    began = time.perf_counter()
    for kind in (first, *reversed(others)):
        config = dataclasses.replace(work[kind].config, compile=False)
        left = MEASURE_SECONDS - (time.perf_counter() - began)
        if found and max(work[kind].step / found[first].mean, _KIND_SECONDS) > left:
            continue
        device = resolve_device(config.device)
        set_precision(config.precision, device, lambda text: None)
        trainer = _trainer(config, config.batch_size, sizes, device)
        chosen = torch.arange(config.batch_size, device=device)
        found[kind] = _measure(_step(trainer, chosen), work[kind].step, device)
    return found


def _step(trainer: Trainer, chosen: torch.Tensor) -> Callable[[], object]:
    """A call of the last training step, which tunes λ if any step does; it waits for the device."""
    return lambda: float(trainer.step(trainer.steps - 1, chosen)["loss/main"])


def _evaluation_speed(config: Config, sizes: Sizes) -> Speed:
    """Measure an evaluation of the network of `config` in float32."""
    device = resolve_device(config.device)
    set_precision("float32", device, lambda text: None)
    network = build_network(config, sizes.classes, sizes.side).eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    size = batch_size(device, sizes.side)
    images = torch.randint(256, (size, sizes.side, sizes.side, 3), dtype=torch.uint8).numpy()
    labels = torch.zeros(size, dtype=torch.int64).numpy()
    with FlopCounterMode(display=False) as counter:
        count_correct(network, images, labels, device)
    operations = counter.get_total_flops()
    return _measure(lambda: count_correct(network, images, labels, device), operations, device)


def _measure(call: Callable[[], object], operations: float, device: torch.device) -> Speed:
    """The speed of `call`, measured for `_KIND_SECONDS`, or for twice that on a busy machine.

    On a busy machine a call waits for its turn. On a CPU the best speed excludes that wait: it is based on
    the CPU time of this thread, which shares the work of all others. But this thread also spins while it
    waits for the others, so several threads on a busy machine may seem slower than one: then a single
    thread is measured too.
    """
    found = _time(call, operations, device)
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1 and found.best > _BUSY * found.mean:
        with using_threads(1):
            found = Speed(max(found.best, _time(call, operations, device).best), found.mean)
    return found


def _time(call: Callable[[], object], operations: float, device: torch.device) -> Speed:
    """Repeat `call` for `_KIND_SECONDS`; the first, a warm-up, counts only if it took that long."""
    waited: list[float] = []
    worked: list[float] = []
    began = time.perf_counter()
    while True:
        wall = time.perf_counter()
        processor = time.thread_time()
        call()
        waited.append(time.perf_counter() - wall)
        worked.append(time.thread_time() - processor if device.type == "cpu" else waited[-1])
        if time.perf_counter() - began > _KIND_SECONDS and (len(waited) > 1 or device.type == "cpu"):
            break
    if len(waited) > 1:
        del waited[0], worked[0]
    mean = operations * len(waited) / sum(waited)
    return Speed(max(operations / max(min(worked), 1e-9), mean), mean)
