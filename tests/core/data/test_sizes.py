"""Images of 32, 64 and 224 pixels: prepared, mapped from their file if they are many, and never mixed."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsslcli.core.config import Config
from rsslcli.core.data import gathering, store
from rsslcli.core.data.corrupted import open_corrupted, write_blocks
from rsslcli.core.data.decoding import decode
from rsslcli.core.data.image_tree import read_image_tree
from rsslcli.core.data.importing import import_corrupted
from rsslcli.core.data.prepare import prepare
from rsslcli.core.data.store import Dataset, empty_images, load_dataset, load_split, make_split, save_split
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.training.loop import train
from rsslcli.core.weights.checkpoint import load_checkpoint

CLASSES = ("ant", "bee", "cow")
CPU = torch.device("cpu")


def noise(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def is_mapped(images: np.ndarray) -> bool:
    return isinstance(images, np.memmap) or isinstance(images.base, np.memmap)


@pytest.fixture
def nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all images were too many for memory."""
    monkeypatch.setattr(store, "MAPPED_BYTES", 0)
    monkeypatch.setattr(gathering, "MAPPED_BYTES", 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 80x60 pixels, in class folders."""
    root = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(CLASSES * 4):
        folder = root / ("train" if index < 9 else "test") / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(1, 80, index)[0][:60]).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize("size", [32, 64, 224])
def test_images_are_scaled_to_the_size(photos: Path, size: int) -> None:
    notes: list[str] = []
    train_arrays, test = read_image_tree(photos, size=size, note=notes.append)
    assert train_arrays.images.shape == (9, size, size, 3)
    data = (photos / test.files[0]).read_bytes()
    expected, _ = decode(io.BytesIO(data), "it", resize=True, side=size)
    assert np.array_equal(test.images[0], expected)
    assert f"12 of 12 images resized to {size}x{size}, the center square of each: they had 80x60" in notes[0]


def test_mapped_images_are_those_in_memory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare("mine", tmp_path, source=photos, size=64).dataset
    monkeypatch.setattr(store, "MAPPED_BYTES", 0)
    after = prepare("other", tmp_path, source=photos, size=64).dataset
    mapped = load_dataset(tmp_path, "mine")
    assert before.train.checksum == after.train.checksum == mapped.train.checksum
    assert [is_mapped(data.train.images) for data in (before, mapped)] == [False, True]
    assert np.array_equal(mapped.train.images, before.train.images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(mapped.train.images)
    tensor.zero_()  # in memory alone
    assert load_split(tmp_path / "mine" / "train.npz").checksum == before.train.checksum


def test_damaged_mapped_images_are_refused(tmp_path: Path, nothing_fits: None) -> None:
    path = tmp_path / "train.npz"
    save_split(path, noise(5, 64), np.arange(5) % 3, CLASSES)
    whole = path.read_bytes()
    for damaged in (
        whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:],
        whole.replace(b"(5, 64, 64, 3)", b"(9, 64, 64, 3)"),
        whole.replace(b"|u1", b"|i1"),
        whole[: len(whole) // 2],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or not a prepared split"):
            load_split(path)


def test_images_that_do_not_fit_get_a_temporary_file(
    nothing_fits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = empty_images(3, 64)
    assert isinstance(images, np.memmap)
    assert images.shape == (3, 64, 64, 3)
    images[2] = 7
    assert int(images.sum()) == 7 * images[2].size
    assert list(tmp_path.iterdir()) == [], "it has no name, so it goes with the process"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RsslError, match=r"no room for 0.0 GB of images in .*No space left.*: set TMPDIR"):
        empty_images(3, 64)


def test_a_data_set_keeps_its_size_until_another_is_asked_for(photos: Path, tmp_path: Path) -> None:
    assert prepare("mine", tmp_path, source=photos).dataset.size == 32
    larger = prepare("mine", tmp_path, source=photos, size=64)
    assert (larger.changed, larger.dataset.size) == (True, 64)
    assert json.loads((tmp_path / "mine" / "prepared.json").read_text())["size"] == 64
    for again in (
        prepare("mine", tmp_path),
        prepare("mine", tmp_path, size=64),
        prepare("mine", tmp_path, source=photos),
    ):
        assert (again.changed, again.dataset.size) == (False, 64)
    smaller = prepare("mine", tmp_path, size=32)  # from the recorded source
    assert (smaller.changed, smaller.dataset.size) == (True, 32)


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("mine", 48, "size: expected 32, 64 or 224, got 48"),
        ("shapes", 64, "size: shapes has images of 32x32 pixels, with no more to see at 64x64"),
        ("cifar10", 224, "size: cifar10 has images of 32x32 pixels"),
    ],
)
def test_sizes_without_sense_are_refused(name: str, size: int, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        prepare(name, tmp_path, size=size)
    assert not list(tmp_path.rglob("*.npz"))


def make_set(folder: Path, count: int, sizes: dict[str, int]) -> Path:
    for name, size in sizes.items():
        write_blocks(folder / f"{name}.npy", [noise(count, size, severity) for severity in range(5)])
    np.save(folder / "labels.npy", np.tile(np.arange(count) % 3, 5))
    return folder


def test_corrupted_sets_have_one_size(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "same", 4, {"fog": 64, "snow": 64})
    assert open_corrupted(folder, "mine").size == 64
    assert open_corrupted(folder, "mine").cell("snow", 2).shape == (4, 64, 64, 3)
    mixed = make_set(tmp_path / "mixed", 4, {"fog": 64, "snow": 32})
    with pytest.raises(UserError, match=r"mixes sizes: .* has images of .* pixels"):
        open_corrupted(mixed, "mine")
    odd = make_set(tmp_path / "odd", 4, {"fog": 48})
    with pytest.raises(UserError, match=re.escape("not uint8 (20, 32, 32, 3)")):
        open_corrupted(odd, "mine")


def test_a_corrupted_set_of_another_size_is_not_imported(tmp_path: Path) -> None:
    source = make_set(tmp_path / "c", 4, {"fog": 64})
    test = make_split(noise(4, 32), np.arange(4) % 3, CLASSES)
    with pytest.raises(
        UserError, match=r"images of 64x64 pixels, but the test images have 32x32: .*`size` 64"
    ):
        import_corrupted(source, tmp_path / "corrupted", test=test)
    assert not (tmp_path / "corrupted" / "labels.npy").exists()
    test = make_split(noise(4, 64), np.arange(4) % 3, CLASSES)
    imported, changed = import_corrupted(source, tmp_path / "corrupted", test=test)
    assert (changed, imported.size) == (True, 64)


CONFIG = Config(
    dataset="mine", tasks=("rotation", "inpaint", "color"), weighting="automl", epochs=2, warmup_epochs=1,
    batch_size=3, meta_batch_size=2, validation_images=2, depth=10, width=1, device="cpu", train_size=8,
)  # fmt: skip


def make_data(tmp_path: Path, size: int) -> Dataset:
    splits = [make_split(noise(count, size), np.arange(count) % 3, CLASSES) for count in (10, 6)]
    make_set(tmp_path / "corrupted", 6, {"fog": size})
    return Dataset("mine", tmp_path, *splits)


def test_training_is_the_same_whether_images_fit_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path, 64)
    corrupted = open_corrupted(data.corrupted_folder, "mine")
    for name in ("fits", "mapped"):
        train(CONFIG, tmp_path / name, data, corrupted)
        monkeypatch.setattr(gathering, "MAPPED_BYTES", 0)
    one, other = (load_checkpoint(tmp_path / name) for name in ("fits", "mapped"))
    assert one.image_size == 64
    assert torch.equal(one.lambdas, other.lambdas)
    assert all(torch.equal(value, other.classifier[name]) for name, value in one.classifier.items())


def test_a_network_is_evaluated_at_the_size_at_which_it_trained(tmp_path: Path) -> None:
    data = make_data(tmp_path, 64)
    corrupted = open_corrupted(data.corrupted_folder, "mine")
    train(CONFIG, tmp_path / "run", data, corrupted)
    network = load_checkpoint(tmp_path / "run").network()
    assert evaluate(network, data.test, corrupted, device=CPU).images == 6
    small = make_data(tmp_path / "small", 32)
    where = small.test, open_corrupted(small.corrupted_folder, "mine")
    message = r"trained on images of 64x64 pixels, and 'mine' has 32x32: prepare a data set with `size` 64"
    with pytest.raises(UserError, match=message):
        evaluate(network, *where, device=CPU, about={"dataset": "mine"})
    with pytest.raises(UserError, match=message):
        train(CONFIG, tmp_path / "run", small, where[1], resume=True)
    network.image_size = None  # public weights: unknown
    assert evaluate(network, *where, device=CPU).images == 6
