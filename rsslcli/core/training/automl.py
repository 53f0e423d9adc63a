"""Algorithm 1: task weights λ that tune themselves while the network trains (section 4).

The total loss L = L_main + Σ λᵢ L_aux,i is linear in λ, so the look-ahead ψ' = ψ − α ∂L/∂ψ of Eq. (2) is
linear in λ too, and the meta-gradient is an inner product of two plain gradients:

    ∂L_meta/∂λᵢ = −α ⟨ ∂L_aux,i/∂ψ, ∂L_main(X_val; ψ')/∂ψ' ⟩

That is exact: no second derivative is dropped, none is needed. And since ψ does not move between the two
halves of the algorithm, the update with the new λ reuses the gradients that the first half computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

MAIN = "main"

#: Losses that share a forward pass, by task; `MAIN` is among one group's. Made and consumed one at a time.
LossGroups = Iterable[Mapping[str, Tensor]]
#: Parameters by name, ψ = (θc, θmain).
Parameters = Mapping[str, Tensor]


def automl_gradients(
    groups: LossGroups,
    psi: Parameters,
    heads: Mapping[str, Sequence[Tensor]],
    lambdas: Tensor,
    validation_loss: Callable[[Parameters], Tensor],
    *,
    alpha: float | Tensor,
    beta: float,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """One iteration of Algorithm 1 after the warm-up, up to the optimizer: updates λ and sets every `.grad`.

    Args:
        groups: the losses of the training batch. Each needs its own gradient, so a group of m losses costs
            m backward passes through what they share.
        psi: the parameters ψ of trunk and classifier.
        heads: the parameters θaux,i of each task's head, in the order of λ.
        lambdas: (k,) the weights λ, changed in place and kept at 0 or above.
        validation_loss: L_main on a validation batch, as a function of ψ.
        alpha: step size α of the look-ahead, Eq. (2).
        beta: learning rate β of λ.
        sum_over_ranks: sums a tensor over the ranks, where these share the batches and the losses are this
            rank's share. λ is then the same on every rank; `.grad` remains this rank's share.

    Returns:
        The detached losses by task, and "meta": the meta loss. No value is read back from the device.
    """
    losses: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}  # ∂L/∂ψ of each task's own loss, flat
    own: dict[str, tuple[Tensor, ...]] = {}  # ∂L_aux,i/∂θaux,i
    for group in groups:
        for remaining, (task, loss) in zip(range(len(group) - 1, -1, -1), group.items(), strict=True):
            wanted = [*psi.values(), *heads.get(task, ())]
            parts = torch.autograd.grad(loss, wanted, retain_graph=remaining > 0, materialize_grads=True)
            losses[task] = loss.detach()
            gradients[task] = _flatten(parts[: len(psi)])
            own[task] = parts[len(psi) :]
    g_main = gradients[MAIN]
    g_aux = torch.stack([gradients[task] for task in heads])  # (k, |ψ|)

    g = sum_over_ranks(g_main + lambdas @ g_aux)  # ∂L/∂ψ
    ahead = {
        name: (p.detach() - alpha * step).requires_grad_()
        for (name, p), step in zip(psi.items(), _unflatten(g, psi), strict=True)
    }
    meta_loss = validation_loss(ahead)  # L_main(X_val; ψ − α ∂L/∂ψ)
    v = sum_over_ranks(_flatten(torch.autograd.grad(meta_loss, list(ahead.values()))))
    meta_gradient = -alpha * sum_over_ranks(g_aux @ v)  # ∂L_meta/∂λ
    lambdas.sub_(beta * meta_gradient).clamp_(min=0)

    g = g_main + lambdas @ g_aux  # with the updated λ
    for p, part in zip(psi.values(), _unflatten(g, psi), strict=True):
        p.grad = part
    for weight, (task, parameters) in zip(lambdas, heads.items(), strict=True):
        for p, part in zip(parameters, own[task], strict=True):
            p.grad = weight * part
    return losses | {"meta": meta_loss.detach()}


def fixed_gradients(
    groups: LossGroups, parameters: Iterable[Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """One iteration with λ as it is (warm-up, single task, no AutoML): sets every `.grad`.

    Args:
        groups: the losses of the training batch; each group costs one backward pass.
        parameters: all parameters φ, whose old gradients are dropped.
        weights: λᵢ by task, scalars on the device.

    Returns:
        The detached losses by task.
    """
    for p in parameters:
        p.grad = None
    losses: dict[str, Tensor] = {}
    for group in groups:
        total = sum(loss if task == MAIN else weights[task] * loss for task, loss in group.items())
        assert isinstance(total, Tensor)
        total.backward()  # type: ignore[no-untyped-call]
        losses.update({task: loss.detach() for task, loss in group.items()})
    return losses


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _unflatten(vector: Tensor, like: Parameters) -> list[Tensor]:
    parts = torch.split(vector, [p.numel() for p in like.values()])
    return [part.view(p.shape) for part, p in zip(parts, like.values(), strict=True)]
