"""The difference between two classifiers on the same corrupted images, with its bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: How many times the images are drawn anew.
RESAMPLES = 2000


class Difference(NamedTuple):
    """A difference in accuracy, in [-1, 1], and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], *, seed: int = 0
) -> Difference:
    """How much more accurate `second` is than `first`, with the percentile bootstrap over source images.

    The source images are drawn with replacement, each with all its corrupted versions, since those of one
    image are not independent (Efron 1979). The interval says what other test images would give, not what
    another seed of the training would.

    Args:
        first, second: bool (cells, images): which images each classifier gets right in each cell. Column i
            is the same source image in both.
        seed: of the resampling.
    """
    gains = second.mean(0) - first.mean(0)
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(gains), (RESAMPLES, len(gains)))
    low, high = np.quantile(gains[drawn].mean(1), [0.025, 0.975])
    return Difference(float(gains.mean()), float(low), float(high))
