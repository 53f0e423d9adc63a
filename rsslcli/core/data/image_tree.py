"""Read trees of image files, in a folder or an archive, into arrays.

Archives are untrusted: their files are decoded in memory and never written to disk.
"""

import hashlib
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from rsslcli.core.data.archives import READ_ERRORS, Opener, Parts, is_archive, one_line_errors
from rsslcli.core.data.decoding import ImageError, decode, shown
from rsslcli.core.data.file_tree import Key, Tally, Tree, open_tree, walk
from rsslcli.core.data.layout import SPLITS, Layout, TreeImage, find_layout
from rsslcli.core.data.listing import is_image, list_files
from rsslcli.core.data.store import (
    DEFAULT_SIZE,
    Arrays,
    Images,
    class_balanced_subset,
    empty_images,
)
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.progress import Note, Progress, silent

#: Increased whenever the same files would give other images, so that they are prepared again.
TREE_VERSION = 2
_LISTED = 10  # damaged images listed in an error


#: A split to be read: its images in the tree, and the arrays to fill.
_Wanted = tuple[list[TreeImage], Arrays]


def read_image_tree(
    source: Path,
    *,
    size: int = DEFAULT_SIZE,
    limit: int | None = None,
    resize: bool = True,
    damaged: list[str] | None = None,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> tuple[Arrays, Arrays]:
    """Read `train/<class>/*` and `test/<class>/*`, possibly below one leading folder, into memory.

    `source` is a folder, a tar archive (plain or compressed) or a zip archive. Classes are numbered by name.
    Whatever the order in the archive, the images are ordered by their rank within the class: first the first
    image of every class by name, then the second of every class, and so on. Subfolders of a class folder
    belong to the class.

    If the tree has `<class>/*` without both splits, a fifth of each class, chosen by the hashes of the names,
    becomes the test split.

    Args:
        source: the tree.
        size: the height and width of the result, in pixels.
        limit: keep a class-balanced subset of at most this many images per split.
        resize: scale images of another size (see `decoding`); otherwise refuse them.
        damaged: a list that receives the names of unusable images, each with the reason; these images are
            then left out. Without a list they are refused.
        progress: called after every few images.
        note: called with what was held out, resized and not used.

    Raises:
        UserError: there is no such tree, classes differ between the splits or have no images, images are
            damaged or too large, or one has another size and `resize` is false.
    """
    with one_line_errors(source):
        before = source_state(source)
        tree = open_tree(source)
        layout = find_layout(tree)
        for text in layout.notes:
            note(text)
        wanted = [_choose(layout, split, size, limit) for split in SPLITS]
        failed = _read(tree, wanted, resize, progress, note)
        if source_state(source) != before:
            raise changed_source(source)
    train, test = (arrays for _, arrays in wanted)
    if failed:
        if damaged is None:
            raise _refusal(failed, len(train.labels) + len(test.labels))
        damaged += _described(failed)
        train, test = (
            arrays.take(np.flatnonzero([image.parts not in failed for image in members]))
            for members, arrays in wanted
        )
        for split, part in zip(SPLITS, (train, test), strict=True):
            for label in sorted(set(range(len(layout.classes))) - set(part.labels.tolist())):
                name = shown(layout.classes[label])
                raise UserError(f"all {split} images of class {name} in {source} are damaged: replace them")
    return train, test


def tree_fingerprint(source: Path, *, size: int = DEFAULT_SIZE, resize: bool = True) -> str:
    """A fingerprint that changes when the tree of images changes, computed without reading the images.

    Raises:
        UserError: as for `read_image_tree`, except for errors in the images themselves.
    """
    described: list[object] = []
    with one_line_errors(source):
        if source.is_file():
            described = [str(source.resolve()), *source_state(source)]
        else:
            for classes in find_layout(open_tree(source)).files.values():
                for image in (image for images in classes.values() for image in images):
                    status = Path(str(image.key)).stat()
                    # A file that takes the place of another may have its size and time.
                    state = status.st_size, status.st_mtime_ns, status.st_ctime_ns
                    described.append((image.parts, *state))
    content: tuple[object, ...] = TREE_VERSION, resize, sorted(described, key=repr)
    if size != DEFAULT_SIZE:
        content = (*content, size)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def is_image_tree(source: Path) -> bool:
    """Whether `source` is a folder that contains images, or an archive, which may contain them."""
    with one_line_errors(source):
        if source.is_dir():
            tree = open_tree(source)
            return any(entry.kind == "file" and is_image(entry.parts) for entry in walk(tree, tree.top))
        return is_archive(source)


def what_it_holds(source: Path) -> str:
    """What a folder without images holds instead, and what to do about it; "" if unknown."""
    with one_line_errors(source):
        tree = open_tree(source)
        found, advice = list_files(tree, [((), tree.top)]).instead()
        return f"{found}: {advice}" if advice else found


def source_state(source: Path) -> tuple[int, ...]:
    """The size and time of an archive, which change with it; empty for a folder."""
    status = source.stat()
    return () if source.is_dir() else (status.st_size, status.st_mtime_ns)


def changed_source(source: Path) -> UserError:
    """The error for a source that changed between two looks at it."""
    return UserError(f"{source} changed while it was being read: try again")


def _choose(layout: Layout, split: str, size: int, limit: int | None) -> _Wanted:
    """Order the images of a split and choose `limit` of them."""
    # Rank before class, so that the first images of a split cover every class.
    ordered = sorted(
        (rank, label, image)
        for label, name in enumerate(layout.classes)
        for rank, image in enumerate(sorted(layout.files[split][name]))
    )
    labels = np.array([label for _, label, _ in ordered], np.int64)
    members = [image for *_, image in ordered]
    if limit is not None and limit < len(members):
        chosen = class_balanced_subset(labels, limit, seed=0)
        labels = labels[chosen]
        members = [members[index] for index in chosen]
    images = empty_images(len(members), size)
    return members, Arrays(images, labels, layout.classes, tuple("/".join(image.parts) for image in members))


def _read(
    tree: Tree, wanted: list[_Wanted], resize: bool, progress: Progress, note: Note
) -> dict[Parts, ImageError]:
    """Read the images into their arrays; return the errors of unusable images, by path."""
    # A file has several places if links lead to it.
    places: dict[Key, list[tuple[Parts, Images]]] = defaultdict(list)
    for members, arrays in wanted:
        for image, pixels in zip(members, arrays.images, strict=True):
            places[image.key].append((image.parts, pixels))
    total = sum(len(members) for members, _ in wanted)
    side = wanted[0][1].images.shape[1]
    sizes: Counter[tuple[int, int]] = Counter()
    one_color = Tally()
    failed: dict[Parts, ImageError] = {}
    done = 0
    for key, opener in tree.contents(places):
        targets = places[key]
        name = shown("/".join(targets[0][0]))
        try:
            pixels, original = read_image(tree, opener, name, resize=resize, side=side)
        except FileNotFoundError:
            raise changed_source(tree.source) from None
        except ImageError as error:
            failed |= dict.fromkeys((parts for parts, _ in targets), error)
        else:
            sizes[original] += len(targets)
            if (pixels == pixels[0, 0]).all():
                one_color.add(name, len(targets))
            for _, place in targets:
                place[:] = pixels
        done += 1
        if done % 16 == 0:
            progress("reading images", done, len(places))
    if done < len(places):
        raise changed_source(tree.source)
    if other := sorted(sizes.keys() - {(side, side)}, key=math.prod):
        smallest, largest = ("x".join(map(str, size)) for size in (other[0], other[-1]))
        span = smallest if smallest == largest else f"{smallest} to {largest}"
        note(
            f"{sum(sizes[size] for size in other)} of {total} images resized to {side}x{side}, "
            f"the center square of each: they had {span} pixels"
        )
    if one_color.count:
        note(
            f"{one_color.count} of {total} images have a single color, e.g. {one_color.example}: perhaps "
            "they are fully transparent, or 16-bit with values below 256, which become black"
        )
    return failed


def read_image(
    tree: Tree, opener: Opener, name: str, *, resize: bool = True, side: int = DEFAULT_SIZE
) -> tuple[Images, tuple[int, int]]:
    """Decode an image of a tree, see `decode`; an error while it is read concerns only this image if it can.

    Raises:
        ImageError: the image is unusable.
        UserError: it has another size, and `resize` is false.
        FileNotFoundError: it is gone.
        Exception: one of `READ_ERRORS`, if they leave no other image of this tree readable.
    """
    try:
        with opener() as file:
            return decode(file, name, resize=resize, side=side)
    except (RsslError, FileNotFoundError):
        raise
    except READ_ERRORS as error:
        if not tree.independent:
            raise
        reason = shown((error.strerror if isinstance(error, OSError) else None) or str(error))
        raise ImageError(f"cannot read image {name} ({reason}): replace or remove it", reason) from error


def _described(failed: dict[Parts, ImageError]) -> list[str]:
    return [f"{shown('/'.join(parts))} ({error.reason})" for parts, error in sorted(failed.items())]


def _refusal(failed: dict[Parts, ImageError], total: int) -> ImageError:
    """The error for all unusable images."""
    errors = _described(failed)
    if len(errors) == 1:
        return next(iter(failed.values()))
    more = f" and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
    return ImageError(
        f"cannot decode {len(errors)} of {total} images: {', '.join(errors[:_LISTED])}{more}: "
        "replace or remove them",
        "damaged",
    )
