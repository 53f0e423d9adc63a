"""Read corrupted test sets from elsewhere: a folder or an archive in the layout of CIFAR-10-C.

The content is untrusted: only regular files with known names are read from an archive, their paths never
decide where anything is written, and an array is accepted only if its header, its size and the labels agree.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.archives import archive_members, check_end, is_archive, one_line_errors, open_tar
from rsslcli.core.data.cifar import official_name
from rsslcli.core.data.corrupted_tree import corruption_folders, visible_folders
from rsslcli.core.data.decoding import shown
from rsslcli.core.data.image_tree import is_image_tree
from rsslcli.core.data.listing import is_image
from rsslcli.core.data.store import SIZES, Images, Labels
from rsslcli.core.errors import UserError, sanitize
from rsslcli.core.files import quietly

#: The files of corruptions, by which a corrupted set is recognized.
_CORRUPTED = tuple(f"{name}.npy" for name in CORRUPTIONS)
#: The files that a corrupted set may contain.
FILES = ("labels.npy", *_CORRUPTED)
_EXPECTED = "the files of CIFAR-10-C, labels.npy and <corruption>.npy"
_MAX_IMAGES = 1_000_000  # per corruption and severity
_MAX_MEMBERS = 1000
#: The first bytes of compressed tar archives and of zip archives.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"PK\3\4")


def is_corrupted_set(source: Path) -> bool:
    """Whether `source` is a corrupted set, its parent or its archive, rather than a set of images.

    Raises:
        UserError: the archive is damaged, or a folder cannot be read.
    """
    with one_line_errors(source):
        if not source.is_dir():
            return _archive_has_files(source)
        folders = [source, *visible_folders(source)]
        for folder in folders:
            os.scandir(folder).close()  # an error names the folder, not a file that may be in it
        if _holds_files(source) or corruption_folders(source):
            return True
        within = any(map(_holds_files, folders))
        return within and not official_name(source) and not is_image_tree(source)


@dataclass(frozen=True)
class _Array:
    """An array in a source: the location and type of its data."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    state: tuple[int, ...]  #: the state of the file when its header was read

    @classmethod
    def locate(cls, path: Path, start: int = 0, size: int | None = None) -> "_Array":
        """Read the header of a .npy file, which is the file `path` or lies within it.

        Raises:
            Exception: anything, since NumPy's parser raises more for hostile bytes than it documents.
        """
        with quietly(), path.open("rb") as file:
            file.seek(start)
            # Version 1.0 is what NumPy writes for plain arrays; its header is at most 64 KiB.
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("a .npy file of a version other than 1.0")
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
        state = _state(path)
        size = state[0] if size is None else size
        if dtype.hasobject or fortran_order:
            raise ValueError("a .npy file of Python objects or in Fortran order")
        if min(shape, default=0) < 0:
            raise ValueError(f"a .npy file that claims the negative shape {shape}")
        if offset - start + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"a .npy file of {size} bytes that claims the shape {shape}")
        if start + size > state[0]:
            raise ValueError(f"it ends at byte {state[0]}, within an array")
        return cls(path, offset, dtype, shape, state)

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """Read `count` items along the first axis, beginning at `start`.

        It uses plain reads: with a memory map, a file truncated meanwhile would kill the process.

        Raises:
            UserError: the file became shorter, or it is gone.
        """
        shape = (count, *self.shape[1:])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + start * row)
                data = file.read(count * row)
        except FileNotFoundError:
            data = b""
        if len(data) != count * row:
            raise _changed(self.path)
        return np.frombuffer(data, self.dtype).reshape(shape)

    def __str__(self) -> str:
        return sanitize(f"{self.dtype} {self.shape}")


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _changed(path: Path) -> UserError:
    return UserError(f"{path} changed while it was being read: import it again once it is complete")


