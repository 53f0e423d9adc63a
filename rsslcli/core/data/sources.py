"""Readers of image collections: trees of image files, plain or archived, and the official CIFAR archives.

Nothing inside an archive of images is trusted: members are decoded in memory and never written to disk, and
whatever is not a regular file at the right place is passed over.
"""

import hashlib
import http.client
import lzma
import math
import os
import stat
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from rsslcli.core.data.decoding import SIZE, decode, extensions, shown
from rsslcli.core.data.store import IMAGE_SHAPE, Images, Labels, class_balanced_subset
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import replacing
from rsslcli.core.progress import Progress, silent

SPLITS = ("train", "test")
#: What others call a split that is not one of ours.
VALIDATION = ("val", "valid", "validation")
#: Of every class without a test split, one image in so many becomes one of the test set.
HOLD_OUT = 5
#: What a tree of images looks like.
LAYOUT = "train/<class>/* and test/<class>/*, or <class>/* alone"
#: Raised whenever the same files would give other images, so that they are prepared anew.
TREE_VERSION = 1
MAX_HEADER_BYTES = 2**20
MAX_IMAGES = 1_000_000  # 3 GB in memory
MAX_MEMBERS = 2 * MAX_IMAGES  # of an archive, folders and other files included
MAX_UNPACKED_BYTES = 16 * 2**30  # of an archive's members together
#: The folder and the archive in which the official data sets come, and the archive's md5.
OFFICIAL = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
}
_SITE = "https://www.cs.toronto.edu/~kriz/"

#: A member of a tree: the parts of its path, and a way to open it, None for a folder.
_Parts = tuple[str, ...]
_Opener = Callable[[], IO[bytes]]
_Member = tuple[_Parts, _Opener | None]
#: The images of a tree by split and class.
_Files = dict[str, dict[str, set[_Parts]]]
#: Told in one line what was done to the images, or was not.
Note = Callable[[str], None]


class Arrays(NamedTuple):
    """One split in memory."""

    images: Images  #: (N, 32, 32, 3)
    labels: Labels  #: (N,)
    classes: tuple[str, ...]

    def limited(self, limit: int | None) -> "Arrays":
        """A seeded, class-balanced subset of `limit` images; all of them if there are no more than that."""
        if limit is None or limit >= len(self.labels):
            return self
        chosen = class_balanced_subset(self.labels, limit, seed=0)
        return Arrays(self.images[chosen], self.labels[chosen], self.classes)


def read_image_tree(
    source: Path,
    *,
    limit: int | None = None,
    resize: bool = True,
    progress: Progress = silent,
    note: Note = lambda text: None,
) -> tuple[Arrays, Arrays]:
    """Read `train/<class>/*` and `test/<class>/*`, possibly below one leading folder, into memory.

    `source` is a folder, a tar archive (plain or compressed) or a zip archive. Classes are numbered by name.
    Whatever the order in the archive, the images are the first by name of every class, the second of every
    class, and so on. Hidden files and files without the extension of an image are passed over.

    Where there are not both splits but `<class>/*` alone, a fifth of each class, chosen by the hashes of the
    names, is the test split.

    Args:
        source: the tree.
        limit: keep a class-balanced subset of so many images of each split.
        resize: bring images of another size to 32x32 (see `_scaled`); otherwise refuse them.
        progress: told after every few images.
        note: told what was held out, resized and passed over.

    Raises:
        UserError: no such tree, classes that differ between the splits or are empty, or an image that is
            damaged, too large a file, or not of 32x32 pixels where `resize` is false.
    """
    with _one_line_errors(source):
        tree = _survey(source)
        for text in tree.notes:
            note(text)
        splits: list[Arrays] = []
        places: dict[_Parts, Images] = {}
        for split in SPLITS:
            # Rank before class, so that the first images of a split hold every class.
            ordered = sorted(
                (rank, label, parts)
                for label, name in enumerate(tree.classes)
                for rank, parts in enumerate(sorted(tree.files[split][name]))
            )
            labels = np.array([label for _, label, _ in ordered])
            paths = [parts for *_, parts in ordered]
            if limit is not None and limit < len(paths):
                chosen = class_balanced_subset(labels, limit, seed=0)
                labels, paths = labels[chosen], [paths[index] for index in chosen]
            images = np.empty((len(paths), *IMAGE_SHAPE), np.uint8)
            places |= {parts: images[index] for index, parts in enumerate(paths)}
            splits.append(Arrays(images, labels.astype(np.int64), tree.classes))

        sizes: dict[_Parts, tuple[int, int]] = {}
        missing, total = set(places), len(places)
        for parts, opener in _members(source):
            if opener and parts in places:
                with opener() as file:
                    places[parts][:], sizes[parts] = decode(file, shown("/".join(parts)), resize=resize)
                missing.discard(parts)
                if len(missing) % 16 == 0:
                    progress("reading images", total - len(missing), total)
        if missing:
            raise UserError(f"{source} changed while it was read: try again")
        other = sorted((size for size in sizes.values() if size != SIZE), key=math.prod)
        if other:
            smallest, largest = ("x".join(map(str, size)) for size in (other[0], other[-1]))
            note(
                f"{len(other)} of {total} images resized to 32x32, the centre square of each: "
                f"they had {smallest} to {largest} pixels"
            )
    train, test = splits
    return train, test


