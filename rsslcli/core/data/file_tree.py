"""Trees of files, in a folder or in an archive, with the same rules for both.

Links are followed: on disk wherever they lead, in an archive only if they stay inside it.
"""

import os
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from rsslcli.core.data.archives import (
    MAX_MEMBERS,
    Member,
    Opener,
    Parts,
    archive_members,
    check_extent,
    is_zip,
    split_path,
)
from rsslcli.core.errors import UserError

MAX_DEPTH = 32  # levels of nested folders
_MAX_STEPS = 256  # path components while a link is resolved
# Why entries are lost, as messages name such entries.
LOST_LINKS = "links that lead nowhere, in circles or out of an archive"
SPECIAL_FILES = "devices, pipes or other special files"
DEEP_FOLDERS = f"folders inside more than {MAX_DEPTH} others"

#: Identifies the content of a file: its path on disk, or its number in the archive.
Key = str | int
#: A tree's reference to a folder.
Place = Any


class Listed(NamedTuple):
    """An entry of a folder: its name, and exactly one of `key`, `place` and `reason`."""

    name: str
    key: Key | None = None  #: of a file
    place: Place = None  #: of a folder
    reason: str = ""  #: why it is neither: LOST_LINKS or SPECIAL_FILES


class Entry(NamedTuple):
    """A file or folder that `walk` finds."""

    parts: Parts
    kind: Literal["file", "folder", "lost"]
    key: Key = ""  #: of a file
    reason: str = ""  #: why it is lost: LOST_LINKS, SPECIAL_FILES or DEEP_FOLDERS


@dataclass
class Tally:
    """A count, with the name of the first item as an example."""

    count: int = 0
    example: str = ""

    def add(self, name: str, count: int = 1) -> None:
        """Count `count` more, one of them called `name`."""
        self.example = self.example if self.count else name
        self.count += count


class Tree:
    """The files below a folder on disk, whose places are paths."""

    independent = True  #: whether a damaged file leaves the others readable

    def __init__(self, source: Path) -> None:
        self.source = source
        self.top: Place = str(source)
        self.strays = Tally()  #: members of an archive whose names point out of it

    def entries(self, place: Place) -> Iterator[Listed]:
        """List a folder in any order, with links resolved."""
        with os.scandir(place) as entries:
            yield from map(_listed, entries)

    def identity(self, place: Place) -> Hashable:
        """A value that two places share only if they are the same folder."""
        status = Path(place).stat()
        return status.st_dev, status.st_ino

    def contents(self, keys: Collection[Key]) -> Iterator[tuple[Key, Opener]]:
        """Iterate over the files with these keys; open each before requesting the next."""
        for key in keys:
            yield key, partial(_open, str(key))


def open_tree(source: Path) -> Tree:
    """The tree in the folder or archive `source`; `archives.one_line_errors` lists what it may raise."""
    return Tree(source) if source.is_dir() else ArchiveTree(source)


def visible(tree: Tree, place: Place) -> list[Listed]:
    """List a folder, sorted by name, without hidden entries and the resource forks that macOS adds."""
    shown = (listed for listed in tree.entries(place) if listed.name[0] != "." and listed.name != "__MACOSX")
    return sorted(shown, key=lambda listed: listed.name)


def walk(tree: Tree, place: Place, parts: Parts = ()) -> Iterator[Entry]:
    """Walk the folder `place`, whose path is `parts`, and all folders inside it, without hidden entries.

    The files of a folder come before its subfolders; both are sorted by name. Links from inside a folder back
    to it are lost, and so are folders deeper than `MAX_DEPTH`.

    Raises:
        UserError: there are more than `MAX_MEMBERS` entries.
    """
    count = 0
    pending: list[tuple[Parts, Place, tuple[Hashable, ...]]] = [(parts, place, ())]
    while pending:
        parts, place, above = pending.pop()
        identity = tree.identity(place)
        if identity in above or len(parts) > MAX_DEPTH:
            yield Entry(parts, "lost", reason=LOST_LINKS if identity in above else DEEP_FOLDERS)
            continue
        yield Entry(parts, "folder")
        inner: list[tuple[Parts, Place, tuple[Hashable, ...]]] = []
        for listed in visible(tree, place):
            count += 1
            if count > MAX_MEMBERS:
                raise UserError(
                    f"{tree.source} holds more than {MAX_MEMBERS:,} files and folders: prepare a part of it"
                )
            path = (*parts, listed.name)
            if listed.reason:
                yield Entry(path, "lost", reason=listed.reason)
            elif listed.key is not None:
                yield Entry(path, "file", listed.key)
            else:
                inner.append((path, listed.place, (*above, identity)))
        pending += reversed(inner)


