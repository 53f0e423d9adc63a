"""Algorithm 1: tune the task weights λ while the network trains (section 4).

The total loss L = L_main + Σ λᵢ L_aux,i is linear in λ, so the look-ahead ψ' = ψ − α ∂L/∂ψ of Eq. (2) is
linear in λ too, and the meta-gradient is an inner product of two plain gradients:

    ∂L_meta/∂λᵢ = −α ⟨ ∂L_aux,i/∂ψ, ∂L_main(X_val; ψ')/∂ψ' ⟩

This is exact: no second derivative is needed, so none is dropped. And since ψ does not change between the two
halves of the algorithm, the update with the new λ reuses the gradients that the first half computed.

The rest of the algorithm is in `step.Trainer`: `tunes_lambdas` is its test "epoch count > τ", `gradients`
draws both batches and calls `automl_gradients` or, during the warm-up, `fixed_gradients`, and `step` takes
the SGD step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

MAIN = "main"

#: Groups of losses that share a forward pass, each by task; one contains `MAIN`. Computed one at a time.
LossGroups = Iterable[Mapping[str, Tensor]]
#: Parameters by name, ψ = (θc, θmain).
Parameters = Mapping[str, Tensor]

#: Keeps divisions finite.
_TINY = 1e-30


def automl_gradients(
    groups: LossGroups,
    psi: Parameters,
    heads: Mapping[str, Sequence[Tensor]],
    lambdas: Tensor,
    validation_loss: Callable[[Parameters], Tensor],
    *,
    alpha: float | Tensor,
    beta: float,
    drift: Tensor | float = 0.0,
    factors: Tensor | float = 1.0,
    relative: bool = False,
    cosine: bool = False,
    keep_sum: bool = False,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """One iteration of Algorithm 1 after the warm-up, without the optimizer: update λ, set every `.grad`.

    Args:
        groups: the losses of the training batch. Each needs its own gradient, so a group of m losses costs
            m backward passes through what they share.
        psi: the parameters ψ of trunk and classifier.
        heads: the parameters θaux,i of each task's head, in the order of λ.
        lambdas: (k,) the weights λ, changed in place and kept at 0 or above.
        validation_loss: L_main on a validation batch, as a function of ψ.
        alpha: step size α of the look-ahead, Eq. (2).
        beta: learning rate β of λ.
        drift: a variant: (|ψ|,) what the optimizer's step adds to the gradient, see
            `step.Trainer._sgd_step`; 0 without it.
        factors: (|ψ|,) factors of `alpha` where the parameters' learning rates differ.
        relative: a variant: compare each gradient with the weighted mean of all, the main loss included. This
            is exact for the look-ahead α (1 + Σλ) ∂L_λ′/∂ψ ÷ (1 + Σλ′), whose length does not grow with the
            weights λ′; λ are the present ones.
        cosine: a variant: replace the inner product by the cosine of the two gradients, so that a loss gains
            no weight by the size of its gradient.
        keep_sum: a variant: rescale the new λ to the sum of the old ones.
        sum_over_ranks: sums a tensor over the ranks, perhaps in place, if they share the batches, so that the
            losses are local shares. λ is then the same on every rank; `.grad` stays the local share.

    Returns:
        The detached losses by task, and the meta loss as "meta". No value is copied to the host.
    """
    losses, gradients, head_gradients = task_gradients(groups, psi, heads)
    g_main = gradients[MAIN]
    g_aux = torch.stack([gradients[task] for task in heads])  # (k, |ψ|)

    # Sums over the tasks are products of a matrix and a vector, which CUDA never rounds to TF32.
    g = sum_over_ranks(g_main + g_aux.T @ lambdas)  # ∂L/∂ψ
    direction = factors * (g + drift)
    ahead = {
        name: (p.detach() - alpha * step).requires_grad_()
        for (name, p), step in zip(psi.items(), _unflatten(direction, psi), strict=True)
    }
    meta_loss = validation_loss(ahead)  # L_main(X_val; ψ − α ∂L/∂ψ)
    v = _flatten(torch.autograd.grad(meta_loss, list(ahead.values()), materialize_grads=True))
    v = factors * sum_over_ranks(v)
    compared = g_aux - (g_main + g_aux.T @ lambdas) / (1 + lambdas.sum()) if relative else g_aux
    meta_gradient = -alpha * sum_over_ranks(compared @ v)  # ∂L_meta/∂λ
    if cosine:
        norms = sum_over_ranks(compared.clone()).norm(dim=1) * v.norm()
        meta_gradient = meta_gradient / norms.clamp_min(_TINY)
    updated = (lambdas - beta * meta_gradient).clamp(min=0)
    lambdas.copy_(_rescaled(updated, lambdas) if keep_sum else updated)

    set_gradients(g_main + g_aux.T @ lambdas, psi, lambdas, heads, head_gradients)  # with the updated λ
    return losses | {"meta": meta_loss.detach()}


def _rescaled(updated: Tensor, lambdas: Tensor) -> Tensor:
    """The new λ with the sum of the old ones, which stay as they are if all the new ones are 0."""
    rescaled = updated * lambdas.sum() / updated.sum().clamp_min(_TINY)
    return torch.where(updated.sum() == 0, lambdas, rescaled)


def task_gradients(
    groups: LossGroups, psi: Parameters, heads: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
    """The detached losses, and the gradient of each: flat ∂L/∂ψ, and ∂L_aux,i/∂θaux,i; all by task."""
    losses: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    head_gradients: dict[str, tuple[Tensor, ...]] = {}
    for group in groups:
        for number, (task, loss) in enumerate(group.items(), 1):
            wanted = [*psi.values(), *heads.get(task, ())]
            more = number < len(group)  # the last backward pass frees the graph that the losses share
            parts = torch.autograd.grad(loss, wanted, retain_graph=more, materialize_grads=True)
            losses[task] = loss.detach()
            gradients[task] = _flatten(parts[: len(psi)])
            head_gradients[task] = parts[len(psi) :]
    return losses, gradients, head_gradients


def set_gradients(
    g: Tensor,
    psi: Parameters,
    lambdas: Tensor,
    heads: Mapping[str, Sequence[Tensor]],
    head_gradients: Mapping[str, Sequence[Tensor]],
) -> None:
    """Set every `.grad`: of ψ from the flat g, of each head λᵢ times the gradient of its loss."""
    for p, part in zip(psi.values(), _unflatten(g, psi), strict=True):
        # In the memory layout of p, which the optimizer's fast path on CUDA requires.
        p.grad = part if part.stride() == p.stride() else torch.empty_like(p).copy_(part)
    for weight, (task, parameters) in zip(lambdas, heads.items(), strict=True):
        for p, part in zip(parameters, head_gradients[task], strict=True):
            p.grad = weight * part


def fixed_gradients(
    groups: LossGroups, parameters: Iterable[Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One iteration with given weights (warm-up, fixed λ, `random`, `uncertainty`): set every `.grad`.

    Args:
        groups: the losses of the training batch; each group costs one backward pass.
        parameters: all parameters φ; their old gradients are discarded.
        weights: λᵢ by task, scalars on the device; a loss without one has weight 1, as the main loss has.

    Returns:
        The detached losses by task.
    """
    for p in parameters:
        p.grad = None
    losses: dict[str, Tensor] = {}
    for group in groups:
        total = sum(weights[task] * loss if task in weights else loss for task, loss in group.items())
        assert isinstance(total, Tensor)
        total.backward()  # type: ignore[no-untyped-call]
        losses.update({task: loss.detach() for task, loss in group.items()})
    return losses


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(vector: Tensor, like: Parameters) -> list[Tensor]:
    parts = torch.split(vector, [p.numel() for p in like.values()])
    return [part.view(p.shape) for part, p in zip(parts, like.values(), strict=True)]