def tree_fingerprint(source: Path, *, resize: bool = True) -> str:
    """What tells a tree of images from another, or from its later state, without reading the images.

    Raises:
        UserError: as `read_image_tree` does for what shows without reading them.
    """
    described: list[object] = []
    with _one_line_errors(source):
        if source.is_file():
            described = [str(source.resolve()), source.stat().st_size, source.stat().st_mtime_ns]
        else:
            for files in _survey(source).files.values():
                for parts in set().union(*files.values()):
                    status = source.joinpath(*parts).stat()
                    described.append((parts, status.st_size, status.st_mtime_ns))
    content = TREE_VERSION, resize, sorted(described, key=repr)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def is_image_tree(source: Path) -> bool:
    """Whether `source` is a folder with images in its folders, or an archive, which could have them."""
    with _one_line_errors(source):
        if source.is_dir():
            return any(opener and _is_image(parts) for parts, opener in _members(source))
        return zipfile.is_zipfile(source) or _is_tar(source)


class _Tree(NamedTuple):
    """What `_survey` finds."""

    files: _Files
    classes: tuple[str, ...]
    notes: list[str]


def _survey(source: Path) -> _Tree:
    """List the images of each split and class, and check that the classes are sound. Reads no image."""
    images: set[_Parts] = set()
    folders: set[_Parts] = {()}
    others: Counter[tuple[_Parts, str]] = Counter()  # files that are no images, by folder and ending
    for parts, opener in _members(source):
        folder = parts if opener is None else parts[:-1]
        while folder not in folders:
            folders.add(folder)
            folder = folder[:-1]
        if opener and _is_image(parts):
            images.add(parts)
            if len(images) > MAX_IMAGES:
                raise UserError(f"{source} holds more than {MAX_IMAGES:,} images: prepare a part of it")
        elif opener:
            others[parts[:-1], _ending(parts)] += 1
    files, notes = _splits(source, images, folders)
    classes = sorted(set().union(*files.values()))
    for name in classes:
        if not name.isprintable():
            raise UserError(f"{source} has a class named {shown(name)}: rename it to printable characters")
        for split in SPLITS:
            if not files[split].get(name):
                raise UserError(
                    f"no images of class {shown(name)} in {split}/ of {source}: add some to both splits"
                )
    if len(classes) < 2:
        raise UserError(f"{source} has only one class, {shown(classes[0])}: a classifier needs two")
    used = {parts[:-1] for split in files.values() for members in split.values() for parts in members}
    if passed_over := {key: count for key, count in others.items() if key[0] in used}:
        endings = ", ".join(map(shown, sorted({ending for _, ending in passed_over})[:5]))
        notes.append(f"passed over {sum(passed_over.values())} files, by their names no images: {endings}")
    return _Tree(files, tuple(classes), notes)


