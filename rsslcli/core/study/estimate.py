"""How long a study will take, and how much room."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsslcli.core.config import Config
from rsslcli.core.study.cell import CELLS_OF_AN_EVALUATION, Cell
from rsslcli.core.tasks.registry import is_known

if TYPE_CHECKING:
    import torch

    from rsslcli.core.training.step import Trainer

#: For how long speed is measured, in all, and for each kind of cell. Steps that take longer add to it.
MEASURE_SECONDS = 8.0
_KIND_SECONDS = 0.7
#: A machine is busy where the mean step takes so many times the processor time of the fastest.
_BUSY = 1.5
#: How far a cell may be from finished ones of other seeds.
_MARGIN = 1.15


@dataclass(frozen=True)
class Estimate:
    """What a cell takes.

    Attributes:
        low: seconds of training and evaluation on its share of the machine, if nothing else runs.
        high: seconds if the machine stays as busy as it was while its speed was measured.
        bytes: of disk.
    """

    low: float
    high: float
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """The data set of a study in numbers: training images, clean test images, source images of a cell."""

    train: int
    test: int
    corrupted: int
    classes: int = 10


@dataclass(frozen=True)
class Speed:
    """Floating-point operations per second: at best, and on average."""

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
    """What each cell takes, by its name; cells whose tasks are not known here are left out.

    The floating-point operations of a step and of an evaluation are counted on PyTorch's `meta` device. Their
    speed is that of the study's finished cells, else `speed`, else that of a few steps of each kind of cell,
    as many as there is time for. Evaluations are in float32, whatever the precision of the training.

    Args:
        cells: of which study.
        sizes: of the data set.
        threads: how many CPU threads a cell will have.
        startup: seconds that a command takes before it begins its work; a cell is two commands.
        speed: floating-point operations per second.
    """
    kinds, work = {}, dict[str, _Work]()
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
    evaluating = constant or _evaluation_speed(cells[0].config, sizes, threads)
    training = finished or (dict.fromkeys(work, constant) if constant else _training_speeds(work, threads))
    found = {}
    for name, kind in kinds.items():
        of, trains = work[kind], _nearest(work, training, kind)
        low = 2 * startup + of.training / trains.best + of.evaluation / evaluating.best
        slower = evaluating.best / evaluating.mean
        high = 2 * startup * slower + of.training / trains.mean + of.evaluation / evaluating.mean
        found[name] = Estimate(low, high, of.bytes)
    return found


@dataclass(frozen=True)
class _Work:
    """Operations of a training, of its dearest step and of an evaluation, and the bytes that they leave."""

    config: Config
    training: float
    step: float
    evaluation: float
    bytes: int


def _finished_speeds(
    cells: Sequence[Cell], kinds: Mapping[str, str], work: Mapping[str, _Work]
) -> dict[str, Speed]:
    """The speed at which finished cells were trained, by kind."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.name in kinds and cell.status() == "done" and (seconds := cell.seconds()):
            kind = kinds[cell.name]
            found.setdefault(kind, []).append(work[kind].training / seconds)
    return {kind: Speed(max(speeds) * _MARGIN, min(speeds) / _MARGIN) for kind, speeds in found.items()}


def _nearest(work: Mapping[str, _Work], speeds: Mapping[str, Speed], kind: str) -> Speed:
    """The speed of `kind` where it is known, else of the kind whose steps take the most similar work."""
    if kind in speeds:
        return speeds[kind]
    return speeds[min(speeds, key=lambda other: abs(work[other].step - work[kind].step))]


