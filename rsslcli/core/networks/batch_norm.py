"""Batch normalization with running statistics that can be frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

#: Suffixes of the tensors in a state dict that batch normalization keeps, which are not parameters.
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that can train without updating its running statistics.

    The main task's passes update them. Passes of other tasks and of the meta step only use the statistics of
    their batch (see `keep_running_statistics`).
    """

    updates_statistics = True

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.updates_statistics:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


@contextmanager
def keep_running_statistics(network: nn.Module) -> Iterator[None]:
    """Within this context, training passes through `network` do not update its running statistics."""
    layers = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    before = [layer.updates_statistics for layer in layers]
    for layer in layers:
        layer.updates_statistics = False
    try:
        yield
    finally:
        for layer, updates in zip(layers, before, strict=True):
            layer.updates_statistics = updates