def _splits(source: Path, images: set[_Parts], folders: set[_Parts]) -> tuple[_Files, list[str]]:
    """Find the splits among all images and folders of a tree, or make them; with what is to be told of it."""
    lacking = [split for split in SPLITS if not any(split in folder[:2] for folder in folders)]
    roots = {parts[:-3] for parts in images if len(parts) in (3, 4) and parts[-3] in SPLITS}
    if lacking and roots:  # one split alone
        beside = {folder[-1] for folder in folders if folder and folder[:-1] in roots} & {*VALIDATION}
        if beside:
            raise UserError(
                f"{source} has {min(beside)}/ but no {lacking[0]}/: rename it so, or take it away"
            )
        roots = {(*root, split) for root in roots for split in SPLITS if split not in lacking}
    elif lacking:
        # Classes alone. A cover picture beside their folders does not make a class of the folder around them.
        above, below = ({parts[:-1] for parts in images if len(parts) == depth} for depth in (2, 3))
        roots = {folder[:-1] for folder in (below if below and len(above) < 2 else above)}
    if not roots:
        raise UserError(f"no folders of images in {source}: expected {LAYOUT}")
    if len(roots) > 1:
        kind, some = "classes" if lacking else "train/ and test/", sorted(map("/".join, roots))[:2]
        raise UserError(
            f"{source} holds several trees of {kind}, in {' and '.join(map(shown, some))}: leave one of them"
        )
    (root,) = roots
    if not lacking:
        return {split: _classes((*root, split), images, folders) for split in SPLITS}, []
    classes = _classes(root, images, folders)
    if classes.keys() <= {*SPLITS, *VALIDATION}:  # splits without classes
        names = ", ".join(map(shown, sorted(classes)))
        raise UserError(f"the images of {source} lie in {names} without a class: expected {LAYOUT}")
    files = _hold_out(source, classes)
    held, total = (sum(map(len, part.values())) for part in (files["test"], classes))
    return files, [
        f"no {' and '.join(f'{split}/' for split in lacking)} in {source}: "
        f"{held} of the {total} images, a fifth of each class, are the test set"
    ]


def _classes(parent: _Parts, images: set[_Parts], folders: set[_Parts]) -> dict[str, set[_Parts]]:
    """The images of the folders in `parent`, by folder."""
    found: dict[str, set[_Parts]] = {
        folder[-1]: set() for folder in folders if folder and folder[:-1] == parent
    }
    for parts in images:
        if len(parts) > 1 and parts[:-2] == parent:
            found[parts[-2]].add(parts)
    return found


def _hold_out(source: Path, classes: dict[str, set[_Parts]]) -> _Files:
    """Split the images of each class: a fifth of them, at least one, for the test.

    The hashes of class and name choose, so that the choice depends on nothing else, and images that are added
    later hardly change it.
    """
    files: _Files = {split: {} for split in SPLITS}
    for name, members in classes.items():
        if len(members) < 2:
            count = "only one image" if members else "no images"
            raise UserError(f"{count} of class {shown(name)} in {source}: add some, or remove the folder")
        ranked = sorted(members, key=_hash)
        held = max(1, round(len(members) / HOLD_OUT))
        files["test"][name], files["train"][name] = set(ranked[:held]), set(ranked[held:])
    return files


def _hash(parts: _Parts) -> bytes:
    return hashlib.sha256("/".join(parts[-2:]).encode(errors="surrogatepass")).digest()


def _is_image(parts: _Parts) -> bool:
    """Whether a file is an image by its name."""
    return _ending(parts) in extensions()


def _ending(parts: _Parts) -> str:
    return PurePosixPath(parts[-1]).suffix.lower()


def _members(source: Path) -> Iterator[_Member]:
    """Walk the folders and regular files of a tree in stored order.

    Those that point outside it are passed over, those that are hidden, and what macOS adds to archives.
    """
    if source.is_dir():
        walk = _folder_members
    else:
        walk = _zip_members if zipfile.is_zipfile(source) else _tar_members
    for name, opener in walk(source):
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        hidden = any(part[0] == "." or part == "__MACOSX" for part in parts)
        if parts and not hidden and not name.startswith("/"):
            yield parts, opener


