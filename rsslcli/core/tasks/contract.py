"""What a task owes, checked: in passing while it trains, and thoroughly by `check_task`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, TracebackType

import torch
from torch import Tensor, nn

from rsslcli.core.errors import RsslError, TaskError, one_line
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task

#: The tensors of a state dict that are no parameters: what batch normalisation keeps.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def make_head(name: str, task: Task, features: int) -> nn.Module:
    """`task.head`, checked to be one that a checkpoint can hold.

    Raises:
        TaskError: it fails or is none, and the task is not one of ours.
    """
    with _blaming(name, task, "head"):
        head = task.head(features)
        _expect(isinstance(head, nn.Module), f"gives a {type(head).__name__}, not a torch.nn.Module")
        kept = [key for key in head.state_dict() if not f".{key}".endswith(_STATISTICS)]
        trained = [key for key, p in head.named_parameters() if p.requires_grad and p.dtype == torch.float32]
        _expect(
            kept == trained,
            "may hold float32 parameters that are trained, none of them twice, and the statistics of batch "
            "normalisation; register other buffers with persistent=False",
        )
    return head


def transformed(name: str, task: Task, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
    """`task.transform`, with the kinds and shapes of its results checked, which waits for no device.

    Raises:
        TaskError: it fails or breaks its promise, and the task is not one of ours.
    """
    with _blaming(name, task, "transform"):
        result = task.transform(images, random)
        _expect(
            isinstance(result, tuple) and len(result) == 2 and all(isinstance(x, Tensor) for x in result),
            "must give two tensors, inputs and targets",
        )
        inputs, targets = result
        _expect(
            inputs.dtype == images.dtype
            and inputs.shape[1:] == images.shape[1:]
            and len(inputs) > 0
            and len(inputs) % len(images) == 0,
            f"gives inputs {_kind(inputs)} of images {_kind(images)}: one or several such images of each",
        )
        _expect(
            targets.dim() > 0 and len(targets) == len(inputs),
            f"gives targets {_kind(targets)} for inputs {_kind(inputs)}: one for each is needed",
        )
        _expect(
            inputs.device == images.device == targets.device,
            f"gives inputs on {inputs.device} and targets on {targets.device} of images on {images.device}",
        )
        _expect(not task.clean_input or inputs is images, "changes the images, while clean_input is set")
    return inputs, targets


def outputs_of(name: str, task: Task, head: nn.Module, features: Tensor) -> Tensor:
    """What the task's head makes of trunk features.

    Raises:
        TaskError: it fails or gives no outputs, and the task is not one of ours.
    """
    with _blaming(name, task, "head"):
        outputs = head(features)
        _expect(
            isinstance(outputs, Tensor) and outputs.dim() > 0 and len(outputs) == len(features),
            f"must give a tensor with a row for each of the {len(features)} rows of features",
        )
    assert isinstance(outputs, Tensor)
    return outputs


def loss_of(name: str, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """`task.loss`, checked to be one that can be minimised.

    Raises:
        TaskError: it fails or gives no loss, and the task is not one of ours.
    """
    with _blaming(name, task, "loss"):
        loss = task.loss(outputs, targets)
        _expect(
            isinstance(loss, Tensor) and loss.shape == () and loss.dtype == outputs.dtype,
            f"must give a scalar tensor of the kind of the outputs, {outputs.dtype}",
        )
        _expect(loss.requires_grad == outputs.requires_grad, "does not depend on the outputs")
    return loss


def picture_of(name: str, task: Task, inputs: Tensor, outputs: Tensor) -> Tensor | None:
    """`task.picture`, checked to be of the shape of the inputs.

    Raises:
        TaskError: it fails or gives something else, and the task is not one of ours.
    """
    with _blaming(name, task, "picture"):
        shown = task.picture(inputs, outputs)
        _expect(
            shown is None or (isinstance(shown, Tensor) and shown.shape == inputs.shape),
            "must give an image of the shape of each input, or None",
        )
    return shown


def check_task(task: Task, *, size: int = 32, features: int = 128) -> None:
    """Check that a task keeps to all that `Task` asks for. One line tests a task of your own.

    It runs on the CPU, in float32 and float64 and in both memory layouts, and on the `meta` device, where a
    tensor of another device or waiting for a value fails: so that it will train on a GPU without slowing it
    down, shared by any number of ranks, and go on after an interruption as if nothing had happened.

    Args:
        task: the task, with whatever options.
        size: height and width of the images to try it with.
        features: how many the trunk gives to its head.

    Raises:
        TaskError: the first promise that it breaks, in one line, with the place in its file.
    """
    name, images = type(task).__name__, _sample(8, size)
    inputs, targets = _check_transform(name, task, images)
    _check_parts(name, task, images, inputs, targets)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = make_head(name, task, features)
        seen = torch.randn(len(inputs), features, requires_grad=True)
    state = torch.get_rng_state()
    outputs = outputs_of(name, task, head, seen)
    again = outputs_of(name, task, head, seen)
    with _blaming(name, task, "head"):
        _expect(torch.equal(outputs, again), "gives something else each time")
        _expect(torch.equal(torch.get_rng_state(), state), "draws random numbers")

    loss = _check_loss(name, task, outputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    with _blaming(name, task, "loss"):
        _expect(seen.grad is not None and bool(seen.grad.any()), "has no gradient that reaches the trunk")
        for key, parameter in head.named_parameters():
            _expect(
                parameter.grad is not None and bool(parameter.grad.any()),
                f"has no gradient that reaches '{key}' of the head",
            )

    with torch.no_grad(), _blaming(name, task, "picture"):
        picture_of(name, task, inputs, outputs)
        scores = outputs.shape[1] if outputs.dim() == 2 else 0
        _expect(
            len(task.answers) in (0, scores),
            f"cannot name {len(task.answers)} answers where there are {scores} scores",
        )

    elsewhere = torch.empty_like(images, device="meta")
    try:
        inputs, targets = transformed(name, task, elsewhere, BatchRandom())
        outputs = outputs_of(name, task, head.to("meta"), torch.empty(len(inputs), features, device="meta"))
        loss_of(name, task, outputs, targets)
    except (TaskError, NotImplementedError, RuntimeError) as error:
        raise TaskError(f"{error}: it must stay on the device of the images and not wait for it") from error


def _check_transform(name: str, task: Task, images: Tensor) -> tuple[Tensor, Tensor]:
    """The transform of `images`, checked for all that a batch by itself can show."""
    before, state = images.clone(), torch.get_rng_state()
    inputs, targets = transformed(name, task, images, _random())
    again = transformed(name, task, images, _random())
    double = transformed(name, task, images.double(), _random())
    last = transformed(name, task, images.contiguous(memory_format=torch.channels_last), _random())
    with _blaming(name, task, "transform"):
        _expect(torch.equal(images, before), "changes the images that it is given")
        _expect(torch.equal(torch.get_rng_state(), state), "draws random numbers that are not from `random`")
        _expect(_same(again, (inputs, targets)), "gives something else each time")
        _expect(_same(last, (inputs, targets)), "gives something else for images in channels-last layout")
        _expect(_close(double[0], inputs), "gives something else for images of float64")
        low, high = float(inputs.min()), float(inputs.max())
        _expect(low >= -1e-6 and high <= 1 + 1e-6, f"gives inputs from {low:.3g} to {high:.3g}, not 0 to 1")
    return inputs, targets


def _check_parts(name: str, task: Task, images: Tensor, inputs: Tensor, targets: Tensor) -> None:
    """Check that ranks which share a batch make of their images what one alone would."""
    count = len(images)
    views = len(inputs) // count
    for part in (slice(0, 3), slice(3, count)):
        found = transformed(name, task, images[part], BatchRandom(_random().generator, count, part))
        whole = [x.reshape(views, count, *x.shape[1:])[:, part].flatten(0, 1) for x in (inputs, targets)]
        with _blaming(name, task, "transform"):
            _expect(
                _same(found, (whole[0], whole[1])),
                "gives an image something else in a part of the batch than in the whole: the views of image "
                "i are i, i + N, …, and `random` gives a row of numbers for each image",
            )


def _check_loss(name: str, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss, checked to be a mean over the batch that `scale` multiplies."""
    loss, half = loss_of(name, task, outputs, targets), len(outputs) // 2
    with _blaming(name, task, "loss"):
        _expect(bool(loss.isfinite()), f"is {float(loss.detach())}")
        halves = [task.loss(outputs[p], targets[p]) for p in (slice(0, half), slice(half, None))]
        _expect(_close((halves[0] + halves[1]) / 2, loss), "is not a mean over the batch")
        doubled = dataclasses.replace(task, scale=2 * task.scale).loss(outputs, targets)
        _expect(_close(doubled, 2 * loss), "is not multiplied by `scale`")
        if outputs.dim() == 4:
            last = task.loss(outputs.contiguous(memory_format=torch.channels_last), targets)
            _expect(_close(last, loss), "is another one for outputs in channels-last layout")
    return loss


