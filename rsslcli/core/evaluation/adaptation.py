"""Adaptation at test time: classifiers that adapt to each batch of images, without labels.

Batch statistics: Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift
adaptation". Tent: Wang et al. 2021, "Tent: fully test-time adaptation by entropy minimization". Tasks: Sun et
al. 2020, "Test-time training with self-supervision", here with several tasks and their tuned weights.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, Optimizer

from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.class_names import networks_in
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import seeded_generator

if TYPE_CHECKING:
    from rsslcli.core.weights.trained_tasks import TrainedTasks


class MixedBatchNorm(nn.Module):
    """Batch normalization with α · source + (1 − α) · batch, α = N / (N + n), for means and variances alike.

    Args:
        source: the layer that it replaces, with the running statistics of the training; they share their
            tensors.
        prior: N, a finite number of images; n is the number of images in the batch.
    """

    def __init__(self, source: _BatchNorm, prior: float) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = source.weight
        self.bias: nn.Parameter | None = source.bias
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", source.running_mean)
        self.register_buffer("running_var", source.running_var)
        self.eps = source.eps
        self.prior = prior

    def forward(self, x: Tensor) -> Tensor:
        """Floats (n, channels, …) → the same shape. Gradients pass through the statistics of the batch."""
        last = x.movedim(1, -1)
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows = last.reshape(-1, x.shape[1]).to(dtype)
        batch_mean = rows.mean(0)
        # The biased variance, by which batch normalization divides. `var_mean` is far slower on the CPU.
        batch_var = (rows.square().mean(0) - batch_mean.square()).clamp(min=0)
        share = len(x) / (self.prior + len(x))  # 1 − α
        mean = torch.lerp(self.running_mean.to(dtype), batch_mean, share)
        var = torch.lerp(self.running_var.to(dtype), batch_var, share)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        return torch.addcmul(shift, rows, scale).to(x.dtype).view(last.shape).movedim(-1, 1)


def _mix_statistics(parent: nn.Module, prior: float) -> list[MixedBatchNorm | _BatchNorm]:
    """Replace the batch normalization below `parent`, unless the prior is infinite; return its layers."""
    layers: list[MixedBatchNorm | _BatchNorm] = []
    replaced: dict[nn.Module, MixedBatchNorm] = {}  # a layer may be in several places
    for module in list(parent.modules()):
        for name, child in list(module._modules.items()):  # named_children omits repeated ones
            if not isinstance(child, _BatchNorm) or child.running_mean is None:
                continue
            if prior == math.inf:
                layers.append(child)
                continue
            if type(child).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
                raise UserError(
                    f"{type(child).__name__} does more than normalize, so its statistics cannot be mixed "
                    "with those of a batch: `prior` inf keeps it as it is"
                )
            layer = replaced.setdefault(child, MixedBatchNorm(child, prior))
            setattr(module, name, layer)
            layers.append(layer)
    return layers


class AdaptiveClassifier(nn.Module):
    """A copy of a classifier that adapts to each batch that it classifies.

    This class implements "bn"; subclasses also take gradient steps.

    It maps float images (N, 3, H, W) in [0, 1] to scores (N, classes), without gradients. The scores of an
    image depend on the other images of its batch; if `settings` are not episodic, the gradient steps on
    earlier batches count too, until the next `reset`.

    Args:
        classifier: on the device to compute on; it stays as it is.
        settings: how to adapt.

    Raises:
        UserError: the classifier has no batch normalization with running statistics, and the method is not
            "tasks"; its batch normalization does something else too; or its weights are in half precision
            and the method moves them.
    """

    def __init__(self, classifier: nn.Module, settings: Adaptation) -> None:
        super().__init__()
        self.settings = settings
        self.model = copy.deepcopy(classifier).eval()
        #: The parameters that the user froze, which no method moves. If all are frozen, that was only for
        #: inference, and none counts as frozen.
        frozen = {parameter for parameter in self.model.parameters() if not parameter.requires_grad}
        self._frozen = frozen if len(frozen) < len([*self.model.parameters()]) else set()
        self.model.requires_grad_(False)
        assert settings.prior is not None
        self.layers = _mix_statistics(self, settings.prior)
        if not self.layers and settings.method != "tasks":  # which adapts the trunk
            raise UserError(
                "this classifier has no batch normalization with running statistics, so there is nothing to "
                "adapt"
            )

    def reset(self) -> None:
        """Forget the batches so far, and start again from the trained weights."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        return scores


