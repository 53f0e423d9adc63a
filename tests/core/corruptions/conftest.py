from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from rsslcli.core.corruptions import generate


@pytest.fixture(scope="session")
def images() -> NDArray[np.uint8]:
    """Colored patches with some texture (40, 32, 32, 3); the first three are black, white and gray."""
    random = np.random.default_rng(0)
    patches = random.integers(0, 256, (40, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    textured = np.clip(patches + random.normal(0, 12, patches.shape), 0, 255).astype(np.uint8)
    textured[0], textured[1], textured[2] = 0, 255, 128
    return textured


@pytest.fixture(scope="class")
def small_chunks() -> Iterator[None]:
    """Chunks of 16 images: several for `images`, and little work for one image, which fills a whole chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(generate.CHUNK, 32, 16)
        yield
