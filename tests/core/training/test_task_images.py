"""The tasks see a fraction of the batch: the same images on any number of ranks, and each rank has some."""

from __future__ import annotations

import re

import pytest
import torch

from rsslcli.core.errors import UserError
from rsslcli.core.ranks import World
from rsslcli.core.training.task_images import TaskImages

CPU = torch.device("cpu")


def local(images: TaskImages, shard: range) -> list[int]:
    """The local images that the tasks see, by their places in the whole batch."""
    assert images.indices is not None
    return [shard[i] for i in images.indices.tolist()]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("share", "batch"), [(0.5, 64), (0.25, 64), (0.3, 25), (0.9, 10), (0.45, 7)])
def test_the_images_and_their_numbers_do_not_depend_on_the_ranks(share: float, batch: int, size: int) -> None:
    count = round(share * batch)
    whole = TaskImages(share, batch, World(), CPU)
    expected = local(whole, range(batch))
    assert expected == sorted(set(expected))
    assert len(expected) == whole.count == count
    gaps = [b - a for a, b in zip(expected, [*expected[1:], batch + expected[0]], strict=True)]
    assert max(gaps) - min(gaps) <= 1, "they are evenly spread"
    numbers = whole.random(torch.Generator().manual_seed(1)).uniform(torch.zeros(count))

    ranks = [World(rank, size) for rank in range(size)]
    parts = [TaskImages(share, batch, world, CPU) for world in ranks]
    shards = [range(batch)[world.shard(batch)] for world in ranks]
    found = [i for part, shard in zip(parts, shards, strict=True) for i in local(part, shard)]
    assert found == expected
    assert sum(part.share for part in parts) == pytest.approx(1)
    drawn = [part.random(torch.Generator().manual_seed(1)).uniform(torch.zeros(0)) for part in parts]
    assert torch.equal(torch.cat(drawn), numbers)
    assert [len(rows) / count for rows in drawn] == [part.share for part in parts]


def test_at_one_they_are_all_images() -> None:
    images = TaskImages(1.0, 9, World(1, 2), CPU)
    assert images.indices is None
    assert images.share == World(1, 2).share(9)


def test_there_is_at_least_one_image_and_every_rank_needs_one() -> None:
    assert local(TaskImages(1e-9, 64, World(), CPU), range(64)) == [0]
    message = re.escape("task_share: 2 of 64 images are too few for the tasks of 3 ranks")
    for rank in range(3):
        with pytest.raises(UserError, match=message):
            TaskImages(0.03, 64, World(rank, 3), CPU)
