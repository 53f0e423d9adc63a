"""Corrupted test sets in the layout of CIFAR-10-C: per corruption one .npy file, read through memory maps."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.store import IMAGE_SHAPE, Images, Labels, Split
from rsslcli.core.errors import UserError, one_line
from rsslcli.core.files import quietly, remove, replacing
from rsslcli.core.progress import Progress

_SAMPLES = 20  # images of each cell that go into the identity


@dataclass(frozen=True, eq=False)
class CorruptedSet:
    """A folder of `<corruption>.npy` files: five blocks, severity 1 to 5, of the same N test images."""

    folder: Path
    names: tuple[str, ...]  #: the corruptions it has, in the order of CORRUPTIONS
    labels: Labels  #: (N,)

    @property
    def images_per_cell(self) -> int:
        """N: how many images each corruption has at each severity."""
        return len(self.labels)

    def cell(self, name: str, severity: int) -> Images:
        """The images of one corruption at one severity: a read-only memory map, uint8 (N, 32, 32, 3).

        Raises:
            UserError: no such cell, or its file has gone bad since the folder was opened.
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
        return self._identity_of_first(self.images_per_cell)

    def _identity_of_first(self, count: int) -> str:
        digest = hashlib.sha256(json.dumps([self.names, count]).encode())
        digest.update(self.labels[:count].astype("<i8").tobytes())
        for name in self.names:
            for severity in SEVERITIES:
                sample = self.cell(name, severity)[: count : max(1, count // _SAMPLES)]
                digest.update(np.ascontiguousarray(sample).data)
        return digest.hexdigest()


def open_corrupted(folder: Path, dataset_name: str) -> CorruptedSet:
    """Open a folder in the layout of CIFAR-10-C and check its labels and the shape of every file.

    Raises:
        UserError: no corrupted test set is there, or it is incomplete, damaged or of another kind.
    """
    names = tuple(name for name in CORRUPTIONS if (folder / f"{name}.npy").is_file())
    if not names:
        raise UserError(
            f"no corrupted test set for {dataset_name!r} in {folder}: "
            f"run `rssl prepare-data --dataset {dataset_name} --corruptions generate`"
        )
    labels = _read_labels(folder / "labels.npy")
    for name in names:
        _map_blocks(folder / f"{name}.npy", len(labels))
    return CorruptedSet(folder, names, labels)


def import_corrupted(
    source: Path, folder: Path, *, test: Split, limit: int | None, progress: Progress
) -> CorruptedSet:
    """Make `folder` a copy of the CIFAR-10-C folder `source`, or of the first `limit` images of its blocks.

    Nothing is copied when `folder` already is that copy. Labels come last: a copy cut short does not open.

    Raises:
        UserError: `source` is no complete CIFAR-10-C folder, or has labels that are no class of `test`.
        RsslError: `folder` cannot be written.
    """
    original = open_corrupted(source, source.name)
    if original.labels.max() >= len(test.classes):
        raise UserError(
            f"{source / 'labels.npy'} has labels outside the {len(test.classes)} classes of the data set"
        )
    count = min(limit or original.images_per_cell, original.images_per_cell)
    try:
        present = open_corrupted(folder, folder.name)
    except UserError:
        present = None  # absent, or the remains of an interrupted copy
    if present and present.identity == original._identity_of_first(count):
        return present

    remove(folder / "labels.npy")
    for record in ("corruptions.json", "downloaded.json"):  # whose files these are no longer
        remove(folder / record)
    for name in set(CORRUPTIONS) - set(original.names):
        remove(folder / f"{name}.npy")
    for done, name in enumerate(original.names):
        progress("copying corruptions", done, len(original.names))
        write_blocks(
            folder / f"{name}.npy", (original.cell(name, severity)[:count] for severity in SEVERITIES)
        )
    labels = np.tile(original.labels[:count], len(SEVERITIES))
    with replacing(folder / "labels.npy") as file:
        np.save(file, labels)
    progress("copying corruptions", len(original.names), len(original.names))
    return open_corrupted(folder, folder.name)


def write_blocks(path: Path, blocks: Iterable[Images]) -> None:
    """Write the five severities of one corruption, each uint8 (N, 32, 32, 3), to one .npy file, atomically.

    Only one block at a time needs to be in memory.

    Raises:
        RsslError: the file cannot be written.
    """
    with replacing(path) as file:
        for index, block in enumerate(blocks):
            if index == 0:
                shape = (len(SEVERITIES) * len(block), *IMAGE_SHAPE)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block, np.uint8).data)


def aligned(corrupted: CorruptedSet, test: Split) -> bool:
    """Whether the labels say that image i of every cell was made from image i of `test`."""
    return np.array_equal(corrupted.labels, test.labels[: corrupted.images_per_cell])


def _read_labels(path: Path) -> Labels:
    try:
        with quietly(), path.open("rb") as file:
            stored = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the corrupted test set is incomplete, prepare it again"
        ) from None
    except Exception as error:  # as above
        raise UserError(
            f"{path} is damaged or no array of labels: prepare the corrupted test set again"
        ) from error
    if stored.ndim != 1 or stored.dtype.kind not in "iu" or not len(stored) or len(stored) % len(SEVERITIES):
        raise UserError(
            f"{path} is not a list of integer labels, five times: prepare the corrupted test set again"
        )
    labels: Labels
    labels, *others = stored.astype(np.int64).reshape(len(SEVERITIES), -1)
    if labels.min() < 0 or any((block != labels).any() for block in others):
        raise UserError(
            f"{path} does not hold the same labels five times: prepare the corrupted test set again"
        )
    return labels


def _map_blocks(path: Path, images_per_cell: int) -> Images:
    """Map a corruption's file, uint8 (5 * images_per_cell, 32, 32, 3)."""
    expected = (len(SEVERITIES) * images_per_cell, *IMAGE_SHAPE)
    try:
        # Unlike np.load this never unpickles, and a truncated file raises here rather than when it is read.
        with quietly():
            array = np.lib.format.open_memmap(path, mode="r")
        complete = path.stat().st_size == array.offset + array.nbytes
    except Exception as error:  # as above
        raise UserError(
            f"{path} is damaged, truncated or no array: prepare the corrupted test set again"
        ) from error
    if array.dtype != np.uint8 or array.shape != expected:
        found = one_line(f"{array.dtype} {array.shape}")
        raise UserError(f"{path} is {found}, not uint8 {expected}: prepare it again")
    if not complete:
        raise UserError(
            f"{path} has bytes after its array: it is damaged, prepare the corrupted test set again"
        )
    return array
