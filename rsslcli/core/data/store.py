"""Prepared data sets on disk: an uncompressed .npz file per split, verified on every read."""

import hashlib
import json
import math
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsslcli.core.data.place import prepare_command
from rsslcli.core.errors import RsslError, UserError, nearest, sanitize
from rsslcli.core.files import quietly, replacing

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

#: The sides of images in pixels that a data set may have.
SIZES = (32, 64, 224)
DEFAULT_SIZE = 32
#: Images of a split that take more bytes are mapped from their file instead of being read into memory.
MAPPED_BYTES = 1 << 30
#: The data set that needs no source.
EMBEDDED = "shapes"
_FORMAT = "rssl-split-1"
_MAX_METADATA_BYTES = 64 << 20  # a name of 64 bytes for each of a million classes
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, eq=False)
class Split:
    """The images, labels and classes of one split; `checksum` identifies all three."""

    images: Images  #: (N, S, S, 3)
    labels: Labels  #: (N,), each an index into `classes`
    classes: tuple[str, ...]
    checksum: str  #: sha256 in hexadecimal

    @property
    def size(self) -> int:
        """S: the height and width of the images, in pixels, one of `SIZES`."""
        return int(self.images.shape[1])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A prepared data set; both splits have the same classes."""

    name: str
    folder: Path
    train: Split
    test: Split

    @property
    def size(self) -> int:
        """The height and width of the images, in pixels."""
        return self.test.size

    @property
    def corrupted_folder(self) -> Path:
        """The folder of the corrupted test set, which need not be prepared."""
        return self.folder / "corrupted"


class Arrays(NamedTuple):
    """One split in memory, before it is prepared."""

    images: Images  #: (N, S, S, 3)
    labels: Labels  #: (N,)
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()  #: the file of each image, where there is one

    def limited(self, limit: int | None) -> "Arrays":
        """A seeded, class-balanced subset of `limit` images; all images if there are no more."""
        if limit is None or limit >= len(self.labels):
            return self
        return self.take(class_balanced_subset(self.labels, limit, seed=0))

    def take(self, chosen: npt.NDArray[np.integer[Any]]) -> "Arrays":
        """The images with these indices."""
        files = tuple(self.files[index] for index in chosen) if self.files else ()
        images = empty_images(len(chosen), self.images.shape[1])
        for place, index in zip(images, chosen, strict=True):
            place[:] = self.images[index]
        return Arrays(images, self.labels[chosen], self.classes, files)


def empty_images(count: int, size: int) -> Images:
    """Room for images, uint8 (count, size, size, 3): in memory, or over `MAPPED_BYTES` in a temporary file.

    The file takes no space once the array is gone, or the process.

    Raises:
        RsslError: the file cannot be made.
    """
    shape = (count, size, size, 3)
    if math.prod(shape) <= MAPPED_BYTES:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            file.truncate(math.prod(shape))
            if hasattr(os, "posix_fallocate"):  # on a full disk, a write to a mapped hole kills the process
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise RsslError(
            f"no room for {math.prod(shape) / 1e9:.1f} GB of images in {tempfile.gettempdir()} "
            f"({error.strerror}): set TMPDIR to another folder"
        ) from error


def make_split(images: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[str]) -> Split:
    """Make a split from arrays of the form that `Split` describes: check them and compute their checksum.

    Raises:
        ValueError: a dtype or shape is wrong, there are no images, or a label is not an index into `classes`.
    """
    images = np.ascontiguousarray(images)
    labels = np.ascontiguousarray(labels)
    shapes = [(size, size, 3) for size in SIZES]
    if images.dtype != np.uint8 or images.shape[1:] not in shapes or not len(images):
        sides = ", ".join(map(str, SIZES))
        raise ValueError(
            f"images are {images.dtype} {images.shape}, not uint8 (N, S, S, 3) with S one of {sides}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(f"labels are {labels.dtype} {labels.shape}, not integers ({len(images)},)")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels lie outside 0..{len(classes) - 1}")
    labels = labels.astype(np.int64)
    digest = hashlib.sha256(json.dumps([len(images), list(classes)]).encode())
    digest.update(images.data)
    digest.update(labels.astype("<i8").data)
    return Split(images, labels, tuple(classes), digest.hexdigest())


def save_split(path: Path, images: npt.ArrayLike, labels: npt.ArrayLike, classes: Sequence[str]) -> Split:
    """Write a split to `path` (.npz) atomically and return it.

    Raises:
        ValueError: see `make_split`.
        RsslError: the file cannot be written.
    """
    split = make_split(images, labels, classes)
    metadata = json.dumps({"format": _FORMAT, "classes": split.classes, "checksum": split.checksum})
    with replacing(path) as file:
        np.savez(file, images=split.images, labels=split.labels, metadata=np.array(metadata))
    return split


def load_split(path: Path) -> Split:
    """Read a split and verify its format and checksum; images of over `MAPPED_BYTES` stay in the file.

    Raises:
        UserError: the file is missing, damaged or not a prepared split.
    """
    again = prepare_command(path.parent.name, path.parent.parent)
    try:
        with quietly(), path.open("rb") as opened:
            _check_archive(opened)
            mapped = _mapped_images(path, opened)
            with np.load(opened, allow_pickle=False) as file:
                metadata: dict[str, Any] = json.loads(file["metadata"].item())
                if metadata["format"] != _FORMAT:
                    raise ValueError("another format version")
                images = file["images"] if mapped is None else mapped
                split = make_split(images, file["labels"], _class_names(metadata["classes"]))
        if split.checksum != metadata["checksum"]:
            raise ValueError("the checksum does not match")
    except FileNotFoundError:
        raise UserError(f"no split at {path}: run `{again}`") from None
    except Exception as error:  # NumPy and zipfile raise almost anything on damaged and foreign files
        reason = sanitize(str(error) or type(error).__name__)
        raise UserError(
            f"{path} is damaged or not a prepared split ({reason}): delete it and run `{again}`"
        ) from error
    return split


def _mapped_images(path: Path, opened: IO[bytes]) -> Images | None:
    """Map the images in a split's file if they are large; None if they are to be read."""
    with zipfile.ZipFile(opened) as archive:
        member = archive.getinfo("images.npy")
    if member.file_size <= MAPPED_BYTES:
        opened.seek(0)
        return None
    # Before the data, a zip file repeats the member's name and further entries, whose lengths come first.
    opened.seek(member.header_offset)
    name_length, extra_length = struct.unpack("<26xHH", opened.read(30))
    opened.seek(name_length + extra_length, 1)
    np.lib.format.read_magic(opened)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(opened)
    if fortran_order or dtype != np.uint8:
        raise ValueError("its images are not plain uint8")
    offset = opened.tell()
    opened.seek(0)
    # "c": torch accepts only arrays that can be written, and writing to this one leaves the file as it is.
    return np.memmap(path, np.uint8, "c", offset, shape)


