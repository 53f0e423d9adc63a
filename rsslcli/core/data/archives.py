"""Read the members of tar and zip archives in stored order, with limits, and without writing to disk."""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from rsslcli.core.data.decoding import shown
from rsslcli.core.errors import RsslError, UserError

_ZIP = b"PK\x03\x04"  # how a zip archive begins
_UTF_8 = 0x800  # the flag of a zip member whose name says its encoding
MAX_HEADER_BYTES = 2**20
MAX_MEMBERS = 2_000_000  # of an archive, folders and other files included
MAX_NAME_BYTES = 2**29  # of all names and link targets together
MAX_TARGET_BYTES = 4096  # of a link
MAX_UNPACKED_BYTES = 16 * 2**30  # of an archive's members together
#: The exceptions that damaged archives and files raise when read.
READ_ERRORS = (
    OSError,
    EOFError,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    IndexError,  # zipfile raises this and ValueError for malformed names and lengths
    ValueError,
)

#: The parts of a path inside a tree of files.
Parts = tuple[str, ...]
Opener = Callable[[], IO[bytes]]


class Member(NamedTuple):
    """A member of an archive."""

    name: str  #: its path, with "/" between the parts
    kind: Literal["file", "folder", "symlink", "hardlink", "special"]
    open: Opener  #: opens a file; meaningless for other kinds
    target: str | None = None  #: where a link leads; None if that is not a plausible path

    @property
    def parts(self) -> Parts | None:
        """The parts of its path, empty for the archive's root folder; None if it leads out of the archive."""
        parts = split_path(self.name)
        return None if self.name.startswith("/") or ".." in parts else parts


def split_path(path: str) -> Parts:
    """The parts of a path, without empty parts and "."."""
    return tuple(part for part in path.split("/") if part not in ("", "."))


def is_archive(source: Path) -> bool:
    """Whether the file `source` is a zip archive or a tar archive, plain or compressed.

    Raises:
        BadZipFile: it begins as a zip archive, but its directory is missing.
    """
    if is_tar(source) or zipfile.is_zipfile(source):
        return True
    with source.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            raise zipfile.BadZipFile("no directory at the end of the zip")
    return False


def is_zip(source: Path) -> bool:
    """Whether `source` is a zip archive; a tar archive whose last member is one, such as .xlsx, is not."""
    return zipfile.is_zipfile(source) and not is_tar(source)


def is_tar(source: Path) -> bool:
    """Whether `source` is a tar archive; unlike `tarfile.is_tarfile`, limits the size of the first header."""
    try:
        with open_tar(source):
            return True
    except tarfile.TarError:
        return False


def open_tar(source: Path, mode: Literal["r:*", "r:"] = "r:*") -> tarfile.TarFile:
    """Open a tar archive, plain or (unless `mode` is "r:") compressed, and limit the size of its headers."""
    return tarfile.open(source, mode, tarinfo=_Header)


def archive_members(source: Path) -> Iterator[Member]:
    """Iterate over the members of an archive in stored order.

    Raises:
        UserError: its members or their names exceed the limits.
        Exception: one of `READ_ERRORS`, or what zipfile raises for encrypted archives; see `one_line_errors`.
    """
    names = 0
    for member in (_zip_members if is_zip(source) else _tar_members)(source):
        names += len(member.name) + len(member.target or "")
        if names > MAX_NAME_BYTES:
            raise UserError(
                f"{source} has more than {MAX_NAME_BYTES >> 20} MiB of names: prepare a part of it"
            )
        yield member


class _Header(tarfile.TarInfo):
    """A tar header that limits the extended headers, such as long names, which tarfile reads into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        extensions = (b"L", b"K", b"x", b"g", b"X")  # of GNU, of POSIX and of Solaris
        if header.type in extensions and header.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def check_extent(source: Path, count: int, size: int) -> None:
    """Refuse an archive that unpacks beyond the limits: a small file may expand to a huge one."""
    if count > MAX_MEMBERS or size > MAX_UNPACKED_BYTES:
        limits = f"{MAX_MEMBERS:,} members or {MAX_UNPACKED_BYTES / 2**30:g} GiB"
        raise UserError(f"{source} unpacks to more than {limits}: prepare a part of it")


def _tar_members(source: Path) -> Iterator[Member]:
    with open_tar(source) as archive:
        count = 0
        unpacked = 0  # a sparse member unpacks to more than it takes in the archive
        while member := archive.next():
            archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps them all
            count += 1
            unpacked += max(member.size, 0)
            check_extent(source, count, max(archive.offset, unpacked))
            if archive.offset <= member.offset:  # a negative size, which would make it loop forever
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            opener: Any = partial(archive.extractfile, member)
            if member.isdir():
                yield Member(member.name, "folder", opener)
            elif member.isreg():
                yield Member(member.name, "file", opener)
            elif member.issym() or member.islnk():
                target = member.linkname if len(member.linkname) <= MAX_TARGET_BYTES else None
                yield Member(member.name, "symlink" if member.issym() else "hardlink", opener, target)
            else:
                yield Member(member.name, "special", opener)
        check_end(archive)


def check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless a tar that was read ends there, with a block of zeros.

    tarfile also takes a damaged header for the end, and an archive cut between two members for a whole one.
    """
    file: Any = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if any(block):
        raise tarfile.ReadError(f"damaged header: no header at byte {archive.offset}")
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"cut short: no end of the archive at byte {archive.offset}")


def _zip_members(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
        check_extent(source, len(members), sum(member.file_size for member in members))
        slashes = any("/" in member.filename for member in members)
        for member in members:
            name = member.filename
            if not member.flag_bits & _UTF_8 and not name.isascii():
                with suppress(UnicodeError):  # zipfile takes what states no encoding for cp437
                    name = name.encode("cp437").decode()
            # Some Windows programs separate folders with "\". In other archives that contain folders, it is
            # an ordinary character.
            if "/" not in name and (member.create_system == 0 or not slashes):
                name = name.replace("\\", "/")
            opener = partial(archive.open, member)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if name.endswith("/"):
                yield Member(name, "folder", opener)
            elif kind in (0, stat.S_IFREG):
                yield Member(name, "file", opener)
            elif kind == stat.S_IFLNK:
                with opener() as file:
                    target = file.read(MAX_TARGET_BYTES + 1)
                plausible = len(target) <= MAX_TARGET_BYTES
                text = target.decode(errors="surrogateescape") if plausible else None
                yield Member(name, "symlink", opener, text)
            else:
                yield Member(name, "special", opener)


@contextmanager
def one_line_errors(source: Path) -> Iterator[None]:
    """Turn errors of archives and file systems into a UserError that names `source`."""
    try:
        yield
    except RsslError:
        raise
    except PermissionError as error:
        raise UserError(
            f"cannot read {error.filename or source} ({error.strerror}): make it readable"
        ) from error
    except READ_ERRORS as error:
        raise UserError(f"cannot read {source} ({shown(str(error))}): it is damaged or incomplete") from error
    except RuntimeError as error:  # zipfile: encryption, or an unknown compression method
        raise UserError(f"cannot read {source} ({shown(str(error))}): pack it in a plain archive") from error
