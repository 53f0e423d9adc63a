"""Bootstrap intervals of accuracies over images (Efron 1979). Imports no torch.

An image appears in every cell, so a resample draws images and takes all cells of each: the cells of an image
are not independent. Images that are right in equally many cells are interchangeable, so a resample is one
multinomial draw of how often each number occurs. That has the distribution of drawing image by image, at a
cost that does not grow with the number of images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

#: The share of resamples that an interval covers.
LEVEL = 0.95
RESAMPLES = 2_000


def interval(correct: Bools, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The percentile interval of the mean accuracy over cells.

    Args:
        correct: bool (cells, images), whether each image is classified right in each cell; or (images,).
        level: the share of the resamples that it covers, between 0 and 1.
        resamples: their number.
        seed: decides the resamples.

    Returns:
        The lower and the upper end, in [0, 1].

    Raises:
        ValueError: there are no cells or no images.
    """
    return _percentiles(_right_cells(correct), _cells(correct), level, resamples, seed)


def paired_interval(one: Bools, other: Bools) -> Interval:
    """As `interval`, of the mean accuracy of `one` minus that of `other`, on the same cells and images.

    Each resample draws the same images for both. If the interval does not contain 0, the difference is not
    explained by the choice of images; it says nothing about other seeds of training.

    Raises:
        ValueError: the shapes differ, or there are no cells or no images.
    """
    if one.shape != other.shape:
        raise ValueError(f"expected the same cells and images, got {one.shape} and {other.shape}")
    return _percentiles(_right_cells(one) - _right_cells(other), _cells(one), LEVEL, RESAMPLES, seed=0)


def _cells(correct: Bools) -> int:
    return 1 if correct.ndim == 1 else len(correct)


def _right_cells(correct: Bools) -> npt.NDArray[np.int64]:
    """In how many cells each image is right: int64 (images,)."""
    if correct.ndim not in (1, 2) or not correct.size:
        raise ValueError(f"expected cells and images, got the shape {correct.shape}")
    right: npt.NDArray[np.int64] = np.atleast_2d(correct).sum(0, dtype=np.int64)
    return right


def _percentiles(
    values: npt.NDArray[np.int64], cells: int, level: float, resamples: int, seed: int
) -> Interval:
    """The interval of the mean of `values`, a number for each image, divided by `cells`."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    means = drawn @ distinct / (len(values) * cells)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
