"""Read corrupted test sets of image files, as ImageNet-C and Tiny ImageNet-C are published.

They are folders `<corruption>/<severity>/<class>/<image>`, perhaps below folders for groups of corruptions
(`noise/gaussian_noise/…`). The content is untrusted: images are decoded in memory, and must have the size and
the classes of the data set.
"""

import os
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.decoding import ImageError, decode, shown
from rsslcli.core.data.listing import is_image
from rsslcli.core.data.store import Images, Split, empty_images
from rsslcli.core.errors import UserError

#: The place of an image in a cell: the folder of its class, and its file.
_Member = tuple[str, str]


def corruption_folders(source: Path) -> dict[str, Path]:
    """The folders of corruptions in `source` or in its folders, by name; empty if there are none.

    Raises:
        UserError: there are several of one name.
    """
    if not source.is_dir():
        return {}
    found: dict[str, Path] = {}
    for folder in (source, *visible_folders(source)):
        for name in CORRUPTIONS:
            if _holds_severities(folder / name) and found.setdefault(name, folder / name).parent != folder:
                raise UserError(
                    f"{source} holds several corrupted test sets, such as {found[name].parent} and {folder}: "
                    "give one of them"
                )
    return found


def other_folders(source: Path) -> list[Path]:
    """The folders beside those of corruptions that have severities too, but another name, such as `foog`."""
    beside = {folder.parent for folder in corruption_folders(source).values()}
    folders = [folder for parent in sorted(beside) for folder in visible_folders(parent)]
    return [folder for folder in folders if folder.name not in CORRUPTIONS and _holds_severities(folder)]


def _holds_severities(folder: Path) -> bool:
    return (folder / "1").is_dir() and bool(visible_folders(folder / "1"))


class CorruptedTree:
    """A corrupted set of image files, with the attributes of `CorruptedSource`.

    The images of every cell are in the order of their rank within the class, as in a prepared data set. So a
    set with the file names of the test images is in their order.

    Args:
        source: a folder for which `corruption_folders` finds some.
        test: the clean test images, whose size and classes the set must have.
        complete: refuse a source without all nineteen corruptions.

    Raises:
        UserError: a severity or a class is missing, or cells differ in their images.
    """

    one_label_each = False

    def __init__(self, source: Path, test: Split, *, complete: bool = False) -> None:
        self.source = source
        self.size = test.size
        self._folders = corruption_folders(source)
        self.names = tuple(name for name in CORRUPTIONS if name in self._folders)
        lacking = [name for name in CORRUPTIONS if name not in self._folders]
        if complete and lacking:
            raise UserError(f"{source} has no folder {lacking[0]}: get it again")
        self._members = self._same_in_all_cells()
        self.available = len(self._members)
        numbers = {unicodedata.normalize("NFC", name): number for number, name in enumerate(test.classes)}
        labels = [numbers.get(unicodedata.normalize("NFC", folder)) for folder, _ in self._members]
        if None in labels:
            name = shown(self._members[labels.index(None)][0])
            raise UserError(
                f"{source} has a class {name}, which the data set lacks: give the corrupted images of "
                "this data set"
            )
        self.labels = np.array(labels, np.int64)

    def blocks(self, name: str, count: int) -> Iterator[Images]:
        """The first `count` images at each severity.

        Raises:
            UserError: an image is gone, damaged or of another size.
        """
        for severity in SEVERITIES:
            folder = self._folders[name] / str(severity)
            images = empty_images(count, self.size)

            def read(index: int, folder: Path = folder, images: Images = images) -> None:
                path = folder.joinpath(*self._members[index])
                if not path.is_file():
                    raise UserError(f"{path} is gone: try again when nothing changes {self.source}")
                images[index] = _read(path, self.size)

            with ThreadPoolExecutor(os.cpu_count()) as threads:
                for _ in threads.map(read, range(count)):
                    pass
            yield images

    def check_unchanged(self) -> None:
        """Do nothing: every file is read as it is."""

    def _same_in_all_cells(self) -> list[_Member]:
        """The images of a cell, in their order; UserError unless all cells have the same ones."""
        first: list[_Member] = []
        for name in self.names:
            for severity in SEVERITIES:
                folder = self._folders[name] / str(severity)
                if not folder.is_dir():
                    raise UserError(f"{self.source} has no {name} at severity {severity}: get it again")
                members = _members(folder)
                if not members:
                    raise UserError(f"{folder} has no images: get it again")
                first = first or members
                if members != first:
                    odd = sorted({*members} ^ {*first})[0]
                    raise UserError(
                        f"{folder} does not have the images of the other folders: {shown('/'.join(odd))} is "
                        f"{'missing' if odd in first else 'there alone'}: get it again"
                    )
        return first


def _read(path: Path, side: int) -> Images:
    """The image in a file, which must have the size of the data set: none is resized, and none left out."""
    try:
        with path.open("rb") as file:
            image, size = decode(file, str(path), resize=True, side=side)
    except ImageError as error:
        raise UserError(f"cannot decode image {shown(str(path))} ({error.reason}): get it again") from error
    if size != (side, side):
        raise UserError(
            f"image {shown(str(path))} is {size[0]}x{size[1]} pixels, not {side}x{side} as in the data "
            "set: give corrupted images of that size, or prepare the data set in theirs, with `size`"
        )
    return image


def _members(folder: Path) -> list[_Member]:
    """The images of a cell: the first of every class, then the second of every class, and so on."""
    ranked = [
        (rank, place.name, file)
        for place in visible_folders(folder)
        for rank, file in enumerate(sorted(path.name for path in _visible(place) if is_image((path.name,))))
    ]
    return [(place, file) for _, place, file in sorted(ranked)]


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in _visible(folder) if path.is_dir())


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name[0] != ".")
