"""The network with one head per task, and the losses of a batch (Eq. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.config import JSD, BatchNormMode
from rsslcli.core.networks.batch_norm import keep_running_statistics
from rsslcli.core.networks.network import Network, initialize
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import autocast
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.guard import blaming, loss_of, make_head, outputs_of, transformed
from rsslcli.core.training.automl import MAIN, Parameters
from rsslcli.core.training.consistency import jensen_shannon


class MultiTaskNetwork(nn.Module):
    """A classifier (θc, θmain) and the heads θaux of self-supervision tasks on its trunk.

    Args:
        network: trunk and classifier.
        tasks: by name, in the order of λ.
        batch_norm: "per-task": each task has a separate trunk pass, and only the main pass updates the
            running statistics. "all": every pass updates them, the main pass first. "joint": all inputs share
            one pass and its statistics.
        autocast: run trunk and heads under bfloat16 autocast.
        compile: compile trunk and heads when they first run.
    """

    def __init__(
        self,
        network: Network,
        tasks: dict[str, Task],
        *,
        batch_norm: BatchNormMode = "per-task",
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
        for name, task in tasks.items():
            with blaming(name, task, "head"):
                initialize(self.heads[name])
        self._features: Callable[[Tensor], Tensor] = network.features
        if compile:
            from torch._functorch import config as functorch_config

            # By default a compiled backward pass frees its inputs, but losses that share a forward pass need
            # them for several backward passes.
            functorch_config.donated_buffer = False
            # The compiler inspects the inputs of a head, and torch then warns about an unused `.grad`.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            self._features = torch.compile(network.features, dynamic=False)
            for head in self.heads.values():
                head.compile(dynamic=False)

    def psi(self) -> dict[str, nn.Parameter]:
        """The parameters ψ = (θc, θmain) by name, without those that a custom network freezes."""
        named = self.named_parameters()
        return {name: p for name, p in named if name.startswith("network.") and p.requires_grad}

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in [0, 1] → class scores (N, classes)."""
        scores: Tensor = self.network.fc(self._features(images))
        return scores

    def head_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters θaux,i by task, in the order of λ."""
        return {name: list(self.heads[name].parameters()) for name in self.tasks}

    def losses(
        self,
        images: Tensor,
        labels: Tensor,
        random: BatchRandom,
        views: Sequence[Tensor] = (),
        *,
        task_images: Tensor | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Compute the unweighted losses L_main and L_aux,i of a batch.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            labels: int64 (N,).
            random: the source of the tasks' random numbers, one row per image that they see.
            views: augmented versions of the images, for the main task alone. With one, it trains on that in
                place of the images; with two, their consistency is a further loss, "jsd".
            task_images: int64 (n,), the indices of the images that the tasks see; None for all.

        Yields:
            Scalars by task ("main" for the main task), grouped by the trunk pass that they share. Groups are
            computed on demand, so that only one pass at a time is in memory.
        """
        seen = images if task_images is None else images[task_images]
        prepared = {name: transformed(name, task, seen, random) for name, task in self.tasks.items()}
        main_inputs = [*views] if len(views) == 1 else [images, *views]
        sees_clean = main_inputs[0] is images
        on_clean = [name for name, task in self.tasks.items() if task.clean_input and sees_clean]
        others = [name for name in self.tasks if name not in on_clean]
        # One trunk pass serves the main task and, if it sees the clean images, the tasks that see only these;
        # each other task needs its own.
        passes = [[MAIN, *on_clean], *([name] for name in others)]
        main_input = torch.cat(main_inputs) if len(main_inputs) > 1 else main_inputs[0]
        inputs = [main_input, *(prepared[name][0] for name in others)]
        targets = {MAIN: labels} | {name: target for name, (_, target) in prepared.items()}
        if self.batch_norm == "joint":
            with self._precision(images):
                joint = self._features(torch.cat(inputs))
            parts = torch.split(joint, [len(x) for x in inputs])
            yield {
                name: loss
                for names, part in zip(passes, parts, strict=True)
                for name, loss in self._pass_losses(names, part, targets, task_images).items()
            }
            return
        for names, x in zip(passes, inputs, strict=True):
            updates = names[0] == MAIN or self.batch_norm == "all"
            statistics = nullcontext() if updates else keep_running_statistics(self.network)
            with self._precision(x), statistics:
                features = self._features(x)
            yield self._pass_losses(names, features, targets, task_images)

    def validation_loss(self, images: Tensor, labels: Tensor) -> Callable[[Parameters], Tensor]:
        """The cross-entropy on a validation batch as a function of ψ (Eq. 2), without a consistency loss.

        Args:
            images: float (V, 3, H, W) in [0, 1].
            labels: int64 (V,).

        The pass normalizes with the statistics of its batch and leaves the running ones unchanged.
        """

        def loss(psi: Parameters) -> Tensor:
            with self._precision(images), keep_running_statistics(self.network):
                scores = torch.func.functional_call(self, dict(psi), (images,))
            return F.cross_entropy(self._precise(scores), labels)

        return loss

    def _pass_losses(
        self,
        names: Sequence[str],
        features: Tensor,
        targets: Mapping[str, Tensor],
        task_images: Tensor | None,
    ) -> dict[str, Tensor]:
        """The losses of the tasks that share a trunk pass, from its features."""
        losses: dict[str, Tensor] = {}
        if MAIN in names:
            losses = self._main_losses(features, targets[MAIN])
            # The tasks use the features of the images alone, which come first, and of those they see.
            features = features[: len(targets[MAIN])]
            features = features if task_images is None else features[task_images]
        for name in names:
            if name != MAIN:
                with self._precision(features):
                    outputs = outputs_of(name, self.tasks[name], self.heads[name], features)
                losses[name] = loss_of(name, self.tasks[name], self._precise(outputs), targets[name])
        return losses

    def _main_losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """L_main, and the consistency loss if there are features of augmented views too."""
        with self._precision(features):
            scores = self._precise(self.network.fc(features))
        losses = {MAIN: F.cross_entropy(scores[: len(labels)], labels)}
        return losses | {JSD: jensen_shannon(scores)} if len(scores) > len(labels) else losses

    def _precise(self, outputs: Tensor) -> Tensor:
        """Outputs from which losses and their gradients are computed in full precision."""
        return outputs.float() if self.autocast else outputs

    def _precision(self, like: Tensor) -> AbstractContextManager[None]:
        return autocast(like.device, self.autocast)
