"""Corrupted test sets in the layout of CIFAR-10-C: a memory-mapped .npy file per corruption.

A prepared folder holds `<corruption>.npy` files, `labels.npy`, which is written last, and the record of
either the generator or the import.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.record import GENERATED, source_checksum
from rsslcli.core.data.place import prepare_command
from rsslcli.core.data.store import SIZES, Dataset, Images, Labels, Split
from rsslcli.core.errors import StaleCorruptionsError, UserError, sanitize
from rsslcli.core.files import quietly, read_json, remove, replacing, write_json

#: The record of an imported set: where it came from, the sha256 of each file, and the set's identity.
IMPORTED = "downloaded.json"
_SAMPLES = 20  # images of each cell that enter the identity


@dataclass(frozen=True, eq=False)
class CorruptedSet:
    """A folder of `<corruption>.npy` files: five blocks, severity 1 to 5, of the same N test images."""

    folder: Path
    names: tuple[str, ...]  #: its corruptions, in the order of CORRUPTIONS
    labels: Labels  #: (N,)

    @property
    def images_per_cell(self) -> int:
        """N: the number of images per corruption and severity."""
        return len(self.labels)

    @property
    def size(self) -> int:
        """S: the height and width of the images, in pixels."""
        return int(self.cell(self.names[0], SEVERITIES[0]).shape[1])

    def cell(self, name: str, severity: int) -> Images:
        """The images of one corruption at one severity: a read-only memory map, uint8 (N, S, S, 3).

        Raises:
            UserError: there is no such cell, or its file was damaged after the folder was opened.
        """
        if name not in self.names or severity not in SEVERITIES:
            raise UserError(
                f"{self.folder} has no {name!r} at severity {severity}: it has {', '.join(self.names)}"
            )
        blocks = _map_blocks(self.folder / f"{name}.npy", self.images_per_cell)
        return blocks[(severity - 1) * self.images_per_cell : severity * self.images_per_cell]

    @cached_property
    def identity(self) -> str:
        """A fingerprint (sha256, hexadecimal) of the names, the labels and a sample of each cell's images."""
        count = self.images_per_cell
        digest = hashlib.sha256(json.dumps([self.names, count]).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for name in self.names:
            for severity in SEVERITIES:
                sample = self.cell(name, severity)[:: max(1, count // _SAMPLES)]
                digest.update(np.ascontiguousarray(sample).data)
        return digest.hexdigest()


def open_corrupted(folder: Path, dataset_name: str) -> CorruptedSet:
    """Open a folder in the layout of CIFAR-10-C and check its labels and the shape of every file.

    Raises:
        UserError: there is no corrupted test set, or it is incomplete, damaged or in another format.
    """
    names = tuple(name for name in CORRUPTIONS if (folder / f"{name}.npy").is_file())
    if not names:
        raise UserError(
            f"no corrupted test set for {dataset_name!r} in {folder}: "
            f"run `{prepare_command(dataset_name, folder.parent.parent, corruptions='generate')}`"
        )
    labels = _read_labels(folder / "labels.npy")
    sizes = {_map_blocks(folder / f"{name}.npy", len(labels)).shape[1]: name for name in names}
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise UserError(
            f"{folder} mixes sizes: {first}.npy has images of {one}x{one} pixels, {second}.npy of "
            f"{other}x{other}: prepare the corrupted test set again"
        )
    return CorruptedSet(folder, names, labels)


def check_source(corrupted: CorruptedSet, dataset: Dataset) -> None:
    """Check that a corrupted set was generated from the test images of `dataset`, or imported for them.

    For sets without a record, and for imports by older versions, which recorded no test images, only the
    range of the labels can be checked.

    Raises:
        StaleCorruptionsError: it was made for other images; the message contains the command that fixes it.
        UserError: a label is no class of the data set.
    """
    folder, test = corrupted.folder, dataset.test
    count = corrupted.images_per_cell
    mend: dict[str, object] = {"corruptions": "generate"}
    if generated := read_json(folder / GENERATED):
        if len(corrupted.names) < len(CORRUPTIONS):
            mend["only"] = ",".join(corrupted.names)
        source = source_checksum(test.images[:count], test.labels[:count])
        # An interruption may leave the labels of other images beside the files.
        fits = aligned(corrupted, test) and all(
            _source_in(generated.get(name)) == source for name in corrupted.names
        )
    else:
        imported = read_json(folder / IMPORTED)
        mend = _import_again(imported)
        fits = imported.get("test", test.checksum) == test.checksum
    if not fits:
        if 2 * count <= len(test.labels):  # it was limited; a few more images are additions
            mend["limit"] = count
        command = prepare_command(dataset.name, dataset.folder.parent, **mend)
        raise StaleCorruptionsError(
            f"the corrupted images in {folder} were made for other test images "
            f"than those of {dataset.name!r}",
            command,
        )
    if corrupted.labels.max() >= len(dataset.test.classes):
        raise UserError(
            f"{corrupted.folder} has labels that '{dataset.name}' has no class for: prepare the corrupted "
            "test set again"
        )


def record_test_images(folder: Path, checksum: str) -> None:
    """Record which test images an imported set in `folder` is for, unless its record says so already.

    Raises:
        RsslError: the record cannot be written.
    """
    record = read_json(folder / IMPORTED)
    if not (folder / GENERATED).exists() and "test" not in record:
        write_json(folder / IMPORTED, record | {"test": checksum})


def _source_in(entry: object) -> object:
    identity = entry.get("identity") if isinstance(entry, dict) else None
    return identity.get("source") if isinstance(identity, dict) else None


def _import_again(record: Mapping[str, Any]) -> dict[str, object]:
    """The options that import a set for other test images: the published one, or one made from them."""
    is_published = re.fullmatch("[0-9a-f]{32}", str(record.get("origin")))  # the md5 of its archive
    return {"corruptions": "download"} if is_published else {"source": "PATH"}


def replace_files(folder: Path, staged: CorruptedSet, record: Mapping[str, Any]) -> CorruptedSet:
    """Move the files of `staged` to `folder`, replacing the set there; `record` is that of the import.

    `labels.npy` is removed first and added last: without it, a mixture of both sets does not open.

    Raises:
        OSError: a file cannot be moved.
        RsslError: a file cannot be written or deleted.
    """
    write_json(staged.folder / IMPORTED, record)  # first, as the disk may be full
    for stale in ("labels.npy", GENERATED, IMPORTED):
        remove(folder / stale)
    for name in CORRUPTIONS:
        remove(folder / f"{name}.npy.partial")  # left by the generator, whose record is gone
        if name in staged.names:
            (staged.folder / f"{name}.npy").replace(folder / f"{name}.npy")
        else:
            remove(folder / f"{name}.npy")
    for name in (IMPORTED, "labels.npy"):
        (staged.folder / name).replace(folder / name)
    return open_corrupted(folder, folder.name)


def write_blocks(path: Path, blocks: Iterable[Images]) -> str:
    """Write the five severities of a corruption, each uint8 (N, S, S, 3), atomically to one .npy file.

    Only one block needs to be in memory at a time.

    Returns:
        The sha256 of the file, in hexadecimal.

    Raises:
        RsslError: the file cannot be written.
    """
    digest = hashlib.sha256()
    with replacing(path) as file:
        for index, block in enumerate(blocks):
            parts = [np.ascontiguousarray(block, np.uint8).data]
            if index == 0:
                shape = (len(SEVERITIES) * len(block), *block.shape[1:])
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    header, {"descr": "|u1", "fortran_order": False, "shape": shape}
                )
                parts.insert(0, header.getbuffer())
            for part in parts:
                file.write(part)
                digest.update(part)
    return digest.hexdigest()


def aligned(corrupted: CorruptedSet, test: Split) -> bool:
    """Whether image i of every cell shows image i of `test`, by the labels and by the checks of an import."""
    folder = corrupted.folder
    seen = (folder / GENERATED).exists() or read_json(folder / IMPORTED).get("in_order", True)
    return bool(seen) and np.array_equal(corrupted.labels, test.labels[: corrupted.images_per_cell])


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: prepare the corrupted test set again")


def _read_labels(path: Path) -> Labels:
    try:
        with quietly(), path.open("rb") as file:
            stored = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the corrupted test set is incomplete, prepare it again"
        ) from None
    except Exception as error:  # NumPy raises almost anything on damaged files
        raise _damaged(path, "is damaged or not an array of labels") from error
    if stored.ndim != 1 or stored.dtype.kind not in "iu" or not len(stored) or len(stored) % len(SEVERITIES):
        raise _damaged(path, "is not a list of integer labels, five times")
    labels: Labels
    labels, *others = stored.astype(np.int64).reshape(len(SEVERITIES), -1)
    if labels.min() < 0 or any((block != labels).any() for block in others):
        raise _damaged(path, "does not hold the same labels five times")
    return labels


def _map_blocks(path: Path, images_per_cell: int) -> Images:
    """Map a corruption's file, uint8 (5 * images_per_cell, S, S, 3)."""
    count = len(SEVERITIES) * images_per_cell
    try:
        # Unlike np.load, this never unpickles, and a truncated file raises here rather than when read.
        with quietly():
            array = np.lib.format.open_memmap(path, mode="r")
        complete = path.stat().st_size == array.offset + array.nbytes
    except Exception as error:  # as above
        raise _damaged(path, "is damaged, truncated or not an array") from error
    if array.dtype != np.uint8 or array.shape not in [(count, size, size, 3) for size in SIZES]:
        found = sanitize(f"{array.dtype} {array.shape}")
        side = next((size for size in SIZES if size in array.shape[1:]), SIZES[0])
        raise UserError(f"{path} is {found}, not uint8 {(count, side, side, 3)}: prepare it again")
    if not complete:
        raise _damaged(path, "has bytes after its array")
    return array