def _count(config: Config, sizes: Sizes) -> _Work:
    """Floating-point operations and bytes of a cell, by running its steps where no tensor has content."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    images = min(config.train_size or sizes.train, sizes.train)
    trainer = _trainer(config, images, sizes.classes, torch.device("meta"))
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
        trainer.model.eval()(torch.empty((1, 3, 32, 32), device="meta"))
    one = counter.get_total_flops()
    tested = min(sizes.test, images)
    evaluation = one * (sizes.test + (CELLS_OF_AN_EVALUATION - 1) * sizes.corrupted)
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    metrics = trainer.steps * (150 + 60 * len(config.tasks))
    return _Work(config, training + one * tested * config.epochs, last, evaluation, 2 * weights + metrics)


def _trainer(config: Config, images: int, classes: int, device: torch.device) -> Trainer:
    """A trainer on so many images of noise."""
    import torch

    from rsslcli.core.training.step import DeviceData, Trainer

    def noise(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(high, shape, dtype=dtype, device=device)

    data = DeviceData(
        noise(256, images, 40, 40, 3, dtype=torch.uint8),
        noise(classes, images),
        noise(256, config.meta_batch_size, 32, 32, 3, dtype=torch.uint8),
        noise(classes, config.meta_batch_size),
    )
    return Trainer(config, data, classes)


def _training_speeds(work: Mapping[str, _Work], threads: int) -> dict[str, Speed]:
    """The speed of a few steps of each kind of cell, without `torch.compile`, which takes minutes to begin.

    The cheapest kind is always measured, then those that take the most, as long as there is time; steps of a
    large network on a CPU take too long for more than one.
    """
    import torch

    from rsslcli.core.runtime import resolve_device, set_precision

    torch.set_num_threads(threads)
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
        trainer = _trainer(config, config.batch_size, 10, device)
        chosen = torch.arange(config.batch_size, device=device)
        found[kind] = _measure(_step(trainer, chosen), work[kind].step, device)
    return found


def _step(trainer: Trainer, chosen: torch.Tensor) -> Callable[[], object]:
    """The last step of a training, which tunes λ where any does; it waits for the device."""
    return lambda: float(trainer.step(trainer.steps - 1, chosen)["loss/main"])


def _evaluation_speed(config: Config, sizes: Sizes, threads: int) -> Speed:
    """The speed of an evaluation in float32 of the network of `config`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rsslcli.core.evaluation.accuracy import BATCH_SIZE, count_correct
    from rsslcli.core.networks.wide_resnet import WideResNet
    from rsslcli.core.runtime import resolve_device, set_precision

    torch.set_num_threads(threads)
    device = resolve_device(config.device)
    set_precision("float32", device, lambda text: None)
    network = WideResNet(config.depth, config.width, sizes.classes).eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    size = BATCH_SIZE[device.type]
    images = torch.randint(256, (size, 32, 32, 3), dtype=torch.uint8).numpy()
    labels = torch.zeros(size, dtype=torch.int64).numpy()
    with FlopCounterMode(display=False) as counter:
        count_correct(network, images, labels, device)
    operations = counter.get_total_flops()
    return _measure(lambda: count_correct(network, images, labels, device), operations, device)


def _measure(call: Callable[[], object], operations: float, device: torch.device) -> Speed:
    """The speed at which `call` does its operations, over `_KIND_SECONDS`, or twice that on a busy machine.

    On a busy machine a call waits for its turn. On a CPU the best speed leaves that out: it is by the
    processor time of this thread, which takes part in all that the others compute. While it waits for those,
    it is at work as well, so that several threads on a busy machine may seem slower than one would be: then
    one is measured, too.
    """
    import torch

    found, threads = _time(call, operations, device), torch.get_num_threads()
    if device.type == "cpu" and threads > 1 and found.best > _BUSY * found.mean:
        torch.set_num_threads(1)
        found = Speed(max(found.best, _time(call, operations, device).best), found.mean)
        torch.set_num_threads(threads)
    return found


def _time(call: Callable[[], object], operations: float, device: torch.device) -> Speed:
    """Call it for `_KIND_SECONDS`; the first call warms up, and counts only where it took as long."""
    waited, worked = list[float](), list[float]()
    began = time.perf_counter()
    while True:
        wall, processor = time.perf_counter(), time.thread_time()
        call()
        waited.append(time.perf_counter() - wall)
        worked.append(time.thread_time() - processor if device.type == "cpu" else waited[-1])
        if time.perf_counter() - began > _KIND_SECONDS and (len(waited) > 1 or device.type == "cpu"):
            break
    if len(waited) > 1:
        del waited[0], worked[0]
    mean = operations * len(waited) / sum(waited)
    return Speed(max(operations / max(min(worked), 1e-9), mean), mean)
