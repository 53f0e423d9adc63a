"""What the processes of `speed.py` do: each function sets one up and returns its works by name."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import torch
from baselines import Pass, PlainWideResNet, Problem
from harness import Works, peak_memory
from torch import Tensor, nn
from torchvision.transforms import v2

from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.augmix import augmix
from rsslcli.core.data.corrupted import open_corrupted
from rsslcli.core.data.gathering import ImageSource
from rsslcli.core.data.shapes import SHAPES, draw_shapes
from rsslcli.core.data.store import make_split, save_split
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.measuring import BATCH_SIZE
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import keep_freed_memory, resolve_device, set_precision
from rsslcli.core.training.automl import MAIN, automl_gradients
from rsslcli.core.training.step import Trainer, TrainingData

TASKS = ("rotation", "bir", "color", "ir")
CLASSES = tuple(SHAPES)
#: The corruptions of the sets made here.
TIMED, FULL = ("fog",), ("snow", "fog")


@dataclass(frozen=True)
class Setting:
    """The size of the measurements.

    Attributes:
        images: per cell of the corrupted set that `eval-c` is timed on.
    """

    depth: int = 40
    width: int = 2
    batch_size: int = 64
    images: int = 500
    device: str = "auto"

    @property
    def is_default(self) -> bool:
        """Whether it is the size that the bars are for."""
        return self == Setting(device=self.device)

    def network(self) -> WideResNet:
        """A classifier in training mode on the device, in PyTorch's default layout."""
        torch.manual_seed(0)
        return WideResNet(self.depth, self.width, len(CLASSES)).to(resolve_device(self.device))

    def plain_network(self) -> PlainWideResNet:
        """The same as a user would write it, with the same weights."""
        network = self.network()
        plain = PlainWideResNet(self.depth, self.width, len(CLASSES)).to(network.fc.weight.device)
        plain.load_state_dict(network.state_dict())
        return plain


# Training steps


