"""The network with a head per task, and the losses of one batch (Eq. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.networks.batch_norm import keep_running_statistics
from rsslcli.core.networks.wide_resnet import WideResNet, initialize
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import autocast
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.guard import loss_of, make_head, outputs_of, transformed
from rsslcli.core.training.automl import MAIN, Parameters


class MultiTaskNetwork(nn.Module):
    """A classifier (θc, θmain) and the heads θaux of self-supervision tasks on its trunk.

    Args:
        network: trunk and classifier.
        tasks: by name, in the order of λ.
        batch_norm: "per-task": each task's inputs pass the trunk on their own, and only the main pass
            updates the running statistics. "joint": all inputs share one pass and its statistics.
        autocast: run trunk and heads under bfloat16 autocast.
        compile: compile trunk and heads, when they first run.
    """

    def __init__(
        self,
        network: WideResNet,
        tasks: dict[str, Task],
        *,
        batch_norm: str = "per-task",
        autocast: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks
        self.batch_norm = batch_norm
        self.autocast = autocast
        self.heads = nn.ModuleDict(
            {name: make_head(name, task, network.feature_width) for name, task in tasks.items()}
        )
        initialize(self.heads)
        self._features: Callable[[Tensor], Tensor] = network.features
        if compile:
            from torch._functorch import config as functorch_config

            # A backward pass of a compiled function frees its inputs unless told that another may follow, as
            # it does where losses share a pass.
            functorch_config.donated_buffer = False
            # The compiler looks at what a head is given, and torch warns of a use that is not made of it.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            self._features = torch.compile(network.features, dynamic=False)
            for head in self.heads.values():
                head.compile(dynamic=False)

    def psi(self) -> dict[str, nn.Parameter]:
        """ψ = (θc, θmain), by name."""
        return {name: p for name, p in self.named_parameters() if name.startswith("network.")}

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in [0, 1] → class scores (N, classes)."""
        scores: Tensor = self.network.fc(self._features(images))
        return scores

    def head_parameters(self) -> dict[str, list[nn.Parameter]]:
        """θaux,i by task, in the order of λ."""
        return {name: list(self.heads[name].parameters()) for name in self.tasks}

    def losses(self, images: Tensor, labels: Tensor, random: BatchRandom) -> Iterator[dict[str, Tensor]]:
        """The losses L_main and L_aux,i of a batch, unweighted.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            labels: int64 (N,).
            random: where the tasks' random numbers come from.

        Yields:
            Scalars by task ("main" for the main one), grouped by the trunk pass that they share. A group is
            made when it is asked for, so that one pass at a time is in memory.
        """
        prepared = {name: transformed(name, task, images, random) for name, task in self.tasks.items()}
        on_clean = [name for name, task in self.tasks.items() if task.clean_input]
        others = [name for name in self.tasks if name not in on_clean]
        passes = [[MAIN, *on_clean], *([name] for name in others)]
        inputs = [images, *(prepared[name][0] for name in others)]
        targets = {MAIN: labels} | {name: target for name, (_, target) in prepared.items()}
        if self.batch_norm == "joint":
            with self._precision(images):
                joint = self._features(torch.cat(inputs))
            parts = torch.split(joint, [len(x) for x in inputs])
            yield {
                name: self._loss(name, part, targets[name])
                for names, part in zip(passes, parts, strict=True)
                for name in names
            }
            return
        for names, x in zip(passes, inputs, strict=True):
            with self._precision(x):
                if names[0] == MAIN:
                    features = self._features(x)
                else:
                    with keep_running_statistics(self.network):
                        features = self._features(x)
            yield {name: self._loss(name, features, targets[name]) for name in names}

    def validation_loss(self, images: Tensor, labels: Tensor) -> Callable[[Parameters], Tensor]:
        """L_main on a validation batch as a function of ψ (Eq. 2).

        The pass normalizes with its own batch's statistics and leaves the running ones alone.
        """

        def loss(psi: Parameters) -> Tensor:
            with self._precision(images), keep_running_statistics(self.network):
                scores = torch.func.functional_call(self, dict(psi), (images,))
            return F.cross_entropy(scores.float() if self.autocast else scores, labels)

        return loss

    def _loss(self, name: str, features: Tensor, targets: Tensor) -> Tensor:
        with self._precision(features):
            if name == MAIN:
                outputs = self.network.fc(features)
            else:
                outputs = outputs_of(name, self.tasks[name], self.heads[name], features)
        if self.autocast:
            outputs = outputs.float()  # losses and their gradients are accumulated in full precision
        if name == MAIN:
            return F.cross_entropy(outputs, targets)
        return loss_of(name, self.tasks[name], outputs, targets)

    def _precision(self, like: Tensor) -> AbstractContextManager[None]:
        return autocast(like.device, self.autocast)
