"""The rivals of Algorithm 1 against their definitions, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.automl import fixed_gradients
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.training.random_weights import draw_weights
from rsslcli.core.training.uncertainty import update_uncertainty
from rsslcli.core.training.upgrad import upgrad_gradients, upgrad_weights


def combined(rows: list[list[float]]) -> Tensor:
    """UPGrad's combination of the gradients."""
    jacobian = torch.tensor(rows, dtype=torch.float64)
    return upgrad_weights(jacobian @ jacobian.T) @ jacobian


def test_uncertainty_descends_on_the_log_variances() -> None:
    losses = torch.tensor([2.3, 0.4, 1.1], dtype=torch.float64)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    lambdas = torch.full((3,), 0.5, dtype=torch.float64)
    for rate in (0.1, 0.05):
        (gradient,) = torch.autograd.grad((0.5 * ((-s).exp() * losses + s)).sum(), s)
        s = (s - rate * gradient).detach().requires_grad_()
        update_uncertainty(lambdas, losses, rate)
        torch.testing.assert_close(lambdas, 0.5 * (-s.detach()).exp())


def test_random_weights_are_a_softmax_of_normal_numbers() -> None:
    lambdas = torch.empty(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(2000):
        draw_weights(lambdas, generator)
        drawn.append(lambdas.clone())
    weights = torch.stack(drawn)
    torch.testing.assert_close(weights.sum(1), torch.ones(2000, dtype=torch.float64))
    # Differences of logarithms are differences of standard normal numbers.
    difference = weights[:, 0].log() - weights[:, 1].log()
    assert float(difference.mean()) == pytest.approx(0, abs=0.1)
    assert float(difference.std()) == pytest.approx(np.sqrt(2), abs=0.1)


def test_upgrad_agrees_with_the_example_of_its_authors() -> None:
    """From the documentation of TorchJD, the authors' library."""
    expected = torch.tensor([0.2929, 1.9004, 1.9004], dtype=torch.float64)
    torch.testing.assert_close(combined([[-4, 1, 1], [6, 1, 1]]), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_upgrad_solves_its_quadratic_programs(seed: int) -> None:
    """min vᵀ G v with v ≥ e_i is a problem of non-negative least squares: v = e_i + w, w ≥ 0."""
    random = np.random.default_rng(seed)
    jacobian = random.normal(size=(5, 4 if seed % 2 else 50)) * random.uniform(0.05, 5, (5, 1))
    gramian = jacobian @ jacobian.T
    scale = gramian.trace()
    root = np.linalg.cholesky(gramian / scale + 1e-4 * np.eye(5)).T
    expected = np.mean([unit + nnls(root, -root @ unit)[0] for unit in np.eye(5)], axis=0)
    found = upgrad_weights(torch.from_numpy(gramian))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)
    # No loss gets worse to first order, but for the regularization.
    assert (jacobian @ (found.numpy() @ jacobian) > -1e-3 * scale).all()


def test_upgrad_without_conflict_is_the_mean() -> None:
    assert combined([[1, 0], [0, 2], [1, 1]]).tolist() == pytest.approx([2 / 3, 1])


def test_upgrad_of_losses_without_gradient_is_finite() -> None:
    assert combined([[0, 0], [0, 0]]).tolist() == [0, 0]
    assert combined([[1, 2], [0, 0], [-1, -2]]).isfinite().all()


def test_upgrad_trains_heads_with_their_own_losses(images: Tensor, labels: Tensor) -> None:
    """And where there is no conflict to resolve, all parameters as with fixed weights."""

    def model() -> MultiTaskNetwork:
        torch.manual_seed(3)
        return MultiTaskNetwork(WideResNet(10, 1), build_tasks(["rotation", "ir"])).double().train()

    plain = model()
    resolved = model()
    lambdas = torch.tensor([0.5, 1e-9], dtype=torch.float64)
    fixed_gradients(
        plain.losses(images, labels, BatchRandom(None)),
        plain.parameters(),
        dict(zip(("rotation", "ir"), lambdas, strict=True)),
    )
    losses = upgrad_gradients(
        resolved.losses(images, labels, BatchRandom(None)),
        resolved.psi(),
        resolved.head_parameters(),
        lambdas,
    )
    assert list(losses) == ["main", "ir", "rotation"]
    for name, head in resolved.heads.named_parameters():
        torch.testing.assert_close(head.grad, plain.heads.get_parameter(name).grad, msg=name)
    g = torch.cat([p.grad.flatten() for p in resolved.network.parameters()])  # type: ignore[union-attr]
    h = torch.cat([p.grad.flatten() for p in plain.network.parameters()])  # type: ignore[union-attr]
    agree = float(g @ h / (g.norm() * h.norm()))
    assert agree > 0.9
    # The classifier is the main task's own, as a head is its task's: conflicts of the trunk leave it alone.
    for name, weight in resolved.network.fc.named_parameters():
        torch.testing.assert_close(weight.grad, plain.network.fc.get_parameter(name).grad, msg=name)


def test_upgrad_combines_the_gradients_of_the_trunk_alone(images: Tensor, labels: Tensor) -> None:
    """Written out by the definition, from the gradient of each loss by itself."""
    torch.manual_seed(3)
    model = MultiTaskNetwork(WideResNet(10, 1), build_tasks(["rotation", "bir"])).double().train()
    trunk = [p for name, p in model.psi().items() if "fc." not in name]
    lambdas = torch.tensor([2.0, 0.5], dtype=torch.float64)
    names = ("main", "rotation", "bir")
    rows = {}
    for group in model.losses(images, labels, BatchRandom(None)):
        for task, loss in group.items():
            parts = torch.autograd.grad(loss, trunk, retain_graph=True)
            rows[task] = torch.cat([part.flatten() for part in parts])
    jacobian = torch.stack([rows[task] * w for task, w in zip(names, (1, *lambdas), strict=True)])
    expected = 3 * upgrad_weights(jacobian @ jacobian.T) @ jacobian
    upgrad_gradients(
        model.losses(images, labels, BatchRandom(None)), model.psi(), model.head_parameters(), lambdas
    )
    found = torch.cat([p.grad.flatten() for p in trunk])  # type: ignore[union-attr]
    torch.testing.assert_close(found, expected)
