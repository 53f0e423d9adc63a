"""The record of a generated corrupted set: what its files were made from. Imports no torch."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

#: The record of a generated set: what each file was made from, and which severities are finished.
GENERATED = "corruptions.json"


def source_checksum(images: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> str:
    """What a generated set is made from: the sha256, hexadecimal, of its source images and their labels."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()
