"""The record of a generated corrupted set: what its files were made from. Imports no torch."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import SEVERITIES

#: The record of a generated set: what each file was made from, and which severities are finished.
GENERATED = "corruptions.json"


def source_checksum(images: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> str:
    """What a generated set is made from: the sha256, hexadecimal, of its source images and their labels."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype=np.int64).data)
    return digest.hexdigest()


def is_entry(value: object) -> bool:
    """Whether a value of the record is well formed, as generating writes it."""
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict):
        return False
    finished = value.get("severities")
    return (
        isinstance(finished, list)
        and all(type(severity) is int for severity in finished)
        and finished == sorted({*finished} & {*SEVERITIES})
    )
