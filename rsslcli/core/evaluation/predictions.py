"""Predict the classes of image files, and compare them with the folders in which the images lie."""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsslcli.core.data.archives import Parts
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.gathering import moved
from rsslcli.core.data.image_files import ImageFiles
from rsslcli.core.data.store import DEFAULT_SIZE, Images
from rsslcli.core.errors import DivergedError, UserError, sanitize
from rsslcli.core.evaluation.class_names import carried_names, check_names
from rsslcli.core.evaluation.measuring import batch_size, check_scores, model_dtype
from rsslcli.core.progress import Progress, silent
from rsslcli.core.runtime import autocast

#: The normal quantile of a 95 % interval.
_Z = 1.959964
#: A cell that begins with one of these is a formula to a spreadsheet.
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of an image.

    Attributes:
        file: the image's path.
        label: the class whose folder it lies in; None if it lies in none.
        ranking: the most probable classes and their probabilities, highest first.
    """

    file: str
    label: str | None
    ranking: tuple[tuple[str, float], ...]

    @property
    def prediction(self) -> str:
        """The most probable class."""
        return self.ranking[0][0]

    @property
    def probability(self) -> float:
        """The probability of that class."""
        return self.ranking[0][1]

    def to_json(self, *, labeled: bool) -> str:
        """Format one line: a JSON object of ASCII characters, with a key "label" if `labeled`."""
        content: dict[str, Any] = {"file": self.file} | ({"label": self.label} if labeled else {})
        content |= {"prediction": self.prediction, "probability": _rounded(self.probability)}
        content["top"] = [{"class": name, "probability": _rounded(value)} for name, value in self.ranking]
        return json.dumps(content) + "\n"

    def to_csv(self, *, labeled: bool) -> str:
        """Format one line with the columns of `csv_header`."""
        label = [] if not labeled else ["" if self.label is None else escaped(self.label)]
        ranking = (cell for name, value in self.ranking for cell in (escaped(name), _rounded(value)))
        return _csv_line([escaped(self.file), *label, *ranking])


def csv_header(top: int, *, labeled: bool) -> str:
    """The first line of a CSV file of predictions with `top` classes each."""
    further = (f"{name}_{rank}" for rank in range(2, top + 1) for name in ("prediction", "probability"))
    return _csv_line(["file", *(["label"] if labeled else []), "prediction", "probability", *further])


def escaped(text: str) -> str:
    r"""`text` as one printable line, with the escapes of a Python string: "\n", "\x1b", "\udcff", "\\".

    A first character that would make it a formula in a spreadsheet is escaped too.
    `escaped(text).encode("latin-1", "backslashreplace").decode("unicode_escape")` is `text`.
    """
    line = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
    return f"\\x{ord(line[0]):02x}{line[1:]}" if line.startswith(_FORMULA) else line


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")


class Confusion:
    """How often images of each class were predicted as each class.

    Attributes:
        classes: their names.
        counts: int64 (classes, classes); row: the class of the images, column: the prediction.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.counts = np.zeros((len(classes), len(classes)), np.int64)
        self._index = {name: index for index, name in enumerate(classes)}

    def add(self, prediction: Prediction) -> None:
        """Count a prediction; one without a label does not count."""
        if prediction.label is not None:
            self.counts[self._index[prediction.label], self._index[prediction.prediction]] += 1

    @property
    def images(self) -> int:
        """The number of images counted."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of images whose prediction is their class; NaN without images."""
        return float(np.trace(self.counts) / self.images) if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy (Wilson 1927), as if the images were drawn independently."""
        count = self.images
        if not count:
            return 0.0, 1.0
        center = (self.accuracy + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        variance = self.accuracy * (1 - self.accuracy) / count + (_Z / (2 * count)) ** 2
        margin = _Z * math.sqrt(variance) / (1 + _Z**2 / count)
        return max(center - margin, 0.0), min(center + margin, 1.0)

    @property
    def recall(self) -> list[float | None]:
        """By class, the fraction of its images that are predicted as it; None without images."""
        return _ratios(self.counts.diagonal(), self.counts.sum(1))

    @property
    def precision(self) -> list[float | None]:
        """By class, the fraction of the images predicted as it that are of it; None without any."""
        return _ratios(self.counts.diagonal(), self.counts.sum(0))

    def mistakes(self, index: int) -> list[tuple[str, int]]:
        """What images of a class are taken for, by number of images, highest first."""
        row = self.counts[index]
        order = np.argsort(-row, kind="stable")
        return [(self.classes[i], int(row[i])) for i in order if row[i] and i != index]

    def to_json(self, about: Mapping[str, Any]) -> str:
        """Format as a JSON object that begins with the entries of `about`."""
        rates = zip(self.classes, self.counts.sum(1).tolist(), self.recall, self.precision, strict=True)
        content = {
            **about,
            "images": self.images,
            "accuracy": self.accuracy if self.images else None,
            "interval_95": list(self.interval),
            "per_class": [
                {"class": name, "images": images, "recall": recall, "precision": precision}
                for name, images, recall, precision in rates
            ],
            "classes": list(self.classes),
            "confusion": self.counts.tolist(),
        }
        return json.dumps(content, indent=2) + "\n"


def _ratios(parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64]) -> list[float | None]:
    return [int(part) / int(whole) if whole else None for part, whole in zip(parts, wholes, strict=True)]


def class_names(classifier: nn.Module, outputs: int) -> tuple[str, ...]:
    """The class names that the networks of rssl in a classifier carry, else the numbers of its scores.

    Raises:
        UserError: they carry different names, or one name twice.
    """
    names = carried_names(classifier, outputs)
    if names:
        check_names(names, outputs)
    return names or tuple(map(str, range(outputs)))


def folder_labels(classes: Sequence[str]) -> Callable[[Parts], str | None]:
    """Make the function that gives an image its class: the first folder around it that has a class's name.

    It gives None if there is no such folder. Names that differ only in how Unicode writes an accent are the
    same.
    """
    named = {unicodedata.normalize("NFC", name): name for name in classes}

    @cache  # images of a folder share the result
    def label(folders: Parts) -> str | None:
        composed = (unicodedata.normalize("NFC", folder) for folder in folders)
        return next((named[folder] for folder in composed if folder in named), None)

    return label


def predict(
    classifier: nn.Module,
    files: ImageFiles,
    classes: Sequence[str],
    *,
    device: torch.device,
    top: int = 1,
    size: int = DEFAULT_SIZE,
    batch: int | None = None,
    precision: str = "float32",
    temperature: float = 1.0,
    skip: Callable[[str, str], None] = lambda name, reason: None,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Predict the classes of images, one batch at a time.

    Args:
        classifier: maps floats (N, 3, size, size) in [0, 1], of its dtype, to scores (N, classes). It is
            called with the batches in the order of `files`, without gradients.
        files: the images; see `find_images`.
        classes: the names of the scores.
        device: where to compute; the classifier is moved there.
        top: how many classes to rank.
        size: the side of the images, in pixels.
        batch: images per forward pass; by default as for an evaluation.
        precision: "bfloat16" computes under autocast.
        temperature: divides the scores before they become probabilities.
        skip: called with the name of each unusable image and the reason.
        progress: called after every batch.

    Yields:
        A prediction for each image that can be read, in order.

    Raises:
        UserError: the classifier does not return one score for each class, or an archive is damaged.
        DivergedError: a score is NaN or infinite.
    """
    classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)
    total = sum(1 for _ in files.images)
    label = folder_labels(classes)
    done = 0

    def count_skipped(name: str, reason: str) -> None:
        nonlocal done
        done += 1
        skip(name, reason)

    for images, pixels in files.read(size, batch or batch_size(device, size), count_skipped):
        scores = _scores(classifier, pixels, device, precision)
        if scores.shape[1] != len(classes):
            raise UserError(f"the classifier gives {scores.shape[1]} scores, but has {len(classes)} classes")
        finite = scores.isfinite().all(1)
        if not finite.all():
            name = sanitize(images[int(finite.int().argmin())].name, 300)
            raise DivergedError(f"the scores of {name} are NaN or infinite: check the weights")
        probabilities, ranked = (
            part.tolist() for part in (scores.double() / temperature).softmax(1).topk(top)
        )
        for image, values, indices in zip(images, probabilities, ranked, strict=True):
            ranking = tuple((classes[index], value) for index, value in zip(indices, values, strict=True))
            yield Prediction(image.name, label(image.folders), ranking)
        done += len(images)
        progress("predicting", done, total)


@torch.no_grad()  # not inference_mode: a classifier that adapts itself takes gradients of its own
def _scores(classifier: nn.Module, pixels: Images, device: torch.device, precision: str) -> Tensor:
    """The scores of uint8 images (N, S, S, 3), on the CPU."""
    images = to_float(moved(torch.from_numpy(pixels), device), model_dtype(classifier))
    with autocast(device, precision == "bfloat16"):
        return check_scores(classifier(images), len(pixels)).cpu()
