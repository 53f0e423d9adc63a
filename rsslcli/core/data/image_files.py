"""Find the images that a person names, as files, folders or archives, and read them in batches.

What counts as an image, and how it is decoded, is as in `image_tree`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsslcli.core.data.archives import Parts, is_archive, one_line_errors
from rsslcli.core.data.decoding import ImageError, decode, shown
from rsslcli.core.data.file_tree import Key, Tree, open_tree
from rsslcli.core.data.image_tree import changed_source, read_image, source_state
from rsslcli.core.data.listing import MAX_IMAGES, is_image, list_files, told
from rsslcli.core.data.store import Images
from rsslcli.core.errors import UserError


class ImageFile(NamedTuple):
    """An image that a person named, or that lies in what they named."""

    name: str  #: its path, beginning as it was named
    folders: Parts = ()  #: the folders between what was named and the image


@dataclass
class _Group:
    """Images of one tree, in the order in which they are read."""

    tree: Tree
    state: tuple[int, ...]  #: of the tree's source, when it was listed
    images: dict[Key, list[ImageFile]] = field(default_factory=dict)  #: several if links lead to the same one


@dataclass
class ImageFiles:
    """Images to be read.

    Attributes:
        notes: what is not used, a line each.
    """

    groups: list[_Group] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def images(self) -> Iterator[ImageFile]:
        """Every image, in the order in which they are read if none is in an archive."""
        return (image for group in self.groups for same in group.images.values() for image in same)

    def shuffled(self, seed: int) -> ImageFiles:
        """The same images with those of each folder in random order; an archive keeps its own."""
        random = np.random.default_rng(seed)
        groups = []
        for group in self.groups:
            keys = list(group.images)
            order = random.permutation(len(keys)).tolist()
            groups.append(dataclasses.replace(group, images={keys[i]: group.images[keys[i]] for i in order}))
        return ImageFiles(groups, self.notes)

    def read(
        self, size: int, batch: int, skip: Callable[[str, str], None]
    ) -> Iterator[tuple[list[ImageFile], Images]]:
        """Read the images in batches; only one batch is in memory.

        Args:
            size: the side of the result, to which every image is scaled; see `decoding.decode`.
            batch: images in a batch, but for the last one.
            skip: called with the name of each unusable image and the reason, in the order of reading.

        Yields:
            The images of a batch, and their pixels, uint8 (N, size, size, 3).

        Raises:
            UserError: an archive is damaged, or changed since it was listed.
        """
        members: list[ImageFile] = []
        pixels: list[Images] = []
        for image, decoded in self._decoded(size, skip):
            members.append(image)
            pixels.append(decoded)
            if len(members) == batch:
                yield members, np.stack(pixels)
                members = []
                pixels = []
        if members:
            yield members, np.stack(pixels)

    def _decoded(self, size: int, skip: Callable[[str, str], None]) -> Iterator[tuple[ImageFile, Images]]:
        for group in self.groups:
            source = group.tree.source
            count = 0
            with one_line_errors(source):
                for key, opener in group.tree.contents(group.images):
                    same = group.images[key]
                    count += 1
                    try:
                        pixels, _ = read_image(group.tree, opener, shown(same[0].name), side=size)
                    except (ImageError, FileNotFoundError) as error:
                        reason = error.reason if isinstance(error, ImageError) else "no such file"
                        for image in same:
                            skip(image.name, reason)
                        continue
                    for image in same:
                        yield image, pixels
                if count < len(group.images) or source_state(source) != group.state:
                    raise changed_source(source)


def read_image_file(path: Path, size: int) -> tuple[Images, tuple[int, int]]:
    """Read an image file as uint8 (size, size, 3); also the width and height that it had.

    Raises:
        UserError: the file is missing or not a file, damaged, too large or not an image.
    """
    if not path.is_file():  # opening a pipe would wait for its writer
        raise UserError(f"{path} is no file: give the paths of image files")
    with one_line_errors(path), path.open("rb") as file:
        return decode(file, shown(str(path)), resize=True, side=size)


def find_images(paths: Sequence[Path]) -> ImageFiles:
    """Find the images in these files, folders and archives, in this order; those of a folder by name.

    A file that is named itself is taken for an image, whatever its name is, unless it is an archive.

    Raises:
        UserError: a path is missing or neither a file nor a folder, a folder or an archive holds no images,
            or there are more than `MAX_IMAGES`.
    """
    found = ImageFiles()
    for path in paths:
        with one_line_errors(path):
            if path.is_dir() or (path.is_file() and not is_image(path.parts) and is_archive(path)):
                _add_tree(found, path)
            elif path.is_file():
                _add_file(found, path)
            elif path.exists():
                raise UserError(f"{path} is neither a file nor a folder")
            else:
                raise UserError(f"no such file or folder: {path}")
    if sum(1 for _ in found.images) > MAX_IMAGES:
        raise UserError(f"more than {MAX_IMAGES:,} images: name fewer at a time")
    return found


def _add_file(found: ImageFiles, path: Path) -> None:
    """Add an image that is named itself to the group of those named before it."""
    if not found.groups or found.groups[-1].tree.source != _LOOSE:
        found.groups.append(_Group(Tree(_LOOSE), source_state(_LOOSE)))
    found.groups[-1].images.setdefault(str(path), []).append(ImageFile(str(path)))


#: The source of images that are named themselves; their keys are their paths.
_LOOSE = Path()


def _add_tree(found: ImageFiles, path: Path) -> None:
    """Add the images of a folder or an archive."""
    state = source_state(path)
    tree = open_tree(path)
    listing = list_files(tree, [((), tree.top)])
    if not listing.images:
        held, advice = listing.instead()
        reason = ": ".join(part for part in (held, advice) if part)
        raise UserError(f"no images in {path}" + (f": {reason}" if reason else ""))
    group = _Group(tree, state)
    for parts, key in listing.images.items():
        group.images.setdefault(key, []).append(ImageFile(str(path.joinpath(*parts)), parts[:-1]))
    found.groups.append(group)
    found.notes += listing.notes()
    if tree.strays.count:
        found.notes.append(told("not used: members whose names lead out of the archive", tree.strays))