def steps(
    setting: Setting,
    tasks: tuple[str, ...] = TASKS,
    batch_norm: str = "per-task",
    precision: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> Works:
    """Our step with λ fixed and with AutoML, and the passes of its network alone, on ready tensors."""
    trainer, problem = _trainer(setting, tasks, batch_norm, precision, options)
    chosen = trainer.epoch_order(0)[: setting.batch_size]

    def passes() -> None:
        for each in problem.passes:
            model = problem.model
            losses = baselines.pass_losses(model, each.targets, model.network.features(each.inputs))
            total = torch.stack(list(losses.values())).sum()
            torch.autograd.grad(total, list(model.parameters()), allow_unused=True)

    def memory(step: int) -> dict[str, int]:
        """Bytes at the peak of two steps, and how many of them were there before."""
        before = _peak(trainer.device)
        for _ in range(2):
            trainer.step(step, chosen)
        return {"before": before, "peak": _peak(trainer.device)}

    # The steps of the first epoch are the warm-up's, with λ fixed.
    fixed, tuned = 0, trainer.steps_per_epoch
    return {
        "fixed": partial(trainer.step, fixed, chosen),
        "automl": partial(trainer.step, tuned, chosen),
        "passes": passes,
        "fixed memory": partial(memory, fixed),
        "automl memory": partial(memory, tuned),
    }


def parts(setting: Setting, tasks: tuple[str, ...]) -> Works:
    """What AutoML adds to the step, piece by piece."""
    trainer, problem = _trainer(setting, tasks)
    model, psi, heads = problem.model, trainer.psi, trainer.heads
    given = [torch.randn_like(p) for p in psi.values()]
    given_heads = {task: [torch.randn_like(p) for p in own] for task, own in heads.items()}
    ahead = {name: p.detach().clone().requires_grad_() for name, p in psi.items()}

    def validation() -> None:
        torch.autograd.grad(problem.validation_loss(ahead), list(ahead.values()))

    def vectors() -> None:
        """`automl_gradients` where all gradients cost nothing."""
        main = {MAIN: _Given.apply(given, *psi.values())}
        aux = {t: _Given.apply(given + given_heads[t], *psi.values(), *own) for t, own in heads.items()}
        automl_gradients(
            [main | aux],
            psi,
            heads,
            trainer.lambdas,
            lambda ahead: _Given.apply(given, *ahead.values()),
            alpha=1e-9,
            beta=1e-9,
        )

    works: dict[str, Callable[[], object]] = {"validation pass": validation, "vector arithmetic": vectors}
    for task in list(problem.passes[0].targets)[1:]:  # on the features of the clean images
        features = model.network.features(problem.passes[0].inputs)
        trunk = trunk_parameters(model.network)
        works[f"trunk backward for {task}"] = partial(
            torch.autograd.grad, features, trunk, torch.randn_like(features), retain_graph=True
        )
    return works


def rival(setting: Setting, name: str, batch_norm: str) -> Works:
    """A whole step with another way to the meta-gradient, and the errors of this way and of ours.

    The errors are those on a few images after a few more steps with λ fixed: float64 takes several times the
    memory, and at the first weights rounding alone costs several per cent.
    """
    trainer, problem = _trainer(setting, TASKS, batch_norm)
    method: baselines.Method = getattr(baselines, name)
    methods = {"usual": method}
    if name == "finite_differences":
        scales = (0.001, 0.003, 0.03, 0.1)
        methods |= {f"{scale:g}": partial(baselines.finite_differences, scale=scale) for scale in scales}

    def errors() -> dict[str, float]:
        for _ in range(10):
            trainer.step(0, trainer.epoch_order(0)[: setting.batch_size])
        clean = problem.passes[0]
        passes = baselines.prepare_passes(problem.model, clean.inputs[:16], clean.targets[MAIN][:16])
        lambdas = torch.full_like(problem.lambdas, 0.5)
        return baselines.relative_errors(replace(problem, passes=passes, lambdas=lambdas), methods)

    step = partial(baselines.rival_step, problem, method, trainer.optimizer, trainer.config.meta_lr)
    return {"step": step, "errors": errors}


def _trainer(
    setting: Setting,
    tasks: tuple[str, ...],
    batch_norm: str = "per-task",
    precision: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> tuple[Trainer, Problem]:
    """A trainer on the embedded data set, which allocates as the commands do, and the problem of a batch."""
    keep_freed_memory()
    config = Config(
        tasks=tasks,
        weighting="automl" if tasks else "fixed",
        warmup_epochs=1,
        depth=setting.depth,
        width=setting.width,
        batch_size=setting.batch_size,
        batch_norm=batch_norm,
        precision=precision,
        **(options or {}),
    )
    device = resolve_device(setting.device)
    _multiply_in(config.precision, device)
    images, labels = _drawn(2 * config.batch_size, "train", device)
    validation_images, validation_labels = _drawn(config.validation_images, "test", device)
    data = TrainingData(ImageSource(images), labels, ImageSource(validation_images), validation_labels)
    trainer = Trainer(config, data, len(CLASSES))
    trainer.model.train()
    batch, meta = slice(config.batch_size), slice(config.meta_batch_size)
    problem = Problem(
        trainer.model,
        baselines.prepare_passes(trainer.model, to_float(images[batch]), labels[batch]),
        Pass(to_float(validation_images[meta]), {MAIN: validation_labels[meta]}),
        trainer.lambdas,
        config.lookahead_scale * config.lr,
    )
    return trainer, problem


def _multiply_in(precision: str, device: torch.device) -> None:
    """Multiply as the commands do: by itself, PyTorch rounds convolutions to TF32 on CUDA."""
    set_precision(precision, device, lambda text: None)


def _drawn(count: int, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels, _ = draw_shapes(count, 0, split)
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()


class _Given(torch.autograd.Function):
    """A loss of some parameters whose gradient is known beforehand."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.gradients)


# The trunk


def trunk_parameters(network: nn.Module) -> list[nn.Parameter]:
    """θc: all but the classifier's."""
    return [p for name, p in network.named_parameters() if not name.startswith("fc.")]


def trunk(setting: Setting) -> Works:
    """Forward and backward passes of our trunk."""
    keep_freed_memory()
    return _trunk(setting, setting.network(), torch.channels_last)


def plain_trunk(setting: Setting) -> Works:
    """The same for the plain network, with PyTorch's default memory layout and allocation."""
    return _trunk(setting, setting.plain_network(), torch.contiguous_format)


def _trunk(
    setting: Setting, network: WideResNet | PlainWideResNet, layout: torch.memory_format
) -> dict[str, Callable[[], None]]:
    network.to(memory_format=layout)
    trunk = trunk_parameters(network)
    _multiply_in("float32", trunk[0].device)
    one, three, four = (
        torch.rand(count * setting.batch_size, 3, 32, 32, device=trunk[0].device).contiguous(
            memory_format=layout
        )
        for count in (1, 3, 4)
    )

    def passes(batches: Iterable[Tensor]) -> None:
        for images in batches:
            torch.autograd.grad(network.features(images).sum(), trunk)

    # A step's passes: the clean images, the four rotations, the blurred and the gray ones.
    return {
        "mix": partial(passes, (one, four, one, one)),
        "one": partial(passes, (one,)),
        "three": partial(passes, (three,)),
        "four": partial(passes, (four,)),
    }


# Augmentation


def augmix_views(setting: Setting) -> Works:
    """Two AugMix views of a batch."""
    keep_freed_memory()
    images, _ = _drawn(setting.batch_size, "train", resolve_device(setting.device))
    batch = to_float(images)
    random = BatchRandom(torch.Generator(images.device).manual_seed(0))
    return {"views": lambda: [augmix(batch, random) for _ in range(2)]}


def torchvision_views(setting: Setting) -> Works:
    """The same with torchvision, image by image on the CPU: it draws once per call."""
    images, _ = _drawn(setting.batch_size, "train", torch.device("cpu"))
    batch = images.permute(0, 3, 1, 2).contiguous()
    transform = v2.AugMix(severity=3, mixture_width=3, all_ops=False)
    return {"views": lambda: [transform(image) for _ in range(2) for image in batch]}


# Evaluation


def make_evaluation_set(folder: Path, images: int) -> None:
    """Write `images` random clean images and corrupted versions of them to `folder`."""
    rng = np.random.default_rng(0)
    for name, blocks in {"clean": 1, **dict.fromkeys(TIMED, len(SEVERITIES))}.items():
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (blocks * images, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.arange(images) % len(CLASSES), len(SEVERITIES)))


def evaluation(setting: Setting, folder: Path) -> Works:
    """`evaluate` on that set, and a bare loop of forward passes on its images, ready as tensors."""
    keep_freed_memory()
    clean = np.load(folder / "clean.npy")
    test = make_split(clean, np.arange(len(clean)) % len(CLASSES), CLASSES)
    network = setting.network().eval().to(memory_format=torch.channels_last)
    device = network.fc.weight.device
    cells = [
        clean,
        *(block for name in TIMED for block in np.split(np.load(folder / f"{name}.npy"), len(SEVERITIES))),
    ]
    size = BATCH_SIZE[device.type]
    batches = [
        to_float(torch.from_numpy(cell[start : start + size]).to(device))
        for cell in cells
        for start in range(0, len(cell), size)
    ]

    @torch.inference_mode()
    def bare() -> None:
        _multiply_in("float32", device)
        for batch in batches:
            network(batch)

    def whole(precision: str) -> None:
        _multiply_in(precision, device)
        evaluate(network, test, open_corrupted(folder, "benchmark"), device=device, precision=precision)

    return {
        "evaluate": partial(whole, "float32"),
        "evaluate in bfloat16": partial(whole, "bfloat16"),
        "bare": bare,
    }


def plain_evaluation(setting: Setting, folder: Path) -> Works:
    """The same images with a plain script."""
    network: nn.Module = setting.plain_network()
    labels = torch.arange(setting.images) % len(CLASSES)
    files = [folder / f"{name}.npy" for name in ("clean", *TIMED)]
    device = resolve_device(setting.device)
    _multiply_in("float32", device)
    return {"script": partial(baselines.plain_script, network, files, labels, device)}


def make_full_set(folder: Path, images: int) -> None:
    """Prepare a data set "full" with `images` test images in the sizes of CIFAR-10 and CIFAR-10-C.

    All pictures are black, and the corrupted ones take no room on the disk.
    """
    labels = np.arange(5 * images) % len(CLASSES)
    corrupted = folder / "full" / "corrupted"
    corrupted.mkdir(parents=True)
    for split, count in (("train", 5 * images), ("test", images)):
        save_split(
            folder / "full" / f"{split}.npz", np.zeros((count, 32, 32, 3), np.uint8), labels[:count], CLASSES
        )
    for name in FULL:
        np.lib.format.open_memmap(
            corrupted / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(5 * images, 32, 32, 3)
        )
    np.save(corrupted / "labels.npy", np.tile(labels[:images], 5))


def command(setting: Setting, folder: Path, depth: int, width: int, *options: str) -> Works:
    """The whole command `eval-c` on that set, which returns the peak of its memory in bytes."""
    from rsslcli.app import main

    weights = folder / "weights.pt"
    torch.save(WideResNet(depth, width, len(CLASSES)).state_dict(), weights)

    def run() -> int:
        sys.argv = ["rssl", "eval-c", str(weights), "--dataset", "full", "--data-dir", str(folder)]
        sys.argv += ["--classes-by-position", "--device", setting.device, *options]
        try:
            with redirect_stdout(io.StringIO()):
                main()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{' '.join(sys.argv)} failed") from None
        return peak_memory()

    return {"peak": run}
