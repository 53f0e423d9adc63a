"""Download archives with retries and resumption, and verify them.

A download is trusted only if its md5 is the published one. An archive without a published md5 is the user's
choice; it is checked only as every import is.
"""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from rsslcli.core.data.decoding import shown
from rsslcli.core.data.digests import check_space, chunks, file_digest
from rsslcli.core.errors import RsslError
from rsslcli.core.files import read_json, remove, write_json
from rsslcli.core.progress import Progress

TIMEOUT = 30.0  #: seconds to connect, and to wait for more bytes
ATTEMPTS = 5  #: consecutive failures without a new byte before a download is abandoned
PAUSE = 1.0  #: seconds to wait after the first failure; doubled after each further one
MAX_BYTES = 16 * 2**30  #: of an archive of unknown size
_LONGEST_PAUSE = 30.0
_CHUNK = 2**18
ELSEWHERE = "or get the archive elsewhere and give it as `source`"


@dataclass(frozen=True)
class Archive:
    """An archive at an http or https address; its size in bytes and its md5, if they are published."""

    url: str
    size: int | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        """The name of the file."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


class _BrokenError(Exception):
    """The transfer failed; `final` if a retry would fail too, `restart` if it can only begin anew."""

    def __init__(self, reason: str, *, final: bool = False, restart: bool = False) -> None:
        super().__init__(reason)
        self.final = final
        self.restart = restart


def _cannot_continue() -> _BrokenError:
    return _BrokenError("the server cannot continue the file", restart=True)


@contextmanager
def _network() -> Iterator[None]:
    """Raise network errors as _BrokenError, to tell them from disk errors, which are OSErrors too."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _cannot_continue() from error
        passing = error.code >= 500 or error.code in {408, 425, 429}
        raise _BrokenError(f"the server says {error.code} {error.reason}", final=not passing) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        # ValueErrors are certificates that do not verify, and invalid addresses.
        raise _BrokenError(str(cause) or type(cause).__name__, final=isinstance(cause, ValueError)) from error


class _OnlyHTTP(urllib.request.HTTPRedirectHandler):
    """Follows redirections only to http and https, not to file: and the like."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in {"http", "https"}:
            fp.close()
            raise _BrokenError(f"the server redirects to {newurl}, which is not http", final=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


class _Part:
    """The first part of a file, kept between attempts and runs, with its md5."""

    def __init__(self, path: Path, archive: Archive, progress: Progress) -> None:
        self.path = path
        self.archive = archive
        self.state = path.with_name(f"{path.name}.json")
        self.done = 0
        self.digest = hashlib.md5(usedforsecurity=False)
        #: The ETag or date of the whole file, if the same server gave one.
        self.validator = self._read_validator()
        if path.is_file() and not (archive.size and path.stat().st_size > archive.size):
            for chunk in chunks(path, progress):
                self.digest.update(chunk)
                self.done += len(chunk)

    @property
    def continued(self) -> bool:
        """Whether to request only the rest of the file."""
        # Without a validator or md5, nothing would reveal that the pieces come from different files.
        return self.done > 0 and bool(self.validator or self.archive.md5)

    def headers(self) -> dict[str, str]:
        """The headers of the next request."""
        headers = {"User-Agent": "rsslcli"}
        if self.continued:
            headers["Range"] = f"bytes={self.done}-"
            if self.validator:
                headers["If-Range"] = self.validator
        return headers

    def restart(self, validator: str | None = None) -> None:
        """Discard the part; the next bytes belong to the file with this validator."""
        self.path.write_bytes(b"")
        self.done = 0
        self.digest = hashlib.md5(usedforsecurity=False)
        self.validator = validator
        write_json(self.state, {"url": self.archive.url, "validator": validator})

    def _read_validator(self) -> str | None:
        state = read_json(self.state)
        validator = state.get("validator") if state.get("url") == self.archive.url else None
        # It goes into a request, where a line break would start another header.
        return validator if isinstance(validator, str) and re.fullmatch("[ -~]+", validator) else None


def fetch(archive: Archive, path: Path, progress: Progress, *, unpacked: int | None = None) -> None:
    """Download `archive` to the file `path`, which appears only when complete and verified.

    Args:
        archive: what to download.
        path: the file to write; if it exists and has the published md5, nothing is downloaded.
        progress: called after every piece.
        unpacked: how many bytes of its content will be written, to check the free space; all if None.

    Raises:
        RsslError: the download failed, the file is not the published one, or it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if archive.md5 is None or file_digest(path, "md5", progress) == archive.md5:
                return
            remove(path)
        part = _Part(path.with_name(f"{path.name}.part"), archive, progress)
        if archive.size is None or part.done != archive.size:
            _transfer_all(part, unpacked, progress)
        md5 = part.digest.hexdigest()
        if archive.md5 not in (None, md5):
            remove(part.path)
            remove(part.state)
            raise RsslError(
                f"{archive.url} returned another file than the published one (md5 {md5}, not {archive.md5}): "
                f"it was deleted; download it again, {ELSEWHERE}"
            )
        part.path.replace(path)
        remove(part.state)
    except OSError as error:
        raise RsslError(f"cannot write below {path.parent}: {error.strerror or error}") from error


