"""Cheap checks of a task's contract, made at every call while it trains; `check_task` adds thorough ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, TracebackType

import torch
from torch import Tensor, nn

from rsslcli.core.errors import RsslError, TaskError, sanitize
from rsslcli.core.networks.batch_norm import STATISTICS
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task


def make_head(name: str, task: Task, features: int) -> nn.Module:
    """Call `task.head` and check that a checkpoint can hold the result.

    Raises:
        TaskError: a custom task fails, or its result is not such a head.
    """
    with blaming(name, task, "head"):
        head = task.head(features)
        expect(isinstance(head, nn.Module), f"gives a {type(head).__name__}, not a torch.nn.Module")
        kept = [key for key in head.state_dict() if not f".{key}".endswith(STATISTICS)]
        trained = [key for key, p in head.named_parameters() if p.requires_grad and p.dtype == torch.float32]
        expect(
            kept == trained,
            "may hold only trainable float32 parameters, each once, and statistics of batch normalization; "
            "register other buffers with persistent=False",
        )
    return head


def transformed(name: str, task: Task, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
    """Call `task.transform` and check the dtypes and shapes of its results, without waiting for the device.

    Raises:
        TaskError: a custom task fails or breaks the contract.
    """
    with blaming(name, task, "transform"):
        before = _version(images)
        result = task.transform(images, random)
        expect(
            _version(images) == before, "changes the images that it is given, which the main task sees too"
        )
        expect(
            isinstance(result, tuple) and len(result) == 2 and all(isinstance(x, Tensor) for x in result),
            "must give two tensors, inputs and targets",
        )
        inputs, targets = result
        expect(
            inputs.dtype == images.dtype
            and inputs.shape[1:] == images.shape[1:]
            and len(inputs) > 0
            and len(inputs) % len(images) == 0,
            f"gives inputs {_kind(inputs)} for images {_kind(images)}: expected one or more views of each",
        )
        expect(
            targets.dim() > 0 and len(targets) == len(inputs),
            f"gives targets {_kind(targets)} for inputs {_kind(inputs)}: expected one per input",
        )
        expect(
            inputs.device == images.device == targets.device,
            f"gives inputs on {inputs.device} and targets on {targets.device} for images on {images.device}",
        )
        expect(not task.clean_input or inputs is images, "changes the images although clean_input is set")
    return inputs, targets


def outputs_of(name: str, task: Task, head: nn.Module, features: Tensor) -> Tensor:
    """Apply the task's head to trunk features and check the shape of the outputs.

    Raises:
        TaskError: the head of a custom task fails or breaks the contract.
    """
    with blaming(name, task, "head"):
        before = _version(features)
        outputs = head(features)
        expect(
            not task.clean_input or _version(features) == before,
            "changes the features in place, which the main task uses too",
        )
        expect(
            isinstance(outputs, Tensor) and outputs.dim() > 0 and len(outputs) == len(features),
            f"must give a tensor with one row per row of features, {len(features)}",
        )
    assert isinstance(outputs, Tensor)
    return outputs


def loss_of(name: str, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """Call `task.loss` and check that the result can be minimized.

    Raises:
        TaskError: a custom task fails or breaks the contract.
    """
    with blaming(name, task, "loss"):
        before = _version(targets)
        loss = task.loss(outputs, targets)
        expect(_version(targets) == before, "changes the targets in place, which may be the images")
        expect(
            isinstance(loss, Tensor) and loss.shape == () and loss.dtype == outputs.dtype,
            f"must give a scalar tensor with the dtype of the outputs, {outputs.dtype}",
        )
        expect(loss.requires_grad == outputs.requires_grad, "does not depend on the outputs")
    return loss


def picture_of(name: str, task: Task, inputs: Tensor, outputs: Tensor) -> Tensor | None:
    """Call `task.picture` and check that the result has the shape of the inputs.

    Raises:
        TaskError: a custom task fails or breaks the contract.
    """
    with blaming(name, task, "picture"):
        shown = task.picture(inputs, outputs)
        is_image = isinstance(shown, Tensor) and shown.shape == inputs.shape and shown.is_floating_point()
        expect(shown is None or is_image, "must give one float image per input, of its shape, or None")
    return shown


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference mode does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class _BrokenPromiseError(Exception):
    """A task breaks the contract of `Task`. `blaming` turns it into TaskError."""


def expect(kept: bool, otherwise: str) -> None:
    """Raise the error `otherwise` of the task that `blaming` names, unless `kept`."""
    if not kept:
        raise _BrokenPromiseError(otherwise)


@contextmanager
def blaming(name: str, task: Task, part: str) -> Iterator[None]:
    """Turn errors within this context into TaskError: one line that names the task and the place in its file.

    Unexpected errors of built-in tasks are our bugs, and pass through. So do errors of torch's compiler.
    """
    try:
        yield
    except RsslError:
        raise
    except Exception as error:
        kind = type(error)
        broken = kind is _BrokenPromiseError
        builtin = type(task).__module__.startswith("rsslcli.")
        if (builtin and not broken) or kind.__module__.startswith("torch._dynamo"):
            raise
        text = str(error) if broken else f"fails: {kind.__name__}: {error}"
        place = _place(error.__traceback__, type(task), part)
        raise TaskError(f"task '{name}': {part} {sanitize(text, 300)}{place}") from error


def _place(traceback: TracebackType | None, kind: type[Task], part: str) -> str:
    """The innermost line of the traceback in the task's module or package, or where the method begins."""
    package = kind.__module__.partition(".")[0]
    method = getattr(kind, part)
    file = ""
    line = 0
    if isinstance(method, FunctionType) and method.__module__.partition(".")[0] == package:
        file = method.__code__.co_filename
        line = method.__code__.co_firstlineno
    while traceback is not None:
        if str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            file = traceback.tb_frame.f_code.co_filename
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f" ({sanitize(file)}, line {line})" if file else ""