def _sample(count: int, size: int) -> Tensor:
    """Smooth colour images, float32 (count, 3, size, size) in [0, 1]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)


def _random() -> BatchRandom:
    """Random numbers that are the same each time."""
    return BatchRandom(torch.Generator().manual_seed(0))


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(x.shape == y.shape and _close(x, y) for x, y in zip(found, expected, strict=True))


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=1e-5)


class _BrokenPromiseError(Exception):
    """Raised and caught here, where a task gives what it should not."""


def _expect(kept: bool, otherwise: str) -> None:
    if not kept:
        raise _BrokenPromiseError(otherwise)


@contextmanager
def _blaming(name: str, task: Task, part: str) -> Iterator[None]:
    """Within this context, errors are the task's: in one line, with the place in its file.

    Those of our own tasks are bugs of ours, and pass. So do those of torch's compiler.
    """
    try:
        yield
    except RsslError:
        raise
    except Exception as error:
        kind = type(error)
        broken = kind is _BrokenPromiseError
        ours = type(task).__module__.startswith("rsslcli.")
        if (ours and not broken) or kind.__module__.startswith("torch._dynamo"):
            raise
        text = str(error) if broken else f"fails: {kind.__name__}: {error}"
        place = _place(error.__traceback__, type(task), part)
        raise TaskError(f"task '{name}': {part} {one_line(text, 300)}{place}") from error


def _place(traceback: TracebackType | None, kind: type[Task], part: str) -> str:
    """The innermost line that is of the task's own module or package, or else where the method begins."""
    package, method = kind.__module__.partition(".")[0], getattr(kind, part)
    file, line = "", 0
    if isinstance(method, FunctionType) and method.__module__.partition(".")[0] == package:
        file, line = method.__code__.co_filename, method.__code__.co_firstlineno
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            file, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
        traceback = traceback.tb_next
    return f" ({one_line(file)}, line {line})" if file else ""
