"""The data sets that are prepared in a folder. Reads no images but small test splits. Imports no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.data.corrupted import check_source, open_corrupted
from rsslcli.core.data.place import prepare_command
from rsslcli.core.data.published import corrupted_origin
from rsslcli.core.data.store import Dataset, describe_split, load_split, prepared_datasets
from rsslcli.core.errors import UserError, sanitize

#: Corrupted sets are compared with test splits up to this size, CIFAR's among them, which takes 0.1 s.
_COMPARED_BYTES = 64 << 20


@dataclass(frozen=True)
class CorruptedEntry:
    """A corrupted test set.

    Attributes:
        origin: "published", "generated" or "imported"; see `corrupted_origin`.
        corruptions: how many of the 19 it has.
        images: source images of each corruption.
    """

    origin: str
    corruptions: int
    images: int


@dataclass(frozen=True)
class DatasetEntry:
    """A prepared data set.

    Attributes:
        name: its name.
        folder: where it is.
        size: bytes of all files in the folder.
        classes: the names of its classes.
        train_images, test_images: how many images each split has.
        height, width: of the images, in pixels.
        corrupted: its corrupted test set; None if it has none that can be used.
        problem: what is wrong with the data set or the corrupted test set, in one line; empty if nothing is.
    """

    name: str
    folder: Path
    size: int
    classes: tuple[str, ...] = ()
    train_images: int = 0
    test_images: int = 0
    height: int = 0
    width: int = 0
    corrupted: CorruptedEntry | None = None
    problem: str = ""


def list_datasets(data_dir: Path) -> list[DatasetEntry]:
    """The data sets that are prepared in `data_dir`, by name; damaged ones with what is wrong.

    Raises:
        OSError: the folder cannot be read.
    """
    return [_describe(data_dir / name) for name in prepared_datasets(data_dir)]


def _describe(folder: Path) -> DatasetEntry:
    size = _bytes_in(folder)
    try:
        train_images, _, classes = describe_split(folder / "train.npz")
        test_images, (height, width), _ = describe_split(folder / "test.npz")
    except UserError as error:
        return DatasetEntry(folder.name, folder, size, problem=sanitize(error))
    corrupted = None
    problem = ""
    if any((folder / "corrupted" / f"{name}.npy").exists() for name in CORRUPTIONS):
        try:
            found = open_corrupted(folder / "corrupted", folder.name)
            if found.size != height:
                command = prepare_command(folder.name, folder.parent, corruptions="generate")
                raise UserError(
                    f"the corrupted images in {found.folder} are {found.size}x{found.size}, the test images "
                    f"{width}x{height}: prepare them again, with `{command}` or from their source"
                )
            if (folder / "test.npz").stat().st_size <= _COMPARED_BYTES:
                test = load_split(folder / "test.npz")
                check_source(found, Dataset(folder.name, folder, test, test))
            corrupted = CorruptedEntry(corrupted_origin(found), len(found.names), found.images_per_cell)
        except UserError as error:
            problem = sanitize(error, 400)
    return DatasetEntry(
        folder.name, folder, size, classes, train_images, test_images, height, width, corrupted, problem
    )


def _bytes_in(folder: Path) -> int:
    """The bytes of all files in and below a folder; those that vanish meanwhile do not count."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total
