"""Prepare a data set from any source for `store` to load."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsslcli.core.data import cifar, image_tree, shapes
from rsslcli.core.data.copies import EXAMPLES, find_copies
from rsslcli.core.data.corrupted import CorruptedSet, check_source, open_corrupted, record_test_images
from rsslcli.core.data.corrupted_source import is_corrupted_set
from rsslcli.core.data.corrupted_tree import corruption_folders
from rsslcli.core.data.importing import check_importable, import_corrupted
from rsslcli.core.data.layout import LAYOUT
from rsslcli.core.data.listing import MAX_IMAGES
from rsslcli.core.data.place import prepare_command
from rsslcli.core.data.published import published_origin
from rsslcli.core.data.store import (
    DEFAULT_SIZE,
    EMBEDDED,
    SIZES,
    Arrays,
    Dataset,
    check_limit,
    dataset_folder,
    is_prepared,
    load_dataset,
    save_split,
)
from rsslcli.core.errors import RsslError, StaleCorruptionsError, UserError, nearest, sanitize
from rsslcli.core.files import read_json, remove, write_json
from rsslcli.core.progress import Note, Progress, silent

_RECORD = "prepared.json"
#: What the record counts, each kind with examples, and the note on it.
_NOTES = {
    "damaged": "left out: damaged images, {count} in all, e.g. {example}",
    "test_in_training": "test images that are training images too, pixel for pixel at {size}: {count} in "
    "all, e.g. {example}: the accuracy on them flatters; remove them from one of the splits",
    "contradicting": "images with the same pixels as an image of another class: {count} in all, "
    "e.g. {example}: only one of the classes can be right",
}
_ACCEPTED = (
    f"a folder or archive (.tar.gz, .zip) of {LAYOUT}, "
    "the official CIFAR archive or its folder, a folder or archive of CIFAR-10-C's files, "
    "or a folder of ImageNet-C's images"
)


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`."""

    folder: Path
    dataset: Dataset
    kind: str  #: a description of the source
    changed: bool  #: False if everything was already in place
    #: if `folder`/corrupted was made for other test images than the data set has, the command that mends it
    stale_corruptions: str = ""
    notes: tuple[str, ...] = ()  #: what was done to the images, a line each
    corrupted: CorruptedSet | None = None  #: the corrupted test set, if one was imported


@dataclass(frozen=True)
class _Source:
    """The source of a data set; `fingerprint` changes whenever the images may have changed."""

    kind: str
    fingerprint: str
    read: Callable[[int | None], tuple[Arrays, Arrays]]


