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
    assert loss.isfinite()
    assert gradient.isfinite().all()


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


def test_tuning_its_weight_equals_double_backward(
    images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    """Algorithm 1 written out with a second derivative, for the weight of the consistency loss alone."""
    alpha = 0.07
    beta = 50.0
    views = [images.flip(3), 0.5 * images]
    val = (images.roll(3, 3), labels.flip(0))
    model = make_model()
    psi = dict(model.named_parameters())

    def scores_of(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        scores: Tensor = torch.func.functional_call(model, parameters, (x,))
        return scores

    def total(weight: Tensor) -> Tensor:
        scores = scores_of(psi, torch.cat([images, *views]))
        return F.cross_entropy(scores[: len(images)], labels) + weight * jensen_shannon(scores)

    weight = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(total(weight), list(psi.values()), create_graph=True)
    ahead = {name: p - alpha * g for (name, p), g in zip(psi.items(), gradients, strict=True)}
    (slope,) = torch.autograd.grad(F.cross_entropy(scores_of(ahead, val[0]), val[1]), weight)
    updated = weight.detach() - beta * slope
    expected = torch.autograd.grad(total(updated), list(psi.values()))
    assert abs(float(updated) - 12) > 1e-3

    lambdas = torch.tensor([12.0], dtype=torch.float64)
    automl_gradients(
        model.losses(images, labels, random, views),
        model.psi(),
        {JSD: []},
        lambdas,
        model.validation_loss(*val),
        alpha=alpha,
        beta=beta,
    )
    assert float(lambdas) == pytest.approx(float(updated), rel=1e-12)
    for (name, p), gradient in zip(psi.items(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)
