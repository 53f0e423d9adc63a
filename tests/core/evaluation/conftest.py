"""What the tests of evaluations share."""

from __future__ import annotations

import numpy as np
import pytest

from rsslcli.core.data.store import Split, make_split


@pytest.fixture
def test_split() -> Split:
    """Noise: 37 images of three classes, of which a corrupted set has the first 30."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (37, 32, 32, 3), dtype=np.uint8)
    return make_split(images, rng.integers(0, 3, 37), ["ant", "bee", "cow"])
