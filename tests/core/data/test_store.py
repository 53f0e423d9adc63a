"""Prepared splits: what is written is what is read, and damage never passes."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslcli.core.data.store import (
    class_balanced_subset,
    dataset_folder,
    load_dataset,
    load_split,
    make_split,
    prepared_datasets,
    save_split,
)
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import replacing

CLASSES = ("cat", "dog", "frog")


def arrays(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, np.arange(count) % len(CLASSES), CLASSES


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_round_trip(tmp_path: Path, dtype: type) -> None:
    images, labels, classes = arrays(7)
    saved = save_split(tmp_path / "new" / "train.npz", images, labels.astype(dtype), classes)
    loaded = load_split(tmp_path / "new" / "train.npz")
    assert np.array_equal(loaded.images, images)
    assert np.array_equal(loaded.labels, labels)
    assert (loaded.images.dtype, loaded.labels.dtype) == (np.uint8, np.int64)
    assert (loaded.classes, loaded.checksum) == (CLASSES, saved.checksum)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["train.npz"]


def test_checksum_covers_images_labels_and_classes(tmp_path: Path) -> None:
    images, labels, classes = arrays(6)
    variants = [
        (images, labels, classes),
        (images ^ 1, labels, classes),
        (images, labels[::-1], classes),
        (images, labels, (*classes, "newt")),
    ]
    assert len({save_split(tmp_path / "s.npz", *variant).checksum for variant in variants}) == 4


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 32, 32, 3)), [0, 1]),
        (np.zeros((2, 3, 32, 32), np.uint8), [0, 1]),
        (np.zeros((0, 32, 32, 3), np.uint8), []),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, 3]),
        (np.zeros((2, 32, 32, 3), np.uint8), [-1, 0]),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, 1, 2]),
        (np.zeros((2, 32, 32, 3), np.uint8), [0.0, 1.0]),
    ],
)
def test_refuses_to_save_what_is_no_split(tmp_path: Path, images: np.ndarray, labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"images are|labels"):
        save_split(tmp_path / "s.npz", images, labels, CLASSES)
    assert not list(tmp_path.iterdir())


def assert_damaged(path: Path) -> None:
    with pytest.raises(UserError, match=r"damaged or not a prepared split") as caught:
        load_split(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


@settings(deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "s.npz"
    saved = save_split(path, *arrays(3))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = load_split(path)
    except UserError:
        return
    # What is left is the padding and dates of the container.
    assert loaded.checksum == saved.checksum
    assert np.array_equal(loaded.images, saved.images)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_truncated_split(tmp_path: Path, keep: int) -> None:
    save_split(tmp_path / "s.npz", *arrays(3))
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:keep])
    assert_damaged(tmp_path / "s.npz")


def test_foreign_files(tmp_path: Path) -> None:
    images, labels, classes = arrays(3)
    path = tmp_path / "s.npz"
    metadata = {"format": "rssl-split-1", "classes": classes, "checksum": "0" * 64}
    for content in (
        {"images": images, "labels": labels},
        {"images": images, "labels": labels, "metadata": np.array(json.dumps(metadata))},
        {
            "images": images,
            "labels": labels,
            "metadata": np.array(json.dumps(metadata | {"format": "other"})),
        },
        {"images": images, "labels": labels, "metadata": np.array("[]")},
        {"images": images, "labels": labels, "metadata": np.array([{}], object)},
    ):
        np.savez(path, **content)
        assert_damaged(path)
    with path.open("wb") as file:
        np.save(file, images)
    assert_damaged(path)
    path.write_text("hello")
    assert_damaged(path)


@pytest.mark.parametrize("classes", ["abc", {"a": 1, "b": 2, "c": 3}, [1, 2, 3], ["a", "b", "\x1b[31m"]])
def test_classes_that_are_no_names(tmp_path: Path, classes: Any) -> None:
    """Their checksum is right, so that nothing but a look at them tells."""
    images, labels, _ = arrays(3)
    checksum = make_split(images, labels, classes).checksum
    metadata = json.dumps({"format": "rssl-split-1", "classes": classes, "checksum": checksum})
    np.savez(tmp_path / "s.npz", images=images, labels=labels, metadata=np.array(metadata))
    assert_damaged(tmp_path / "s.npz")


def test_compressed_splits_are_not_unpacked(tmp_path: Path) -> None:
    """A few megabytes could be as many gigabytes."""
    images, labels, classes = arrays(3)
    split = make_split(images, labels, classes)
    metadata = json.dumps({"format": "rssl-split-1", "classes": classes, "checksum": split.checksum})
    np.savez_compressed(tmp_path / "s.npz", images=images, labels=labels, metadata=np.array(metadata))
    assert_damaged(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 32, 32, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 32, 32, -3)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '>u2', 'fortran_order': False, 'shape': (3, 32, 16, 3)}",
        "{'descr': '\x1b[31m', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '\\d', 'fortran_order': False, 'shape': (3L,)}",
    ],
    ids=range(7),
)
def test_headers_that_claim_something_else(tmp_path: Path, header: str) -> None:
    path = tmp_path / "s.npz"
    images, labels, classes = arrays(3)
    save_split(path, images, labels, classes)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    text = header.encode() + b"\n"
    members["images.npy"] = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + images.tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert_damaged(path)


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RsslError, match="cannot write"):
        save_split(tmp_path / "file" / "s.npz", *arrays(3))


def test_load_dataset(tmp_path: Path) -> None:
    advice = f"run `rssl prepare-data --dataset cifar10 --data-dir {tmp_path}`"
    with pytest.raises(UserError, match=f"no prepared data set 'cifar10' in .*: {advice}"):
        load_dataset(tmp_path, "cifar10")
    folder = dataset_folder(tmp_path, "cifar10")
    save_split(folder / "train.npz", *arrays(6))
    with pytest.raises(UserError, match="no prepared data set"):
        load_dataset(tmp_path, "cifar10")
    assert prepared_datasets(tmp_path) == []
    images, labels, classes = arrays(3, seed=1)
    save_split(folder / "test.npz", images, labels, classes)
    dataset = load_dataset(tmp_path, "cifar10")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (6, 3)
    assert prepared_datasets(tmp_path) == ["cifar10"]
    save_split(folder / "test.npz", images, labels, classes[::-1])
    with pytest.raises(UserError, match="different classes"):
        load_dataset(tmp_path, "cifar10")


def test_prepared_datasets_of_a_missing_folder(tmp_path: Path) -> None:
    assert prepared_datasets(tmp_path / "none") == []


@pytest.mark.parametrize("name", ["", "..", "../x", "A", "a/b", "-x", "a\n", "x.y"])
def test_names_stay_inside_the_data_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a data set name"):
        load_dataset(tmp_path, name)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_subset_is_balanced(counts: list[int], seed: int, data: st.DataObject) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = data.draw(st.integers(len(counts), len(labels)))
    chosen = class_balanced_subset(labels, size, seed)
    assert chosen.dtype == np.int64
    assert len(chosen) == size
    assert (np.diff(chosen) > 0).all()
    taken = np.bincount(labels[chosen], minlength=len(counts))
    unexhausted = taken[taken < counts]
    # A class has fewer than another only where it has no more, or by one.
    assert unexhausted.size == 0 or unexhausted.min() >= taken.max() - 1
    assert np.array_equal(chosen, class_balanced_subset(labels, size, seed))
    assert set(class_balanced_subset(labels, len(counts), seed)) <= set(chosen)


def test_subset_depends_on_the_seed_and_refuses_impossible_sizes() -> None:
    labels = np.arange(100) % 10
    assert not np.array_equal(class_balanced_subset(labels, 20, 0), class_balanced_subset(labels, 20, 1))
    for size in (0, 9, 101):
        with pytest.raises(UserError, match=f"limit: {size} of the 100 images of 10 classes"):
            class_balanced_subset(labels, size, 0)
