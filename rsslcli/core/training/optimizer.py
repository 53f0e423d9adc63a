"""The optimizer of a run, and a separate learning rate of the trunk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from rsslcli.core.config import Config
from rsslcli.core.training.multitask import MultiTaskNetwork


def make_optimizer(config: Config, model: MultiTaskNetwork) -> Optimizer:
    """The optimizer of trunk, classifier and heads; `set_learning_rate` sets its learning rates."""
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    if config.trunk_lr_factor != 1:
        named = list(model.named_parameters())
        trunk = [p for name, p in named if is_trunk(name)]
        others = [p for name, p in named if not is_trunk(name)]
        groups = [{"params": trunk, "lr_factor": config.trunk_lr_factor}, {"params": others}]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the classifier and the heads, and with it that of the trunk."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)


def step_factors(config: Config, psi: Mapping[str, Tensor]) -> Tensor | float:
    """The factors of the learning rate by element of ψ, (|ψ|,), for the look-ahead; 1.0 if all are 1."""
    if config.trunk_lr_factor == 1:
        return 1.0
    return torch.cat(
        [
            p.new_full((p.numel(),), config.trunk_lr_factor if is_trunk(name) else 1.0)
            for name, p in psi.items()
        ]
    )


def is_trunk(name: str) -> bool:
    """True if a `MultiTaskNetwork`'s parameter called `name` belongs to the trunk θc."""
    return name.startswith("network.") and not name.startswith("network.fc.")
