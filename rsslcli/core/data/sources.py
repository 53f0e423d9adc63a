"""Readers of image collections: trees of image files, plain or archived, and the official CIFAR archives.

Nothing inside an archive of images is trusted: members are decoded in memory and never written to disk, and
whatever is not a regular file at the right place is passed over.
"""

import hashlib
import http.client
import io
import logging
import lzma
import os
import stat
import tarfile
import tempfile
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rsslcli.core.data.store import IMAGE_SHAPE, Images, Labels, class_balanced_subset
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import replacing
from rsslcli.core.progress import Progress, silent

SPLITS = ("train", "test")
MAX_FILE_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_IMAGES = 1_000_000  # 3 GB in memory
MAX_MEMBERS = 2 * MAX_IMAGES  # of an archive, folders and other files included
MAX_UNPACKED_BYTES = 16 * 2**30  # of an archive's members together
# What Pillow logs of damaged images would otherwise reach the terminal, as nobody here listens to it.
logging.getLogger("PIL").addHandler(logging.NullHandler())
#: Raster formats that Pillow decodes by itself; PostScript, for one, would run another program.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
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


def read_image_tree(source: Path, *, limit: int | None, progress: Progress) -> tuple[Arrays, Arrays]:
    """Read `train/<class>/*` and `test/<class>/*`, possibly below one leading folder, into memory.

    `source` is a folder, a tar archive (plain or compressed) or a zip archive. Classes are numbered by name.
    Whatever the order in the archive, the images are the first by name of every class, the second of every
    class, and so on. Hidden files and files without the extension of an image are passed over. `limit` keeps
    a class-balanced subset of so many images of each split.

    Raises:
        UserError: no such tree, classes that differ between the splits or are empty, or an image that is
            damaged, too large a file, or not of 32x32 pixels.
    """
    with _one_line_errors(source), warnings.catch_warnings():
        # Pillow warns of odd metadata, which does not matter here, and of decompression bombs, which do.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        files, classes = _survey(source)
        splits: list[Arrays] = []
        places: dict[_Parts, Images] = {}
        for split in SPLITS:
            # Rank before class, so that the first images of a split hold every class.
            ordered = sorted(
                (rank, label, parts)
                for label, name in enumerate(classes)
                for rank, parts in enumerate(sorted(files[split][name]))
            )
            labels = np.array([label for _, label, _ in ordered])
            paths = [parts for *_, parts in ordered]
            if limit is not None and limit < len(paths):
                chosen = class_balanced_subset(labels, limit, seed=0)
                labels, paths = labels[chosen], [paths[index] for index in chosen]
            images = np.empty((len(paths), *IMAGE_SHAPE), np.uint8)
            places |= {parts: images[index] for index, parts in enumerate(paths)}
            splits.append(Arrays(images, labels.astype(np.int64), classes))

        missing, total = set(places), len(places)
        for parts, opener in _members(source):
            if opener and parts in places:
                places[parts][:] = _decode(opener, parts)
                missing.discard(parts)
                if len(missing) % 256 == 0:
                    progress("reading images", total - len(missing), total)
        if missing:
            raise UserError(f"{source} changed while it was read: try again")
    train, test = splits
    return train, test


def tree_fingerprint(source: Path) -> str:
    """What tells a tree of images from another, or from its later state, without reading the images."""
    described: list[object] = []
    if source.is_file():
        described = [str(source.resolve()), source.stat().st_size, source.stat().st_mtime_ns]
    else:
        with _one_line_errors(source):
            for parts, opener in _members(source):
                if opener:
                    status = source.joinpath(*parts).stat()
                    described.append((parts, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(described, key=repr)).encode()).hexdigest()


def is_image_tree(source: Path) -> bool:
    """Whether `source` is a folder that holds `train/` and `test/`, or an archive that could."""
    with _one_line_errors(source):
        if source.is_dir():
            return bool(_roots(source))
        return zipfile.is_zipfile(source) or _is_tar(source)


