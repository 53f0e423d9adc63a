"""Batch normalization whose running statistics can be kept as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

#: Suffixes of the tensors in a state dict that batch normalization keeps, which are not parameters.
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


@contextmanager
def keep_running_statistics(network: nn.Module) -> Iterator[None]:
    """Within this context, training passes through `network` do not update its running statistics.

    With `batch_norm` per-task, passes of other tasks run within it; those of the meta step always do. They
    use the statistics of their batch alone. Passes in evaluation mode still use the running ones.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False  # which torch reads in training mode only
    try:
        yield
    finally:
        for layer, tracks in zip(layers, before, strict=True):
            layer.track_running_stats = tracks
