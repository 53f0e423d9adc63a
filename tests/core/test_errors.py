"""Numbers in messages and tables."""

from __future__ import annotations

import pytest

from rsslcli.core.errors import signed


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(1.5, 2, "+1.50"), (-0.254, 2, "−0.25"), (-0.004, 2, "+0.00"), (-0.04, 1, "+0.0"), (-12.0, 1, "−12.0")],
)
def test_no_number_that_rounds_to_zero_is_negative(value: float, digits: int, text: str) -> None:
    assert signed(value, digits) == text
