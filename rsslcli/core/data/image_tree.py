"""Trees of image files, plain or archived: from a folder of class folders to arrays.

Nothing inside an archive is trusted: files are decoded in memory and never written to disk.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsslcli.core.data.archives import READ_ERRORS, Opener, Parts, is_archive, one_line_errors
from rsslcli.core.data.decoding import SIZE, ImageError, decode, shown
from rsslcli.core.data.file_tree import Key, Tally, Tree, open_tree, walk
from rsslcli.core.data.layout import SPLITS, Layout, TreeImage, find_layout
from rsslcli.core.data.listing import is_image, list_files
from rsslcli.core.data.store import IMAGE_SHAPE, Arrays, Images, Labels, class_balanced_subset
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.progress import Note, Progress, silent

#: Raised whenever the same files would give other images, so that they are prepared anew.
TREE_VERSION = 2
_LISTED = 10  # damaged images that an error lists


class _Wanted(NamedTuple):
    """A split that is to be read: what its images are, and where in memory they go."""

    members: list[TreeImage]
    labels: Labels
    images: Images


def read_image_tree(
    source: Path,
    *,
    limit: int | None = None,
    resize: bool = True,
    damaged: list[str] | None = None,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> tuple[Arrays, Arrays]:
    """Read `train/<class>/*` and `test/<class>/*`, possibly below one leading folder, into memory.

    `source` is a folder, a tar archive (plain or compressed) or a zip archive. Classes are numbered by name.
    Whatever the order in the archive, the images are the first by name of every class, the second of every
    class, and so on. The folders inside a class folder belong to the class.

    Where there are not both splits but `<class>/*` alone, a fifth of each class, chosen by the hashes of the
    names, is the test split.

    Args:
        source: the tree.
        limit: keep a class-balanced subset of so many images of each split.
        resize: bring images of another size to 32x32 (see `decoding`); otherwise refuse them.
        damaged: a list that takes the names of the images that cannot be used, each with the reason; they
            are left out then. Without a list they are refused.
        progress: told after every few images.
        note: told what was held out, resized and not taken.

    Raises:
        UserError: no such tree, classes that differ between the splits or have no images, images that are
            damaged or too large, or one that is not of 32x32 pixels where `resize` is false.
    """
    with one_line_errors(source):
        before = _state(source)
        tree = open_tree(source)
        layout = find_layout(tree)
        for text in layout.notes:
            note(text)
        wanted = [_choose(layout, split, limit) for split in SPLITS]
        failed = _read(tree, wanted, resize, progress, note)
        if _state(source) != before:
            raise _changed(source)
    if failed:
        if damaged is None:
            raise _refusal(failed, sum(len(split.members) for split in wanted))
        damaged += _described(failed)
        wanted = [_without(split, failed) for split in wanted]
        for split, part in zip(SPLITS, wanted, strict=True):
            for label in sorted(set(range(len(layout.classes))) - set(part.labels.tolist())):
                name = shown(layout.classes[label])
                raise UserError(f"all {split} images of class {name} in {source} are damaged: replace them")
    train, test = (
        Arrays(
            split.images,
            split.labels,
            layout.classes,
            tuple("/".join(image.parts) for image in split.members),
        )
        for split in wanted
    )
    return train, test


def tree_fingerprint(source: Path, *, resize: bool = True) -> str:
    """What tells a tree of images from another, or from its later state, without reading the images.

    Raises:
        UserError: as `read_image_tree` does for what shows without reading them.
    """
    described: list[object] = []
    with one_line_errors(source):
        if source.is_file():
            described = [str(source.resolve()), *_state(source)]
        else:
            for classes in find_layout(open_tree(source)).files.values():
                for image in (image for images in classes.values() for image in images):
                    status = Path(str(image.key)).stat()
                    described.append((image.parts, status.st_size, status.st_mtime_ns))
    content = TREE_VERSION, resize, sorted(described, key=repr)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def is_image_tree(source: Path) -> bool:
    """Whether `source` is a folder with images in it, or an archive, which could have them."""
    with one_line_errors(source):
        if source.is_dir():
            tree = open_tree(source)
            return any(entry.kind == "file" and is_image(entry.parts) for entry in walk(tree, tree.top))
        return is_archive(source)


def what_it_holds(source: Path) -> str:
    """Say what a folder without images holds instead, and what to do about it; "" if nothing is known."""
    with one_line_errors(source):
        tree = open_tree(source)
        found, advice = list_files(tree, [((), tree.top)]).instead()
        return f"{found}: {advice}" if advice else found


def _state(source: Path) -> tuple[int, ...]:
    """What changes when an archive does."""
    status = source.stat()
    return () if source.is_dir() else (status.st_size, status.st_mtime_ns)


def _changed(source: Path) -> UserError:
    return UserError(f"{source} changed while it was read: try again")


def _choose(layout: Layout, split: str, limit: int | None) -> _Wanted:
    """Put the images of a split in order, and choose `limit` of them."""
    # Rank before class, so that the first images of a split hold every class.
    ordered = sorted(
        (rank, label, image)
        for label, name in enumerate(layout.classes)
        for rank, image in enumerate(sorted(layout.files[split][name]))
    )
    labels = np.array([label for _, label, _ in ordered], np.int64)
    members = [image for *_, image in ordered]
    if limit is not None and limit < len(members):
        chosen = class_balanced_subset(labels, limit, seed=0)
        labels, members = labels[chosen], [members[index] for index in chosen]
    return _Wanted(members, labels, np.empty((len(members), *IMAGE_SHAPE), np.uint8))


def _read(
    tree: Tree, wanted: list[_Wanted], resize: bool, progress: Progress, note: Note
) -> dict[Parts, ImageError]:
    """Fill in the images. Returns the errors of those that cannot be used, by their paths."""
    places: dict[Key, list[tuple[Parts, Images]]] = defaultdict(list)  # several for a file with links to it
    for split in wanted:
        for image, pixels in zip(split.members, split.images, strict=True):
            places[image.key].append((image.parts, pixels))
    total = sum(len(split.members) for split in wanted)
    sizes: Counter[tuple[int, int]] = Counter()
    one_color = Tally()
    failed: dict[Parts, ImageError] = {}
    done = 0
    for key, opener in tree.contents(places):
        targets = places[key]
        name = shown("/".join(targets[0][0]))
        try:
            pixels, size = _decode(tree, opener, name, resize)
        except ImageError as error:
            failed |= dict.fromkeys((parts for parts, _ in targets), error)
        else:
            sizes[size] += len(targets)
            if (pixels == pixels[0, 0]).all():
                one_color.add(name, len(targets))
            for _, place in targets:
                place[:] = pixels
        done += 1
        if done % 16 == 0:
            progress("reading images", done, len(places))
    if done < len(places):
        raise _changed(tree.source)
    if other := sorted(sizes.keys() - {SIZE}, key=math.prod):
        smallest, largest = ("x".join(map(str, size)) for size in (other[0], other[-1]))
        span = smallest if smallest == largest else f"{smallest} to {largest}"
        note(
            f"{sum(sizes[size] for size in other)} of {total} images resized to 32x32, "
            f"the centre square of each: they had {span} pixels"
        )
    if one_color.count:
        note(
            f"{one_color.count} of {total} images are of one color throughout, e.g. {one_color.example}: "
            "fully transparent, perhaps, or of 16 bits with values below 256, which are black"
        )
    return failed


def _decode(tree: Tree, opener: Opener, name: str, resize: bool) -> tuple[Images, tuple[int, int]]:
    try:
        with opener() as file:
            return decode(file, name, resize=resize)
    except RsslError:
        raise
    except FileNotFoundError:
        raise _changed(tree.source) from None
    except READ_ERRORS as error:
        if not tree.independent:
            raise
        reason = shown((error.strerror if isinstance(error, OSError) else None) or str(error))
        raise ImageError(f"cannot read image {name} ({reason}): replace or remove it", reason) from error


def _described(failed: dict[Parts, ImageError]) -> list[str]:
    return [f"{shown('/'.join(parts))} ({error.reason})" for parts, error in sorted(failed.items())]


def _refusal(failed: dict[Parts, ImageError], total: int) -> ImageError:
    """The error for all images that cannot be used."""
    errors = _described(failed)
    if len(errors) == 1:
        return next(iter(failed.values()))
    more = f" and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
    return ImageError(
        f"cannot decode {len(errors)} of {total} images: {', '.join(errors[:_LISTED])}{more}: "
        "replace or remove them",
        "damaged",
    )


def _without(split: _Wanted, failed: Container[Parts]) -> _Wanted:
    """A split without the images that cannot be used."""
    kept = np.array([image.parts not in failed for image in split.members])
    members = [image for image in split.members if image.parts not in failed]
    return _Wanted(members, split.labels[kept], split.images[kept])
