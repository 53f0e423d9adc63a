"""UPGrad (Quinton & Rey, 2024), a rival of Algorithm 1: resolve the conflicts between the losses' gradients.

Each gradient is projected onto the dual cone of all, the directions along which no loss gets worse to first
order, and the step follows their sum. A projection is a combination of the gradients whose
coefficients v solve a small quadratic program over their Gramian G: min vᵀ G v with v ≥ e_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rsslcli.core.training.automl import MAIN, LossGroups, Parameters, set_gradients, task_gradients
from rsslcli.core.training.optimizer import is_trunk

#: Added to the Gramian's diagonal, relative to its trace as in the authors' TorchJD, so that parallel
#: gradients have a unique solution.
_REGULARIZATION = 1e-4


def upgrad_gradients(
    groups: LossGroups,
    psi: Parameters,
    heads: Mapping[str, Sequence[Tensor]],
    lambdas: Tensor,
    *,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """One iteration: set every `.grad`, with the losses weighted by λ before their conflicts are resolved.

    The classifier and the heads get the gradients of their own losses, times λ: only the trunk is shared.

    Args:
        groups: the losses of the training batch; each needs a backward pass of its own.
        psi: the parameters ψ of trunk and classifier.
        heads: the parameters of each task's head, in the order of λ.
        lambdas: (k,) the weights λ, unchanged.
        sum_over_ranks: as for `automl_gradients`.

    Returns:
        The detached losses by task.
    """
    losses, gradients, head_gradients = task_gradients(groups, psi, heads)
    rows = torch.stack(
        [gradients[MAIN], *(w * gradients[task] for w, task in zip(lambdas, heads, strict=True))]
    )
    of_trunk = [torch.full_like(p, is_trunk(name), dtype=torch.bool) for name, p in psi.items()]
    shared = torch.cat([part.reshape(-1) for part in of_trunk])
    total = sum_over_ranks(rows * shared)
    gramian = torch.stack([total @ row for row in total])  # matrix times vector: never rounded to TF32
    weights = upgrad_weights(gramian) * len(rows)  # with no conflict, the plain sum of the gradients
    g = torch.where(shared, rows.T @ weights, gradients[MAIN])
    set_gradients(g, psi, lambdas, heads, head_gradients)
    return losses


def upgrad_weights(gramian: Tensor) -> Tensor:
    """The coefficients of UPGrad's combination of m gradients.

    The quadratic programs are solved exactly: for every subset of constraints v_j ≥ u_j that may hold with
    equality, one linear system gives the candidate, and the feasible candidate of least value is the
    solution. All 2^m systems are solved at once on the device, in float64.

    Args:
        gramian: (m, m), the inner products of the gradients.

    Returns:
        (m,), the mean over i of the minimizers of vᵀ G v with v ≥ e_i.
    """
    m = len(gramian)
    dtype, gramian = gramian.dtype, gramian.double()
    scale = gramian.diagonal().sum().clamp_min(torch.finfo(gramian.dtype).tiny)
    u = torch.eye(m, dtype=gramian.dtype, device=gramian.device)  # row i is the bound of the i-th program
    g = gramian / scale + _REGULARIZATION * u
    subsets = torch.arange(2**m, device=gramian.device)[:, None, None]
    bound = (subsets >> torch.arange(m, device=gramian.device)[:, None] & 1).bool()  # (2^m, m, 1)
    # The systems: v_j = u_j where bound, (G v)_j = 0 elsewhere; for all programs, as columns.
    v = torch.linalg.solve_ex(torch.where(bound, u, g), bound * u)[0].mT  # (2^m, programs, m)
    slack = 1e-6
    feasible = (v >= u - slack).all(2)
    value = ((v @ g) * v).sum(2).where(feasible, torch.inf)
    best = value.argmin(0)
    chosen: Tensor = v.gather(0, best[None, :, None].expand(1, m, m))[0]
    return chosen.mean(0).to(dtype)
