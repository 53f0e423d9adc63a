"""The details behind a cell's numbers: predictions and most confident mistakes. Imports no torch."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Equal-width bins of the highest probability in the expected calibration error.
ECE_BINS = 15
#: How many mistakes are kept of a cell. As many different images can then be shown of any number of cells.
MISTAKES = 4
#: More scores than this do not fit a byte; the predictions of single images are then not kept.
_MAX_SCORES = 256

#: By bin: the number of images, the sum of their highest probabilities, and how many are right.
Bins = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean; None if there are no values, or one of them is not known."""
    every = list(values)
    known = [value for value in every if value is not None]
    return float(np.mean(known)) if known and len(known) == len(every) else None


class Mistake(NamedTuple):
    """An image that is classified wrong."""

    position: int  #: among the evaluated images of the cell
    predicted: int  #: the index of the highest score
    probability: float  #: of that score


@dataclass(frozen=True)
class Details:
    """What a report shows of a cell.

    Attributes:
        predicted: the index of the highest score of each image, a byte each; None if there may be more than
            256 scores.
        mistakes: the wrong images with the highest probabilities, at most `MISTAKES`, most confident first.
        bins: the images by their highest probability, in `ECE_BINS` bins.
        scaled_bins: the same with the scores divided by a temperature; None without one.
    """

    predicted: bytes | None
    mistakes: tuple[Mistake, ...]
    bins: Bins
    scaled_bins: Bins | None = None

    @classmethod
    def of(cls, predicted: Floats, right: Floats, confidence: Floats, scaled: Floats | None) -> Details:
        """Summarize the images of a cell; each argument has an entry per image.

        Args:
            predicted: the index of the highest score.
            right: 1 if it is the right one, else 0.
            confidence: the highest probability.
            scaled: the same with a temperature.
        """
        wrong = np.flatnonzero(right == 0)
        surest = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
        return cls(
            predicted=predicted.astype(np.uint8).tobytes() if predicted.max() < _MAX_SCORES else None,
            mistakes=tuple(Mistake(int(i), int(predicted[i]), float(confidence[i])) for i in surest),
            bins=_bins(confidence, right),
            scaled_bins=None if scaled is None else _bins(scaled, right),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which `from_dict` reads."""
        predicted = None if self.predicted is None else base64.b64encode(self.predicted).decode()
        return {**vars(self), "predicted": predicted}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], images: int) -> Details:
        """Read the details of a cell with `images` images.

        Raises:
            ValueError, TypeError, KeyError: the content is damaged, or is of another number of images.
        """
        predicted = content["predicted"]
        predicted = None if predicted is None else base64.b64decode(predicted, validate=True)
        mistakes = tuple(Mistake(int(i), int(n), float(p)) for i, n, p in content["mistakes"])
        if not all(0 <= mistake.position < images for mistake in mistakes):
            raise ValueError("a mistake is no image of the cell")
        if predicted is not None and len(predicted) != images:
            raise ValueError("not a prediction for each image")
        scaled = content["scaled_bins"]
        bins = _read_bins(content["bins"], images)
        return cls(predicted, mistakes, bins, scaled and _read_bins(scaled, images))


def bin_of(confidence: Floats) -> npt.NDArray[np.int64]:
    """The index of the bin of each probability, in the same shape: bin i is (i / 15, (i + 1) / 15]."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def _bins(confidence: Floats, right: Floats) -> Bins:
    known = np.isfinite(confidence)
    index = bin_of(confidence[known])
    weights = (None, confidence[known], right[known])
    counts, sums, rights = (np.bincount(index, each, ECE_BINS).tolist() for each in weights)
    return tuple(counts), tuple(sums), tuple(rights)


def _read_bins(content: Any, images: int) -> Bins:
    counts, sums, rights = (tuple(map(float, row)) for row in content)
    if {len(counts), len(sums), len(rights)} != {ECE_BINS}:
        raise ValueError("not the bins of a cell")
    # Probabilities in float32 may exceed 1 by their rounding.
    possible = (
        n.is_integer() and 0 <= total <= n * (1 + 1e-5) and 0 <= right <= n
        for n, total, right in zip(counts, sums, rights, strict=True)
    )
    if not all(possible) or sum(counts) > images:
        raise ValueError("bins that no cell can have")
    return counts, sums, rights
