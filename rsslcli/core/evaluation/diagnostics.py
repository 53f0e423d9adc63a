"""What goes wrong in an evaluation: confusions, reliability, most confident mistakes. Imports no torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.store import Images, Labels
from rsslcli.core.evaluation.details import ECE_BINS, MISTAKES, Bins, Details
from rsslcli.core.evaluation.outcome import Outcome

#: The confusion matrix is kept for at most this many classes; with more, only the most frequent confusions.
MAX_MATRIX = 20
#: How many confusions are kept.
CONFUSIONS = 10
#: The side of an image on the sheet of mistakes, in pixels; smaller images keep theirs.
SHEET_SIDE = 64

Counts = npt.NDArray[np.int64]
#: By "clean" and "corrupted", which is over all cells of corruptions.
BothCounts = dict[str, Counts]


@dataclass(frozen=True)
class Reliability:
    """How often images are right, by the probability of the predicted class, in `ECE_BINS` bins.

    Attributes:
        images: by bin, their number.
        confidence: by bin, the mean probability of the predicted class; NaN without images.
        accuracy: by bin, the fraction that is right; NaN without images.
    """

    images: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @classmethod
    def of(cls, bins: Sequence[Bins]) -> Reliability:
        """Add up the bins of some cells."""
        counts, sums, rights = np.sum(bins, axis=0)
        with np.errstate(invalid="ignore"):
            return cls(tuple(map(int, counts)), tuple(sums / counts), tuple(rights / counts))

    @property
    def ece(self) -> float:
        """The expected calibration error of all images together."""
        images = np.array(self.images)
        gaps = np.abs(np.subtract(self.accuracy, self.confidence))
        return float(np.nansum(images * gaps) / images.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which `from_dict` reads: 6 digits, null for a bin without images."""

        def known(values: Sequence[float]) -> list[float | None]:
            return [None if np.isnan(value) else float(f"{value:.6g}") for value in values]

        return {
            "images": list(self.images),
            "probability": known(self.confidence),
            "accuracy": known(self.accuracy),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reliability:
        """Read the bins.

        Raises:
            ValueError, TypeError, KeyError: the content is damaged.
        """
        images = tuple(content["images"])
        rows = [
            tuple(np.nan if value is None else float(value) for value in content[name])
            for name in ("probability", "accuracy")
        ]
        if {len(images), *map(len, rows)} != {ECE_BINS} or not all(
            type(n) is int and 0 <= n < 1 << 40 for n in images
        ):
            raise ValueError("not the bins of an evaluation")
        if not any(images) or not all(np.isnan(x) or 0 <= x <= 1 for row in rows for x in row):
            raise ValueError("not fractions")
        return cls(images, *rows)


@dataclass(frozen=True)
class ShownMistake:
    """One of the most confident mistakes."""

    severity: int  #: from 1 to 5; 0 for a clean image
    image: int  #: the index of the source image, or of the clean test image
    label: str  #: the name of its class
    predicted: str  #: that of the predicted class
    probability: float  #: of the predicted class


@dataclass(frozen=True)
class Diagnostics:
    """What goes wrong in an evaluation.

    Attributes:
        classes: the names of the classes.
        confusion: by "clean" and "corrupted", the images of each class (rows) that are taken for each class
            (columns), int64 (classes, classes); empty for more than `MAX_MATRIX` classes.
        confused: by "clean" and "corrupted", the most frequent confusions: the class, that it is taken for,
            and how often; empty if it is not known.
        reliability: by "clean" and "corrupted".
        calibrated: the same with the scores divided by a temperature; empty without one.
        mistakes: by "clean" and by corruption, the most confident mistakes, of different images, in order.
        sheet_digest: identifies `sheet`.
        sheet: a JPEG file with their images, a row for each entry of `mistakes`; None if it was not read.
    """

    classes: tuple[str, ...]
    confusion: BothCounts
    confused: dict[str, list[tuple[str, str, int]]]
    reliability: dict[str, Reliability]
    calibrated: dict[str, Reliability]
    mistakes: dict[str, list[ShownMistake]]
    sheet_digest: str = ""
    sheet: bytes | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The entry `diagnostics` of an evaluation's JSON object."""
        calibrated = {name: found.to_dict() for name, found in self.calibrated.items()}
        return {
            **({"confusion": {k: v.tolist() for k, v in self.confusion.items()}} if self.confusion else {}),
            "confused": {name: [list(pair) for pair in pairs] for name, pairs in self.confused.items()},
            "reliability": {name: found.to_dict() for name, found in self.reliability.items()}
            | ({"calibrated": calibrated} if calibrated else {}),
            "mistakes": {name: list(map(vars, found)) for name, found in self.mistakes.items()},
            "mistakes_sheet": self.sheet_digest,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], classes: Sequence[str]) -> Diagnostics:
        """Read the entry of an evaluation with these classes.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: the content is damaged.
        """
        confusion = {k: np.array(content["confusion"][k]) for k in BOTH if k in content.get("confusion", {})}
        shape = (len(classes), len(classes))
        if any(m.shape != shape or m.dtype.kind != "i" or m.min() < 0 for m in confusion.values()):
            raise ValueError("not a confusion matrix")
        reliability = dict(content["reliability"])
        calibrated = reliability.pop("calibrated", {})
        mistakes = {
            name: [_mistake(**entry) for entry in entries[:MISTAKES]]
            for name, entries in content["mistakes"].items()
            if name in ("clean", *CORRUPTIONS)
        }
        return cls(
            classes=tuple(map(str, classes)),
            confusion=confusion,
            confused={
                name: [(str(a), str(b), int(count)) for a, b, count in content["confused"][name][:CONFUSIONS]]
                for name in BOTH
                if name in content["confused"]
            },
            reliability={name: Reliability.from_dict(reliability[name]) for name in BOTH},
            calibrated={name: Reliability.from_dict(calibrated[name]) for name in BOTH if calibrated},
            mistakes=mistakes,
            sheet_digest=str(content["mistakes_sheet"]),
        )