def prepare(
    name: str,
    data_dir: Path,
    *,
    source: Path | None = None,
    size: int | None = None,
    limit: int | None = None,
    resize: bool = True,
    skip_damaged: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Prepare the data set `name` in `data_dir`, or import corrupted test images for it.

    Without a source, `shapes` is drawn and `cifar10` and `cifar100` are downloaded; any other name needs one.
    The content of the source decides what it is. Nothing is done if the data set is already prepared from the
    same source with the same options, or if it is prepared and neither source nor options are given. An
    embedded data set that an earlier version drew is drawn anew. The caller holds the lock of the data set's
    folder.

    Args:
        name: the data set.
        data_dir: the folder of prepared data sets.
        source: a folder or an archive.
        size: the height and width of the images, one of `SIZES`; by default the size that the data set has,
            or 32 for a new one.
        limit: keep a class-balanced subset of at most this many images per split, or this many of the first
            images of a corrupted set.
        resize: scale images of another size; otherwise refuse them.
        skip_damaged: leave out unusable images and record that; otherwise refuse them.
        progress: called as the work advances.

    Raises:
        UserError: there is no such source, or it is unknown, damaged or does not fit.
        ImageError: images are unusable; `skip_damaged` would leave them out.
        RsslError: a download failed, or a folder cannot be written.
    """
    folder = dataset_folder(data_dir, name)
    check_limit(limit)
    if source is not None and not (source.is_file() or source.is_dir()):
        raise UserError(f"no such source: {source} is not a file or folder: give {_ACCEPTED}")
    if size is not None and size not in SIZES:
        raise UserError(f"size: expected {', '.join(map(str, SIZES[:-1]))} or {SIZES[-1]}, got {size}")
    if source is not None and is_corrupted_set(source):
        if size is not None:
            raise UserError("size: a corrupted set has the size of the data set that it is for")
        check_importable(name)
        return _prepare_corrupted(name, data_dir, source, limit, progress)

    for unfinished in folder.glob(".*.part"):  # left by a killed process
        remove(unfinished)
    record = _read_record(folder)
    present = _load_or_none(data_dir, name)
    recorded = _notes(record) if present else []
    if size is None:
        size = present.size if present else _recorded_size(record)
    unchanged = present is not None and present.size == size and not _is_outdated(name, record)
    if present and unchanged and source is None and limit is None and resize:
        kind = str(record.get("kind", "prepared before"))
        return Prepared(folder, present, kind, False, _mend_stale(present), notes=tuple(recorded))
    source = source or _recorded_source(record)
    notes: list[str] = []
    damaged: list[str] | None = [] if skip_damaged else None
    origin = _recognize(name, folder, source, size, resize, damaged, progress, notes.append)
    wanted = {"kind": origin.kind, "fingerprint": origin.fingerprint, "limit": limit}
    in_place = present and record.items() >= (wanted | _checksums(present)).items()
    if present and in_place and (skip_damaged or "damaged" not in record):
        return Prepared(folder, present, origin.kind, False, _mend_stale(present), notes=tuple(recorded))

    train, test = origin.read(limit)
    if name in cifar.OFFICIAL and len(train.classes) != cifar.CLASSES[name]:
        raise UserError(
            f"{name} is the name of a data set of {cifar.CLASSES[name]} classes, and {source} has "
            f"{len(train.classes)}: choose another name for it"
        )
    tallies = find_copies(train, test)
    if damaged:
        tallies["damaged"] = len(damaged), damaged[:EXAMPLES]
    was = present.test.checksum if present else record.get("test")
    if isinstance(was, str) and (folder / "corrupted" / "labels.npy").is_file():
        record_test_images(folder / "corrupted", was)  # older imports do not say which they are for
    place = str(source.resolve()) if source else None
    done: dict[str, Any] = wanted | {"source": place, "size": size}
    for counted, (count, examples) in tallies.items():
        done |= {counted: count, f"{counted}_examples": examples}
    dataset = _save(name, folder, train, test, done)
    before = record.get("source")
    if present and before not in (None, place) and present.train.checksum != dataset.train.checksum:
        notes.append(f"{name} was prepared from {before} before: runs trained on that do not resume")
    notes += _notes(done)
    return Prepared(folder, dataset, origin.kind, True, _mend_stale(dataset), notes=tuple(notes))


def _save(name: str, folder: Path, train: Arrays, test: Arrays, record: Mapping[str, Any]) -> Dataset:
    """Write both splits and the record; the files that they replace stay until all are complete."""
    parts = [folder / ".train.npz.part", folder / f".{_RECORD}.part", folder / ".test.npz.part"]
    try:
        splits = [
            save_split(part, arrays.images, arrays.labels, arrays.classes)
            for part, arrays in zip(parts[::2], (train, test), strict=True)
        ]
        dataset = Dataset(name, folder, *splits)
        write_json(parts[1], {**record, **_checksums(dataset)})
        remove(folder / "test.npz")  # until it is there again, the data set does not count as prepared
        for part in parts:
            part.replace(folder / part.stem.removeprefix("."))
    except OSError as error:
        raise RsslError(f"cannot write below {folder}: {error.strerror or error}") from error
    finally:
        for part in parts:
            remove(part)
    return dataset


def _mend_stale(dataset: Dataset) -> str:
    """The command that prepares the corrupted test set again; empty unless it is of other test images."""
    try:
        check_source(open_corrupted(dataset.corrupted_folder, dataset.name), dataset)
    except StaleCorruptionsError as error:
        return error.mend
    except UserError:  # there is none, or none that can be used
        return ""
    return ""


def _prepare_corrupted(
    name: str, data_dir: Path, source: Path, limit: int | None, progress: Progress
) -> Prepared:
    if not is_prepared(data_dir, name):
        raise UserError(
            f"{source} is a corrupted test set, by the names of its files: prepare the clean images of "
            f"{name!r} first"
        )
    dataset = load_dataset(data_dir, name)
    notes: list[str] = []
    corrupted, changed = import_corrupted(
        source,
        dataset.corrupted_folder,
        test=dataset.test,
        limit=limit,
        origin=published_origin(name, source, progress),
        progress=progress,
        note=notes.append,
    )
    form = "folder" if source.is_dir() else "archive"
    kind = "folder of corrupted images" if corruption_folders(source) else f"CIFAR-10-C {form}"
    return Prepared(dataset.folder, dataset, kind, changed, notes=tuple(notes), corrupted=corrupted)


def _recognize(
    name: str,
    folder: Path,
    source: Path | None,
    size: int,
    resize: bool,
    damaged: list[str] | None,
    progress: Progress,
    note: Note,
) -> _Source:
    """Identify the source from its content; None stands for the default source of `name`."""
    official = cifar.official_name(source, name) if source else name if name in cifar.OFFICIAL else None
    if size != DEFAULT_SIZE and (official or name == EMBEDDED):
        raise UserError(
            f"size: {official or name} has images of {DEFAULT_SIZE}x{DEFAULT_SIZE} pixels, with no more "
            f"to see at {size}x{size}: give `size` {DEFAULT_SIZE}, or images of your own"
        )
    if name == EMBEDDED:
        if source is not None:
            raise UserError("shapes is drawn and takes no `source`: choose another name for your images")
        return _Source("drawn shapes", _drawing(), _draw)
    if official:
        if name in cifar.OFFICIAL and name != official:
            command = prepare_command(official, folder.parent, source=source)
            raise UserError(f"{source} is {official}, not {name}: prepare it with `{command}`")

        def read_official(limit: int | None) -> tuple[Arrays, Arrays]:
            train, test = cifar.read_cifar(official, source, folder / "download", progress)
            return train.limited(limit), test.limited(limit)

        # The official files are verified when read, so they are the same wherever they come from.
        return _Source(f"official {official}", official, read_official)
    if source is None:
        near = nearest(name, (*cifar.OFFICIAL, "shapes"))
        hint = f"did you mean '{near}'? Else " if near else ""
        raise UserError(f"data set {name!r} needs a source: {hint}give `source`, {_ACCEPTED}")
    if image_tree.is_image_tree(source):
        return _Source(
            "image folder" if source.is_dir() else "image archive",
            image_tree.tree_fingerprint(source, size=size, resize=resize),
            lambda limit: image_tree.read_image_tree(
                source, size=size, limit=limit, resize=resize, damaged=damaged, progress=progress, note=note
            ),
        )
    held = image_tree.what_it_holds(source) if source.is_dir() else ""
    raise UserError(f"{source} is not a source of images: {held or f'give {_ACCEPTED}'}")


def _drawing() -> str:
    """The fingerprint of the embedded pictures."""
    return f"{EMBEDDED}-{shapes.VERSION}"


def _draw(limit: int | None) -> tuple[Arrays, Arrays]:
    train = Arrays(*shapes.draw_shapes(shapes.TRAIN_SIZE, 0, "train"))
    test = Arrays(*shapes.draw_shapes(shapes.TEST_SIZE, 0, "test"))
    return train.limited(limit), test.limited(limit)


def _is_outdated(name: str, record: Mapping[str, Any]) -> bool:
    """Whether an earlier version drew the embedded data set, with other pictures."""
    return name == EMBEDDED and record.get("fingerprint") != _drawing()


def _checksums(dataset: Dataset) -> dict[str, str]:
    return {"train": dataset.train.checksum, "test": dataset.test.checksum}


def _load_or_none(data_dir: Path, name: str) -> Dataset | None:
    try:
        return load_dataset(data_dir, name)
    except UserError:
        return None  # missing, damaged or half prepared: prepare it again


def _read_record(folder: Path) -> dict[str, Any]:
    record = read_json(folder / _RECORD)
    kind = record.get("kind")  # it is printed
    return record if isinstance(kind, str) and kind.isprintable() else {}


def _notes(record: dict[str, Any]) -> list[str]:
    """The notes on what the record counts."""
    notes = []
    for kind, text in _NOTES.items():
        count = record.get(kind)
        examples = record.get(f"{kind}_examples")
        if isinstance(count, int) and 0 < count <= MAX_IMAGES:
            known = examples[0] if isinstance(examples, list) and examples else "one of unknown name"
            side = _recorded_size(record)
            notes.append(text.format(count=count, example=sanitize(known, 300), size=f"{side}x{side}"))
    return notes


def _recorded_size(record: Mapping[str, Any]) -> int:
    """The recorded height and width of the images; 32 if unknown."""
    return next((size for size in SIZES if size == record.get("size")), DEFAULT_SIZE)


def _recorded_source(record: dict[str, Any]) -> Path | None:
    """The recorded source of the data set, if it still exists."""
    try:
        source = Path(record["source"])
        return source if source.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