class CorruptedSource:
    """The arrays of a source, checked against each other and read block by block."""

    source: Path
    names: tuple[str, ...]  #: its corruptions, in the order of CORRUPTIONS
    available: int  #: the number of images per corruption and severity
    size: int  #: the height and width of the images, in pixels
    labels: Labels  #: (available,)
    one_label_each: bool  #: whether the file holds the labels once, not five times

    def __init__(self, source: Path, unpacked: Path, *, classes: int, complete: bool = False) -> None:
        """Find and check the arrays; read only the labels.

        Args:
            source: a folder with the files of CIFAR-10-C, its parent, or a tar or zip archive of them.
            unpacked: the folder to create for the files of a compressed archive.
            classes: the number of classes of the data set.
            complete: refuse a source without all nineteen corruptions.

        Raises:
            UserError: there is no corrupted set, it is damaged, or its labels do not fit the classes.
            OSError: `unpacked` cannot be written.
        """
        self.source = source
        arrays = _arrays(source, unpacked)
        stored = arrays.pop("labels", None)
        lacking = "labels" if stored is None else next((n for n in CORRUPTIONS if n not in arrays), "")
        if stored is None or not arrays or (complete and lacking):
            has = [f"{name}.npy" for name in [*(["labels"] if stored else []), *arrays][:3]]
            raise UserError(
                f"{source} has no {lacking}.npy, but {', '.join(has) or 'none'} of {_EXPECTED}: get it again"
            )
        self.names = tuple(name for name in CORRUPTIONS if name in arrays)
        self.available, self.size = self._check_images(arrays)
        self.one_label_each = stored.shape == (self.available,)
        self.labels = self._check_labels(stored, classes)
        self._arrays = arrays
        self._all = (stored, *arrays.values())

    def _check_images(self, arrays: dict[str, _Array]) -> tuple[int, int]:
        """Check the shapes; return the number of images per corruption and severity, and their side."""
        shapes = Counter(array.shape for array in arrays.values())
        common = next((shape for shape, _ in shapes.most_common() if len(shape) == 4), (len(SEVERITIES), 0))
        rows = common[0]
        size = common[1] if common[1] in SIZES else SIZES[0]
        expected = (rows, size, size, 3)
        for name, array in arrays.items():
            if array.dtype != np.uint8 or array.shape != expected:
                raise UserError(f"{name}.npy in {self.source} is {array}, not uint8 {expected}: get it again")
        if not 0 < rows <= _MAX_IMAGES * len(SEVERITIES) or rows % len(SEVERITIES):
            raise UserError(
                f"the arrays in {self.source} have {rows} images each, not the same ones at five severities"
            )
        return rows // len(SEVERITIES), size

    def _check_labels(self, stored: _Array, classes: int) -> Labels:
        """Read and check the labels; return one per source image, int64."""
        name = f"labels.npy in {self.source}"
        total = len(SEVERITIES) * self.available
        if stored.dtype.kind not in "iu" or stored.shape not in {(total,), (self.available,)}:
            raise UserError(
                f"{name} is {stored}, not {total} integers: the labels of {self.available} images, five times"
            )
        labels = stored.read(0, stored.shape[0]).reshape(-1, self.available)
        outside = labels[(labels < 0) | (labels >= classes)]
        if len(outside):
            raise UserError(
                f"{name} has the label {outside[0]}, outside the {classes} classes of the data set "
                f"(0 to {classes - 1}): give the corrupted images of this data set"
            )
        if (labels != labels[0]).any():
            raise UserError(f"{name} does not hold the same {self.available} labels five times: get it again")
        result: Labels = labels[0].astype(np.int64)
        return result

    def blocks(self, name: str, count: int) -> Iterator[Images]:
        """The first `count` images at each severity."""
        for index in range(len(SEVERITIES)):
            yield self._arrays[name].read(index * self.available, count)

    def check_unchanged(self) -> None:
        """Raise UserError if a file changed since its header was read."""
        for array in self._all:
            try:
                same = _state(array.path) == array.state
            except OSError:
                same = False
            if not same:
                raise _changed(array.path)


