"""A classifier's results on the images of a cell: which are right, and how sure it is. Imports no torch."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.evaluation.bootstrap import Bools
from rsslcli.core.evaluation.details import ECE_BINS, Details, bin_of

Floats = npt.NDArray[np.float64]

#: The numbers that say how sure a classifier is of a cell; lower is better.
METRICS = ("nll", "brier", "ece")


@dataclass(frozen=True)
class Outcome:
    """A classifier's results on the images of a cell.

    Attributes:
        images: their number.
        right: how many are classified right.
        undecided: how many have no class, since their highest score is NaN or infinite.
        bits: which are right, a bit each, packed as by `numpy.packbits`; None if that is not known.
        nll: the mean negative log-likelihood, in nats; infinite if a right class has probability 0. This and
            the next two are None if not known.
        brier: the mean Brier score, Σ (p − y)² over the classes, from 0 to 2 (Brier 1950).
        ece: the expected calibration error with 15 equal-width bins, in [0, 1] (Guo et al. 2017).
        scaled: these three with the scores divided by a temperature; None without one.
        details: what a report shows beside the numbers; None if that is not known.
    """

    images: int
    right: int
    undecided: int = 0
    bits: bytes | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    scaled: tuple[float, ...] | None = None
    details: Details | None = None

    @classmethod
    def of(cls, values: Floats) -> Outcome:
        """Summarize the `image_values` of a cell, float64 (images, 6), or (images, 9) with a temperature."""
        right, undecided, predicted, *columns = values.T
        nll, brier, ece = _metrics(columns[:3], right)
        return cls(
            images=len(values),
            right=int(right.sum()),
            undecided=int(undecided.sum()),
            bits=np.packbits(right.astype(bool)).tobytes(),
            nll=nll,
            brier=brier,
            ece=ece,
            scaled=_metrics(columns[3:], right) if len(columns) > 3 else None,
            details=Details.of(predicted, right, columns[2], columns[5] if len(columns) > 3 else None),
        )

    @property
    def accuracy(self) -> float:
        """The fraction of images that are classified right."""
        return self.right / self.images

    @cached_property
    def correct(self) -> Bools | None:
        """Whether each image is right: bool (images,)."""
        if self.bits is None:
            return None
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.images).astype(bool)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which `from_dict` reads."""
        bits = None if self.bits is None else base64.b64encode(self.bits).decode()
        details = None if self.details is None else self.details.to_dict()
        found = {name: getattr(self, name) for name in _NAMES}
        return {**found, "scaled": self.scaled, "bits": bits, "details": details}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], images: int | None = None) -> Outcome:
        """Read an outcome, of a cell with `images` images if that is known.

        Raises:
            ValueError, TypeError, KeyError: the content is damaged, or contradicts itself.
        """
        found = {name: content[name] for name in _NAMES}
        bits = content["bits"]
        bits = None if bits is None else base64.b64decode(bits, validate=True)
        scaled = None if content["scaled"] is None else tuple(map(float, content["scaled"]))
        details = content["details"]
        details = None if details is None else Details.from_dict(details, found["images"])
        outcome = cls(**found, bits=bits, scaled=scaled, details=details)
        count = outcome.images
        if any(type(found[name]) is not int for name in _NAMES[:3]) or images not in (None, count):
            raise ValueError("not the counts of this cell")
        if not all(found[name] is None or isinstance(found[name], float) for name in METRICS):
            raise ValueError("not the numbers of a cell")
        if not 0 <= outcome.right <= count or not 0 <= outcome.undecided <= count:
            raise ValueError("counts out of range")
        if bits is not None and (len(bits) != -(-count // 8) or outcome.correct.sum() != outcome.right):  # type: ignore[union-attr]
            raise ValueError("the bits contradict the counts")
        return outcome


_NAMES = ("images", "right", "undecided", *METRICS)


def _metrics(columns: Sequence[Floats], right: Floats) -> tuple[float, float, float]:
    nll, brier, confidence = columns
    return float(nll.mean()), float(brier.mean()), _calibration_error(confidence, right)


def _calibration_error(confidence: Floats, right: Floats) -> float:
    """Σ over bins of |right − confidence|, divided by the number of images."""
    if not np.isfinite(confidence).all():
        return float("nan")
    gaps = np.bincount(bin_of(confidence), right - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(right))