def describe_split(path: Path) -> tuple[int, tuple[int, int], tuple[str, ...]]:
    """The number of images of a prepared split, their height and width, and its classes.

    Only the headers are read: nothing is verified by the checksum.

    Raises:
        UserError: the file is missing, damaged or not a prepared split.
    """
    try:
        with quietly(), path.open("rb") as opened:
            _check_archive(opened)
            with zipfile.ZipFile(opened) as archive:
                if archive.getinfo("metadata.npy").file_size > _MAX_METADATA_BYTES:
                    raise ValueError("its metadata are too long")
                with archive.open("metadata.npy") as file:
                    metadata = json.loads(np.lib.format.read_array(file, allow_pickle=False).item())
                with archive.open("images.npy") as file:
                    np.lib.format.read_magic(file)
                    shape, _, _ = np.lib.format.read_array_header_1_0(file)
                count, height, width, _ = shape
                return count, (height, width), tuple(_class_names(metadata["classes"]))
    except Exception as error:  # as above
        raise UserError(f"{path} is damaged or not a prepared split") from error


def _check_archive(file: IO[bytes]) -> None:
    """Refuse compression, which `save_split` does not use: a small compressed file could fill the memory."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
    file.seek(0)


def _class_names(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name.isprintable() for name in value):
        raise ValueError("the classes are not a list of printable names")
    return value


def dataset_folder(data_dir: Path, name: str) -> Path:
    """The folder of the data set `name` in `data_dir`.

    Raises:
        UserError: the name is not valid.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a data set name: use lowercase letters, digits, '-' and '_'")
    return data_dir / name


