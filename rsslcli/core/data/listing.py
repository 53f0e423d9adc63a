"""List the entries of a tree of image files, and describe those that are not images."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from rsslcli.core.data.archives import Parts
from rsslcli.core.data.decoding import extensions, shown
from rsslcli.core.data.file_tree import Key, Place, Tally, Tree, visible, walk
from rsslcli.core.errors import UserError, sanitize

MAX_IMAGES = 1_000_000  # 3 GB in memory
_SOME = 5  # names in a message
#: Extensions of images that Pillow cannot read by itself.
_CONVERTIBLE = {
    ".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
}  # fmt: skip

#: A folder in a tree: its path, and the tree's reference to it.
Folder = tuple[Parts, Place]


@dataclass
class Listing:
    """The entries of some folders and of all folders in them."""

    folders: set[Parts] = field(default_factory=set)
    images: dict[Parts, Key] = field(default_factory=dict)
    #: files of other formats, by folder and extension
    others: dict[tuple[Parts, str], Tally] = field(default_factory=dict)
    #: entries that cannot be followed or read, by folder and reason
    lost: dict[tuple[Parts, str], Tally] = field(default_factory=dict)

    def instead(self, prefix: Parts = ()) -> tuple[str, str]:
        """What the folder `prefix` holds instead of images, and what to do; "" for either if unknown."""
        endings = _totals(self.others, prefix)
        reasons = _totals(self.lost, prefix)
        if not endings and not reasons:
            return "", ""
        what = f"{in_words(endings)} files" if endings else in_words(reasons)
        advice = "convert them to JPEG or PNG" if _CONVERTIBLE & {*map(str.lower, endings)} else ""
        return f"found only {what}, e.g. {shown(next(iter((endings or reasons).values())).example)}", advice

    def notes(self, branches: Collection[Parts] | None = None) -> Iterator[str]:
        """Notes on lost entries and files of other formats, only in class folders of `branches` if given."""
        for reason, tally in _totals(self.lost, ()).items():
            yield told(f"not used: {reason}", tally)
        others = Tally()
        endings: set[str] = set()
        for (folder, ending), tally in self.others.items():
            if branches is None or any(
                len(folder) > len(branch) and folder[: len(branch)] == branch for branch in branches
            ):
                others.add(tally.example, tally.count)
                endings.add(ending)
        if others.count:
            yield told(f"not used: files of other formats ({in_words(endings)})", others)


def list_files(tree: Tree, folders: Iterable[Folder]) -> Listing:
    """List the entries of these folders and of all folders inside them.

    Raises:
        UserError: there are more than `MAX_IMAGES` images.
    """
    listing = Listing()
    for parts, place in folders:
        for entry in walk(tree, place, parts):
            if entry.kind == "folder":
                listing.folders.add(entry.parts)
            elif entry.kind == "lost":
                listing.lost.setdefault((entry.parts[:-1], entry.reason), Tally()).add("/".join(entry.parts))
            elif not is_image(entry.parts):
                key = entry.parts[:-1], _ending(entry.parts)
                listing.others.setdefault(key, Tally()).add("/".join(entry.parts))
            elif len(listing.images) < MAX_IMAGES:
                listing.images[entry.parts] = entry.key
            else:
                raise UserError(f"{tree.source} holds more than {MAX_IMAGES:,} images: prepare a part of it")
    return listing


def subfolders(tree: Tree, folder: Folder) -> list[Folder]:
    """The folders directly in a folder, sorted by name."""
    parts, place = folder
    return [((*parts, entry.name), entry.place) for entry in visible(tree, place) if entry.place is not None]


def is_image(parts: Parts) -> bool:
    """Whether a file's name has the extension of an image."""
    return _ending(parts).lower() in extensions()


def in_words(names: Iterable[str]) -> str:
    """The first few names or extensions, sorted."""
    ordered = sorted(names)
    more = [f"{len(ordered) - _SOME} more"] if len(ordered) > _SOME else []
    return ", ".join([sanitize(name, 120) or "without extension" for name in ordered[:_SOME]] + more)


def told(kind: str, tally: Tally) -> str:
    """A note on how many items of a kind there are, with an example."""
    return f"{kind}, {tally.count} in all, e.g. {shown(tally.example)}"


def _totals(tallies: dict[tuple[Parts, str], Tally], prefix: Parts) -> dict[str, Tally]:
    """The tallies of the folder `prefix` and of all folders inside it, by kind."""
    totals: dict[str, Tally] = {}
    for (folder, kind), tally in tallies.items():
        if folder[: len(prefix)] == prefix:
            totals.setdefault(kind, Tally()).add(tally.example, tally.count)
    return totals


def _ending(parts: Parts) -> str:
    return PurePosixPath(parts[-1]).suffix
