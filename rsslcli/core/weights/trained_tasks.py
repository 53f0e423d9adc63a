"""The tasks of a trained run: their heads and their weights λ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rsslcli.core.errors import UserError, sanitize
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import without_autocast
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.guard import loss_of, make_head, outputs_of, transformed
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class TrainedTasks:
    """The tasks of a run that act on its trunk, with their trained heads."""

    tasks: Mapping[str, Task]  #: by name, those whose λ is above 0
    heads: nn.ModuleDict  #: by name
    lambdas: Mapping[str, float]  #: λ by name

    def fingerprint(self) -> str:
        """A fingerprint (sha256, hexadecimal) of the tasks, λ and the heads."""
        digest = hashlib.sha256(repr((self.tasks, self.lambdas)).encode())
        for value in self.heads.state_dict().values():
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def loss(self, features: Callable[[Tensor], Tensor], images: Tensor, random: BatchRandom) -> Tensor:
        """Σ λᵢ L_aux,i of a batch: a scalar. Each task has a separate trunk pass.

        Args:
            features: the trunk, float images (N, 3, H, W) → features (N, width).
            images: float (N, 3, H, W) in [0, 1].
            random: the source of the tasks' random numbers.
        """
        total = images.new_zeros(())
        for name, task in self.tasks.items():
            # As in training, autocast is for the trunk and the heads alone.
            with without_autocast(images.device):
                inputs, targets = transformed(name, task, images, random)
            outputs = outputs_of(name, task, self.heads[name], features(inputs))
            with without_autocast(images.device):
                loss = loss_of(name, task, outputs.to(images.dtype), targets)
            total = total + self.lambdas[name] * loss
        return total


def trained_tasks(checkpoint: Checkpoint | None) -> TrainedTasks:
    """The tasks of a run for adaptation.

    Raises:
        UserError: `checkpoint` is None (weights from elsewhere), the run has no tasks or averages its weights
            (`ema`), all λ of its tasks are 0, or a task is not known here.
    """
    if checkpoint is None:
        raise UserError(
            "adaptation by tasks needs the heads of a run that was trained with tasks, which weights from "
            "elsewhere lack: adapt them by bn or tent"
        )
    config = checkpoint.config
    if not config.tasks:
        raise UserError("adaptation by tasks needs a run with tasks, and this is a baseline: use bn or tent")
    if config.ema:
        raise UserError(
            "adaptation by tasks needs a network that was trained with its heads, and `ema` averages the "
            "network alone: use bn or tent"
        )
    lambdas = dict(zip(config.weighted, checkpoint.lambdas.tolist(), strict=True))
    if config.weighting == "random":  # the last draw says nothing: each weight is this on average
        lambdas = dict.fromkeys(config.weighted, 1 / len(config.weighted))
    acting = {name: lambdas[name] for name in config.tasks if lambdas[name] > 0}
    if not acting:
        raise UserError(
            f"adaptation by tasks has nothing to go by: λ of {', '.join(config.tasks)} is 0; use bn or tent"
        )
    options = {name: value for name, value in config.task_options.items() if name in acting}
    tasks = build_tasks(acting, options)
    return TrainedTasks(tasks, load_heads(checkpoint, tasks), acting)


def load_heads(checkpoint: Checkpoint, tasks: Mapping[str, Task]) -> nn.ModuleDict:
    """The trained heads of some of a checkpoint's tasks, on the CPU and in evaluation mode.

    Raises:
        UserError: the checkpoint has no head for one of `tasks`, or another one.
    """
    known = checkpoint.config.tasks
    for name in tasks:
        if name not in known:
            trained = f"with {', '.join(known)}" if known else "without tasks"
            raise UserError(f"the checkpoint has no head for '{name}': it was trained {trained}")
    width = checkpoint.classifier["fc.weight"].shape[1]
    with torch.random.fork_rng(devices=[]):  # the initial weights will be overwritten
        heads = nn.ModuleDict({name: make_head(name, task, width) for name, task in tasks.items()})
    trained_heads = {
        name: value for name, value in checkpoint.heads.items() if name.partition(".")[0] in tasks
    }
    try:
        heads.load_state_dict(trained_heads)
    except RuntimeError as error:
        reason = sanitize(str(error).split("\n", 1)[-1])
        raise UserError(f"the checkpoint's heads do not fit the tasks defined here: {reason}") from None
    return heads.eval()
