"""The published CIFAR-10-C archives: fetched in as many pieces as it takes, verified, and unpacked with care.

What arrives is trusted no further than its md5 goes. An archive without a published md5 is the user's choice
and is only checked for its structure; either way nothing in it decides where a file is written.
"""

import hashlib
import http.client
import io
import json
import math
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet, import_corrupted, open_corrupted, write_blocks
from rsslcli.core.data.decoding import shown
from rsslcli.core.data.store import IMAGE_SHAPE, Split
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import quietly, remove, replacing
from rsslcli.core.progress import Progress, silent

TIMEOUT = 30.0  #: seconds to connect, and to wait for more bytes
ATTEMPTS = 5  #: failures in a row, without a new byte, after which a download is given up
PAUSE = 1.0  #: seconds to wait after the first failure; doubled after each further one
MAX_BYTES = 16 * 2**30  #: of an archive whose size is not known

_LONGEST_PAUSE = 30.0
_CHUNK = 2**18
_MAX_IMAGES = 1_000_000  # per corruption and severity
_MAX_MEMBERS = 1000
_MAX_HEADER = 2**20
_DOWNLOADS = "download"  # the folder, in that of the set, of whatever is not finished
_RECORD = "downloaded.json"
_GENERATED = "corruptions.json"  # the generator's record of the files that are its own
_ELSEWHERE = "or get the archive elsewhere and give it with --source"


@dataclass(frozen=True)
class Archive:
    """A published archive, a plain tar."""

    url: str
    size: int
    md5: str

    @property
    def file_name(self) -> str:
        """What the file is called."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


#: Hendrycks and Dietterich 2019.
PUBLISHED = {
    "cifar10": Archive(
        "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",
        2_918_471_680,
        "56bf5dcef84df0e2308c6dcbcbbd8499",
    ),
    "cifar100": Archive(
        "https://zenodo.org/records/3555552/files/CIFAR-100-C.tar?download=1",
        2_918_473_216,
        "11f0ed0f1191edbf9fa23466ae6021d3",
    ),
}


def download_corrupted(
    name: str,
    folder: Path,
    *,
    test: Split,
    source: str | Path | None = None,
    keep_archive: bool = False,
    limit: int | None = None,
    progress: Progress = silent,
) -> CorruptedSet:
    """Fill `folder` with the published corrupted test set of the data set `name`.

    `source` takes the place of the published address: another http(s) address, the path of a tar, or a folder
    in the layout of CIFAR-10-C. From any address the archive must have the published size and md5, if one is
    published for `name`. A tar on disk is the user's own choice: it may hold other images and fewer
    corruptions, is checked for its structure alone, and stays where it is. If it has the published md5 it
    counts as the published set.

    `limit` keeps the first so many images of each block. With `keep_archive` a downloaded archive stays in
    `folder`/download and is used again. A download that was interrupted is continued by the next call; when
    `folder` already holds what is asked for, nothing is done.

    Raises:
        UserError: nothing is published for `name`, or no such source, or its content is not a corrupted set.
        RsslError: a failed download, a file that is not the published one, no space, or no write permission.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images: give a positive number")
    published = PUBLISHED.get(name)
    if source is not None:
        url = _checked_url(str(source))
        if url is None:
            return _from_disk(Path(source), folder, test, published, limit, progress)
    elif published is not None:
        url = published.url
    else:
        raise UserError(
            f"no corrupted images of {name!r} are published: use --corruptions generate, "
            "or give your archive with --source"
        )

    origin = published.md5 if published else hashlib.sha256(url.encode()).hexdigest()
    if present := _installed(folder, origin, limit):
        return present
    archive = folder / _DOWNLOADS / (published.file_name if published else f"{name}-{origin[:12]}.tar")
    try:
        _fetch(url, archive, published, limit, progress)
        try:
            result = _install(archive, folder, test, origin, limit, progress, complete=published is not None)
        except UserError:
            if published is None:  # it is of no use, and the next run must not take it up again
                remove(archive)
            raise
        if not keep_archive:
            remove(archive)
        return result
    finally:
        with suppress(OSError):
            archive.parent.rmdir()  # unless something is still in it


