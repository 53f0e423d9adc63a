"""The published corrupted sets: where they are, and how a download becomes the set of a data set."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from rsslcli.core.corruptions.record import GENERATED
from rsslcli.core.data.corrupted import CorruptedSet, read_record
from rsslcli.core.data.fetching import Archive, fetch, md5_of
from rsslcli.core.data.importing import (
    UNFINISHED,
    find_imported,
    import_corrupted,
)
from rsslcli.core.data.store import Split
from rsslcli.core.errors import UserError
from rsslcli.core.files import remove
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

    `source` takes the place of the published address: another http(s) address, or whatever `import_corrupted`
    takes. From any address the archive must have the published size and md5, if one is published for `name`.
    What lies on disk is the user's own choice: it may hold other images and fewer corruptions, and stays
    where it is. An archive with the published size and md5 counts as the published one there too.

    `limit` keeps the first so many images of each block. With `keep_archive` a downloaded archive stays in
    `folder`/download and is used again. A download that was interrupted is continued by the next call; when
    `folder` already holds what is asked for, nothing is done. `note` is told what the import has to tell.

    Raises:
        UserError: nothing is published for `name`, or no such source, or its content is not a corrupted set,
            or not one of `test`.
        RsslError: a failed download, a file that is not the published one, no space, or no write permission.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images: give a positive number")
    published = PUBLISHED.get(name)
    if source is not None:
        url = _checked_url(str(source))
        if url is None:
            path = Path(source)
            origin = published.md5 if published and _is_archive(path, published, progress) else None
            return import_corrupted(
                path, folder, test=test, limit=limit, origin=origin, progress=progress, note=note
            )[0]
    elif published is not None:
        url = published.url
    else:
        raise UserError(
            f"no corrupted images of {name!r} are published: use `corruptions` generate, "
            "or give your archive as `source`"
        )

    origin = published.md5 if published else hashlib.sha256(url.encode()).hexdigest()
    if present := find_imported(folder, origin, limit, test=test, progress=progress, note=note):
        return present
    archive = folder / UNFINISHED / (published.file_name if published else f"{name}-{origin[:12]}.tar")
    try:
        fetch(url, archive, published, limit, progress)
        try:
            result, _ = import_corrupted(
                archive,
                folder,
                test=test,
                limit=limit,
                complete=published is not None,
                origin=origin,
                progress=progress,
                note=note,
            )
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


def corrupted_origin(corrupted: CorruptedSet) -> str:
    """Where a corrupted set is from, as far as the records in its folder tell.

    Returns:
        "published": from an archive with the published md5, and unchanged since then by its fingerprint.
        "generated": every one of its files was made by our own generator.
        "imported": anything else. Nothing shows whether it equals a published set.
    """
    imported = read_record(corrupted.folder)
    published = [archive.md5 for archive in PUBLISHED.values()]
    if imported.get("origin") in published and imported.get("identity") == corrupted.identity:
        return "published"
    generated = read_record(corrupted.folder, GENERATED)
    return "generated" if generated.keys() >= {*corrupted.names} else "imported"


def _is_archive(path: Path, published: Archive, progress: Progress) -> bool:
    """Whether the file is the published archive."""
    same_size = path.is_file() and path.stat().st_size == published.size
    return same_size and md5_of(path, progress) == published.md5


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
            f"{source!r} is no http or https address: correct `source`, or give the path of a tar"
        )
    return source
