"""Student's t distribution, and Holm's correction for several comparisons. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def t_probability(t: float, degrees: int) -> float:
    """The probability that Student's t lies between −|t| and |t|.

    For integer degrees of freedom, at least 1, the integral is a finite sum (Abramowitz and Stegun, 26.7.3
    and 26.7.4).
    """
    return _inside(math.atan2(abs(t), math.sqrt(degrees)), degrees)


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t such that Student's distribution has probability `confidence` between −t and t.

    Bisection over θ, where t = √degrees · tan θ, inverts the probability to double precision.
    """
    low = 0.0
    high = math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _inside(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _inside(theta: float, degrees: int) -> float:
    total = 0.0
    term = math.cos(theta) if degrees % 2 else 1.0
    for k in range(2 + degrees % 2, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(theta) ** 2
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if degrees % 2 else total


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for each other by Holm's method, in the given order.

    If those of at most α count, the probability that any true null hypothesis is among them is at most α,
    whatever their dependence (Holm 1979).
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def margin_of_mean(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean, by Student's t; NaN for fewer than two."""
    n = len(values)
    return t_quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