def _roots(source: Path) -> list[Path]:
    """The folders that hold `train/` and `test/`: `source` itself, otherwise those directly in it."""
    for candidates in ([source], sorted(path for path in source.iterdir() if path.is_dir())):
        roots = [path for path in candidates if all((path / split).is_dir() for split in SPLITS)]
        if roots:
            return roots
    return []


def _folder_members(source: Path) -> Iterator[tuple[str, _Opener | None]]:
    pending = [root / split for root in _roots(source) for split in SPLITS] or [source]
    while pending:
        folder = pending.pop()
        place = folder.relative_to(source)
        if place.parts:
            yield place.as_posix(), None
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == ".":
                    continue
                if entry.is_file():
                    yield (place / entry.name).as_posix(), partial(_open, entry.path)
                elif len(place.parts) < 3 and entry.is_dir():
                    pending.append(folder / entry.name)


def _open(path: str) -> IO[bytes]:
    return Path(path).open("rb")


class _Header(tarfile.TarInfo):
    """A tar header that refuses to be followed by an endless name, which tarfile would read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        extensions = (b"L", b"K", b"x", b"g", b"X")  # of GNU, of POSIX and of Solaris
        if header.type in extensions and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"header of {header.size} bytes")
        return header


def _is_tar(source: Path) -> bool:
    """tarfile.is_tarfile without its faith in the first header."""
    try:
        with tarfile.open(source, tarinfo=_Header):
            return True
    except tarfile.TarError:
        return False


def _check_extent(source: Path, count: int, size: int) -> None:
    """Refuse an archive that goes on without end: a small one may stand for a huge one."""
    if count > MAX_MEMBERS or size > MAX_UNPACKED_BYTES:
        limits = f"{MAX_MEMBERS:,} members or {MAX_UNPACKED_BYTES / 2**30:g} GiB"
        raise UserError(f"{source} unpacks to more than {limits}: prepare a part of it")


def _tar_members(source: Path) -> Iterator[tuple[str, _Opener | None]]:
    with tarfile.open(source, tarinfo=_Header) as archive:
        count = 0
        while member := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # or it remembers them all
            count += 1
            _check_extent(source, count, archive.offset)
            if archive.offset <= member.offset:  # a size below 0, which would lead in circles
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            if member.isdir():
                yield member.name, None
            elif member.isreg():
                yield member.name, partial(_extract, archive, member)
        # At a damaged header tarfile stops as if the archive ended there.
        file = archive.fileobj
        if file is not None:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("damaged header")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    return file


def _zip_members(source: Path) -> Iterator[tuple[str, _Opener | None]]:
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        _check_extent(source, len(members), sum(member.file_size for member in members))
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                yield member.filename, None
            elif kind in (0, stat.S_IFREG):
                yield member.filename, partial(archive.open, member)


@contextmanager
def _one_line_errors(source: Path) -> Iterator[None]:
    """Turn what archives and file systems raise into a UserError that names `source`."""
    try:
        yield
    except (
        OSError,
        EOFError,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        IndexError,  # these two of zipfile, for names and lengths that are none
        ValueError,
    ) as error:
        raise UserError(f"cannot read {source} ({shown(str(error))}): it is damaged or incomplete") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: a password, an unknown compression
        raise UserError(f"cannot read {source} ({shown(str(error))}): pack it in a plain archive") from error


def archive_has(source: Path, names: Collection[str]) -> bool:
    """Whether the archive `source` holds a file of one of these names, in any folder, before any image.

    Raises:
        UserError: a damaged archive.
    """
    with _one_line_errors(source):
        if not source.is_file() or not (zipfile.is_zipfile(source) or _is_tar(source)):
            return False
        for parts, opener in _members(source):
            if opener and (parts[-1] in names or _is_image(parts)):
                return parts[-1] in names
    return False


def read_files(source: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read the regular files of these names in an archive, in whatever folders: name and next piece.

    The first piece of each file is empty.

    Raises:
        UserError: a damaged archive, one that unpacks without end, or two files of the same name.
    """
    with _one_line_errors(source):
        seen: set[str] = set()
        for parts, opener in _members(source):
            name = parts[-1]
            if opener is None or name not in names:
                continue
            if name in seen:
                raise UserError(f"{name} is there twice in {source}: give an archive with one of them")
            seen.add(name)
            yield name, b""
            with opener() as file:
                while piece := file.read(2**20):
                    yield name, piece


