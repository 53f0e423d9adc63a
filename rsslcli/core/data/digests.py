"""Checksums of files, and free space on their disk."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rsslcli.core.errors import RsslError
from rsslcli.core.progress import Progress, silent

_CHUNK = 2**20


def file_digest(path: Path, algorithm: Literal["md5", "sha256"], progress: Progress = silent) -> str:
    """The checksum of a file, in hexadecimal; md5 identifies published files and secures nothing.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for chunk in chunks(path, progress):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    """The content of a file, piece by piece."""
    done = 0
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            done += len(chunk)
            yield chunk
            progress("checking what is there", done, max(done, total))


def check_space(folder: Path, needed: int) -> None:
    """Raise RsslError unless `needed` bytes are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RsslError(
            f"{folder} has {free / 2**30:.1f} GiB of free space, of the {needed / 2**30:.1f} GiB needed: "
            "free some, or choose another data folder"
        )
