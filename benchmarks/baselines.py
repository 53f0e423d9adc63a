"""What `rssl` is measured against: other ways to the meta-gradient, and plain PyTorch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from rsslcli.core.networks.batch_norm import keep_running_statistics
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.training.automl import MAIN, automl_gradients, fixed_gradients
from rsslcli.core.training.multitask import MultiTaskNetwork


@dataclass(frozen=True)
class Pass:
    """Inputs that pass the trunk together, and the targets of the tasks that they serve."""

    inputs: Tensor
    targets: Mapping[str, Tensor]

    def to(self, dtype: torch.dtype) -> Pass:
        """The same with its floats as `dtype`."""
        targets = {name: t.to(dtype) if t.is_floating_point() else t for name, t in self.targets.items()}
        return Pass(self.inputs.to(dtype), targets)


def prepare_passes(model: MultiTaskNetwork, images: Tensor, labels: Tensor) -> list[Pass]:
    """The trunk passes of a batch as `MultiTaskNetwork.losses` makes them, ready for use."""
    clean, others = {MAIN: labels}, []
    for name, task in model.tasks.items():
        inputs, targets = task.transform(images, BatchRandom())
        if task.clean_input:
            clean[name] = targets
        else:
            others.append(Pass(inputs.contiguous(memory_format=torch.channels_last), {name: targets}))
    return [Pass(images.contiguous(memory_format=torch.channels_last), clean), *others]


def pass_losses(
    model: MultiTaskNetwork, targets: Mapping[str, Tensor], features: Tensor
) -> dict[str, Tensor]:
    """The unweighted losses that one pass's features give."""
    return {
        name: F.cross_entropy(model.network.fc(features), target)
        if name == MAIN
        else model.tasks[name].loss(model.heads[name](features), target)
        for name, target in targets.items()
    }


class Losses(nn.Module):
    """The losses of several `Pass`es: one trunk pass for all with joint batch norm, else one for each."""

    def __init__(self, model: MultiTaskNetwork) -> None:
        super().__init__()
        self.model = model

    def groups(self, passes: Sequence[Pass]) -> Iterator[dict[str, Tensor]]:
        """The losses by trunk pass."""
        if self.model.batch_norm != "joint":
            for each in passes:
                yield pass_losses(self.model, each.targets, self.model.network.features(each.inputs))
            return
        features = self.model.network.features(torch.cat([each.inputs for each in passes]))
        losses: dict[str, Tensor] = {}
        parts = torch.split(features, [len(each.inputs) for each in passes])
        for each, part in zip(passes, parts, strict=True):
            losses |= pass_losses(self.model, each.targets, part)
        yield losses

    def forward(self, passes: Sequence[Pass]) -> Tensor:
        """The losses of all tasks that the passes have targets for: the main one, then in the order of λ."""
        losses = {name: loss for group in self.groups(passes) for name, loss in group.items()}
        return torch.stack([losses[name] for name in (MAIN, *self.model.tasks) if name in losses])


@dataclass(frozen=True)
class Problem:
    """All that a meta-gradient is a function of.

    Attributes:
        model: whose `batch_norm` says whether there is one joint pass or one per task.
        passes: the training batch.
        validation: the validation batch, with targets of the main task alone.
        lambdas: (k,) the weights λ.
        alpha: step size of the look-ahead.
    """

    model: MultiTaskNetwork
    passes: Sequence[Pass]
    validation: Pass
    lambdas: Tensor
    alpha: float

    def to(self, dtype: torch.dtype) -> Problem:
        """A copy in another precision."""
        return Problem(
            copy.deepcopy(self.model).to(dtype),
            [each.to(dtype) for each in self.passes],
            self.validation.to(dtype),
            self.lambdas.to(dtype),
            self.alpha,
        )

    def groups(self) -> Iterator[dict[str, Tensor]]:
        """The training losses by trunk pass."""
        return Losses(self.model).groups(self.passes)

    def plain_gradients(self) -> None:
        """Set every `.grad` to the gradient of the total loss."""
        weights = dict(zip(self.model.tasks, self.lambdas.unbind(), strict=True))
        fixed_gradients(self.groups(), self.model.parameters(), weights)

    def validation_loss(self, psi: Mapping[str, Tensor]) -> Tensor:
        """L_main of the validation batch at ψ."""
        return self.model.validation_loss(self.validation.inputs, self.validation.targets[MAIN])(psi)


#: A way to ∂L_meta/∂λ.
Method = Callable[[Problem], Tensor]


def rival_step(problem: Problem, method: Method, optimizer: torch.optim.Optimizer, beta: float) -> None:
    """A step of Algorithm 1: the meta-gradient, the new λ, then forward and backward anew, the optimizer."""
    problem.lambdas.sub_(beta * method(problem)).clamp_(min=0)
    problem.plain_gradients()
    optimizer.step()


