"""What a task owes, checked: in passing while it trains, and thoroughly by `check_task`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, TracebackType

import torch
from torch import Tensor, nn

from rsslcli.core.errors import RsslError, TaskError, sanitize
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task

#: The tensors of a state dict that are no parameters: what batch normalization keeps.
_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def make_head(name: str, task: Task, features: int) -> nn.Module:
    """`task.head`, checked to be one that a checkpoint can hold.

    Raises:
        TaskError: it fails or is none, and the task is not one of ours.
    """
    with blaming(name, task, "head"):
        head = task.head(features)
        expect(isinstance(head, nn.Module), f"gives a {type(head).__name__}, not a torch.nn.Module")
        kept = [key for key in head.state_dict() if not f".{key}".endswith(_STATISTICS)]
        trained = [key for key, p in head.named_parameters() if p.requires_grad and p.dtype == torch.float32]
        expect(
            kept == trained,
            "may hold float32 parameters that are trained, none of them twice, and the statistics of batch "
            "normalization; register other buffers with persistent=False",
        )
    return head


def transformed(name: str, task: Task, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
    """`task.transform`, with the kinds and shapes of its results checked, which waits for no device.

    Raises:
        TaskError: it fails or breaks its promise, and the task is not one of ours.
    """
    with blaming(name, task, "transform"):
        result = task.transform(images, random)
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
            f"gives inputs {_kind(inputs)} of images {_kind(images)}: one or several such images of each",
        )
        expect(
            targets.dim() > 0 and len(targets) == len(inputs),
            f"gives targets {_kind(targets)} for inputs {_kind(inputs)}: one for each is needed",
        )
        expect(
            inputs.device == images.device == targets.device,
            f"gives inputs on {inputs.device} and targets on {targets.device} of images on {images.device}",
        )
        expect(not task.clean_input or inputs is images, "changes the images, while clean_input is set")
    return inputs, targets


def outputs_of(name: str, task: Task, head: nn.Module, features: Tensor) -> Tensor:
    """What the task's head makes of trunk features.

    Raises:
        TaskError: it fails or gives no outputs, and the task is not one of ours.
    """
    with blaming(name, task, "head"):
        outputs = head(features)
        expect(
            isinstance(outputs, Tensor) and outputs.dim() > 0 and len(outputs) == len(features),
            f"must give a tensor with a row for each of the {len(features)} rows of features",
        )
    assert isinstance(outputs, Tensor)
    return outputs


def loss_of(name: str, task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """`task.loss`, checked to be one that can be minimized.

    Raises:
        TaskError: it fails or gives no loss, and the task is not one of ours.
    """
    with blaming(name, task, "loss"):
        loss = task.loss(outputs, targets)
        expect(
            isinstance(loss, Tensor) and loss.shape == () and loss.dtype == outputs.dtype,
            f"must give a scalar tensor of the kind of the outputs, {outputs.dtype}",
        )
        expect(loss.requires_grad == outputs.requires_grad, "does not depend on the outputs")
    return loss


def picture_of(name: str, task: Task, inputs: Tensor, outputs: Tensor) -> Tensor | None:
    """`task.picture`, checked to be of the shape of the inputs.

    Raises:
        TaskError: it fails or gives something else, and the task is not one of ours.
    """
    with blaming(name, task, "picture"):
        shown = task.picture(inputs, outputs)
        expect(
            shown is None or (isinstance(shown, Tensor) and shown.shape == inputs.shape),
            "must give an image of the shape of each input, or None",
        )
    return shown


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


class _BrokenPromiseError(Exception):
    """Raised and caught here, where a task gives what it should not."""


def expect(kept: bool, otherwise: str) -> None:
    if not kept:
        raise _BrokenPromiseError(otherwise)


@contextmanager
def blaming(name: str, task: Task, part: str) -> Iterator[None]:
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
        raise TaskError(f"task '{name}': {part} {sanitize(text, 300)}{place}") from error


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
    return f" ({sanitize(file)}, line {line})" if file else ""
