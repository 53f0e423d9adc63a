"""Folders in the layout of CIFAR-10-C: opening, validating, importing."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsslcli.core.data.corrupted import aligned, import_corrupted, open_corrupted, write_blocks
from rsslcli.core.data.store import Split, make_split
from rsslcli.core.errors import UserError
from rsslcli.core.progress import silent

NAMES = ("gaussian_noise", "fog", "saturate")
COUNT = 12


@pytest.fixture
def test() -> Split:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    return make_split(images, np.arange(COUNT) % 3, ("a", "b", "c"))


@pytest.fixture
def folder(tmp_path: Path, test: Split) -> Path:
    """Every cell is the test images plus a number of its own."""
    folder = tmp_path / "CIFAR-10-C"
    for index, name in enumerate(NAMES):
        write_blocks(
            folder / f"{name}.npy", (test.images + np.uint8(10 * index + severity) for severity in range(5))
        )
    np.save(folder / "labels.npy", np.tile(test.labels, 5).astype(np.uint8))
    np.save(folder / "unknown.npy", np.zeros(3))
    return folder


def test_open_and_read_cells(folder: Path, test: Split) -> None:
    corrupted = open_corrupted(folder, "cifar10")
    assert corrupted.names == NAMES
    assert corrupted.images_per_cell == COUNT
    assert corrupted.labels.dtype == np.int64
    assert aligned(corrupted, test)
    for index, name in enumerate(NAMES):
        for severity in range(1, 6):
            cell = corrupted.cell(name, severity)
            assert isinstance(cell, np.memmap)
            assert np.array_equal(cell, test.images + np.uint8(10 * index + severity - 1))
            with pytest.raises(ValueError, match="read-only"):
                cell[0] = 0
    assert np.load(folder / "fog.npy").shape == (5 * COUNT, 32, 32, 3)


def test_no_such_cell(folder: Path) -> None:
    corrupted = open_corrupted(folder, "cifar10")
    for name, severity in (("snow", 1), ("fog", 0), ("fog", 6), ("../fog", 1)):
        with pytest.raises(UserError, match="has no"):
            corrupted.cell(name, severity)


def test_missing_set_says_how_to_make_one(tmp_path: Path) -> None:
    advice = r"no corrupted test set for 'cifar10' in .*: run `rssl .* cifar10 --corruptions generate`"
    with pytest.raises(UserError, match=advice):
        open_corrupted(tmp_path / "none", "cifar10")
    with pytest.raises(UserError, match=advice):
        open_corrupted(tmp_path, "cifar10")


def test_bad_labels(folder: Path, test: Split) -> None:
    path = folder / "labels.npy"
    different = np.tile(test.labels, 5)
    different[-1] += 1
    for labels in (
        different,
        test.labels[:-1],
        np.tile(test.labels, 5) * 1.0,
        np.tile(test.labels, 5) - 1,
        [],
        "x",
    ):
        np.save(path, labels)
        with pytest.raises(UserError, match=r"labels\.npy"):
            open_corrupted(folder, "cifar10")
    np.save(path, np.array([{}] * 5, object), allow_pickle=True)
    with pytest.raises(UserError, match=r"labels\.npy is damaged"):
        open_corrupted(folder, "cifar10")
    with path.open("wb") as file:
        np.savez(file, labels=different)
    with pytest.raises(UserError, match=r"labels\.npy is damaged"):
        open_corrupted(folder, "cifar10")
    path.unlink()
    with pytest.raises(UserError, match=r"labels\.npy is missing"):
        open_corrupted(folder, "cifar10")


def test_bad_files(folder: Path) -> None:
    path = folder / "fog.npy"
    good = path.read_bytes()
    for content in (b"", good[:60], good[: len(good) // 2], good[:-1], b"PK" + good[2:], good + b"\0"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"fog\.npy"):
            open_corrupted(folder, "cifar10")
    for array in (
        np.zeros((5 * COUNT, 32, 32, 3)),
        np.zeros((5 * COUNT, 3, 32, 32), np.uint8),
        np.zeros((5 * COUNT - 5, 32, 32, 3), np.uint8),
        np.array([None], object),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(UserError, match=r"fog\.npy"):
            open_corrupted(folder, "cifar10")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 32, 32, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '|u1', 'fortran_order': True, 'shape': (-60, 32, 32, -3)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (60,)}",
        "{'descr': '>i8', 'fortran_order': False, 'shape': (60, 32, 32)}",
        "{'descr': [('\x1b[31m', '<i4')], 'fortran_order': False, 'shape': (60,)}",
        "{'descr': '\\d', 'fortran_order': False, 'shape': (60L,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (60L, 32, 32)}",
    ],
    ids=range(8),
)
@pytest.mark.parametrize("name", ["labels.npy", "fog.npy"])
def test_headers_that_claim_something_else(folder: Path, name: str, header: str) -> None:
    """Warnings, of NumPy about old headers or in the words of the file, are errors in these tests."""
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(5 * COUNT * 3072)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        open_corrupted(folder, "cifar10")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", [">i8", "<i4", ">u2", "|i1", "<u8"])
def test_labels_of_any_byte_order(folder: Path, test: Split, dtype: str) -> None:
    np.save(folder / "labels.npy", np.tile(test.labels, 5).astype(dtype))
    assert np.array_equal(open_corrupted(folder, "cifar10").labels, test.labels)


@given(place=st.integers(0, 127), flip=st.integers(1, 255))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_byte_of_a_header_is_found_or_harmless(folder: Path, place: int, flip: int) -> None:
    path = folder / "fog.npy"
    good = path.read_bytes()
    path.write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
    with suppress(UserError):
        assert open_corrupted(folder, "cifar10").cell("fog", 5).shape == (COUNT, 32, 32, 3)
    path.write_bytes(good)


def test_file_that_goes_bad_after_opening(folder: Path) -> None:
    corrupted = open_corrupted(folder, "cifar10")
    (folder / "fog.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"fog\.npy is damaged"):
        corrupted.cell("fog", 1)


def test_identity_follows_content(folder: Path) -> None:
    first = open_corrupted(folder, "cifar10").identity
    assert open_corrupted(folder, "other name").identity == first
    content = np.load(folder / "fog.npy")
    content[0, 0, 0, 0] ^= 1
    np.save(folder / "fog.npy", content)
    assert open_corrupted(folder, "cifar10").identity != first


def test_alignment(folder: Path, test: Split) -> None:
    corrupted = open_corrupted(folder, "cifar10")
    longer = make_split(np.repeat(test.images, 2, 0), np.tile(test.labels, 2), test.classes)
    assert aligned(corrupted, longer)
    assert not aligned(corrupted, make_split(test.images[:5], test.labels[:5], test.classes))
    assert not aligned(corrupted, make_split(test.images, test.labels[::-1], test.classes))


@pytest.mark.parametrize("limit", [None, 5, 1000])
def test_import(folder: Path, tmp_path: Path, test: Split, limit: int | None) -> None:
    count = min(limit or COUNT, COUNT)
    target = tmp_path / "data" / "corrupted"
    corrupted = import_corrupted(folder, target, test=test, limit=limit, progress=silent)
    original = open_corrupted(folder, "cifar10")
    assert (corrupted.names, corrupted.images_per_cell) == (NAMES, count)
    for name in NAMES:
        for severity in range(1, 6):
            assert np.array_equal(corrupted.cell(name, severity), original.cell(name, severity)[:count])
    files = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    assert files.keys() == {"labels.npy", *(f"{name}.npy" for name in NAMES)}
    again = import_corrupted(folder, target, test=test, limit=limit, progress=silent)
    assert again.identity == corrupted.identity
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == files


def test_import_replaces_another_set_whole(folder: Path, tmp_path: Path, test: Split) -> None:
    target = tmp_path / "corrupted"
    import_corrupted(folder, target, test=test, limit=None, progress=silent)
    (folder / "fog.npy").unlink()
    corrupted = import_corrupted(folder, target, test=test, limit=3, progress=silent)
    assert corrupted.names == ("gaussian_noise", "saturate")
    assert corrupted.images_per_cell == 3


def test_interrupted_import_is_not_taken_for_complete(folder: Path, tmp_path: Path, test: Split) -> None:
    def interrupt(description: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    target = tmp_path / "corrupted"
    with pytest.raises(KeyboardInterrupt):
        import_corrupted(folder, target, test=test, limit=None, progress=interrupt)
    with pytest.raises(UserError, match=r"labels\.npy is missing"):
        open_corrupted(target, "cifar10")
    assert import_corrupted(folder, target, test=test, limit=None, progress=silent).names == NAMES


def test_import_refuses_labels_of_other_classes(folder: Path, tmp_path: Path, test: Split) -> None:
    few = make_split(test.images, test.labels * 0, ("a", "b"))
    with pytest.raises(UserError, match="outside the 2 classes"):
        import_corrupted(folder, tmp_path / "corrupted", test=few, limit=None, progress=silent)
    assert not (tmp_path / "corrupted").exists()
