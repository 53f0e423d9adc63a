"""Folders in the layout of CIFAR-10-C: opening and validating."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsslcli.core.data.corrupted import aligned, open_corrupted, write_blocks
from rsslcli.core.data.store import Split, make_split
from rsslcli.core.errors import UserError

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
    command = r"rssl prepare-data --dataset cifar10 --corruptions generate --data-dir .*"
    advice = f"no corrupted test set for 'cifar10' in .*: run `{command}`"
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
    found = {first}
    for name in NAMES:
        good = np.load(folder / f"{name}.npy")
        for block in range(5):
            content = good.copy()
            content[block * COUNT, 0, 0, 0] ^= 1
            np.save(folder / f"{name}.npy", content)
            found.add(open_corrupted(folder, "cifar10").identity)
        np.save(folder / f"{name}.npy", good)
    labels = np.load(folder / "labels.npy")
    np.save(folder / "labels.npy", np.tile(labels[:COUNT][::-1], 5))
    found.add(open_corrupted(folder, "cifar10").identity)
    np.save(folder / "labels.npy", labels)
    assert open_corrupted(folder, "cifar10").identity == first
    (folder / "fog.npy").rename(folder / "snow.npy")
    found.add(open_corrupted(folder, "cifar10").identity)
    assert len(found) == 1 + 3 * 5 + 2


def test_alignment(folder: Path, test: Split) -> None:
    corrupted = open_corrupted(folder, "cifar10")
    longer = make_split(np.repeat(test.images, 2, 0), np.tile(test.labels, 2), test.classes)
    assert aligned(corrupted, longer)
    assert not aligned(corrupted, make_split(test.images[:5], test.labels[:5], test.classes))
    assert not aligned(corrupted, make_split(test.images, test.labels[::-1], test.classes))
