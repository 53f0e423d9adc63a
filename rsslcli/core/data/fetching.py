"""The published CIFAR-10-C archives: fetched in as many pieces as it takes, verified, and imported.

What arrives is trusted no further than its md5 goes. An archive without a published md5 is the user's choice
and is only checked as every import is.
"""

import hashlib
import http.client
import json
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

from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.data.decoding import shown
from rsslcli.core.data.importing import (
    check_space,
    chunks,
    image_bytes,
)
from rsslcli.core.errors import RsslError
from rsslcli.core.files import remove, replacing
from rsslcli.core.progress import Progress

TIMEOUT = 30.0  #: seconds to connect, and to wait for more bytes


ATTEMPTS = 5  #: failures in a row, without a new byte, after which a download is given up


PAUSE = 1.0  #: seconds to wait after the first failure; doubled after each further one


MAX_BYTES = 16 * 2**30  #: of an archive whose size is not known


_LONGEST_PAUSE = 30.0


_CHUNK = 2**18


ELSEWHERE = "or get the archive elsewhere and give it as `source`"


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
            for chunk in chunks(path, progress):
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


def fetch(url: str, archive: Path, published: Archive | None, limit: int | None, progress: Progress) -> None:
    """Bring the file at `url` to the path `archive`, where it appears once complete and verified."""
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        if archive.is_file():
            if published is None or md5_of(archive, progress) == published.md5:
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
                f"it is deleted, download it again {ELSEWHERE}"
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
                    f"check the connection and run it again, {ELSEWHERE}"
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
                f"check the address, {ELSEWHERE}"
            )
        total = total or (published.size if published else None)
        if response.status != http.client.PARTIAL_CONTENT:
            part.restart(_validator(response.headers))
        if total is not None:
            unpacked = total if limit is None else min(total, image_bytes(limit) * len(CORRUPTIONS))
            check_space(part.path.parent, total - part.done + unpacked)

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


def md5_of(path: Path, progress: Progress) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks(path, progress):
        digest.update(chunk)
    return digest.hexdigest()
