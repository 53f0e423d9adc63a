"""Weighting by homoscedastic uncertainty (Kendall et al., CVPR 2018), a rival of Algorithm 1.

Each loss has a learned log-variance s, and the total is L = Σ ½ (exp(−s) L_i + s). So its weight is
λ_i = ½ exp(−s_i), and a gradient step on s_i, with ∂L/∂s_i = ½ − λ_i L_i, multiplies λ_i: the weights are the
only state. Large losses get small weights.
"""

from __future__ import annotations

from torch import Tensor


def update_uncertainty(lambdas: Tensor, losses: Tensor, rate: float | Tensor) -> None:
    """One step of gradient descent on the log-variances.

    Args:
        lambdas: (1 + k,) the weights ½ exp(−s) of the main loss and of the tasks, changed in place.
        losses: (1 + k,) the unweighted losses of the batch, detached, in the same order.
        rate: the learning rate of s, that of the network.
    """
    lambdas.mul_((rate * (0.5 - lambdas * losses)).exp())