BOTH = ("clean", "corrupted")


def _mistake(severity: int, image: int, label: str, predicted: str, probability: float) -> ShownMistake:
    """A mistake from JSON, whose numbers must be plausible."""
    if severity not in (0, *SEVERITIES) or type(image) is not int or not 0 <= probability <= 1:
        raise ValueError("not a mistake")
    return ShownMistake(severity, image, str(label), str(predicted), float(probability))


def diagnose(
    rows: Mapping[str, Sequence[Outcome | None]],
    labels_of: Callable[[str], Labels],
    indices_of: Callable[[str], npt.NDArray[np.int64]],
    image_of: Callable[[str, int, int], Images],
    classes: Sequence[str],
    score_of: npt.NDArray[np.int64],
) -> Diagnostics | None:
    """Summarize the details of an evaluation; None if those of a cell are not known.

    Args:
        rows: the outcomes by "clean", which has one, and by corruption, at severities 1 to 5; None where it
            was not evaluated.
        labels_of: the labels of the images of a row.
        indices_of: their indices.
        image_of: the image of a row, a severity and an index, uint8 (S, S, 3).
        classes: the names of the classes.
        score_of: the index of the score of each label.
    """
    cells = {name: [cell.details if cell else None for cell in row] for name, row in rows.items()}
    if any(cell and not cell.details for row in rows.values() for cell in row):
        return None
    class_of = {int(score): label for label, score in enumerate(score_of)}
    confusion = _confusion(cells, labels_of, len(classes), score_of)
    mistakes = {}
    pictures = []
    for name, row in cells.items():
        labels = labels_of(name)
        indices = indices_of(name)
        mistakes[name] = [
            ShownMistake(
                severity=severity,
                image=int(indices[found.position]),
                label=classes[labels[found.position]],
                predicted=classes[class_of[found.predicted]] if found.predicted in class_of else "?",
                probability=float(f"{found.probability:.6g}"),
            )
            for severity, found in _most_confident(row, first=int(name != "clean"))
        ]
        pictures.append([image_of(name, found.severity, found.image) for found in mistakes[name]])
    sheet = _sheet(pictures)
    return Diagnostics(
        classes=tuple(classes),
        confusion=confusion if len(classes) <= MAX_MATRIX else {},
        confused={name: _most_frequent(counts, classes) for name, counts in confusion.items()},
        reliability=_reliability(cells, "bins"),
        calibrated=_reliability(cells, "scaled_bins"),
        mistakes=mistakes,
        sheet_digest=hashlib.sha256(sheet).hexdigest()[:16] if sheet else "",
        sheet=sheet,
    )


