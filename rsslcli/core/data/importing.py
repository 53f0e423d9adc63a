"""Import a corrupted test set: stage a copy, check it, then replace the existing set."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.record import GENERATED
from rsslcli.core.data.corrupted import (
    IMPORTED,
    CorruptedSet,
    aligned,
    open_corrupted,
    replace_files,
    write_blocks,
)
from rsslcli.core.data.corrupted_source import CorruptedSource
from rsslcli.core.data.corrupted_tree import CorruptedTree, corruption_folders, other_folders
from rsslcli.core.data.digests import check_space, file_digest
from rsslcli.core.data.matching import check_labels, describe_classes, note_on_cells
from rsslcli.core.data.store import DEFAULT_SIZE, EMBEDDED, Split
from rsslcli.core.errors import RsslError, UserError, counted, nearest
from rsslcli.core.files import read_json, replacing, write_json
from rsslcli.core.progress import Note, Progress, silent

#: The subfolder of the set for unfinished downloads and imports.
UNFINISHED = "download"

#: A corrupted set to import.
_Found = CorruptedSource | CorruptedTree


def check_importable(name: str) -> None:
    """Raise UserError if the data set `name` is the embedded one, whose corrupted set is generated."""
    if name == EMBEDDED:
        raise UserError(f"{name} has a corrupted set of its own: choose the data set that yours is for")


def import_corrupted(
    source: Path,
    folder: Path,
    *,
    test: Split,
    limit: int | None = None,
    complete: bool = False,
    origin: str | None = None,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> tuple[CorruptedSet, bool]:
    """Copy the corrupted set in `source`, or the first `limit` images of each block, to `folder`.

    Nothing is copied if `folder` already holds the same images and labels, compared byte by byte. A refused
    or interrupted import leaves the existing set in place.

    Args:
        source: a folder with the files of CIFAR-10-C, its parent, or a tar or zip archive of them; or a
            folder of image files, see `corrupted_tree`.
        folder: the corrupted folder of the data set.
        test: the clean test images, used to check the labels.
        limit: the number of images to keep per corruption and severity, at least 1; all if None.
        complete: refuse a source without all nineteen corruptions.
        origin: the name of the source in the record; its path by default.
        progress: called after every corruption.
        note: called with the meaning of the labels, and with what is unusual about the source.

    Returns:
        The set in `folder`, and whether anything was copied.

    Raises:
        UserError: there is no corrupted set, or it is damaged, changes while it is being read, or has labels
            that disagree with `test`; or `limit` would throw images away that were imported before.
        RsslError: `folder` cannot be written.
    """
    check_kept(folder, test, limit)
    scratch = folder / UNFINISHED / "unpacked"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        found: _Found
        if corruption_folders(source):
            found = CorruptedTree(source, test, complete=complete)
            for other in other_folders(source):
                near = nearest(other.name, CORRUPTIONS)
                hint = f": should it be '{near}'?" if near else ""
                note(f"not used: {other}, which has the name of no corruption{hint}")
        else:
            found = CorruptedSource(source, scratch / "archive", classes=len(test.classes), complete=complete)
        if found.size != test.size:
            raise UserError(
                f"{source} has images of {found.size}x{found.size} pixels, but the test images have "
                f"{test.size}x{test.size}: give a set of that size, or prepare the data set with `size` "
                f"{found.size}"
            )
        count = min(limit or found.available, found.available)
        record: dict[str, Any] = {
            "origin": origin or str(source.resolve()),
            "limit": None if count == found.available else count,
            "test": test.checksum,
        }
        present = _open_if_same(folder, found, count, progress)
        if present is None:
            record["files"] = _stage(found, count, scratch, progress)
        corrupted = present or open_corrupted(scratch, folder.name)
        is_old = _is_of_others(folder, test) and (present is not None or _repeats(folder, found, record))
        record["in_order"] = _check(corrupted, test, source, note, is_old=is_old)
        if found.one_label_each:
            note(f"labels.npy in {source} has one label per image, used for all five severities")
        if limit is None and count != len(test.labels):
            note(f"{source} has {count} images at each severity, the test set has {len(test.labels)} images")
        if present is None:
            record["identity"] = corrupted.identity
            if _has_identity(folder, corrupted.identity):
                note(
                    f"some images changed that the identity of a set does not cover: evaluations on the "
                    f"earlier images in {folder} cannot be told from new ones, so evaluate those runs again"
                )
            return replace_files(folder, corrupted, record), True
        known = read_json(folder / IMPORTED)
        now = {"test": test.checksum, "in_order": record["in_order"]}
        if origin is not None:  # it says more than a path, which may hold anything later
            now |= {"origin": origin, "limit": record["limit"], "identity": present.identity}
        if not known.items() >= now.items() and not (folder / GENERATED).exists():
            write_json(folder / IMPORTED, record | known | now | {"files": _checksums(present)})
        return present, False
    except OSError as error:
        raise RsslError(f"cannot import {source} into {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            scratch.parent.rmdir()  # unless it holds an archive


def check_kept(folder: Path, test: Split, limit: int | None) -> None:
    """Raise UserError if the set in `folder` was imported for these test images, with more than `limit`."""
    if limit is None or read_json(folder / IMPORTED).get("test") != test.checksum:
        return
    there = 0
    with suppress(UserError):
        there = open_corrupted(folder, folder.name).images_per_cell
    if there > limit:
        raise UserError(
            f"{folder} holds {counted(there, 'image')} of each cell, which would be replaced: set `limit` to "
            f"{there} to keep them, or delete the folder"
        )


def _has_identity(folder: Path, identity: str) -> bool:
    """Whether the set in a folder, if there is one, has this identity: some images of each cell are read."""
    with suppress(UserError):
        return open_corrupted(folder, folder.name).identity == identity
    return False


def find_imported(
    folder: Path,
    origin: str,
    limit: int | None,
    *,
    test: Split,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> CorruptedSet | None:
    """The set in `folder`, if it is unchanged since its import from `origin` with this limit.

    Raises:
        UserError: its labels disagree with `test`.
    """
    record = read_json(folder / IMPORTED)
    if record.get("origin") != origin or (folder / GENERATED).exists():
        return None
    try:
        present = open_corrupted(folder, folder.name)
    except UserError:
        return None  # half imported, or damaged
    unlimited = record.get("limit") is None and (limit is None or limit >= present.images_per_cell)
    if not unlimited and record.get("limit") != limit:
        return None
    if "files" in record:
        untouched = record["files"] == _checksums(present, progress)
    else:  # records of older versions have no checksums of whole files
        untouched = record.get("identity") == present.identity
    if not untouched:
        return None
    ordered = _check(present, test, folder, note, is_old=_is_of_others(folder, test))
    now = {"test": test.checksum, "in_order": ordered}
    if not record.items() >= now.items():
        write_json(folder / IMPORTED, record | now)
    return present


def image_bytes(images: int, size: int = DEFAULT_SIZE) -> int:
    """The bytes of one corruption with `images` images of `size`x`size` pixels at each severity."""
    return size * size * 3 * len(SEVERITIES) * images


def _is_of_others(folder: Path, test: Split) -> bool:
    """Whether the set in `folder` was imported for other test images."""
    return bool(read_json(folder / IMPORTED).get("test", test.checksum) != test.checksum)


def _repeats(folder: Path, found: _Found, record: Mapping[str, Any]) -> bool:
    """Whether a source is that of the set in `folder`: by its name, or by the images that both have."""
    if read_json(folder / IMPORTED).get("origin") == record["origin"]:
        return True
    try:
        present = open_corrupted(folder, folder.name)
    except UserError:
        return False
    name = next((name for name in found.names if name in present.names), None)
    count = min(present.images_per_cell, found.available)
    if name is None or present.size != found.size:
        return False
    return np.array_equal(present.cell(name, SEVERITIES[0])[:count], next(iter(found.blocks(name, count))))


def _check(corrupted: CorruptedSet, test: Split, source: Path, note: Note, *, is_old: bool) -> bool:
    """Raise UserError if the labels are wrong; otherwise note what they mean, and doubtful images.

    Returns:
        Whether the images are in the order of the test images, as far as they are recognized.

    `is_old`: the set was imported before, for other test images; it must then be recognizable as of these.
    """
    checked, ordered = check_labels(corrupted, test, source)
    if is_old and not checked:
        raise UserError(
            f"{source} was imported for earlier test images, and does not show the present ones: give a set "
            "that was made from these, or prepare the earlier images again"
        )
    verdict = (
        "the test images agree"
        if checked
        else "this could not be checked, because its images are not recognizable as those of the test set"
    )
    note(f"labels of {source}: {describe_classes(test.classes)}; {verdict}")
    if not ordered and aligned(corrupted, test):  # which the labels alone do not show
        note(f"{source} has the test images in another order: they cannot be paired with the clean ones")
    for text in note_on_cells(corrupted, test, source, in_order=ordered):
        note(text)
    return ordered


def _open_if_same(folder: Path, found: _Found, count: int, progress: Progress) -> CorruptedSet | None:
    """The set in `folder` if it equals the source, compared byte by byte."""
    try:
        present = open_corrupted(folder, folder.name)
    except UserError:
        return None  # missing, or left over from an interrupted import
    if present.names != found.names or not np.array_equal(present.labels, found.labels[:count]):
        return None
    for done, name in enumerate(found.names):
        progress("comparing corruptions", done, len(found.names))
        for severity, block in zip(SEVERITIES, found.blocks(name, count), strict=True):
            if not np.array_equal(present.cell(name, severity), block):
                return None
    found.check_unchanged()
    return present


def _stage(found: _Found, count: int, scratch: Path, progress: Progress) -> dict[str, str]:
    """Copy the first `count` images of all blocks to `scratch`; return the sha256 of each file."""
    scratch.mkdir(parents=True, exist_ok=True)
    check_space(scratch, image_bytes(count, found.size) * len(found.names))
    checksums = {}
    for done, name in enumerate(found.names):
        progress("copying corruptions", done, len(found.names))
        checksums[f"{name}.npy"] = write_blocks(scratch / f"{name}.npy", found.blocks(name, count))
    with replacing(scratch / "labels.npy") as file:
        np.save(file, np.tile(found.labels[:count], len(SEVERITIES)))
    checksums["labels.npy"] = file_digest(scratch / "labels.npy", "sha256")
    found.check_unchanged()
    progress("copying corruptions", len(found.names), len(found.names))
    return checksums


def _checksums(corrupted: CorruptedSet, progress: Progress = silent) -> dict[str, str]:
    """The sha256 of each file of a set, by name."""
    names = [*(f"{name}.npy" for name in corrupted.names), "labels.npy"]
    return {name: file_digest(corrupted.folder / name, "sha256", progress) for name in names}