def load_dataset(data_dir: Path, name: str) -> Dataset:
    """Load both splits of a prepared data set.

    Raises:
        UserError: it is not prepared, it is damaged, or its splits have different classes.
    """
    check_prepared(data_dir, name)
    folder = dataset_folder(data_dir, name)
    train = load_split(folder / "train.npz")
    test = load_split(folder / "test.npz")
    if train.classes != test.classes:
        command = prepare_command(name, data_dir)
        raise UserError(f"the splits in {folder} have different classes: run `{command}` again")
    return Dataset(name, folder, train, test)


def check_image_size(trained: int | None, size: int, dataset: str) -> None:
    """Raise UserError if a network was trained on images of another size than a data set has.

    Args:
        trained: height and width of the images on which it trained, in pixels; None if unknown.
        size: those of the data set's images.
        dataset: the name of the data set.
    """
    if trained not in (None, size):
        raise UserError(
            f"the network was trained on images of {trained}x{trained} pixels, and {dataset!r} has "
            f"{size}x{size}: prepare a data set with `size` {trained}"
        )


def check_prepared(data_dir: Path, name: str) -> None:
    """Raise UserError, suggesting the nearest name, unless the data set `name` is prepared in `data_dir`."""
    if is_prepared(data_dir, name):
        return
    public = name in {"cifar10", "cifar100", EMBEDDED}
    near = None if public else nearest(name, [*prepared_datasets(data_dir), EMBEDDED])
    hint = f"did you mean '{near}'? Else " if near else ""
    command = prepare_command(name, data_dir, source=None if public else "PATH")
    raise UserError(f"no prepared data set {name!r} in {data_dir}: {hint}run `{command}`")


def prepared_datasets(data_dir: Path) -> list[str]:
    """The sorted names of the data sets that are prepared in `data_dir`."""
    folders = data_dir.iterdir() if data_dir.is_dir() else ()
    return sorted(folder.name for folder in folders if _NAME.fullmatch(folder.name) and _is_complete(folder))


def check_limit(limit: int | None) -> None:
    """Raise UserError if a number of images to keep is given and less than 1."""
    if limit is not None and limit < 1:
        raise UserError(f"`limit` {limit}: expected at least 1")


def class_balanced_subset(
    labels: npt.NDArray[np.integer[Any]], size: int, seed: int, option: str = "limit"
) -> Labels:
    """Choose `size` images at random, equally many per class: counts differ by at most one.

    A class with too few images contributes all of them. With the same seed, a smaller subset is contained in
    a larger one.

    Args:
        labels: integers (N,).
        size: the number of images to choose.
        seed: the seed of the choice.
        option: what messages call the size.

    Returns:
        The sorted indices of the chosen images, int64 (size,).

    Raises:
        UserError: `size` is larger than the split or smaller than the number of classes.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not len(classes) <= size <= len(labels):
        have = f"the {len(labels)} images of {len(classes)} classes"
        raise UserError(f"{option}: {size} of {have}: choose from {len(classes)} to {len(labels)}")
    order = np.random.default_rng(seed).permutation(len(labels))
    # Group the shuffled images by class. Within its class, an image's rank is its position minus the position
    # where the class starts.
    by_class = np.argsort(inverse[order], kind="stable")
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Take the images of rank 0 of all classes, then those of rank 1, and so on.
    return np.sort(order[np.argsort(rank, kind="stable")[:size]]).astype(np.int64)


def is_prepared(data_dir: Path, name: str) -> bool:
    """Whether the data set `name` has both splits in `data_dir`, which may be damaged."""
    return _is_complete(dataset_folder(data_dir, name))


def _is_complete(folder: Path) -> bool:
    return (folder / "train.npz").is_file() and (folder / "test.npz").is_file()
