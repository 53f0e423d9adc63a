"""Probabilities and corrections that others compute too."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslcli.core.report.comparison import Comparison, corrected
from rsslcli.core.report.statistics import holm, margin_of_mean, t_probability


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(-30, 30))
def test_probabilities_of_t(degrees: int, t: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    expected = stats.t.cdf(abs(t), degrees) - stats.t.cdf(-abs(t), degrees)
    assert t_probability(t, degrees) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_the_p_value_is_that_of_a_paired_t_test(per_mille: list[int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    differences = [value / 1000 for value in per_mille]
    assert Comparison(tuple(differences)).p_value == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=1e-9
    )


def test_the_margin_of_a_mean() -> None:
    assert margin_of_mean([60, 61, 65]) == pytest.approx(4.302652730 * 2.645751311 / 3**0.5)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    """A hypothesis falls if every set that contains it falls; its p-value is the largest of theirs."""
    indices = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(indices, size)]
    expected = [
        max(min(1, len(each) * min(p_values[i] for i in each)) for each in sets if index in each)
        for index in indices
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_the_verdicts_of_a_table_are_corrected_for_each_other() -> None:
    clear = Comparison((0.100, 0.101, 0.102, 0.101, 0.100))
    slight = Comparison((0.010, 0.020, 0.005, 0.015, 0.025))  # p = 0.013
    noise = Comparison((0.01, -0.01, 0.02, -0.02))
    one = Comparison((0.3,))
    other = Comparison((0.1, 0.1), unlike="images")
    assert [each.verdict for each in corrected([clear, slight, noise, one, other])] == [
        "yes, better", "yes, better", "no", "needs 2 seeds or more", "not judged: different images",
    ]  # fmt: skip
    many = corrected([slight, *[noise] * 4, one])
    assert many[0].verdict == "not after correction", "0.013 times 5 is above 0.05"
    assert many[0].margin == slight.margin, "the interval stays"
    assert Comparison((0.0, 0.0)).p_value == 1


def test_seeds_that_agree_to_the_last_digit_say_nothing_of_the_noise() -> None:
    """Accuracies of few images are coarse, so that two seeds often have one difference."""
    even = Comparison((0.51 - 0.5, 0.61 - 0.6))
    assert even.margin < 1e-9 < even.mean
    assert (even.is_judged, even.verdict) == (False, "needs more seeds")
    assert corrected([even, even])[0] == even
    assert (Comparison((0.0, 0.0)).is_judged, Comparison((0.0, 0.0)).verdict) == (True, "no")
