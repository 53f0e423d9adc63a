"""Download published corrupted sets and import them."""

import hashlib
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.corruptions.record import GENERATED
from rsslcli.core.data.corrupted import IMPORTED, CorruptedSet
from rsslcli.core.data.digests import file_digest
from rsslcli.core.data.fetching import Archive, fetch
from rsslcli.core.data.importing import (
    UNFINISHED,
    check_importable,
    check_kept,
    find_imported,
    image_bytes,
    import_corrupted,
)
from rsslcli.core.data.store import Split, check_limit
from rsslcli.core.errors import UserError
from rsslcli.core.files import read_json, remove
from rsslcli.core.progress import Note, Progress, silent

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
    note: Note = lambda text: None,
) -> CorruptedSet:
    """Fill `folder` with the published corrupted test set of the data set `name`.

    A download that was interrupted is resumed by the next call; if `folder` already holds the requested set,
    nothing is done.

    Args:
        name: the data set.
        folder: its corrupted folder.
        test: its clean test images.
        source: replaces the published address: another http(s) address, or anything that `import_corrupted`
            accepts. From any address, the archive must have the published size and md5, if there is one for
            `name`. Files on disk are the user's choice: they may hold other images and fewer corruptions, and
            stay in place; an archive with the published size and md5 counts as the published one.
        keep_archive: keep a downloaded archive in `folder`/download for reuse.
        limit: the number of images to keep per block; all if None.
        progress: called after every piece.
        note: called with the notes of the import.

    Raises:
        UserError: nothing is published for `name`, there is no such source, or its content is not a corrupted
            set of `test`.
        RsslError: the download failed, the file is not the published one, or it cannot be written.
    """
    check_limit(limit)
    check_importable(name)
    options: dict[str, Any] = {"test": test, "limit": limit, "progress": progress, "note": note}
    archive = PUBLISHED.get(name)
    if source is not None:
        url = _checked_url(str(source))
        if url is None:
            origin = published_origin(name, Path(source), progress)
            return import_corrupted(Path(source), folder, origin=origin, **options)[0]
        archive = replace(archive, url=url) if archive else Archive(url)
    check_kept(folder, test, limit)
    if archive is None:
        raise UserError(
            f"no corrupted images of {name!r} are published: use `corruptions` generate, "
            "or give your archive as `source`"
        )

    origin = archive.md5 or hashlib.sha256(archive.url.encode()).hexdigest()
    if present := find_imported(folder, origin, **options):
        return present
    file = PUBLISHED[name].file_name if archive.md5 else f"{name}-{origin[:12]}.tar"
    path = folder / UNFINISHED / file
    try:
        unpacked = None if limit is None else image_bytes(limit) * len(CORRUPTIONS)
        fetch(archive, path, progress, unpacked=unpacked)
        try:
            complete = archive.md5 is not None
            result, _ = import_corrupted(path, folder, complete=complete, origin=origin, **options)
        except UserError:
            if archive.md5 is None:  # it is useless, and the next run must not reuse it
                remove(path)
            raise
        if not keep_archive:
            remove(path)
        return result
    finally:
        with suppress(OSError):
            path.parent.rmdir()  # unless it is not empty


def corrupted_origin(corrupted: CorruptedSet) -> str:
    """Where a corrupted set came from, according to the records in its folder.

    Returns:
        "published": an archive with the published md5, with an unchanged fingerprint since.
        "generated": rssl generated all of its files.
        "imported": anything else; whether it equals a published set is unknown.
    """
    imported = read_json(corrupted.folder / IMPORTED)
    published = [archive.md5 for archive in PUBLISHED.values()]
    if imported.get("origin") in published and imported.get("identity") == corrupted.identity:
        return "published"
    generated = read_json(corrupted.folder / GENERATED)
    return "generated" if generated.keys() >= {*corrupted.names} else "imported"


def published_origin(name: str, source: Path, progress: Progress = silent) -> str | None:
    """The md5 of the archive that is published for the data set `name`, if `source` is that archive."""
    archive = PUBLISHED.get(name)
    if archive is None or not source.is_file() or source.stat().st_size != archive.size:
        return None
    return archive.md5 if file_digest(source, "md5", progress) == archive.md5 else None


def check_download(source: str) -> None:
    """Raise UserError unless `source` is an http or https address, or the path of a file or folder."""
    if _checked_url(source) is None and not Path(source).exists():
        raise UserError(f"no such source: {source} is not a file or folder, nor an http or https address")


def _checked_url(source: str) -> str | None:
    """The source if it is a valid http or https address; None if it is a path."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source):
        return None
    try:
        parts = urlsplit(source)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[!-~]+", source):
        raise UserError(
            f"{source!r} is not an http or https address: correct `source`, or give the path of a tar"
        )
    return source