def textbook(problem: Problem) -> Tensor:
    """As the paper writes it: a backward pass through the backward pass of all losses."""
    training = Losses(problem.model)
    lambdas = problem.lambdas.clone().requires_grad_()
    phi: dict[str, Tensor] = dict(training.named_parameters())
    losses = functional_call(training, phi, (problem.passes,))
    psi = {name: p for name, p in phi.items() if name.startswith("model.network.")}
    gradients = torch.autograd.grad(losses[0] + lambdas @ losses[1:], list(psi.values()), create_graph=True)
    ahead = {name: p - problem.alpha * g for (name, p), g in zip(psi.items(), gradients, strict=True)}
    (meta_loss,) = functional_call(training, ahead, ([problem.validation],))
    (meta_gradient,) = torch.autograd.grad(meta_loss, lambdas)
    return meta_gradient


def with_higher(problem: Problem) -> Tensor:
    """The same as `textbook`, by the library `higher`."""
    import higher  # type: ignore[import-untyped]  # optional: no other measurement needs it

    training = Losses(problem.model)
    lambdas = problem.lambdas.clone().requires_grad_()
    inner = torch.optim.SGD(training.parameters(), lr=problem.alpha)
    with higher.innerloop_ctx(training, inner) as (fast, optimizer):
        losses = fast(problem.passes)
        optimizer.step(losses[0] + lambdas @ losses[1:])
        (meta_loss,) = fast([problem.validation])
        (meta_gradient,) = torch.autograd.grad(meta_loss, lambdas)
    return meta_gradient


def finite_differences(problem: Problem, scale: float = 0.01) -> Tensor:
    """As Auto-λ does it: a virtual step, then the losses at θ ± εv with ε = `scale` / ‖v‖.

    ∂L/∂λᵢ is Lᵢ itself, so the losses there need no backward pass.
    """
    model = problem.model
    problem.plain_gradients()  # of the virtual step
    psi = model.psi()
    ahead = {}
    for name, p in psi.items():
        assert p.grad is not None
        ahead[name] = (p - problem.alpha * p.grad).detach().requires_grad_()
    v = torch.autograd.grad(problem.validation_loss(ahead), list(ahead.values()))
    epsilon = scale / torch.stack([part.norm() for part in v]).norm()
    sides = []
    with torch.no_grad(), keep_running_statistics(model):
        for sign in (1, -2):  # from θ to θ + εv, from there to θ − εv
            for p, part in zip(psi.values(), v, strict=True):
                p.add_(sign * epsilon * part)
            losses = {name: loss for group in problem.groups() for name, loss in group.items()}
            sides.append(torch.stack([losses[name] for name in model.tasks]))
        for p, part in zip(psi.values(), v, strict=True):
            p.add_(epsilon * part)
    meta_gradient: Tensor = problem.alpha * (sides[1] - sides[0]) / (2 * epsilon)
    return meta_gradient


def ours(problem: Problem, beta: float) -> Tensor:
    """Our meta-gradient, read off what it does to λ."""
    lambdas = problem.lambdas.clone()
    automl_gradients(
        problem.groups(),
        problem.model.psi(),
        problem.model.head_parameters(),
        lambdas,
        problem.validation_loss,
        alpha=problem.alpha,
        beta=beta,
    )
    return (problem.lambdas - lambdas) / beta


def relative_errors(problem: Problem, methods: Mapping[str, Method]) -> dict[str, float]:
    """How far each method, and ours, are from ours in float64: ‖difference‖ / ‖exact‖."""
    exact = ours(problem.to(torch.float64), beta=1e-3)
    # λ must move by about its own size, but not below 0: a small move would lose digits in float32.
    beta = 0.9 * float((problem.lambdas / exact.abs()).min())
    found = {name: method(problem) for name, method in methods.items()} | {"ours": ours(problem, beta)}
    return {name: float((value - exact).norm() / exact.norm()) for name, value in found.items()}


class PlainBlock(nn.Module):
    """The residual block of the public WideResNet code."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) → (N, outputs, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class PlainWideResNet(nn.Module):
    """The network of `rssl` as a user would write it; the names are the same, so its weights load."""

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        inputs = 16
        for stage in range(3):
            outputs, layers = 16 * width * 2**stage, nn.Sequential()
            for i in range((depth - 4) // 6):
                layers.append(PlainBlock(inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
            self.add_module(f"block{stage + 1}", nn.Sequential(OrderedDict(layer=layers)))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)

    def features(self, images: Tensor) -> Tensor:
        """Float images (N, 3, 32, 32) in [0, 1] → features (N, 64 · width)."""
        x = self.conv1(images * 2 - 1)
        for stage in range(3):
            x = self.get_submodule(f"block{stage + 1}")(x)
        return F.relu(self.bn1(x), inplace=True).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Float images (N, 3, 32, 32) in [0, 1] → class scores (N, classes)."""
        scores: Tensor = self.fc(self.features(images))
        return scores


@torch.no_grad()
def plain_script(
    network: nn.Module, files: Sequence[Path], labels: Tensor, device: torch.device
) -> list[float]:
    """Accuracy on each .npy file by a plain script; `labels`, int64 (N,), are those of one block."""
    network.eval()
    accuracy = []
    for file in files:
        images = torch.from_numpy(np.load(file).astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
        data = TensorDataset(images, labels.repeat(len(images) // len(labels)))
        correct = 0
        for x, y in DataLoader(data, batch_size=200):
            correct += int((network(x.to(device)).argmax(1) == y.to(device)).sum())
        accuracy.append(correct / len(images))
    return accuracy
