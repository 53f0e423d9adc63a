"""Check from its images that a corrupted set numbers the classes as the data set does.

A mildly corrupted image is still recognizable: shrunk to a few pixels, it is far nearer to its original than
to any other image. If the clean test set has that original, both labels must name the same class.
"""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet, aligned
from rsslcli.core.data.store import Images, Split
from rsslcli.core.errors import UserError, short_repr

_SIDE = 8  # pixels of the shrunk images
_RATIO = 0.5  # an image is recognized if the second nearest is at least twice as far away
_LOOKED_AT = 4000  # images over all corruptions
#: The fraction to recognize before judging; about 1 % of unrelated images have a near copy in a test set.
_RECOGNIZED = 0.05
_TOLERATED = 0.1  # the fraction of recognized images that may have another class, such as near copies
_NOISE = 1e-4  # above the rounding error of a squared distance
_AT_ONCE = 16  # rows of distances in memory at a time
_PER_CELL = 100  # images that are compared with the clean ones
_NAMED = 5  # cells that a note names

_Features = npt.NDArray[np.float32]


def check_labels(corrupted: CorruptedSet, test: Split, source: Path) -> tuple[bool, bool]:
    """Compare the labels of recognized images, at severity 1, with their classes in `test`.

    The images may be in another order, and either set may be a subset of the other.

    Returns:
        Whether the labels agree, which is False if too few images are recognized to tell; and whether the
        images are in the order of `test`, as far as they are recognized.

    Raises:
        UserError: the labels do not agree; the message names the set by `source`.
    """
    cells, said, found, moved = _recognize(corrupted, test)
    looked_at = min(_per_cell(corrupted), corrupted.images_per_cell, len(test.labels)) * len(corrupted.names)
    if not len(said) or len(said) < _RECOGNIZED * looked_at:
        return False, True
    wrong = said != found
    bad = np.isin(cells, _disagreeing(wrong, cells))
    if bad.any() and not bad.all() and not len(_disagreeing(wrong[~bad], said[~bad])):
        cell = cells[bad][0]
        raise _out_of_order(f"{corrupted.names[cell]}.npy in {source}", wrong[cells == cell])
    bad_labels = _disagreeing(wrong, said)
    for label in bad_labels:
        shown = np.bincount(found[said == label])
        if shown.argmax() != label and 2 * shown.max() > shown.sum():
            raise UserError(
                f"{source} does not number the classes as the data set does: images with the label {label}, "
                f"class {short_repr(test.classes[label])} of the data set, are pictures of class "
                f"{short_repr(test.classes[shown.argmax()])}: rename the class folders of the data set so "
                "that their names sort in the order of the labels, and prepare it again"
            )
    if len(bad_labels) or len(_disagreeing(wrong, np.zeros_like(said))):
        raise _out_of_order(str(source), wrong)
    return True, not len(_disagreeing(moved > 0, np.zeros_like(said)))


def describe_classes(classes: tuple[str, ...]) -> str:
    """The numbers of the classes on one line: all of them up to ten, else some."""
    numbers = range(len(classes))
    shown = [f"{number} = {short_repr(classes[number])}" for number in numbers]
    return ", ".join(shown if len(shown) <= 10 else [*shown[:3], "…", shown[-1]])


def _out_of_order(subject: str, wrong: npt.NDArray[np.bool_]) -> UserError:
    return UserError(
        f"{subject} is not in the order of its labels: {wrong.sum()} of the {len(wrong)} images recognized "
        "in it have another class than their labels say: get it again"
    )