#: By "clean" and by corruption, what is known of the evaluated cells.
_Cells = Mapping[str, Sequence[Details | None]]


def _both(cells: _Cells) -> dict[str, list[tuple[str, Details]]]:
    """The evaluated cells as "clean" and "corrupted", each with the name of its row."""
    found: dict[str, list[tuple[str, Details]]] = {name: [] for name in BOTH}
    for name, row in cells.items():
        found["clean" if name == "clean" else "corrupted"] += [(name, cell) for cell in row if cell]
    return {name: each for name, each in found.items() if each}


def _confusion(
    cells: _Cells,
    labels_of: Callable[[str], Labels],
    classes: int,
    score_of: npt.NDArray[np.int64],
) -> BothCounts:
    """The confusion matrices, whatever their size; empty if the predictions of an image are not known."""
    both = _both(cells)
    if any(cell.predicted is None for each in both.values() for _, cell in each):
        return {}
    columns = np.full(max(256, score_of.max() + 1), classes)  # scores of no class go to an extra column
    columns[score_of] = np.arange(classes)
    found = {}
    for kind, each in both.items():
        counts = np.zeros(classes * (classes + 1), np.int64)
        for name, cell in each:
            predicted = columns[np.frombuffer(cell.predicted or b"", np.uint8)]
            counts += np.bincount(labels_of(name) * (classes + 1) + predicted, minlength=len(counts))
        found[kind] = counts.reshape(classes, classes + 1)[:, :classes]
    return found


def _most_frequent(counts: Counts, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(classes[a], classes[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]]


def _reliability(cells: _Cells, kind: str) -> dict[str, Reliability]:
    both = {name: [getattr(cell, kind) for _, cell in each] for name, each in _both(cells).items()}
    return {name: Reliability.of(each) for name, each in both.items() if None not in each}


def _most_confident(row: Sequence[Details | None], first: int) -> list[tuple[int, Any]]:
    """The most confident mistakes of a row, each with its severity; `first` is that of the first cell."""
    every = [(severity, found) for severity, cell in enumerate(row, first) if cell for found in cell.mistakes]
    chosen: dict[int, tuple[int, Any]] = {}  # by image: it is shown once, where the probability is highest
    for severity, found in sorted(every, key=lambda pair: -pair[1].probability):
        chosen.setdefault(found.position, (severity, found))
    return list(chosen.values())[:MISTAKES]


def _sheet(rows: Sequence[Sequence[Images]]) -> bytes | None:
    """A JPEG file with a row of images for each of `rows`; None if there are no images."""
    from PIL import Image

    first = next((image for row in rows for image in row), None)
    if first is None:
        return None
    side = min(len(first), SHEET_SIDE)
    sheet = Image.new("RGB", (MISTAKES * side, len(rows) * side), "white")
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            image = Image.fromarray(np.ascontiguousarray(pixels))
            reduced = image if len(pixels) == side else image.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(reduced, (x * side, y * side))
    return _as_jpeg(sheet)


def cut_sheet(sheet: bytes, rows: int) -> list[list[bytes]]:
    """Cut a sheet of mistakes with so many rows into its images, `MISTAKES` JPEG files for each row.

    Raises:
        ValueError, OSError: it is not such a sheet.
    """
    from PIL import Image

    with Image.open(io.BytesIO(sheet), formats=("JPEG",)) as opened:
        side, rest = divmod(opened.width, MISTAKES)
        if rest or not 0 < side <= SHEET_SIDE or opened.height != rows * side:
            raise ValueError("not a sheet of mistakes")
        image = opened.convert("RGB")
    tops, lefts = (range(0, count * side, side) for count in (rows, MISTAKES))
    return [[_as_jpeg(image.crop((x, y, x + side, y + side))) for x in lefts] for y in tops]


def _as_jpeg(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