def official_name(source: Path) -> str | None:
    """Which official CIFAR data set `source` looks like: its folder, the folder's parent, or its archive."""
    for name, (folder, archive, _) in OFFICIAL.items():
        if source.is_dir():
            if source.name == folder or (source / folder).is_dir() or (source / archive).is_file():
                return name
        else:
            with _one_line_errors(source):
                if _is_tar(source):
                    with tarfile.open(source, tarinfo=_Header) as opened:
                        first = opened.next()
                        if first and first.name.split("/")[0] == folder:
                            return name
    return None


def read_cifar(
    name: str, source: Path | None, download_folder: Path, progress: Progress = silent
) -> tuple[Arrays, Arrays]:
    """Read an official CIFAR data set, `name` being cifar10 or cifar100.

    `source` is its folder, the parent of that, or its archive; None downloads the archive into
    `download_folder`, unless it is there already. Every file is checked against its published md5 before it
    is unpickled.

    Raises:
        UserError: `source` is not the official data set, or damaged.
        RsslError: the download failed.
    """
    folder, archive_name, md5 = OFFICIAL[name]
    if source and source.name == folder:
        source = source.parent
    if source and (source / folder).is_dir():
        return _load_cifar(name, source)
    if source is None:
        archive = download_folder / archive_name
        if not archive.is_file() or _md5(archive) != md5:
            download(_SITE + archive_name, archive, md5, progress)
    else:
        archive = source / archive_name if source.is_dir() else source
        if _md5(archive) != md5:
            raise UserError(f"{archive} is not the official {archive_name}, or damaged: its md5 is not {md5}")
    try:
        download_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=download_folder) as scratch:
            with tarfile.open(archive) as opened:
                opened.extractall(scratch, filter="data")
            return _load_cifar(name, Path(scratch))
    except OSError as error:
        raise RsslError(
            f"cannot unpack {archive} below {download_folder}: {error.strerror or error}"
        ) from error


def _load_cifar(name: str, root: Path) -> tuple[Arrays, Arrays]:
    from torchvision.datasets import CIFAR10, CIFAR100

    try:
        # The constructor compares all files with their md5 before it unpickles any.
        splits = [
            {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](root, train=train) for train in (True, False)
        ]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{root / OFFICIAL[name][0]} is damaged or incomplete: get the official archive again"
        ) from error
    train, test = (
        Arrays(split.data, np.array(split.targets, np.int64), tuple(split.classes)) for split in splits
    )
    return train, test


def download(url: str, path: Path, md5: str, progress: Progress) -> None:
    """Fetch `url` into the file `path`, which appears only when complete and of the right `md5`.

    Raises:
        RsslError: no connection, a broken one, another file than expected, or no space.
    """
    advice = "check the connection, or get it elsewhere and give it with --source"
    digest = hashlib.md5(usedforsecurity=False)
    with replacing(path) as file:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                total = int(response.headers.get("Content-Length") or 0)
                done = 0
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
                    done += len(chunk)
                    progress(f"downloading {path.name}", done, max(total, done))
        except (OSError, http.client.HTTPException) as error:
            raise RsslError(f"cannot download {url} ({shown(str(error))}): {advice}") from error
        if digest.hexdigest() != md5:
            raise RsslError(
                f"{url} gave another file than the official one (md5 {digest.hexdigest()}): {advice}"
            )


def _md5(path: Path) -> str:
    try:
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