def _per_cell(corrupted: CorruptedSet) -> int:
    return -(-_LOOKED_AT // len(corrupted.names))


def _recognize(corrupted: CorruptedSet, test: Split) -> tuple[npt.NDArray[np.int64], ...]:
    """For each recognized image: the index of its corruption, its label, its label in `test`, and its move.

    The move is 1 if the image has another place in `test`, else 0.
    """
    # Search the larger set for images of the smaller one, since nearly all of those can be found.
    forth = corrupted.images_per_cell <= len(test.labels)
    clean = _features(test.images) if forth else None
    parts = []
    for index in range(len(corrupted.names)):
        images = corrupted.cell(corrupted.names[index], 1)
        smaller = min(len(images), len(test.labels))
        chosen = np.random.default_rng(index).permutation(smaller)[: _per_cell(corrupted)]
        if clean is not None:
            nearest, known = _nearest(_features(images[chosen]), clean)
            pairs = corrupted.labels[chosen], test.labels[nearest]
        else:
            nearest, known = _nearest(_features(test.images[chosen]), _features(images))
            pairs = corrupted.labels[nearest], test.labels[chosen]
        parts.append(np.stack([np.full(len(chosen), index), *pairs, nearest != chosen])[:, known])
    cells, said, found, moved = np.concatenate(parts, axis=1)
    return cells, said, found, moved


def _features(images: Images) -> _Features:
    """Shrink images and remove mean color and contrast: float32 (N, 8 * 8 * 3) of norm 1 or 0."""
    block = images.shape[1] // _SIDE
    blocks = images.reshape(len(images), _SIDE, block, _SIDE, block, 3)
    small: _Features = blocks.mean((2, 4), dtype=np.float32).reshape(len(images), -1, 3)
    small -= small.mean(1, keepdims=True)
    small = small.reshape(len(images), -1)
    lengths = np.linalg.norm(small, axis=1, keepdims=True)
    small /= np.where(lengths > 1, lengths, np.inf)
    return small


def _nearest(queries: _Features, gallery: _Features) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For each query, the index of the nearest in `gallery`, and whether it is clearly the same image."""
    nearest = np.zeros(len(queries), np.int64)
    known = np.zeros(len(queries), np.bool_)
    for start in range(0, len(queries) if len(gallery) > 1 else 0, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        likeness = queries[part] @ gallery.T
        nearest[part] = likeness.argmax(1)
        second, first = np.partition(likeness, -2, axis=1)[:, -2:].T
        # For unit vectors, the squared distance is 2 minus twice the inner product.
        known[part] = np.maximum(1 - first, _NOISE) < _RATIO**2 * (1 - second)
    return nearest, known


def _disagreeing(wrong: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The groups in which more than one image, and more than a tenth, has the wrong class."""
    counts: npt.NDArray[Any] = np.bincount(groups)
    return np.flatnonzero(np.bincount(groups, weights=wrong) > np.maximum(1, _TOLERATED * counts))


def note_on_cells(corrupted: CorruptedSet, test: Split, source: Path, *, in_order: bool = True) -> list[str]:
    """Notes on images that are not corrupted as their place says, from a sample of every cell.

    The notes call the set `source`. With `in_order`, its images are taken to be in the order of `test`,
    unless its labels say otherwise.

    A cell is reported if most of its images are clean test images, pixel for pixel. The severities are
    reported if in most corruptions every severity is nearer to the clean images than the one before.
    """
    count = corrupted.images_per_cell
    chosen = np.unique(np.linspace(0, count - 1, min(count, _PER_CELL)).astype(np.int64))
    clean = {hashlib.sha256(image).digest() for image in np.ascontiguousarray(test.images)}
    paired = test.images[chosen].astype(np.int16) if in_order and aligned(corrupted, test) else None
    unchanged, falling = [], []
    for name in corrupted.names:
        distances = []
        for severity in SEVERITIES:
            images = corrupted.cell(name, severity)[chosen]
            if 2 * sum(hashlib.sha256(image).digest() in clean for image in images) > len(images):
                unchanged.append(f"{name} at severity {severity}")
            if paired is not None:
                distances.append(float(np.abs(images - paired).mean()))
        if distances and all(later < earlier for earlier, later in pairwise(distances)):
            falling.append(name)
    notes = []
    if unchanged:
        more = f", … ({len(unchanged)} in all)" if len(unchanged) > _NAMED else ""
        notes.append(
            f"not corrupted in {source}: most images are the clean ones, pixel for pixel, in "
            f"{', '.join(unchanged[:_NAMED])}{more}"
        )
    if 2 * len(falling) > len(corrupted.names):
        notes.append(
            f"the severities in {source} seem to be in reverse order: in {len(falling)} of "
            f"{len(corrupted.names)} corruptions, each severity is nearer to the clean images than the one "
            "before"
        )
    return notes