def _transfer_all(part: _Part, unpacked: int | None, progress: Progress) -> None:
    """Retry until the file is complete, or until retries do not help."""
    failures = 0
    furthest = part.done
    while True:
        try:
            _transfer(part, unpacked, progress)
            return
        except _BrokenError as error:
            # A server that sends a little more each time is a slow one, not a dead one.
            failures = 1 if part.done > furthest else failures + 1
            furthest = max(furthest, part.done)
            if error.final or failures == ATTEMPTS:
                kept = f"; the {part.done} bytes that arrived are kept" if part.done else ""
                raise RsslError(
                    f"cannot download {part.archive.url} ({shown(str(error))}){kept}: "
                    f"check the connection and run it again, {ELSEWHERE}"
                ) from error
            if error.restart:
                part.restart()
            time.sleep(min(PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))


def _transfer(part: _Part, unpacked: int | None, progress: Progress) -> None:
    """Request the rest of a file once, and append what arrives to the part."""
    url = part.archive.url
    size = part.archive.size
    opener = urllib.request.build_opener(_OnlyHTTP)
    with _network():
        response: http.client.HTTPResponse = opener.open(
            urllib.request.Request(url, headers=part.headers()), timeout=TIMEOUT
        )
    with response:
        total = _total(part, response)
        if size and total not in {None, size}:
            # Refuse before touching the part: this may be the page of a captive portal.
            raise RsslError(
                f"{url} has {total} bytes, not the {size} of the published archive: "
                f"check the address, {ELSEWHERE}"
            )
        total = total or size
        if response.status != http.client.PARTIAL_CONTENT:
            part.restart(_validator(response.headers))
        if total is not None:
            content = total if unpacked is None else min(total, unpacked)
            check_space(part.path.parent, total - part.done + content)

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
                    raise RsslError(f"{url} sends more than {total or MAX_BYTES} bytes: check the address")
                progress(description, part.done, total or part.done)
    if total is not None and part.done < total:
        raise _BrokenError(f"the connection was cut after {part.done} of {total} bytes")


def _total(part: _Part, response: http.client.HTTPResponse) -> int | None:
    """The size of the whole file, if the server tells."""
    if response.status != http.client.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    span = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "")
    )
    # Not every server supports If-Range, so compare the validators with the earlier one.
    now = {response.headers.get("ETag"), response.headers.get("Last-Modified")} - {None}
    changed = part.validator and now and part.validator not in now
    if not span or not part.continued or int(span[1]) != part.done or changed:
        raise _cannot_continue()
    return None if span[2] == "*" else int(span[2])


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag")
    # A weak tag (W/...) promises the same content, not the same bytes.
    return etag if etag and etag.startswith('"') else headers.get("Last-Modified")
