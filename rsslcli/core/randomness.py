"""Random numbers for the images of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchRandom:
    """Random numbers for a batch of images: each method returns one row per image, on the images' device.

    If ranks share a batch, each rank draws the numbers of the whole batch and keeps those of its local
    images, so an image's numbers do not depend on the number of ranks.

    Attributes:
        generator: the source, on the device of the images; None is torch's default generator.
        batch: the size of the whole batch; None if the images passed in are the whole batch.
        part: which images of the batch are passed in.
    """

    generator: torch.Generator | None = None
    batch: int | None = None
    part: slice = field(default_factory=lambda: slice(None))

    def integers(self, images: Tensor, high: int, *shape: int) -> Tensor:
        """int64 (N, *shape) from 0 to high − 1."""
        return torch.randint(high, self._all(images, shape), generator=self.generator, device=images.device)[
            self.part
        ]

    def uniform(self, images: Tensor, *shape: int) -> Tensor:
        """(N, *shape) of the images' dtype, uniform in [0, 1]; the same numbers for every dtype."""
        drawn = torch.rand(self._all(images, shape), generator=self.generator, device=images.device)
        return drawn[self.part].to(images.dtype)

    def normal(self, images: Tensor, *shape: int) -> Tensor:
        """(N, *shape) of the images' dtype, standard normal; the same numbers for every dtype."""
        drawn = torch.randn(self._all(images, shape), generator=self.generator, device=images.device)
        return drawn[self.part].to(images.dtype)

    def _all(self, images: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(images) if self.batch is None else self.batch, *shape)