def _survey(source: Path) -> tuple[dict[str, dict[str, set[_Parts]]], tuple[str, ...]]:
    """List the images of each split and class, and check that the classes are sound. Reads no image."""
    files: dict[str, dict[str, set[_Parts]]] = {split: {} for split in SPLITS}
    leading = set()
    count = 0
    for parts, opener in _members(source):
        depth = 3 if opener else 2  # split/class/file, split/class
        if len(parts) not in (depth, depth + 1) or parts[-depth] not in SPLITS or parts[1 - depth][0] == ".":
            continue
        if opener is None:
            files[parts[-2]].setdefault(parts[-1], set())
        elif parts[-1][0] != "." and PurePosixPath(parts[-1]).suffix.lower() in _extensions():
            files[parts[-3]].setdefault(parts[-2], set()).add(parts)
            leading.add(parts[:-3])
            count += 1
            if count > MAX_IMAGES:
                raise UserError(f"{source} holds more than {MAX_IMAGES:,} images: prepare a part of it")
    if not count:
        raise UserError(f"no images in {source}: expected train/<class>/* and test/<class>/* in it")
    if len(leading) > 1:
        raise UserError(f"{source} holds several trees of train/ and test/: leave one")
    classes = sorted(set().union(*files.values()))
    for name in classes:
        if not name.isprintable():
            raise UserError(f"{source} has a class named {shown(name)}: rename it to printable characters")
        for split in SPLITS:
            if not files[split].get(name):
                raise UserError(
                    f"no images of class {shown(name)} in {split}/ of {source}: add some to both splits"
                )
    return files, tuple(classes)


def _members(source: Path) -> Iterator[_Member]:
    """Walk the folders and regular files of a tree in stored order, without those that point outside it."""
    if source.is_dir():
        walk = _folder_members
    else:
        walk = _zip_members if zipfile.is_zipfile(source) else _tar_members
    for name, opener in walk(source):
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if parts and ".." not in parts and not name.startswith("/"):
            yield parts, opener


def _roots(source: Path) -> list[Path]:
    """The folders that hold `train/` and `test/`: `source` itself, otherwise those directly in it."""
    for candidates in ([source], sorted(path for path in source.iterdir() if path.is_dir())):
        roots = [path for path in candidates if all((path / split).is_dir() for split in SPLITS)]
        if roots:
            return roots
    return []


def _folder_members(source: Path) -> Iterator[tuple[str, _Opener | None]]:
    for root in _roots(source):
        for split in SPLITS:
            for folder in (path for path in (root / split).iterdir() if path.is_dir()):
                place = folder.relative_to(source).as_posix()
                yield place, None
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_file():
                            yield f"{place}/{entry.name}", partial(_open, entry.path)


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


def _decode(opener: _Opener, parts: _Parts) -> Images:
    """Decode an image to RGB, upright, transparency over white: uint8 (32, 32, 3)."""
    name = shown("/".join(parts))
    with opener() as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"image {name} is larger than {MAX_FILE_BYTES // 2**20} MiB: remove it")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as opened:
            size, image = opened.size, opened
            if size == IMAGE_SHAPE[:2]:
                with _muted_libtiff(opened):
                    image = ImageOps.exif_transpose(opened) if "exif" in opened.info else opened
                    if image.mode != "RGB":
                        image = _to_rgb(image)
                    pixels = np.asarray(image)
                if pixels.shape != IMAGE_SHAPE:  # an icon's directory may lie about its images
                    raise ValueError(f"it has {image.width}x{image.height} pixels and claims others")
                return pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"image {name} has too many pixels: images must be 32x32, resize it first") from None
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else shown(str(error))
        raise UserError(f"cannot decode image {name} ({reason}): replace or remove it") from error
    raise UserError(f"image {name} is {size[0]}x{size[1]} pixels: images must be 32x32, resize them first")


@contextmanager
def _muted_libtiff(image: Image.Image) -> Iterator[None]:
    """Keep off the terminal what libtiff has to say of a damaged image; it writes to the stream by itself."""
    kept = None
    if image.format == "TIFF":
        with suppress(OSError):  # there is no such stream
            kept = os.dup(2)
    if kept is None:
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip it to 8
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name in _FORMATS)


@cache
def _extensions() -> frozenset[str]:
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in _formats())


def shown(text: str) -> str:
    """Text from outside made fit for a one-line message: control characters escaped, length limited."""
    return repr(text if len(text) <= 120 else text[:117] + "...")


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