def _arrays(source: Path, unpacked: Path) -> dict[str, _Array]:
    """The arrays of CIFAR-10-C's files, by name without the extension."""
    if source.is_dir():
        return _folder_arrays(_set_folder(source), source)
    if not source.is_file():
        raise UserError(f"no such source: {source}: give an address, an archive or a folder of {_EXPECTED}")
    with source.open("rb") as file:
        compressed = file.read(6).startswith(_COMPRESSED)
    if not compressed:
        return _tar_arrays(source)
    unpacked.mkdir(parents=True)
    for name, piece in _read_files(source):
        with (unpacked / name).open("ab") as file:
            file.write(piece)
    return _folder_arrays(unpacked, source)


def _archive_has_files(source: Path) -> bool:
    """Whether `source` is an archive in which the file of a corruption precedes any image."""
    if not source.is_file() or not is_archive(source):
        return False
    for member in archive_members(source):
        parts = member.parts
        if member.kind == "file" and parts and (parts[-1] in _CORRUPTED or is_image(parts)):
            return parts[-1] in _CORRUPTED
    return False


def _read_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the next piece of each of `FILES` in an archive, whatever folder it is in.

    The first piece of each file is empty.

    Raises:
        UserError: the archive is damaged, unpacks beyond the limits, or holds two files of the same name.
    """
    with one_line_errors(archive):
        seen: set[str] = set()
        for member in archive_members(archive):
            name = member.name.rpartition("/")[2]
            if member.kind != "file" or not member.parts or name not in FILES:
                continue
            if name in seen:
                raise UserError(f"{archive} holds {name} twice: give an archive with only one of them")
            seen.add(name)
            yield name, b""
            with member.open() as file:
                while piece := file.read(2**20):
                    yield name, piece


def _holds_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CORRUPTED)


def _set_folder(source: Path) -> Path:
    """The folder that holds the files: `source`, or the only folder in it that does."""
    found = [folder for folder in (source, *visible_folders(source)) if _holds_files(folder)]
    if source in found or len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(shown(folder.name) for folder in found[:2])
        raise UserError(f"{source} holds several corrupted test sets, such as {names}: give one of them")
    content = ", ".join(shown(path.name) for path in sorted(source.iterdir())[:3]) or "nothing"
    raise UserError(f"no corrupted test set in {source}: it has {content}, not {_EXPECTED}")


def _folder_arrays(folder: Path, source: Path) -> dict[str, _Array]:
    arrays = {}
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            arrays[path.stem] = _Array.locate(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # see `locate`
            raise UserError(
                f"{name} in {source} is damaged or not a .npy file of numbers "
                f"({shown(str(error) or type(error).__name__)}): get it again"
            ) from error
    return arrays


def _tar_arrays(archive: Path) -> dict[str, _Array]:
    """Find the arrays in a tar without unpacking it.

    Other files, links and devices are skipped. The folders in a member's name do not matter, since only the
    last part is used and nothing is extracted.
    """
    arrays: dict[str, _Array] = {}
    try:
        with open_tar(archive, "r:") as tar:
            for count, member in enumerate(tar):
                if count == _MAX_MEMBERS:
                    raise ValueError("too many members")
                name = member.name.rpartition("/")[2]
                if name not in FILES or not member.isreg() or member.issparse():
                    continue
                stem = name.removesuffix(".npy")
                if stem in arrays:
                    raise ValueError(f"it holds {name} twice")
                arrays[stem] = _Array.locate(archive, member.offset_data, member.size)
            check_end(tar)
    # tarfile and NumPy's parser raise more for hostile bytes than they document, even a RecursionError.
    except Exception as error:
        raise UserError(
            f"{archive} is damaged or not a tar of CIFAR-10-C's files "
            f"({shown(str(error) or type(error).__name__)}): get it again, or give the folder it unpacks to"
        ) from error
    return arrays