def _checked_url(source: str) -> str | None:
    """The source if it is an address that can be asked, None if it is a path."""
    scheme, separator, _ = source.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return None
    try:
        parts = urlsplit(source)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[!-~]+", source):
        raise UserError(
            f"{source!r} is no http or https address: correct --source, or give the path of a tar"
        )
    return source


def _from_disk(
    source: Path, folder: Path, test: Split, published: Archive | None, limit: int | None, progress: Progress
) -> CorruptedSet:
    if source.is_dir():
        open_corrupted(source, source.name)  # raises before anything is touched
        for record in (_GENERATED, _RECORD):
            remove(folder / record)
        return import_corrupted(source, folder, test=test, limit=limit, progress=progress)
    if not source.is_file():
        raise UserError(f"no such source: {source}: give an address, a tar or a CIFAR-10-C folder")
    status = source.stat()
    origin = f"{source.resolve()} {status.st_size} {status.st_mtime_ns}"
    if published and status.st_size == published.size and _md5(source, progress) == published.md5:
        origin = published.md5  # what the network would have brought
    return _installed(folder, origin, limit) or _install(source, folder, test, origin, limit, progress)


# --- fetching -------------------------------------------------------------------------------------


class _BrokenError(Exception):
    """The transfer failed; `final` if it would fail again."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@contextmanager
def _network() -> Iterator[None]:
    """Tell what goes wrong in the network from what goes wrong on the disk, which are OSErrors alike."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _RangeError from error
        passing = error.code >= 500 or error.code in {408, 425, 429}
        raise _BrokenError(f"the server says {error.code} {error.reason}", final=not passing) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        # ValueErrors are certificates that do not verify, and addresses that cannot be asked.
        raise _BrokenError(str(cause) or type(cause).__name__, final=isinstance(cause, ValueError)) from error


class _RangeError(_BrokenError):
    """The server cannot continue the file: it must be asked for from its beginning."""

    def __init__(self) -> None:
        super().__init__("the server cannot continue the file")


