"""The published archives: broken transfers, wrong files and hostile tars, from a server of our own."""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_server import Reply, Server, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsslcli.core.corruptions import generate
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.data import fetching as download
from rsslcli.core.data import published
from rsslcli.core.data.corrupted import open_corrupted
from rsslcli.core.data.published import (
    PUBLISHED,
    Archive,
    corrupted_origin,
    download_corrupted,
    published_origin,
)
from rsslcli.core.data.store import Images, Split, make_split
from rsslcli.core.errors import RsslError, UserError

COUNT = 4
PART = "CIFAR-10-C.tar.part"


@pytest.fixture
def server(tar: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Reply(tar), "files/CIFAR-10-C.tar?download=1") as server:
        yield server


@pytest.fixture(autouse=True)
def _published(server: Server, tar: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the small archive on the local server, and lose no time."""
    archive = Archive(server.url, len(tar), hashlib.md5(tar).hexdigest())
    monkeypatch.setattr(published, "PUBLISHED", {"cifar10": archive})
    monkeypatch.setattr(download, "TIMEOUT", 10.0)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "_CHUNK", 2**14)
    monkeypatch.setattr("os.fsync", lambda file: None)


# --- archives -------------------------------------------------------------------------------------


def npy(array: np.ndarray[Any, Any], **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def pixels(count: int = COUNT) -> dict[str, Images]:
    generator = np.random.default_rng(1)
    return {name: generator.integers(0, 256, (5 * count, 32, 32, 3), dtype=np.uint8) for name in CORRUPTIONS}


def member(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def pack(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def layout(count: int = COUNT, names: Sequence[str] = CORRUPTIONS) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of an archive as published: one folder, the arrays, labels of bytes and a text."""
    images = pixels(count)
    return [
        member("CIFAR-10-C/", type=tarfile.DIRTYPE, mode=0o755),
        *(member(f"CIFAR-10-C/{name}.npy", npy(images[name])) for name in names),
        member("CIFAR-10-C/labels.npy", npy(np.tile(np.arange(count) % 3, 5).astype(np.uint8))),
        member("CIFAR-10-C/README.txt", b"read me"),
    ]


@pytest.fixture(scope="module")
def tar() -> bytes:
    return pack(layout())


@pytest.fixture
def test() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    return make_split(images, np.arange(COUNT) % 3, ("a", "b", "c"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "cifar10" / "corrupted"


def check(folder: Path, limit: int = COUNT, names: Sequence[str] = CORRUPTIONS) -> None:
    """Every byte of the set is right, and nothing else is there."""
    corrupted = open_corrupted(folder, "cifar10")
    assert corrupted.names == tuple(names)
    assert corrupted.labels.tolist() == [i % 3 for i in range(limit)]
    for name, images in pixels().items():
        if name in names:
            blocks = [images[block * COUNT : block * COUNT + limit] for block in range(5)]
            assert np.array_equal(np.load(folder / f"{name}.npy"), np.concatenate(blocks))
    expected = {f"{name}.npy" for name in names} | {"labels.npy", "downloaded.json"}
    assert {path.name for path in folder.iterdir()} - {"download"} == expected


@contextmanager
def fails(kind: type[RsslError], match: str) -> Iterator[None]:
    with pytest.raises(kind, match=match) as caught:
        yield
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()  # so it is one line


# --- transfers ------------------------------------------------------------------------------------


def test_published_table() -> None:
    assert set(PUBLISHED) == {"cifar10", "cifar100"}
    for archive, name in zip(PUBLISHED.values(), ("CIFAR-10-C.tar", "CIFAR-100-C.tar"), strict=True):
        assert archive.url.startswith("https://zenodo.org/records/")
        assert archive.file_name == name
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)
        # 19 arrays and the labels, each with 128 bytes of .npy header, and a little of tar
        assert 0 < archive.size - 19 * (50_000 * 3072 + 128) < 100_000


def test_download(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    seen: list[tuple[str, int, int]] = []
    corrupted = download_corrupted("cifar10", folder, test=test, progress=lambda *call: seen.append(call))
    assert corrupted.folder == folder
    check(folder)
    assert not (folder / "download").exists()
    assert server.ranges == [None]
    received = [(done, total) for text, done, total in seen if text == "downloading CIFAR-10-C.tar"]
    assert received[-1] == (len(tar), len(tar))
    assert received == sorted(received)
    assert seen[-1] == ("copying corruptions", 19, 19)


def test_nothing_is_done_twice(server: Server, folder: Path, test: Split) -> None:
    first = download_corrupted("cifar10", folder, test=test)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for limit in (None, COUNT, COUNT + 5):
        again = download_corrupted("cifar10", folder, test=test, limit=limit)
        assert again.identity == first.identity
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert len(server.requests) == 1


def test_limit(server: Server, folder: Path, test: Split) -> None:
    for _ in range(2):
        assert download_corrupted("cifar10", folder, test=test, limit=3).images_per_cell == 3
        check(folder, limit=3)
    assert len(server.requests) == 1
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    with fails(UserError, "`limit` 0: expected at least 1"):
        download_corrupted("cifar10", folder, test=test, limit=0)


def test_kept_archive_is_used_again_if_intact(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    download_corrupted("cifar10", folder, test=test, limit=2, keep_archive=True)
    archive = folder / "download" / "CIFAR-10-C.tar"
    assert archive.read_bytes() == tar
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert published_origin("cifar10", archive) == hashlib.md5(tar).hexdigest()
    download_corrupted("cifar10", folder, test=test, limit=3, keep_archive=True)
    check(folder, limit=3)
    with fails(UserError, "holds 3 images of each cell"):
        download_corrupted("cifar10", folder, test=test, limit=2)
    assert len(server.requests) == 1
    archive.write_bytes(tar[:-1] + b"x")
    assert published_origin("cifar10", archive) is None
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert len(server.requests) == 2
    assert not archive.exists()


def test_a_cut_transfer_is_continued(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    server.script = [replace(server.default, stop=stop) for stop in (100_000, 50_001, 0, 1)]
    download_corrupted("cifar10", folder, test=test, keep_archive=True)
    assert (folder / "download" / "CIFAR-10-C.tar").read_bytes() == tar
    check(folder)
    assert server.ranges == [None, "bytes=100000-", "bytes=150001-", "bytes=150001-", "bytes=150002-"]
    assert [request.get("If-Range") for request in server.requests] == [None] + ['"one"'] * 4
    assert server.sent == len(tar)


def test_many_cuts_are_no_reason_to_give_up(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    server.default = replace(server.default, stop=100_000)
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert len(server.requests) == -(-len(tar) // 100_000) > download.ATTEMPTS


def test_interruption_is_continued_by_the_next_run(
    server: Server, folder: Path, test: Split, tar: bytes
) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_corrupted("cifar10", folder, test=test, progress=interrupt)
    part = folder / "download" / PART
    arrived = part.stat().st_size
    assert part.read_bytes() == tar[:arrived] != b""
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges == [None, f"bytes={arrived}-"]


def test_interrupted_unpacking(server: Server, folder: Path, test: Split) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if (description, done) == ("copying corruptions", 7):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_corrupted("cifar10", folder, test=test, progress=interrupt)
    assert [path.name for path in folder.rglob("*")] == ["download", "CIFAR-10-C.tar"]
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert len(server.requests) == 1


def test_interrupted_while_the_files_are_moved(
    server: Server, folder: Path, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Path.replace

    def interrupt(path: Path, target: Path) -> Path:
        if target == folder / f"{CORRUPTIONS[5]}.npy":
            raise KeyboardInterrupt
        return move(path, target)

    download_corrupted("cifar10", folder, test=test, limit=2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download_corrupted("cifar10", folder, test=test)
    with pytest.raises(UserError, match=r"labels\.npy is missing"):
        open_corrupted(folder, "cifar10")
    download_corrupted("cifar10", folder, test=test)
    check(folder)


@pytest.mark.parametrize("complete", [True, False])
def test_a_part_from_before_is_hashed_again(
    server: Server, folder: Path, test: Split, tar: bytes, complete: bool
) -> None:
    part = folder / "download" / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(tar if complete else tar[:1000])
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges == ([] if complete else ["bytes=1000-"])


def test_a_part_that_is_wrong_shows_in_the_md5(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    part = folder / "download" / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" + tar[1:5000])
    wrong, right = hashlib.md5(b"x" + tar[1:]).hexdigest(), hashlib.md5(tar).hexdigest()
    with fails(RsslError, f"{wrong}, not {right}.* download it again"):
        download_corrupted("cifar10", folder, test=test)
    assert not list(folder.iterdir())
    download_corrupted("cifar10", folder, test=test)
    check(folder)


def test_a_part_that_is_too_long_is_thrown_away(
    server: Server, folder: Path, test: Split, tar: bytes
) -> None:
    part = folder / "download" / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(tar + b"x")
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges == [None]


def test_a_server_without_ranges(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    server.default = replace(server.default, ranges=False)
    server.script = [replace(server.default, stop=stop) for stop in (100_000, 50_000)]
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.sent == len(tar) + 150_000


def test_a_server_without_ranges_that_always_cuts(server: Server, folder: Path, test: Split) -> None:
    server.default = replace(server.default, ranges=False, stop=100_000)
    with fails(RsslError, "cut after 100000 of .* the 100000 bytes that arrived are kept: check the conn"):
        download_corrupted("cifar10", folder, test=test)
    assert len(server.requests) == download.ATTEMPTS
    assert (folder / "download" / PART).stat().st_size == 100_000


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("dated", [True, False])
def test_a_file_that_changes_is_not_glued(
    server: Server, folder: Path, test: Split, tar: bytes, if_range: bool, dated: bool
) -> None:
    def version(body: bytes, number: int) -> Reply:
        date = f"Wed, 09 Jan 2019 10:00:0{number} GMT"
        tags = {"etag": None, "modified": date} if dated else {"etag": f'"{number}"', "modified": None}
        return Reply(body, if_range=if_range, **tags)  # type: ignore[arg-type]

    old = bytes(byte ^ 255 for byte in tar)
    server.script = [replace(version(old, 1), stop=100_000)]
    server.default = version(tar, 2)
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    # A server that knows If-Range sends the whole file at once; with another, the answer gives it away.
    assert server.ranges == [None, "bytes=100000-", None][: 2 if if_range else 3]


def test_a_weak_tag_is_no_validator(server: Server, folder: Path, test: Split) -> None:
    server.default = replace(server.default, etag='W/"one"')
    server.script = [replace(server.default, stop=100_000)]
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert "If-Range" not in server.requests[1]


@pytest.mark.parametrize("answer", [{"status": 416}, {"shift": 1}, {"shift": -10}])
def test_a_server_that_cannot_continue(
    server: Server, folder: Path, test: Split, answer: dict[str, Any]
) -> None:
    server.script = [replace(server.default, stop=100_000), replace(server.default, **answer)]
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges == [None, "bytes=100000-", None]


def test_hanging_servers(server: Server, folder: Path, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    server.script = [
        replace(server.default, silent=True),
        replace(server.default, stop=100_000, hang=True),
        replace(server.default, stop=0, hang=True),
    ]
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges == [None, None, "bytes=100000-", "bytes=100000-"]


def test_a_server_that_hangs_for_good(
    server: Server, folder: Path, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.default = replace(server.default, silent=True)
    with fails(RsslError, "timed out"):
        download_corrupted("cifar10", folder, test=test)
    assert len(server.requests) == download.ATTEMPTS


def test_pauses_grow(server: Server, folder: Path, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download, "PAUSE", 10.0)
    monkeypatch.setattr("time.sleep", pauses.append)
    server.default = replace(server.default, status=500)
    with fails(RsslError, "the server says 500"):
        download_corrupted("cifar10", folder, test=test)
    assert pauses == [10, 20, 30, 30]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_errors_of_the_server(server: Server, folder: Path, test: Split, status: int) -> None:
    server.script = [replace(server.default, stop=100_000)] + [replace(server.default, status=status)] * 3
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges == [None] + ["bytes=100000-"] * 4


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_lasting_errors_of_the_server(server: Server, folder: Path, test: Split, status: int) -> None:
    server.script = [replace(server.default, stop=100_000), replace(server.default, status=status)]
    with fails(RsslError, f"the server says {status}.*`source`"):
        download_corrupted("cifar10", folder, test=test)
    assert len(server.requests) == 2
    assert (folder / "download" / PART).stat().st_size == 100_000


def test_no_server(server: Server, folder: Path, test: Split) -> None:
    with fails(RsslError, "cannot download .*refused"):
        download_corrupted("cifar10", folder, test=test, source="http://127.0.0.1:9/CIFAR-10-C.tar")


@pytest.mark.parametrize("length", [True, False])
def test_wrong_bytes(server: Server, folder: Path, test: Split, tar: bytes, length: bool) -> None:
    wrong = tar[:-1] + b"x"
    server.default = replace(server.default, body=wrong, length=length)
    with fails(RsslError, f"{hashlib.md5(wrong).hexdigest()}, not {hashlib.md5(tar).hexdigest()}"):
        download_corrupted("cifar10", folder, test=test)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("resuming", [True, False])
def test_wrong_size_is_seen_at_once(server: Server, folder: Path, test: Split, resuming: bool) -> None:
    page = replace(server.default, body=b"<html>Please log in</html>", ranges=False)
    server.script = [replace(server.default, stop=100_000), page] if resuming else [page]
    with fails(RsslError, "has 26 bytes, not the .* of the published archive"):
        download_corrupted("cifar10", folder, test=test)
    if resuming:  # what there was is worth keeping
        assert (folder / "download" / PART).stat().st_size == 100_000
    download_corrupted("cifar10", folder, test=test)
    check(folder)


def test_no_length(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    server.default = replace(server.default, length=False)
    server.script = [replace(server.default, stop=100_000)]
    download_corrupted("cifar10", folder, test=test, limit=3)
    check(folder, limit=3)
    server.default = replace(server.default, body=tar + bytes(50_000))
    with fails(RsslError, f"sends more than {len(tar)} bytes"):
        download_corrupted("cifar10", folder, test=test)


def test_redirections(server: Server, folder: Path, test: Split, tmp_path: Path, tar: bytes) -> None:
    secret = tmp_path / "secret.tar"
    secret.write_bytes(tar)
    targets = (secret.as_uri(), f"file:{secret}", "ftp://127.0.0.1/x", "data:,x")
    for target in targets:
        server.requests.clear()
        server.script = [replace(server.default, location=target)]
        with fails(RsslError, "cannot download"):
            download_corrupted("cifar10", folder, test=test)
        assert len(server.requests) == 1
        assert not list(folder.rglob("*.tar*"))
    server.script = [
        replace(server.default, location="/elsewhere"),
        replace(server.default, stop=100_000),
        replace(server.default, location="/elsewhere"),
    ]
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert server.ranges[-1] == "bytes=100000-"


@pytest.mark.parametrize(("limit", "unpacked"), [(None, None), (10**6, None), (1, 19 * 5 * 3072)])
def test_no_space(
    server: Server,
    folder: Path,
    test: Split,
    tar: bytes,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    unpacked: int | None,
) -> None:
    usage = namedtuple("usage", "free")
    needed = len(tar) + (unpacked or len(tar))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(needed - 1))
    with fails(RsslError, "has 0.0 GiB of free space, of the 0.0 GiB needed: free some"):
        download_corrupted("cifar10", folder, test=test, limit=limit)
    assert (folder / "download" / PART).stat().st_size == 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(needed))
    download_corrupted("cifar10", folder, test=test, limit=limit)
    check(folder, limit=1 if limit == 1 else COUNT)


def test_no_space_to_unpack(
    folder: Path, test: Split, tmp_path: Path, tar: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    (tmp_path / "mine.tar").write_bytes(tar)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(19 * 5 * 3072 * 2 - 1))
    with fails(RsslError, "needed: free some"):
        download_corrupted("cifar10", folder, test=test, source=tmp_path / "mine.tar", limit=2)
    assert not list(folder.iterdir())
    download_corrupted("cifar10", folder, test=test, source=tmp_path / "mine.tar", limit=1)
    check(folder, limit=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_is_not_taken_for_the_network(server: Server, folder: Path, test: Split) -> None:
    part = folder / "download" / PART
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with fails(RsslError, "cannot write below .*No space left"):
        download_corrupted("cifar10", folder, test=test)
    assert len(server.requests) == 1


def test_folder_that_cannot_be_made(folder: Path, test: Split) -> None:
    folder.parent.parent.mkdir()
    folder.parent.write_bytes(b"")
    with fails(RsslError, "cannot write below"):
        download_corrupted("cifar10", folder, test=test)


# --- sources of the user's own --------------------------------------------------------------------


def test_mirror_must_have_the_published_file(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    mirror = server.url.replace("/files/", "/mirror/")
    server.script = [replace(server.default, body=bytes(len(tar)))]
    with fails(RsslError, "returned another file"):
        download_corrupted("cifar10", folder, test=test, source=mirror)
    server.script = [replace(server.default, stop=100_000), replace(server.default, status=404)]
    with fails(RsslError, "404"):
        download_corrupted("cifar10", folder, test=test)
    # The mirror goes on where the other server stopped; its tags are its own.
    server.default = replace(server.default, etag='"two"')
    download_corrupted("cifar10", folder, test=test, source=mirror)
    check(folder)
    assert server.ranges[-1] == "bytes=100000-"
    assert "If-Range" not in server.requests[-1]
    download_corrupted("cifar10", folder, test=test)
    assert len(server.requests) == 4


def test_other_data_sets_need_a_source(server: Server, folder: Path, test: Split) -> None:
    with fails(UserError, "no corrupted images of 'flowers' are published: use `corruptions` generate"):
        download_corrupted("flowers", folder, test=test)
    assert not folder.exists()
    server.script = [replace(server.default, stop=100_000), replace(server.default, stop=100_000, etag='"n"')]
    download_corrupted("flowers", folder, test=test, source=server.url)
    check(folder)
    assert server.ranges == [None, "bytes=100000-", "bytes=100000-"]
    download_corrupted("flowers", folder, test=test, source=server.url)
    assert len(server.requests) == 3


def test_without_md5_and_validator_nothing_is_glued(server: Server, folder: Path, test: Split) -> None:
    server.default = replace(server.default, etag=None)

    def interrupt(description: str, done: int, total: int) -> None:
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_corrupted("flowers", folder, test=test, source=server.url, progress=interrupt)
    server.script = [replace(server.default, stop=100_000)]
    download_corrupted("flowers", folder, test=test, source=server.url)
    check(folder)
    assert server.ranges == [None, None, None]


def test_a_useless_archive_is_not_kept(server: Server, folder: Path, test: Split, tar: bytes) -> None:
    server.script = [replace(server.default, body=b"<html>" * 1000)]
    with fails(UserError, "is damaged or not a tar"):
        download_corrupted("flowers", folder, test=test, source=server.url)
    assert not list(folder.iterdir())
    server.script = [replace(server.default, body=tar, length=False)]
    download_corrupted("flowers", folder, test=test, source=server.url)
    check(folder)


def test_an_endless_answer(
    server: Server, folder: Path, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 500_000)
    server.default = replace(server.default, length=False)
    with fails(RsslError, "sends more than 500000 bytes"):
        download_corrupted("flowers", folder, test=test, source=server.url)


@pytest.mark.parametrize(
    "source", ["ftp://host/x.tar", "file:///x.tar", "http://", "https://a b/x", "http://h:x/", "http://h/\n"]
)
def test_addresses_that_are_none(folder: Path, test: Split, source: str) -> None:
    with fails(UserError, "is not an http or https address"):
        download_corrupted("cifar10", folder, test=test, source=source)


def test_host_that_cannot_be(server: Server, folder: Path, test: Split) -> None:
    with fails(RsslError, "cannot download"):
        download_corrupted("cifar10", folder, test=test, source="http://a..b/x.tar")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tar_on_disk(
    server: Server, folder: Path, test: Split, tmp_path: Path, kind: Callable[[Path], str | Path]
) -> None:
    names = ("gaussian_noise", "snow")
    mine = tmp_path / "mine.tar"
    mine.write_bytes(pack(layout(names=names)))
    download_corrupted("cifar10", folder, test=test)
    download_corrupted("cifar10", folder, test=test, source=kind(mine))
    check(folder, names=names)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    download_corrupted("cifar10", folder, test=test, source=kind(mine))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert mine.exists()
    assert not (folder / "download").exists()
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    with fails(UserError, "no such source"):
        download_corrupted("cifar10", folder, test=test, source=kind(tmp_path / "none.tar"))


def test_a_folder(server: Server, folder: Path, test: Split, tmp_path: Path) -> None:
    source = tmp_path / "CIFAR-10-C"
    source.mkdir()
    with fails(UserError, "no corrupted test set"):
        download_corrupted("cifar10", folder, test=test, source=source)
    for info, content in layout(names=["fog"])[1:]:
        (source / Path(info.name).name).write_bytes(content)
    download_corrupted("cifar10", folder, test=test, limit=2)
    corrupted = download_corrupted("cifar10", folder, test=test, source=source, limit=2)
    assert (corrupted.names, corrupted.images_per_cell) == (("fog",), 2)
    assert {path.name for path in folder.iterdir()} == {"fog.npy", "labels.npy", "downloaded.json"}
    download_corrupted("cifar10", folder, test=test)
    check(folder)


def test_published_archive_must_be_complete(
    server: Server, folder: Path, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = pack(layout(names=[name for name in CORRUPTIONS if name != "fog"]))
    archive = Archive(server.url, len(body), hashlib.md5(body).hexdigest())
    monkeypatch.setattr(published, "PUBLISHED", {"cifar10": archive})
    server.default = replace(server.default, body=body)
    with fails(UserError, r"has no fog\.npy"):
        download_corrupted("cifar10", folder, test=test)


def test_labels_that_do_not_fit_cost_no_second_download(server: Server, folder: Path, test: Split) -> None:
    other = make_split(test.images, np.zeros(COUNT, np.int64), ("a", "b"))
    with fails(UserError, "outside the 2 classes of the data set"):
        download_corrupted("cifar10", folder, test=other)
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert len(server.requests) == 1


# --- downloaded and generated files in one folder -------------------------------------------------


def test_generated_and_downloaded_files_are_told_apart(server: Server, folder: Path, test: Split) -> None:
    def fog() -> None:
        generate.generate_corrupted(test.images, test.labels, folder, corruptions=["fog"], workers=1)

    fog()
    generated = np.load(folder / "fog.npy")
    (folder / "snow.npy.partial").write_bytes(b"begun")
    download_corrupted("cifar10", folder, test=test)
    check(folder)  # the generator's record and unfinished file are gone
    fog()
    assert np.array_equal(np.load(folder / "fog.npy"), generated)
    download_corrupted("cifar10", folder, test=test)
    check(folder)


@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{}", b"\xff", b'{"origin": 1, "identity": 2}', b"1", b"[" * 100_000]
)
def test_damaged_record(server: Server, folder: Path, test: Split, record: bytes) -> None:
    download_corrupted("cifar10", folder, test=test)
    (folder / "downloaded.json").write_bytes(record)
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert len(server.requests) == 2


def test_changed_files_are_replaced(server: Server, folder: Path, test: Split) -> None:
    download_corrupted("cifar10", folder, test=test)
    np.save(folder / "fog.npy", 255 - np.load(folder / "fog.npy"))
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    (folder / "snow.npy").unlink()
    download_corrupted("cifar10", folder, test=test)
    check(folder)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"url": 1, "validator": 2}',
        b"[" * 100_000,
        b'{"url": "%s", "validator": "x\\r\\nHost: elsewhere"}',
    ],
)
def test_damaged_state_of_a_part(server: Server, folder: Path, test: Split, tar: bytes, state: bytes) -> None:
    part = folder / "download" / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(tar[:1000])
    part.with_name(f"{PART}.json").write_bytes(state.replace(b"%s", PUBLISHED["cifar10"].url.encode()))
    download_corrupted("cifar10", folder, test=test)
    check(folder)
    assert not (folder / "download").exists()


# --- hostile archives -----------------------------------------------------------------------------


def everything(root: Path, but: Path) -> set[tuple[str, bytes]]:
    return {
        (str(path), path.read_bytes() if path.is_file() and not path.is_symlink() else b"")
        for path in root.rglob("*")
        if but not in (path, *path.parents) and path not in but.parents
    }


@pytest.fixture
def hostile(folder: Path, tmp_path: Path, test: Split) -> Iterator[Callable[[bytes], None]]:
    """Unpack bytes as an archive of the user's; in the end nothing outside the folder has changed."""
    archive = tmp_path / "hostile.tar"
    bystander = tmp_path / "bystander"
    bystander.write_bytes(b"mine")
    archive.write_bytes(b"")
    before = everything(tmp_path, folder) - {(str(archive), b"")}

    def unpack(content: bytes) -> None:
        archive.write_bytes(content)
        download_corrupted("flowers", folder, test=test, source=archive)

    yield unpack
    assert {item for item in everything(tmp_path, folder) if item[0] != str(archive)} == before
    assert not [path for path in folder.rglob("*") if path.is_symlink() or path.is_dir()]


def test_where_members_want_to_go_does_not_matter(
    hostile: Callable[[bytes], None], folder: Path, tmp_path: Path
) -> None:
    images = pixels()
    outside = tmp_path / "outside"
    places = {
        "fog": "../../../../../../fog.npy",
        "snow": f"{outside}/snow.npy",
        "frost": "a/../../frost.npy",
        "contrast": "contrast.npy",
    }
    hostile(
        pack(
            [
                *layout(names=[])[1:],
                *(member(path, npy(images[name])) for name, path in places.items()),
                member("../evil.npy", npy(images["fog"])),
                member(f"{outside}/evil", b"evil"),
                member("..", type=tarfile.DIRTYPE),
            ]
        )
    )
    check(folder, names=[name for name in CORRUPTIONS if name in places])


@pytest.mark.parametrize(
    "attributes",
    [
        {"type": tarfile.SYMTYPE, "linkname": "../../bystander"},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "CIFAR-10-C/snow.npy"},
        {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
        {"type": tarfile.BLKTYPE, "devmajor": 8},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.DIRTYPE},
    ],
)
def test_what_is_no_file_is_passed_over(
    hostile: Callable[[bytes], None], folder: Path, attributes: dict[str, Any]
) -> None:
    special = [member(f"CIFAR-10-C/{name}.npy", **attributes) for name in ("fog", "frost")]
    hostile(pack([*special, *layout(names=["snow"]), member("CIFAR-10-C", **attributes)]))
    check(folder, names=["snow"])
    with fails(UserError, r"has no labels\.npy"):
        hostile(pack([*layout(names=["snow"])[:2], member("labels.npy", **attributes)]))
    check(folder, names=["snow"])  # a failure leaves what there was


def test_a_member_through_a_link_of_the_archive(
    hostile: Callable[[bytes], None], folder: Path, tmp_path: Path
) -> None:
    link = member("CIFAR-10-C", type=tarfile.SYMTYPE, linkname=str(tmp_path))
    hostile(pack([link, *layout(names=["fog"])[1:]]))
    check(folder, names=["fog"])


def test_links_in_the_way_are_not_followed(
    hostile: Callable[[bytes], None], folder: Path, tmp_path: Path
) -> None:
    folder.mkdir(parents=True)
    for name in ("fog.npy", "labels.npy", "downloaded.json"):
        (folder / name).symlink_to(tmp_path / "bystander")
    hostile(pack(layout(names=["fog"])))
    check(folder, names=["fog"])


def unusual(name: str, content: bytes) -> bytes:
    return pack([*layout(names=["snow"]), member(f"CIFAR-10-C/{name}.npy", content)])


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + text.encode()


IMAGES = pixels()["fog"]
FORGED = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy(np.array([object()] * 20), allow_pickle=True), "object"),
        (npy(IMAGES.astype(np.float32)), "float32"),
        (npy(IMAGES.astype(np.uint16)), "uint16"),
        (npy(np.asfortranarray(IMAGES)), "Fortran"),
        (npy(IMAGES[:-1]), r"\(19, 32, 32, 3\), not uint8 \(20, 32, 32, 3\)"),
        (npy(IMAGES[:10]), r"\(10, 32, 32, 3\)"),
        (npy(IMAGES.reshape(20, 3, 32, 32)), r"\(20, 3, 32, 32\)"),
        (npy(np.zeros((0, 32, 32, 3), np.uint8)), r"\(0, 32, 32, 3\)|empty"),
        (npy(IMAGES)[:-1], "claims the shape"),
        (npy(IMAGES) + b"x", "claims the shape"),
        (header(FORGED % "10**12,"), "."),
        (header(FORGED % "1000000000000, 32, 32, 3"), "claims the shape"),
        (header(FORGED % "-5, -12288"), "."),
        (header(FORGED % "-5, -5") + bytes(25), "negative"),
        (header("(" * 9000), "."),
        (header("-" * 9000 + "1"), "."),
        (header("x" * 60_000), "."),
        (header("__import__('os').system('exit')"), "."),
        (header(FORGED % "20, 32, 32, 3", b"\x02\x00") + IMAGES.tobytes(), "version other"),
        (header("", b"\x02\x00")[:-4] + b"\xff\xff\xff\xff", "version other"),
        (b"", "."),
        (b"\x93NUMPY", "."),
        (b"PK\x03\x04 a zip", "magic"),
    ],
)
def test_arrays_of_another_kind(
    hostile: Callable[[bytes], None], folder: Path, content: bytes, match: str
) -> None:
    with fails(UserError, match):
        hostile(unusual("fog", content))
    assert not list(folder.glob("*.npy"))


@pytest.mark.parametrize(
    "labels",
    [
        np.tile(np.arange(COUNT), 5),  # four classes, of three
        np.tile(np.arange(COUNT) - 1, 5),
        np.arange(5 * COUNT) % 3,
        np.zeros((5, COUNT), np.int64),
        np.zeros(5 * COUNT - 1, np.int64),
        np.zeros(0, np.int64),
        np.zeros(5 * COUNT),
        np.int64(0),
        np.full(5 * COUNT, 2**64 - 1, np.uint64),
    ],
)
def test_labels_of_another_kind(
    hostile: Callable[[bytes], None], folder: Path, labels: np.ndarray[Any, Any]
) -> None:
    with fails(UserError, "labels|not a tar of"):
        hostile(pack([*layout(names=["snow"])[:2], member("labels.npy", npy(labels))]))
    assert not list(folder.glob("*.npy"))


def test_duplicates(hostile: Callable[[bytes], None], tar: bytes) -> None:
    with fails(UserError, r"holds fog\.npy twice"):
        hostile(pack([*layout(), member("other/fog.npy", npy(IMAGES))]))


def test_too_many_members(hostile: Callable[[bytes], None]) -> None:
    with fails(UserError, "too many members"):
        hostile(pack([*layout(names=["fog"]), *(member(f"{index}") for index in range(1000))]))


def resized(content: bytes, name: bytes, size: int) -> bytes:
    """The archive with another size in the header of a member, and the checksum to match."""
    start = content.index(name)
    block = bytearray(content[start : start + 512])
    block[124:136] = b"\x80" + size.to_bytes(11, "big") if size > 0 else b"\xff" * 11 + bytes([size & 255])
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:start] + bytes(block) + content[start + 512 :]


@pytest.mark.parametrize("size", [2**62, 10**10, 513, 0o7777, -1, -200])
@pytest.mark.parametrize("name", [b"CIFAR-10-C/fog.npy", b"CIFAR-10-C/labels.npy"])
def test_claimed_sizes(hostile: Callable[[bytes], None], folder: Path, name: bytes, size: int) -> None:
    with fails(UserError, "is damaged or not a tar"):
        hostile(resized(pack(layout(names=["fog", "snow"])), name, size))
    assert not list(folder.glob("*.npy"))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_long_headers_are_not_read(hostile: Callable[[bytes], None], kind: bytes) -> None:
    bomb = member("bomb", bytes(2**20 + 1), type=kind)
    with fails(UserError, "a header of 10[0-9]* bytes"):
        hostile(pack([bomb, *layout(names=["fog"])]))


def test_sparse_files_are_passed_over(hostile: Callable[[bytes], None], folder: Path) -> None:
    info, content = member("fog.npy", npy(IMAGES))
    info.pax_headers = {"GNU.sparse.map": "0,128", "GNU.sparse.size": str(len(content))}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
        for other, data in layout(names=["snow"]):
            archive.addfile(other, io.BytesIO(data))
    hostile(file.getvalue())
    check(folder, names=["snow"])


@pytest.mark.parametrize("where", [0, 100, 511, 512, 70_000, 200_000, 1_000_000, -20_480, -12_000])
def test_truncated(hostile: Callable[[bytes], None], folder: Path, tar: bytes, where: int) -> None:
    with fails(UserError, "damaged or not a tar|has no"):
        hostile(tar[:where])
    assert not list(folder.glob("*.npy"))


def test_a_damaged_header_is_not_the_end(hostile: Callable[[bytes], None], tar: bytes) -> None:
    content = pack([*layout(names=["fog"]), *layout(names=["snow"])[1:2]])
    position = content.index(b"CIFAR-10-C/snow.npy")
    with fails(UserError, f"no header at byte {position}"):
        hostile(content[:position] + b"X" + content[position + 1 :])


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_members_of_a_compressed_archive_are_written_nowhere_else(
    hostile: Callable[[bytes], None], folder: Path, tmp_path: Path, suffix: str
) -> None:
    def packed(*more: tuple[tarfile.TarInfo, bytes]) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=f"w:{suffix}") as archive:  # type: ignore[call-overload]
            for info, content in (*layout(names=["fog"]), *more):
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()

    hostile(
        packed(
            member("../snow.npy", npy(IMAGES)),
            member(f"{tmp_path}/saturate.npy", npy(IMAGES)),
            member("../../../evil.npy", npy(IMAGES)),
            member("x/frost.npy", type=tarfile.SYMTYPE, linkname="../../bystander"),
            member("contrast.npy", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        )
    )
    check(folder, names=["fog"])
    with fails(UserError, r"holds fog\.npy twice"):
        hostile(packed(member("y/fog.npy", npy(IMAGES))))
    check(folder, names=["fog"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(st.lists(st.tuples(st.integers(0, 1_200), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_random_damage_is_an_error_or_harmless(
    hostile: Callable[[bytes], None], changes: list[tuple[int, int]], second: bool
) -> None:
    content = bytearray(pack([*layout(1, ["fog"])[1:3], *layout(1, ["snow"])[1:2]]))
    start = content.index(b"CIFAR-10-C/labels.npy") if second else 0
    for position, value in changes:
        content[start + position] = value
    try:
        hostile(bytes(content))
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert message == "" or message.isprintable()


def test_folder_that_cannot_be_written(tmp_path: Path, test: Split, tar: bytes) -> None:
    (tmp_path / "archive.tar").write_bytes(tar)
    (tmp_path / "file").write_bytes(b"")
    with fails(RsslError, "cannot import"):
        download_corrupted("cifar10", tmp_path / "file" / "x", test=test, source=tmp_path / "archive.tar")


def test_a_set_from_the_published_archive_is_the_published_one(
    server: Server, tmp_path: Path, test: Split, tar: bytes
) -> None:
    (tmp_path / "archive.tar").write_bytes(tar)
    for place, source in (("a", None), ("b", server.url), ("c", tmp_path / "archive.tar")):
        for limit in (2, None):
            found = download_corrupted("cifar10", tmp_path / place, test=test, source=source, limit=limit)
            assert corrupted_origin(found) == "published"


def test_a_set_that_nothing_vouches_for_is_an_imported_one(
    server: Server, tmp_path: Path, test: Split, tar: bytes
) -> None:
    (tmp_path / "archive.tar").write_bytes(pack(layout(names=("fog", "snow"))))
    other = download_corrupted("cifar10", tmp_path / "a", test=test, source=tmp_path / "archive.tar")
    assert corrupted_origin(other) == "imported"
    published = download_corrupted("cifar10", tmp_path / "b", test=test)
    copied = download_corrupted("cifar10", tmp_path / "c", test=test, source=published.folder)
    assert corrupted_origin(copied) == "imported", "a folder may hold anything"
    for source in (None, published.folder):  # compared once, and found to be the same
        copied = download_corrupted("cifar10", tmp_path / "c", test=test, source=source)
        assert corrupted_origin(copied) == "published"
    download_corrupted("cifar10", tmp_path / "c", test=test)
    assert len(server.requests) == 2
    np.save(published.folder / "fog.npy", 255 - np.load(published.folder / "fog.npy"))
    assert corrupted_origin(open_corrupted(published.folder, "cifar10")) == "imported", "it was changed"


def test_a_generated_set_is_known_by_its_record(folder: Path, test: Split) -> None:
    generate.generate_corrupted(test.images, test.labels, folder, corruptions=["fog", "snow"])
    assert corrupted_origin(open_corrupted(folder, "cifar10")) == "generated"
    np.save(folder / "frost.npy", np.load(folder / "snow.npy"))
    assert corrupted_origin(open_corrupted(folder, "cifar10")) == "imported", "one file is from elsewhere"


@pytest.mark.parametrize(
    "record", ["[" * 9999, "[]", '{"origin": []}', '{"origin": "%s", "identity": 3}', "\0", '{"fog": 1}']
)
def test_damaged_records_vouch_for_nothing(folder: Path, test: Split, record: str) -> None:
    found = download_corrupted("cifar10", folder, test=test)
    for name in ("downloaded.json", "corruptions.json"):
        (folder / name).write_text(record.replace("%s", published.PUBLISHED["cifar10"].md5))
    assert corrupted_origin(found) == "imported"


def test_the_record_is_small(server: Server, folder: Path, test: Split) -> None:
    download_corrupted("cifar10", folder, test=test, limit=1)
    record = json.loads((folder / "downloaded.json").read_bytes())
    assert record == {
        "origin": hashlib.md5(server.default.body).hexdigest(),
        "limit": 1,
        "test": test.checksum,
        "in_order": True,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.npy")},
        "identity": open_corrupted(folder, "cifar10").identity,
    }
    assert os.listdir(folder.parent) == ["corrupted"]  # noqa: PTH208
