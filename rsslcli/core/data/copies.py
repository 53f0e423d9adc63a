"""Exact copies within a data set: of training images in the test, and of images of another class."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from rsslcli.core.data.decoding import shown
from rsslcli.core.data.store import Arrays

EXAMPLES = 10  # of each kind of image in the record


def find_copies(train: Arrays, test: Arrays) -> dict[str, tuple[int, list[str]]]:
    """Count images whose pixels are exactly those of another image.

    Returns:
        The number of images and some examples, each "image = other image", of each kind that there is:
        "test_in_training", test images that are training images too, and "contradicting", images of either
        split that are images of another class too.
    """
    names = [*_names(train, "training"), *_names(test, "test")]
    # A number for each image, the same for two images only if their pixels are.
    numbers: dict[bytes, int] = {}
    images = (image for part in (train, test) for image in np.ascontiguousarray(part.images))
    digests = (sha256(image).digest() for image in images)
    content = np.fromiter((numbers.setdefault(digest, len(numbers)) for digest in digests), np.int64)
    labels = np.concatenate([train.labels, test.labels])
    known = np.zeros(content.max() + 1, np.bool_)
    known[content[: len(train.labels)]] = True
    in_training = np.flatnonzero(known[content[len(train.labels) :]]) + len(train.labels)
    lowest, highest = np.full(len(known), len(train.classes)), np.zeros(len(known), np.int64)
    np.minimum.at(lowest, content, labels)
    np.maximum.at(highest, content, labels)
    contradicting = np.flatnonzero((lowest < highest)[content])

    def described(images: npt.NDArray[np.int64], *, contradict: bool) -> list[str]:
        pairs = []
        for image in images[:EXAMPLES]:
            others = content == content[image]
            # argmax finds the first: the training images come first.
            other = (others & (labels != labels[image]) if contradict else others).argmax()
            pairs.append(f"{names[image]} = {names[other]}")
        return pairs

    found = {
        "test_in_training": (len(in_training), described(in_training, contradict=False)),
        "contradicting": (len(contradicting), described(contradicting, contradict=True)),
    }
    return {kind: tally for kind, tally in found.items() if tally[0]}


def _names(arrays: Arrays, split: str) -> Sequence[str]:
    """What to call the images: by their files, else by their numbers."""
    if arrays.files:
        return [shown(name) for name in arrays.files]
    return [f"{split} image {index} ({arrays.classes[label]})" for index, label in enumerate(arrays.labels)]