class _OnlyHTTP(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to file: and the like."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in {"http", "https"}:
            fp.close()
            raise _BrokenError(f"the server redirects to {newurl}, which is not http", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _Part:
    """The beginning of a file, kept between attempts and between runs, with its md5."""

    def __init__(self, path: Path, url: str, published: Archive | None, progress: Progress) -> None:
        self.path = path
        self.url = url
        self.published = published
        self.state = path.with_name(f"{path.name}.json")
        self.done = 0
        self.digest = hashlib.md5(usedforsecurity=False)
        #: The ETag or date of the file that this is the beginning of, as far as the same server gave one.
        self.validator = self._read_validator()
        if path.is_file() and not (published and path.stat().st_size > published.size):
            for chunk in _chunks(path, progress):
                self.digest.update(chunk)
                self.done += len(chunk)

    @property
    def continued(self) -> bool:
        """Whether to ask for the rest alone."""
        # Without a validator or an md5 nothing would show that the pieces are not of one file.
        return self.done > 0 and bool(self.validator or self.published)

    def headers(self) -> dict[str, str]:
        """What to ask the server for."""
        headers = {"User-Agent": "rsslcli"}
        if self.continued:
            headers["Range"] = f"bytes={self.done}-"
            if self.validator:
                headers["If-Range"] = self.validator
        return headers

    def restart(self, validator: str | None = None) -> None:
        """Throw away what there is; what comes next is of the file with this validator."""
        self.path.write_bytes(b"")
        self.done = 0
        self.digest = hashlib.md5(usedforsecurity=False)
        self.validator = validator
        with replacing(self.state) as file:
            file.write(json.dumps({"url": self.url, "validator": validator}).encode())

    def remove(self) -> None:
        """Delete it from the disk."""
        remove(self.path)
        remove(self.state)

    def _read_validator(self) -> str | None:
        try:
            state = json.loads(self.state.read_bytes())
            validator = state["validator"] if state["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        # It goes into a request, where a line break would begin another header.
        return validator if isinstance(validator, str) and re.fullmatch("[ -~]+", validator) else None


def _fetch(url: str, archive: Path, published: Archive | None, limit: int | None, progress: Progress) -> None:
    """Bring the file at `url` to the path `archive`, where it appears once complete and verified."""
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        if archive.is_file():
            if published is None or _md5(archive, progress) == published.md5:
                return
            remove(archive)
        part = _Part(archive.with_name(f"{archive.name}.part"), url, published, progress)
        if published is None or part.done != published.size:
            _transfer_all(part, limit, progress)
        md5 = part.digest.hexdigest()
        if published and md5 != published.md5:
            part.remove()
            raise RsslError(
                f"{url} gave another file than the published one (md5 {md5}, not {published.md5}): "
                f"it is deleted, download it again {_ELSEWHERE}"
            )
        part.path.replace(archive)
        remove(part.state)
    except OSError as error:
        raise RsslError(f"cannot write below {archive.parent}: {error.strerror or error}") from error


def _transfer_all(part: _Part, limit: int | None, progress: Progress) -> None:
    failures, furthest = 0, part.done
    while True:
        try:
            _transfer(part, limit, progress)
            return
        except _BrokenError as error:
            # A server that sends a little more each time is a slow one, not a dead one.
            failures = 1 if part.done > furthest else failures + 1
            furthest = max(furthest, part.done)
            if error.final or failures == ATTEMPTS:
                kept = f"; the {part.done} bytes that arrived are kept" if part.done else ""
                raise RsslError(
                    f"cannot download {part.url} ({shown(str(error))}){kept}: "
                    f"check the connection and run it again, {_ELSEWHERE}"
                ) from error
            if isinstance(error, _RangeError):
                part.restart()
            time.sleep(min(PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))


def _transfer(part: _Part, limit: int | None, progress: Progress) -> None:
    """Ask for the rest of a file once, and add to the part what comes."""
    published = part.published
    opener = urllib.request.build_opener(_OnlyHTTP)
    with _network():
        response: http.client.HTTPResponse = opener.open(
            urllib.request.Request(part.url, headers=part.headers()), timeout=TIMEOUT
        )
    with response:
        total = _total(part, response)
        if published and total not in {None, published.size}:
            # Said before the part is touched: it may be the page of a captive portal that came instead.
            raise RsslError(
                f"{part.url} has {total} bytes, not the {published.size} of the published archive: "
                f"check the address, {_ELSEWHERE}"
            )
        total = total or (published.size if published else None)
        if response.status != http.client.PARTIAL_CONTENT:
            part.restart(_validator(response.headers))
        if total is not None:
            unpacked = total if limit is None else min(total, _image_bytes(limit) * len(CORRUPTIONS))
            _check_space(part.path.parent, total - part.done + unpacked)

        description = f"downloading {part.path.stem}"
        with part.path.open("ab") as file:
            while True:
                with _network():
                    chunk = response.read1(_CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                part.digest.update(chunk)
                part.done += len(chunk)
                if part.done > (total or MAX_BYTES):
                    raise RsslError(
                        f"{part.url} sends more than {total or MAX_BYTES} bytes: check the address"
                    )
                progress(description, part.done, total or part.done)
    if total is not None and part.done < total:
        raise _BrokenError(f"the connection was cut after {part.done} of {total} bytes")


def _total(part: _Part, response: http.client.HTTPResponse) -> int | None:
    """The size of the whole file, as far as the server tells."""
    if response.status != http.client.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    span = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
    )
    # Not every server knows If-Range, so compare what it says of the file with what it said at first.
    now = {response.headers.get("ETag"), response.headers.get("Last-Modified")} - {None}
    changed = part.validator and now and part.validator not in now
    if not span or not part.continued or int(span[1]) != part.done or changed:
        raise _RangeError
    return None if span[2] == "*" else int(span[2])


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag")
    # A weak tag (W/...) stands for the same content, not for the same bytes.
    return etag if etag and etag.startswith('"') else headers.get("Last-Modified")


# --- unpacking ------------------------------------------------------------------------------------


def _installed(folder: Path, origin: str, limit: int | None) -> CorruptedSet | None:
    """The set in `folder`, if it is untouched since it was made from this archive with this limit."""
    if (folder / _GENERATED).exists():
        return None
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        present = open_corrupted(folder, folder.name)
        if record["origin"] != origin or record["identity"] != present.identity:
            return None
        unlimited = record["limit"] is None and (limit is None or limit >= present.images_per_cell)
        return present if unlimited or record["limit"] == limit else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return None  # absent, damaged, or half installed


def corrupted_origin(corrupted: CorruptedSet) -> str:
    """Where a corrupted set is from, as far as the records in its folder tell.

    Returns:
        "published": from an archive with the published md5, and unchanged since then by its fingerprint.
        "generated": every one of its files was made by our own generator.
        "imported": anything else. Nothing shows whether it equals a published set.
    """
    downloaded = _read_record(corrupted.folder / _RECORD)
    published = [archive.md5 for archive in PUBLISHED.values()]
    if downloaded.get("origin") in published and downloaded.get("identity") == corrupted.identity:
        return "published"
    generated = _read_record(corrupted.folder / _GENERATED)
    return "generated" if generated.keys() >= {*corrupted.names} else "imported"


def _read_record(path: Path) -> dict[str, Any]:
    """A record of a corrupted set; empty where it is missing or damaged."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _install(
    archive: Path,
    folder: Path,
    test: Split,
    origin: str,
    limit: int | None,
    progress: Progress,
    *,
    complete: bool = False,
) -> CorruptedSet:
    """Make `folder` the set that the archive holds, with all nineteen corruptions if `complete`."""
    staging = folder / _DOWNLOADS / "unpacked"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        available = _unpack(archive, staging, test, limit, progress, complete)
        staged = open_corrupted(staging, folder.name)
        # labels.npy goes first and comes last: without it the mixture in between does not open.
        for stale in (_GENERATED, _RECORD, "labels.npy"):
            remove(folder / stale)
        for name in CORRUPTIONS:
            remove(folder / f"{name}.npy.partial")  # the generator's, unknown now that its record is gone
            if name in staged.names:
                (staging / f"{name}.npy").replace(folder / f"{name}.npy")
            else:
                remove(folder / f"{name}.npy")
        identity = CorruptedSet(folder, staged.names, staged.labels).identity
        record = {
            "origin": origin,
            "limit": None if limit is None or limit >= available else limit,
            "identity": identity,
        }
        with replacing(folder / _RECORD) as file:
            file.write(json.dumps(record, indent=1).encode())
        (staging / "labels.npy").replace(folder / "labels.npy")
    except OSError as error:
        raise RsslError(f"cannot unpack {archive} in {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            staging.parent.rmdir()  # unless the archive is there
    return open_corrupted(folder, folder.name)


def _unpack(
    archive: Path, staging: Path, test: Split, limit: int | None, progress: Progress, complete: bool
) -> int:
    """Write the first `limit` images of all blocks into `staging`; return how many the archive has."""
    arrays = _map_arrays(archive)
    labels = arrays.pop("labels", None)
    missing = [name for name in CORRUPTIONS if name not in arrays]
    if labels is None or not arrays or (complete and missing):
        lacking = "labels.npy" if labels is None else f"{missing[0]}.npy"
        raise UserError(f"{archive} has no {lacking}: give an archive of CIFAR-10-C's files with --source")
    available = len(labels) // len(SEVERITIES) if labels.ndim == 1 else 0
    if not 1 <= available <= _MAX_IMAGES or len(labels) % len(SEVERITIES):
        raise UserError(f"labels.npy in {archive} is {labels.shape}, not a list of labels five times")
    blocks = labels.reshape(len(SEVERITIES), available)
    if (blocks != blocks[0]).any() or blocks.min() < 0 or blocks.max() >= len(test.classes):
        raise UserError(
            f"labels.npy in {archive} does not hold the same labels five times, "
            f"out of the {len(test.classes)} classes of the data set: give the archive of this data set"
        )
    shape = (len(SEVERITIES) * available, *IMAGE_SHAPE)
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.shape != shape:
            raise UserError(
                f"{name}.npy in {archive} is {array.dtype} {array.shape}, not uint8 {shape}: get it again"
            )

    count = min(limit or available, available)
    _check_space(staging, _image_bytes(count) * len(arrays))
    with replacing(staging / "labels.npy") as file:
        np.save(file, blocks[:, :count].astype(np.int64).reshape(-1))
    names = list(arrays)
    for done, name in enumerate(names):
        progress("unpacking corruptions", done, len(names))
        array = arrays.pop(name)  # so that only one array at a time stays mapped in memory
        starts = range(0, len(array), available)
        write_blocks(staging / f"{name}.npy", (array[start : start + count] for start in starts))
    progress("unpacking corruptions", len(names), len(names))
    return available


def _map_arrays(archive: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of integers that the archive holds under the names we know, as memory maps, by name.

    Whatever else is in it is passed over: other files, links, devices. Where a member wants to be written
    does not matter, as only the last part of its name is looked at and nothing is extracted.
    """
    names = {f"{name}.npy": name for name in ("labels", *CORRUPTIONS)}
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        with _SmallReads(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count == _MAX_MEMBERS:
                    raise ValueError("too many members")
                name = names.get(member.name.rpartition("/")[2])
                if name is None or not member.isreg() or member.issparse():
                    continue
                if name in arrays:
                    raise ValueError(f"{name}.npy is there twice")
                arrays[name] = _map_array(archive, member.offset_data, member.size)
            # tarfile takes a damaged header for the end, which is a block of zeros or of nothing.
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise ValueError(f"no header at byte {tar.offset}")
    # tarfile and NumPy's parser raise more for hostile bytes than they document, even a RecursionError.
    except Exception as error:
        raise UserError(
            f"{archive} is damaged or no tar of CIFAR-10-C's files "
            f"({shown(str(error) or type(error).__name__)}): get it again, "
            "or give the folder it unpacks to with --source"
        ) from error
    return arrays


class _SmallReads(io.FileIO):
    """A file from which tarfile reads no more than headers, however long they claim to be."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


def _map_array(archive: Path, start: int, size: int) -> npt.NDArray[Any]:
    """Map the .npy file that lies in the archive at `start`."""
    with quietly(), archive.open("rb") as file:
        file.seek(start)
        # Version 1.0 is what NumPy writes for plain arrays; its header is at most 64 KiB.
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("a .npy file of another version than 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        data = file.tell()
    if dtype.kind not in "iu" or fortran_order:
        raise ValueError(f"a .npy file of {dtype}, or in Fortran's order")
    if data - start + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"a .npy file of {size} bytes that claims the shape {shape}")
    # Raises when the archive ends before the array does.
    return np.memmap(archive, dtype, "r", data, shape)


# --- helpers --------------------------------------------------------------------------------------


def _md5(path: Path, progress: Progress) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in _chunks(path, progress):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path, progress: Progress) -> Iterator[bytes]:
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            done += len(chunk)
            yield chunk
            progress("checking what is there", done, max(done, total))


def _image_bytes(images: int) -> int:
    """The bytes of one corruption with so many images at each severity."""
    return math.prod(IMAGE_SHAPE) * len(SEVERITIES) * images


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RsslError(
            f"{folder} has {free / 2**30:.1f} GiB of free space, of the {needed / 2**30:.1f} GiB needed: "
            "free some, or choose another --data-dir"
        )
