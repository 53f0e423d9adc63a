"""Which images of a batch the self-supervision tasks see: all, or a fraction that makes them cheaper."""

from __future__ import annotations

import torch

from rsslcli.core.errors import UserError
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.ranks import World


class TaskImages:
    """The images that the tasks see: a fraction of the batch, evenly spread over it.

    Image j of them is image ⌊j · batch / count⌋ of the batch. So they do not depend on the number of ranks,
    and every rank has its share of the tasks' work. The order of a batch is random, so the mean loss over
    them is an unbiased estimate of the mean over the batch, but for batch normalization, whose statistics
    come from fewer images.

    Args:
        task_share: their fraction of the batch, above 0 and at most 1; their number is rounded, at least 1.
        batch: number of images of the batch.
        world: the ranks that share the batch.
        device: the device of the images.

    Attributes:
        count: how many there are in the whole batch.
        share: the local part's fraction of them: the weight of its mean in the mean over all.
        indices: int64, the local ones among the local images of the batch, on the device; None if the tasks
            see all images.

    Raises:
        UserError: a rank would have none of them. All ranks raise it.
    """

    def __init__(self, task_share: float, batch: int, world: World, device: torch.device) -> None:
        self.count = max(round(task_share * batch), 1)
        spread = [j * batch // self.count for j in range(self.count)]
        shards = [World(rank, world.size).shard(batch) for rank in range(world.size)]
        parts = [[j for j, i in enumerate(spread) if shard.start <= i < shard.stop] for shard in shards]
        if not all(parts):
            raise UserError(
                f"task_share: {self.count} of {batch} images are too few for the tasks of {world.size} ranks"
            )
        local = parts[world.rank]
        self._part = slice(local[0], local[-1] + 1)
        self.share = len(local) / self.count
        self.indices = None
        if self.count < batch:
            first = shards[world.rank].start
            self.indices = torch.tensor([spread[j] - first for j in local], device=device)

    def random(self, generator: torch.Generator | None) -> BatchRandom:
        """Random numbers for these images, one row per image."""
        return BatchRandom(generator, self.count, self._part)