def _listed(entry: os.DirEntry[str]) -> Listed:
    try:
        if entry.is_file():
            return Listed(entry.name, key=entry.path)
        if entry.is_dir():
            return Listed(entry.name, place=entry.path)
    except OSError:  # a link to itself
        return Listed(entry.name, reason=LOST_LINKS)
    return Listed(entry.name, reason=LOST_LINKS if entry.is_symlink() else SPECIAL_FILES)


def _open(path: str) -> IO[bytes]:
    return Path(path).open("rb")


#: A folder in an archive, by name: a file's number, a folder, a symbolic link's target, or None if special.
_Folder = dict[str, "int | _Folder | Parts | None"]
_NOWHERE: Parts = ("..",) * (MAX_DEPTH + 2)  # a target outside of any archive


class ArchiveTree(Tree):
    """The tree that an archive would unpack to.

    A place is a tuple of nested folders, from the top down to the folder itself, so links can follow "..".
    """

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        self.independent = is_zip(source)
        self._root: _Folder = {}
        self._folders = 0
        self.top = (self._root,)
        for number, member in enumerate(archive_members(source)):
            self._add(number, member)

    def entries(self, place: Place) -> Iterator[Listed]:
        for name, node in place[-1].items():
            found = self._follow(place, (name,))
            if isinstance(found, int):
                yield Listed(name, key=found)
            elif found is not None:
                yield Listed(name, place=found)
            else:
                yield Listed(name, reason=SPECIAL_FILES if node is None else LOST_LINKS)

    def identity(self, place: Place) -> Hashable:
        return id(place[-1])

    def contents(self, keys: Collection[Key]) -> Iterator[tuple[Key, Opener]]:
        for number, member in enumerate(archive_members(self.source)):
            if number in keys:
                yield number, member.open

    def _add(self, number: int, member: Member) -> None:
        """Put a member where unpacking would put it; it replaces an earlier member of the same name."""
        parts = member.parts
        if parts is None:
            self.strays.add(member.name)
        if not parts:
            return
        folder = self._root
        for part in parts[: min(len(parts) - 1, MAX_DEPTH + 1)]:
            folder = self._folder_in(folder, part)
        name = parts[-1]
        if len(parts) > MAX_DEPTH + 1:
            return
        if member.kind == "folder":
            self._folder_in(folder, name)
        elif member.kind == "file":
            folder[name] = number
        elif member.kind == "special":
            folder[name] = None
        elif not member.target or member.target.startswith("/"):
            folder[name] = _NOWHERE
        elif member.kind == "symlink":
            folder[name] = split_path(member.target)
        else:
            folder[name] = self._linked(split_path(member.target))

    def _folder_in(self, folder: _Folder, name: str) -> _Folder:
        """The folder `name` in `folder`, created if missing: a member's name may imply many."""
        found = folder.get(name)
        if not isinstance(found, dict):
            found = folder[name] = {}
            self._folders += 1
            check_extent(self.source, self._folders, 0)
        return found

    def _linked(self, target: Parts) -> int | Parts:
        """What a hard link to `target` stands for; `target` must be an earlier file or symbolic link."""
        folder = self._follow(self.top, target[:-1])
        node = folder[-1].get(target[-1]) if isinstance(folder, tuple) and target else None
        return node if isinstance(node, int | tuple) else _NOWHERE

    def _follow(self, place: tuple[_Folder, ...], path: Parts) -> int | tuple[_Folder, ...] | None:
        """What `path` leads to from `place`; None if that is nothing or outside of the archive."""
        ahead = list(reversed(path))
        for _ in range(_MAX_STEPS):
            if not ahead:
                return place
            part = ahead.pop()
            node = place[-1].get(part)
            if part == "..":
                place = place[:-1]
                if not place:
                    return None
            elif isinstance(node, dict):
                place = (*place, node)
            elif isinstance(node, tuple):
                ahead.extend(reversed(node))
            else:
                return None if ahead else node
        return None
