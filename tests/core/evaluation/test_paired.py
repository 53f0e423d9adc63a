"""The paired difference of two classifiers, and its bootstrap interval."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from rsslcli.core.evaluation.paired import paired_difference


def test_the_interval_is_that_of_all_possible_resamples() -> None:
    """Four images can be drawn in 256 ways, whose means are counted exactly."""
    first = np.array([[1, 0, 0, 1], [0, 0, 1, 1]], bool)
    second = np.array([[1, 1, 0, 1], [1, 1, 0, 0]], bool)
    gains = [Fraction(int(b.sum()) - int(a.sum()), 2) for a, b in zip(first.T, second.T, strict=True)]
    means = sorted(sum(drawn) / Fraction(4) for drawn in product(gains, repeat=4))
    found = paired_difference(first, second)
    assert found.mean == sum(gains) / 4
    assert (found.low, found.high) == (means[round(0.025 * 255)], means[round(0.975 * 255)])


def test_the_interval_of_many_images_is_that_of_a_normal_mean() -> None:
    random = np.random.default_rng(3)
    first = random.random((19, 2000)) < 0.6
    second = first | (random.random((19, 2000)) < 0.1)
    found = paired_difference(first, second)
    gains = second.mean(0) - first.mean(0)
    assert found.mean == pytest.approx(second.mean() - first.mean())
    half = 1.96 * gains.std(ddof=1) / np.sqrt(2000)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.1 * half)


def test_what_both_get_right_or_wrong_widens_nothing() -> None:
    random = np.random.default_rng(4)
    first = (random.random(500) < 0.5)[None].repeat(5, 0)
    assert paired_difference(first, first) == (0, 0, 0)
    assert paired_difference(first, first, seed=1) == (0, 0, 0)
