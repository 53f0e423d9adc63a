"""AugMix's consistency loss, and how augmented views enter the losses of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rsslcli.core.config import JSD
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.automl import MAIN, automl_gradients
from rsslcli.core.training.consistency import jensen_shannon
from rsslcli.core.training.multitask import MultiTaskNetwork


def make_model(*tasks: str, mode: str = "per-task") -> MultiTaskNetwork:
    torch.manual_seed(3)
    return MultiTaskNetwork(WideResNet(10, 1), build_tasks(tasks), batch_norm=mode).double().train()  # type: ignore[arg-type]


def test_the_divergence_is_its_definition() -> None:
    scores = 3 * torch.randn(3 * 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = np.exp(scores.numpy()) / np.exp(scores.numpy()).sum(1, keepdims=True)
    views = p.reshape(3, 5, 7)
    mean = views.mean(0)
    expected = np.mean([(view * np.log(view / mean)).sum(1) for view in views])
    assert float(jensen_shannon(scores)) == pytest.approx(expected, rel=1e-12)
    assert float(jensen_shannon(scores[:5].repeat(3, 1))) == pytest.approx(0, abs=1e-12)


def test_three_certain_and_different_views_diverge_by_log_3() -> None:
    scores = 1e4 * torch.eye(3, dtype=torch.float64)
    assert float(jensen_shannon(scores)) == pytest.approx(np.log(3), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_scores_in_half_precision_stay_finite(dtype: torch.dtype) -> None:
    scores = (3e4 * torch.eye(6, 4, dtype=dtype)).requires_grad_()
    loss = jensen_shannon(scores)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.dtype == torch.float32
    precise = scores.detach().double().requires_grad_()
    expected = jensen_shannon(precise)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, precise)[0].to(dtype))


@pytest.mark.parametrize("mode", ["per-task", "joint"])
def test_two_views_share_the_main_pass_and_add_a_loss(
    mode: str, images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    views = [images.flip(3), 0.5 * images]
    found = {
        name: loss
        for group in make_model("ir", mode=mode).losses(images, labels, random, views)
        for name, loss in group.items()
    }
    model = make_model("ir", mode=mode)
    features = model.network.features(torch.cat([images, *views]))
    scores = model.network.fc(features)
    decoded = model.heads["ir"](features[: len(images)])
    assert list(found) == [MAIN, JSD, "ir"]
    torch.testing.assert_close(found[MAIN], F.cross_entropy(scores[: len(images)], labels))
    torch.testing.assert_close(found[JSD], jensen_shannon(scores))
    torch.testing.assert_close(found["ir"], 30 * F.mse_loss(decoded, images))


def test_one_view_takes_the_place_of_the_images_for_the_main_task_alone(
    images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    view = images.flip(3)
    first, second = make_model("ir").losses(images, labels, random, [view])
    model = make_model("ir")
    scores = model.network.fc(model.network.features(view))
    torch.testing.assert_close(first, {MAIN: F.cross_entropy(scores, labels)})
    decoded = model.heads["ir"](model.network.features(images))
    torch.testing.assert_close(second, {"ir": 30 * F.mse_loss(decoded, images)})


@pytest.mark.parametrize(
    ("tasks", "beta", "shift"), [((), 50.0, 0), (("ir",), 50.0, 0), ((), 5e5, 2), (("ir",), 5e5, 2)]
)
def test_tuning_its_weight_equals_double_backward(
    tasks: tuple[str, ...],
    beta: float,
    shift: int,
    images: Tensor,
    labels: Tensor,
    random: BatchRandom,
) -> None:
    """Algorithm 1 written out with a second derivative, for that weight alone and beside a task's.

    With the large β, it falls below 0 and is clipped.
    """
    alpha = 0.07
    views = [images.flip(3), 0.5 * images]
    val = (images.roll(3, 3), (labels.flip(0) + shift) % 10)
    model = make_model(*tasks)
    everything = dict(model.named_parameters())
    psi = dict(model.psi())

    def total(weights: Tensor) -> Tensor:
        features = model.network.features(torch.cat([images, *views]))
        scores = model.network.fc(features)
        loss = F.cross_entropy(scores[: len(images)], labels) + weights[-1] * jensen_shannon(scores)
        if tasks:
            loss = loss + weights[0] * 30 * F.mse_loss(model.heads["ir"](features[: len(images)]), images)
        return loss

    weights = torch.tensor([0.5, 12.0][-1 - len(tasks) :], dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(total(weights), list(psi.values()), create_graph=True)
    ahead = {name: p - alpha * g for (name, p), g in zip(psi.items(), gradients, strict=True)}
    scores = torch.func.functional_call(model, everything | ahead, (val[0],))
    (slope,) = torch.autograd.grad(F.cross_entropy(scores, val[1]), weights)
    updated = (weights.detach() - beta * slope).clamp(min=0)
    expected = torch.autograd.grad(total(updated), list(everything.values()))
    assert float((updated - weights.detach()).abs().min()) > 1e-3

    lambdas = weights.detach().clone()
    automl_gradients(
        model.losses(images, labels, random, views),
        psi,
        {**model.head_parameters(), JSD: []},
        lambdas,
        model.validation_loss(*val),
        alpha=alpha,
        beta=beta,
    )
    torch.testing.assert_close(lambdas, updated, rtol=1e-12, atol=0)
    assert (float(lambdas[-1]) == 0) == (beta > 1000)
    for (name, p), gradient in zip(everything.items(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)
