"""`check_task`: test a task thoroughly before training with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsslcli.core.errors import TaskError
from rsslcli.core.networks.network import initialize
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.guard import blaming, expect, loss_of, make_head, outputs_of, picture_of, transformed


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context, an operation on tensors of two devices raises RuntimeError.

    CUDA refuses most of these, and waits for the rest; the `meta` device takes many of them. Tensors without
    dimensions may be on the CPU.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        leaves = tree_leaves((args, kwargs))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{func} gets tensors of {' and '.join(sorted(devices))}")
        return func(*args, **(kwargs or {}))


def check_task(task: Task, *, size: int = 32, features: int = 128) -> None:
    """Check that a task keeps the contract of `Task`: one line tests a custom task.

    The check runs the task on the CPU, in float32 and float64 and in both memory layouts, and on the `meta`
    device, where tensors of another device and reading values fail. A task that passes trains on a GPU, on
    any number of ranks, and resumes exactly after an interruption. One flaw is not detected: copying Python
    numbers to the device on every call, as `torch.tensor` does, makes CUDA wait.

    Args:
        task: the task, with any options.
        size: height and width of the test images, in pixels.
        features: number of trunk features that its head gets.

    Raises:
        TaskError: the first rule that it breaks, in one line, with the place in its file.
    """
    name = type(task).__name__
    images = _sample(8, size)
    inputs, targets = _check_transform(name, task, images)
    _check_parts(name, task, images, inputs, targets)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # that of the CPU alone
        head = make_head(name, task, features)
        with blaming(name, task, "head"):
            initialize(head)
        seen = torch.randn(len(inputs), features, requires_grad=True)
    state = torch.get_rng_state()
    outputs = outputs_of(name, task, head, seen)
    again = outputs_of(name, task, head, seen)
    with blaming(name, task, "head"):
        expect(torch.equal(outputs, again), "gives different results each time")
        expect(torch.equal(torch.get_rng_state(), state), "draws random numbers")

    loss = _check_loss(name, task, outputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    with blaming(name, task, "loss"):
        expect(seen.grad is not None and bool(seen.grad.any()), "has no gradient that reaches the trunk")
        for key, parameter in head.named_parameters():
            expect(
                parameter.grad is not None and bool(parameter.grad.any()),
                f"has no gradient that reaches '{key}' of the head",
            )

    with torch.no_grad(), blaming(name, task, "picture"):
        picture_of(name, task, inputs, outputs)
        scores = outputs.shape[1] if outputs.dim() == 2 else 0
        expect(
            len(task.answers) in (0, scores),
            f"cannot name {len(task.answers)} answers where there are {scores} scores",
        )

    # On the meta device, tensors have no values: reading one fails.
    elsewhere = torch.empty_like(images, device="meta")
    try:
        with OneDevice():  # type: ignore[no-untyped-call]
            inputs, targets = transformed(name, task, elsewhere, BatchRandom())
            seen = torch.empty(len(inputs), features, device="meta")
            loss_of(name, task, outputs_of(name, task, head.to("meta"), seen), targets)
    except (TaskError, NotImplementedError, RuntimeError) as error:
        raise TaskError(f"{error}: it must stay on the images' device and read no values") from error


def _check_transform(name: str, task: Task, images: Tensor) -> tuple[Tensor, Tensor]:
    """Transform `images` and check everything that a single batch can show."""
    before = images.clone()
    state = torch.get_rng_state()
    inputs, targets = transformed(name, task, images, _random())
    again = transformed(name, task, images, _random())
    double = transformed(name, task, images.double(), _random())
    last = transformed(name, task, images.contiguous(memory_format=torch.channels_last), _random())
    with blaming(name, task, "transform"):
        expect(torch.equal(images, before), "changes the images that it is given")
        expect(torch.equal(torch.get_rng_state(), state), "draws random numbers from elsewhere than `random`")
        expect(_same(again, (inputs, targets)), "gives different results each time")
        expect(_same(last, (inputs, targets)), "gives different results for images in channels-last layout")
        expect(_close(double[0], inputs), "gives different results for images of float64")
        low = float(inputs.min())
        high = float(inputs.max())
        expect(low >= -1e-6 and high <= 1 + 1e-6, f"gives inputs from {low:.3g} to {high:.3g}, not 0 to 1")
    return inputs, targets


def _check_parts(name: str, task: Task, images: Tensor, inputs: Tensor, targets: Tensor) -> None:
    """Check that ranks that share a batch get the same results for their images as a single process."""
    count = len(images)
    views = len(inputs) // count
    for part in (slice(0, 3), slice(3, count)):
        found = transformed(name, task, images[part], BatchRandom(_random().generator, count, part))
        whole = [x.reshape(views, count, *x.shape[1:])[:, part].flatten(0, 1) for x in (inputs, targets)]
        with blaming(name, task, "transform"):
            expect(
                _same(found, (whole[0], whole[1])),
                "gives an image different results in a part of the batch than in the whole: the views of "
                "image i are i, i + N, …, and `random` gives one row of numbers per image",
            )


def _check_loss(name: str, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Check that the loss is a mean over the batch, multiplied by `scale`, and return it."""
    loss = loss_of(name, task, outputs, targets)
    half = len(outputs) // 2
    with blaming(name, task, "loss"):
        expect(bool(loss.isfinite()), f"is {float(loss.detach())}")
        halves = [task.loss(outputs[p], targets[p]) for p in (slice(0, half), slice(half, None))]
        expect(_close((halves[0] + halves[1]) / 2, loss), "is not a mean over the batch")
        doubled = dataclasses.replace(task, scale=2 * task.scale).loss(outputs, targets)
        expect(_close(doubled, 2 * loss), "is not multiplied by `scale`")
        if outputs.dim() == 4:
            last = task.loss(outputs.contiguous(memory_format=torch.channels_last), targets)
            expect(_close(last, loss), "differs for outputs in channels-last layout")
    return loss


def _sample(count: int, size: int) -> Tensor:
    """Smooth color images, float32 (count, 3, size, size) in [0, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def _random() -> BatchRandom:
    """The same random numbers at each call."""
    return BatchRandom(torch.Generator().manual_seed(0))


def _same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(x.shape == y.shape and _close(x, y) for x, y in zip(found, expected, strict=True))


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