class _Descent(AdaptiveClassifier):
    """An adaptation that moves some parameters by gradient steps, on a loss that needs no labels."""

    def _move(
        self, parameters: Sequence[nn.Parameter], optimizer: Callable[[Sequence[nn.Parameter]], Optimizer]
    ) -> None:
        """Set the parameters that the steps move, except frozen ones, and what makes their optimizer."""
        parameters = [parameter for parameter in parameters if parameter not in self._frozen]
        if not parameters:
            raise UserError(
                f"{self.settings.method} has nothing to move: the parameters that it adapts are frozen; "
                "unfreeze some, or adapt by bn"
            )
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in parameters):
            raise UserError(
                f"{self.settings.method} moves weights by steps that half precision rounds away: adapt the "
                "float32 model, with `precision` bfloat16 to save time"
            )
        for parameter in parameters:
            parameter.requires_grad_()
        self._moved = parameters
        self._trained = [parameter.detach().clone() for parameter in parameters]
        self._new_optimizer = optimizer
        self.reset()

    def reset(self) -> None:
        self._batches = 0
        self._restore()

    def _restore(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._moved, self._trained, strict=True):
                parameter.copy_(value)
        torch.clear_autocast_cache()  # of the weights of before, in bfloat16
        self._optimizer = self._new_optimizer(self._moved)

    def _step(self, loss: Tensor) -> None:
        # A parameter that the pass does not use has the gradient 0, as in training.
        gradients = torch.autograd.grad(loss, self._moved, materialize_grads=True)
        for parameter, gradient in zip(self._moved, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        torch.clear_autocast_cache()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.settings.episodic:
            self._restore()
        scores = self._adapt(images.clone() if images.is_inference() else images)
        self._batches += 1
        return scores.detach()

    def _adapt(self, images: Tensor) -> Tensor:
        """Take the steps on a batch and return its scores."""
        raise NotImplementedError


class Tent(_Descent):
    """Minimizes the mean entropy of the scores over the scales and shifts of batch normalization, with Adam.

    As in the authors' code, the scores of a batch are those before its last step, which takes effect with the
    next batch.

    Raises:
        UserError: the batch normalization has no scales and shifts.
    """

    def __init__(self, classifier: nn.Module, settings: Adaptation) -> None:
        super().__init__(classifier, settings)
        found = {id(p): p for layer in self.layers for p in (layer.weight, layer.bias) if p is not None}
        if not found:
            raise UserError("tent: the batch normalization of this classifier has no scales and shifts")
        self._move([*found.values()], lambda moved: Adam(moved, lr=settings.learning_rate or 0.0))

    def _adapt(self, images: Tensor) -> Tensor:
        for _ in range(self.settings.steps or 0):
            scores: Tensor = self.model(images)
            log_p = scores.float().log_softmax(1)
            self._step(-(log_p.exp() * log_p).sum(1).mean())  # the entropy
        return scores


class TaskDescent(_Descent):
    """Descends on Σ λᵢ L_aux,i of a batch, over the trunk, and then classifies the batch.

    Args:
        classifier: the run's network, or a model that holds it.
        settings: how to adapt.
        tasks: the run's tasks.

    Raises:
        UserError: the classifier holds no network of rssl, or several.
    """

    def __init__(self, classifier: nn.Module, settings: Adaptation, tasks: TrainedTasks) -> None:
        super().__init__(classifier, settings)
        networks = networks_in(self.model)
        if len(networks) != 1:
            raise UserError("adaptation by tasks is for the network of a run: adapt others by bn or tent")
        trunk = [p for name, p in networks[0].named_parameters() if not name.startswith("fc.")]
        self._features = networks[0].features
        heads = copy.deepcopy(tasks.heads).requires_grad_(False).to(trunk[0].device)
        self._tasks = dataclasses.replace(tasks, heads=heads)
        self._move(trunk, lambda moved: SGD(moved, lr=settings.learning_rate or 0.0))

    def _adapt(self, images: Tensor) -> Tensor:
        random = BatchRandom(seeded_generator(images.device, self.settings.seed, "adaptation", self._batches))
        for _ in range(self.settings.steps or 0):
            self._step(self._tasks.loss(self._features, images, random))
        with torch.no_grad():
            scores: Tensor = self.model(images)
        return scores


def make_adaptive(
    classifier: nn.Module, settings: Adaptation, tasks: TrainedTasks | None = None
) -> AdaptiveClassifier:
    """A copy of a classifier that adapts as `settings` say; `tasks` are those of its run, for "tasks".

    Raises:
        UserError: the classifier lacks what the method adapts, or `tasks` are missing.
    """
    by_classifier = {"bn": AdaptiveClassifier, "tent": Tent}
    if settings.method in by_classifier:
        return by_classifier[settings.method](classifier, settings)
    if settings.method != "tasks":
        raise ValueError(f"no adaptation {settings.method!r}")
    if tasks is None:
        raise UserError("adaptation by tasks needs a classifier that is loaded from a run with tasks")
    return TaskDescent(classifier, settings, tasks)
