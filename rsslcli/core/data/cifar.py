"""Download the official CIFAR-10 and CIFAR-100, or read them from their archive or folder."""

import tarfile
import tempfile
from pathlib import Path

import numpy as np

from rsslcli.core.data.archives import is_tar, one_line_errors, open_tar
from rsslcli.core.data.digests import file_digest
from rsslcli.core.data.fetching import Archive, fetch
from rsslcli.core.data.store import Arrays
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.progress import Progress, silent

#: The folder, the archive and the archive's md5 of each official data set.
OFFICIAL = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
}
#: The bytes of each archive.
_BYTES = {"cifar10": 170_498_071, "cifar100": 169_001_437}
#: How many classes each has.
CLASSES = {"cifar10": 10, "cifar100": 100}
_SITE = "https://www.cs.toronto.edu/~kriz/"


def official_name(source: Path, wanted: str | None = None) -> str | None:
    """The official CIFAR data set that `source` is: its folder, the folder's parent, or its archive.

    If `source` holds both data sets, it is the one that is `wanted`.
    """
    for name in sorted(OFFICIAL, key=lambda name: name != wanted):
        folder, archive, _ = OFFICIAL[name]
        if source.is_dir():
            if source.name == folder or (source / folder).is_dir() or (source / archive).is_file():
                return name
        else:
            with one_line_errors(source):
                if is_tar(source):
                    with open_tar(source) as opened:
                        first = opened.next()
                        if first and first.name.split("/")[0] == folder:
                            return name
    return None


def read_cifar(
    name: str, source: Path | None, download_folder: Path, progress: Progress = silent
) -> tuple[Arrays, Arrays]:
    """Read an official CIFAR data set; `name` is cifar10 or cifar100.

    `source` is its folder, the folder's parent, or its archive; None downloads the archive to
    `download_folder` if it is not there yet. Every file is checked against its published md5 before it is
    unpickled.

    Raises:
        UserError: `source` is not the official data set, or it is damaged.
        RsslError: the download failed.
    """
    folder, archive_name, md5 = OFFICIAL[name]
    if source and source.name == folder:
        source = source.parent
    if source and (source / folder).is_dir():
        return _load_cifar(name, source)
    if source is None:
        archive = download_folder / archive_name
        fetch(Archive(_SITE + archive_name, _BYTES[name], md5), archive, progress)
    else:
        archive = source / archive_name if source.is_dir() else source
        try:
            is_official = file_digest(archive, "md5") == md5
        except OSError as error:
            raise UserError(f"cannot read {archive}: {error.strerror}") from error
        if not is_official:
            raise UserError(f"{archive} is not the official {archive_name}, or damaged: its md5 is not {md5}")
    try:
        download_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=download_folder) as scratch:
            with tarfile.open(archive) as opened:
                # Python before 3.10.12 has no filters and ignores this; the md5 has been verified.
                opened.extraction_filter = getattr(tarfile, "data_filter", None)
                opened.extractall(scratch)
            return _load_cifar(name, Path(scratch))
    except OSError as error:
        raise RsslError(
            f"cannot unpack {archive} below {download_folder}: {error.strerror or error}"
        ) from error


def _load_cifar(name: str, root: Path) -> tuple[Arrays, Arrays]:
    from torchvision.datasets import CIFAR10, CIFAR100

    try:
        # The constructor checks the md5 of all files before it unpickles any.
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
