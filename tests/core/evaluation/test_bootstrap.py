"""Tests of bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from rsslcli.core.evaluation.bootstrap import Bools, interval, paired_interval


def cells(count: int = 12, images: int = 300, seed: int = 0, easier: float = 0.0) -> Bools:
    """Whether images are right in cells: some images are hard in every cell."""
    random = np.random.default_rng(seed)
    skill = np.clip(random.beta(2, 1, images) + easier, 0, 1)
    return random.random((count, images)) < skill


def by_image(values: np.ndarray, resamples: int = 4000) -> np.ndarray:
    """The interval by drawing images one by one, as a textbook does."""
    random = np.random.default_rng(99)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    return np.percentile(means, [2.5, 97.5])


def test_the_interval_is_that_of_drawing_whole_images() -> None:
    correct = cells()
    np.testing.assert_allclose(interval(correct), by_image(correct.mean(0)), atol=0.004)


def test_the_interval_has_the_width_of_the_normal_one_over_images() -> None:
    correct = cells(images=2000)
    low, high = interval(correct)
    per_image = correct.mean(0)
    assert high - low == pytest.approx(2 * 1.959964 * per_image.std() / np.sqrt(2000), rel=0.06)
    # Cells drawn independently would seem far more certain.
    p = correct.mean()
    assert high - low > 1.5 * (2 * 1.96 * np.sqrt(p * (1 - p) / correct.size))


def test_each_end_is_a_quantile_of_the_binomial_distribution() -> None:
    """To draw n of n images, of which k are right, is to draw from it with p = k / n."""
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    correct = np.arange(1000) < 700
    expected = stats.binom.ppf([0.025, 0.975], 1000, 0.7) / 1000
    np.testing.assert_allclose(interval(correct, resamples=200_000), expected, atol=0.0011)


def test_a_paired_interval_is_narrower_than_two_single_ones() -> None:
    one = cells()
    other = one & cells(seed=1, easier=0.4)  # the same images are hard for both
    low, high = paired_interval(one, other)
    np.testing.assert_allclose((low, high), by_image(one.mean(0) - other.mean(0)), atol=0.004)
    assert low < one.mean() - other.mean() < high
    widths = [b - a for a, b in (interval(one), interval(other))]
    assert high - low < np.hypot(*widths)
    assert paired_interval(one, one) == (0.0, 0.0)
    np.testing.assert_allclose(paired_interval(other, one), (-high, -low), atol=0.004)


def test_a_seed_gives_the_same_interval_and_certain_images_give_none() -> None:
    correct = cells(1)[0]
    assert interval(correct) == interval(correct[None]) == interval(correct[::-1])
    assert interval(cells(), seed=1) != interval(cells()) == interval(cells())
    assert interval(np.ones((3, 20), bool)) == (1.0, 1.0)
    narrow = interval(correct, level=0.5)
    wide = interval(correct)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_nothing_to_draw_from_and_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected cells and images"):
        interval(np.zeros((0, 5), bool))
    with pytest.raises(ValueError, match="the same cells and images"):
        paired_interval(cells(2), cells(3))
