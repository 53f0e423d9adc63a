"""Load a prepared data set and its corrupted test set; the embedded ones are generated on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.record import GENERATED, is_entry, source_checksum
from rsslcli.core.data.corrupted import CorruptedSet, check_source, open_corrupted
from rsslcli.core.data.digests import check_space
from rsslcli.core.data.importing import image_bytes
from rsslcli.core.data.prepare import prepare
from rsslcli.core.data.store import EMBEDDED, Dataset, check_limit, dataset_folder, load_dataset
from rsslcli.core.errors import RsslError, UserError, counted
from rsslcli.core.files import read_json
from rsslcli.core.locks import locked
from rsslcli.core.progress import Progress, silent

#: Test images of the embedded data set that are corrupted by default, which takes seconds, not a minute.
EMBEDDED_LIMIT = 500


def load(name: str, data_dir: Path, progress: Progress = silent) -> Dataset:
    """Load the data set `name`; the embedded one is drawn if missing or of an earlier version.

    Raises:
        UserError: it is not prepared, or it is damaged.
    """
    if name == EMBEDDED:
        with locked(dataset_folder(data_dir, name), wait=True):
            return prepare(name, data_dir, progress=progress).dataset
    return load_dataset(data_dir, name)


def load_corrupted(dataset: Dataset, progress: Progress = silent) -> CorruptedSet:
    """Load the corrupted test set of `dataset`; that of the embedded data set is generated if missing.

    Raises:
        StaleCorruptionsError: it was made for other test images.
        UserError: it is not prepared, or it is damaged.
    """
    if dataset.name == EMBEDDED:
        with locked(dataset.folder, wait=True):
            generate_corruptions(dataset, progress=progress)
    corrupted = open_corrupted(dataset.corrupted_folder, dataset.name)
    check_source(corrupted, dataset)
    return corrupted


def generate_corruptions(
    dataset: Dataset,
    *,
    limit: int | None = None,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    progress: Progress = silent,
) -> CorruptedSet | None:
    """Generate the corrupted test set of `dataset` from its first `limit` test images; existing files stay.

    Returns:
        The set, or None if no corruption has all its severities yet.

    Raises:
        UserError: the folder holds a set that was imported, or one of the same images that would be lost.
        RsslError: the files do not fit on the disk, or cannot be written; finished ones are kept.
    """
    from rsslcli.core.corruptions.generate import generate_corrupted

    folder = dataset.corrupted_folder
    test = dataset.test
    check_limit(limit)
    made = _made(dataset)
    if limit is None and dataset.name == EMBEDDED:
        limit = max((count for count, _ in made.values()), default=EMBEDDED_LIMIT)
    # Files without labels are what an interrupted import leaves.
    present = (folder / "labels.npy").exists() and any((folder / f"{c}.npy").exists() for c in CORRUPTIONS)
    if present and not (folder / GENERATED).exists():
        raise UserError(
            f"{folder} holds a corrupted test set that was not generated: move it away to generate one there"
        )
    count = len(test.labels[:limit])
    _check_kept(folder, made, count, names, severities)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: finished for name, (there, finished) in made.items() if there == count}
        check_space(folder, _missing_bytes(folder, kept, image_bytes(count, test.size), names, severities))
        generate_corrupted(
            test.images[:limit],
            test.labels[:limit],
            folder,
            corruptions=names,
            severities=severities,
            progress=progress,
        )
    except OSError as error:
        raise RsslError(
            f"cannot write in {folder} ({error.strerror or error}): free space there or make it writable, "
            "and run it again; what is finished is kept"
        ) from error
    if not any((folder / f"{name}.npy").exists() for name in CORRUPTIONS):
        return None
    return open_corrupted(folder, dataset.name)


#: What was generated, by corruption: the number of images, and the finished severities.
_Made = Mapping[str, tuple[int, set[int]]]


def _made(dataset: Dataset) -> _Made:
    """What was generated from these test images."""
    folder = dataset.corrupted_folder
    test = dataset.test

    @cache  # the corruptions of a set have one number of images
    def checksum(count: int) -> str:
        return source_checksum(test.images[:count], test.labels[:count])

    found = {}
    for name, entry in read_json(folder / GENERATED).items():
        if is_entry(entry) and any((folder / f"{name}.npy{end}").exists() for end in ("", ".partial")):
            count = entry["identity"].get("images")
            known = type(count) is int and 0 < count <= len(test.labels) and entry["severities"]
            if known and entry["identity"].get("source") == checksum(count):
                found[name] = count, set(entry["severities"])
    return found


def _missing_bytes(
    folder: Path, kept: Mapping[str, set[int]], whole: int, names: Sequence[str], severities: Sequence[int]
) -> int:
    """The bytes that generating adds to `folder`: of what is missing, less those of files that it replaces.

    `kept` holds the finished severities by corruption, and `whole` is the size of all five.
    """
    missing = sum(len({*severities} - kept.get(name, set())) for name in {*names})
    replaced = [path for name in {*CORRUPTIONS} - kept.keys() for path in folder.glob(f"{name}.npy*")]
    return missing * whole // len(SEVERITIES) - sum(path.lstat().st_size for path in replaced)


def _check_kept(
    folder: Path, made: _Made, count: int, names: Sequence[str], severities: Sequence[int]
) -> None:
    """Raise UserError if generating `count` images of each corruption would lose some of what is there.

    All corruptions of a set have one number of images: with another one, they are made anew.
    """
    lost = [
        name
        for name, (there, finished) in made.items()
        if there > count or (there < count and not (name in names and finished <= {*severities}))
    ]
    if lost:
        there, _ = made[lost[0]]
        raise UserError(
            f"{folder} holds {counted(len(made), 'corruption')} of "
            f"{counted(there, 'image')}, which would be replaced: set `limit` to {there} to keep them, or "
            "delete the folder"
        )
