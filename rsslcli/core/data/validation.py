"""The corrupted images that tune λ (section 4), and the source images that they are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import EXTRA, SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.gathering import ChosenImages
from rsslcli.core.data.store import Dataset
from rsslcli.core.errors import UserError
from rsslcli.core.runtime import derive_seed


@dataclass(frozen=True)
class ValidationSet:
    """The corrupted images that tune λ (section 4): the same random source images in every cell."""

    images: ChosenImages  #: V images of (H, W, 3), V = corruptions · severities · source images
    labels: npt.NDArray[np.int64]  #: int64 (V,)
    source: tuple[int, ...]  #: sorted indices of the source images


def validation_source(config: Config, available: int) -> tuple[int, ...]:
    """The sorted indices of the source images that tune λ in an AutoML run, chosen by the seed.

    Their number is `validation_images`, but at most half of the `available` images.

    Raises:
        UserError: only one image is available, which leaves none to test on.
    """
    wanted = min(config.validation_images, available // 2)
    if not wanted:
        raise UserError(
            "only one corrupted source image: tuning λ on some and testing on others needs at least two"
        )
    random = np.random.default_rng(derive_seed(config.seed, "validation"))
    return tuple(int(index) for index in np.sort(random.choice(available, wanted, replace=False)))


def draw_validation_set(config: Config, dataset: Dataset, corrupted: CorruptedSet | None) -> ValidationSet:
    """Draw the images that tune λ by the run's seed; none if λ is fixed.

    Raises:
        UserError: there is no corrupted set, or it does not fit the data set or the settings.
    """
    if not config.automl:
        none = np.empty(0, np.int64)
        return ValidationSet(ChosenImages([dataset.test.images], none), none, ())
    if corrupted is None:
        raise UserError(f"AutoML tunes λ on a corrupted test set, but none is prepared for '{dataset.name}'")
    source = validation_source(config, corrupted.images_per_cell)
    names = [n for n in corrupted.names if config.validation_corruptions == "all" or n in EXTRA]
    if not names:
        raise UserError(
            f"{corrupted.folder} has none of {', '.join(EXTRA)}, which `validation_corruptions` asks for"
        )
    chosen = np.array(source)
    cells = [corrupted.cell(name, severity) for name in names for severity in SEVERITIES]
    labels = np.tile(corrupted.labels[chosen], len(cells))
    return ValidationSet(ChosenImages(cells, chosen), labels, source)
