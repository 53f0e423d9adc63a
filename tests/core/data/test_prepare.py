"""Preparing data sets: whatever the source, done once, and never half."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.data import cifar, shapes
from rsslcli.core.data.corrupted import aligned, open_corrupted, write_blocks
from rsslcli.core.data.decoding import ImageError
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.data.prepare import Prepared, prepare
from rsslcli.core.data.published import download_corrupted
from rsslcli.core.data.store import Arrays, load_dataset, make_split, prepared_datasets
from rsslcli.core.errors import RsslError, StaleCorruptionsError, UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name in ("ant", "bee", "cow"):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "tree"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def assert_idempotent(again: Callable[[], Prepared], data: Path) -> None:
    before = state(data)
    prepared = again()
    assert not prepared.changed
    assert not prepared.stale_corruptions
    assert state(data) == before


def test_shapes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "TRAIN_SIZE", 60)
    monkeypatch.setattr(shapes, "TEST_SIZE", 30)
    prepared = prepare("shapes", data)
    assert prepared.changed
    assert prepared.kind == "drawn shapes"
    assert prepared.folder == data / "shapes"
    assert load_dataset(data, "shapes").train.checksum == prepared.dataset.train.checksum
    assert_idempotent(lambda: prepare("shapes", data), data)
    limited = prepare("shapes", data, limit=40)
    assert limited.changed
    assert [len(split.labels) for split in (limited.dataset.train, limited.dataset.test)] == [40, 30]
    assert_idempotent(lambda: prepare("shapes", data, limit=40), data)
    assert_idempotent(lambda: prepare("shapes", data), data)  # asked for nothing in particular
    with pytest.raises(UserError, match="takes no `source`"):
        prepare("shapes", data, source=data)


def test_shapes_of_an_earlier_drawing_are_drawn_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their corrupted test set, which was made for the earlier pictures."""
    monkeypatch.setattr(shapes, "TRAIN_SIZE", 30)
    monkeypatch.setattr(shapes, "TEST_SIZE", 10)
    with monkeypatch.context() as earlier:
        earlier.setattr(shapes, "VERSION", 1)
        blank = np.zeros((1, 32, 32, 3), np.uint8)
        earlier.setattr(shapes, "_draw", lambda labels, random: blank.repeat(len(labels), 0))
        load_corrupted(load("shapes", data))
    dataset = load("shapes", data)
    assert np.array_equal(dataset.train.images, shapes.draw_shapes(30, 0, "train")[0])
    corrupted = load_corrupted(dataset)  # refuses those of other test images
    assert np.ptp(corrupted.cell("brightness", 1)) > 100  # blank ones are even
    assert_idempotent(lambda: prepare("shapes", data), data)


def test_default_shapes_have_the_promised_size(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    monkeypatch.setattr(shapes, "_draw", lambda labels, random: blank.repeat(len(labels), 0))
    dataset = prepare("shapes", data).dataset
    assert np.bincount(dataset.train.labels).tolist() == [400] * 10
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10


def test_image_tree(tree: Path, data: Path) -> None:
    prepared = prepare("folder", data, source=tree)
    assert (prepared.changed, prepared.kind) == (True, "image folder")
    assert prepared.dataset.train.classes == ("ant", "bee", "cow")
    assert prepared_datasets(data) == ["folder"]
    assert_idempotent(lambda: prepare("folder", data, source=tree), data)
    assert_idempotent(lambda: prepare("folder", data), data)

    limited = prepare("folder", data, limit=6)  # of the same source
    assert limited.changed
    assert len(limited.dataset.train.labels) == len(limited.dataset.test.labels) == 6
    assert prepare("folder", data, source=tree).changed

    Image.new("RGB", (32, 32)).save(tree / "train" / "ant" / "new.png")
    assert len(prepare("folder", data, source=tree).dataset.train.labels) == 19


def test_whether_images_are_resized_is_part_of_the_data_set(tree: Path, data: Path) -> None:
    same = prepare("folder", data, source=tree, resize=False).dataset
    assert_idempotent(lambda: prepare("folder", data, source=tree, resize=False), data)
    assert_idempotent(lambda: prepare("folder", data, resize=False), data)
    assert_idempotent(lambda: prepare("folder", data), data)  # asked for nothing in particular
    with_resizing = prepare("folder", data, source=tree)
    assert with_resizing.changed
    assert with_resizing.notes == ()
    assert with_resizing.dataset.train.checksum == same.train.checksum
    assert prepare("folder", data, resize=False).changed

    Image.new("RGB", (90, 60)).save(tree / "train" / "ant" / "new.png")
    before = state(data)
    with pytest.raises(UserError, match="is 90x60 pixels, not 32x32"):
        prepare("folder", data, resize=False)
    assert state(data) == before
    resized = prepare("folder", data, source=tree)
    assert len(resized.dataset.train.labels) == 19
    assert resized.notes[0].startswith("1 of 31 images resized to 32x32")
    with pytest.raises(UserError, match="is 90x60 pixels"):
        prepare("folder", data, resize=False)


def test_damaged_split_is_prepared_again(tree: Path, data: Path) -> None:
    good = prepare("folder", data, source=tree).dataset.test.checksum
    for damaged in ("test.npz", "train.npz", "prepared.json"):
        (data / "folder" / damaged).write_bytes(b"damaged")
        prepared = prepare("folder", data, source=tree)
        assert prepared.changed
        assert prepared.dataset.test.checksum == good
    (data / "folder" / "prepared.json").write_text("[]")
    assert prepare("folder", data, source=tree).changed


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("last", [".test.npz.part", ".prepared.json.part", "prepared.json", "test.npz"])
def test_failed_writing_leaves_the_old_data_set_or_none(
    tree: Path, data: Path, monkeypatch: pytest.MonkeyPatch, last: str, failure: BaseException
) -> None:
    """The old one until both splits are complete; nothing that looks complete while they are moved."""

    def fail(self: Path, target: Path) -> Path:
        if target.name == last:
            raise failure
        return move(self, target)

    move = Path.replace
    old = prepare("folder", data, source=tree).dataset
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((KeyboardInterrupt, RsslError), match=r"^$|cannot write .*No space left"):
        prepare("folder", data, source=tree, limit=3)
    monkeypatch.undo()
    assert not [*(data / "folder").glob(".*")]
    if last.endswith(".part"):
        assert load_dataset(data, "folder").train.checksum == old.train.checksum
    else:
        assert prepared_datasets(data) == []
    assert prepare("folder", data, source=tree, limit=3).changed


@pytest.mark.parametrize("how", ["damaged", "interrupted"])
def test_a_data_set_keeps_its_size_where_it_is_lost(tree: Path, data: Path, how: str) -> None:
    """And what a killed process has left is removed."""
    prepare("folder", data, source=tree, size=64)
    if how == "damaged":
        (data / "folder" / "test.npz").write_bytes(b"damaged")
    else:
        (data / "folder" / "test.npz").unlink()
        (data / "folder" / ".train.npz.node-1.part").touch()
    assert prepare("folder", data, source=tree).dataset.size == 64
    assert not [*(data / "folder").glob(".*")]


def test_shapes_keeps_the_corrupted_set_of_its_own(data: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c" / "fog.npy", np.zeros((5, 32, 32, 3), np.uint8))
    refused = "shapes has a corrupted set of its own: choose the data set that yours is for"
    with pytest.raises(UserError, match=refused):
        prepare("shapes", data, source=tmp_path / "c")
    test = make_split(np.zeros((1, 32, 32, 3), np.uint8), [0], ["disc"])
    with pytest.raises(UserError, match=refused):
        download_corrupted("shapes", data / "shapes" / "corrupted", test=test, source=tmp_path / "c")


def test_failed_reading_leaves_the_old_data_set(tree: Path, data: Path) -> None:
    prepare("folder", data, source=tree)
    before = state(data)
    (tree / "train" / "ant" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot decode"):
        prepare("folder", data, source=tree)
    assert state(data) == before


def test_sources_that_are_refused(tree: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, source, match in (
        ("folder", tmp_path / "none", "no such source: .*: give a folder or archive"),
        ("folder", tmp_path / "pipe", "no such source: .*pipe is not a file or folder: give a folder or"),
        ("folder", tmp_path / "text", "is not a source of images: give a folder or archive"),
        ("folder", tmp_path / "empty", "is not a source of images: give a folder or archive"),
        ("folder", None, "'folder' needs a source: give `source`, a folder"),
        ("cifar-10", None, "needs a source: did you mean 'cifar10'[?] Else give `source`, a folder"),
        ("Folder", tree, "not a data set name"),
    ):
        with pytest.raises(UserError, match=match):
            prepare(name, data, source=source)
    for limit in (0, -1, 2):
        with pytest.raises(
            UserError,
            match=r"`limit` .*: expected at least 1|limit: 2 of the 18 images of 3 classes: choose from 3",
        ):
            prepare("folder", data, source=tree, limit=limit)
    assert not data.exists()


def test_official_data_sets(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def read_cifar(
        name: str, source: Path | None, download_folder: Path, progress: object
    ) -> tuple[Arrays, Arrays]:
        calls.append((name, source, download_folder))
        classes = tuple(f"class {number}" for number in range(cifar.CLASSES[name]))
        arrays = Arrays(np.zeros((20, 32, 32, 3), np.uint8), np.arange(20) % 10, classes)
        return arrays, arrays

    monkeypatch.setattr(cifar, "read_cifar", read_cifar)
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    assert prepare("cifar10", data).kind == "official cifar10"
    assert_idempotent(lambda: prepare("cifar10", data), data)
    assert_idempotent(lambda: prepare("cifar10", data, source=batches), data)  # the same images
    assert len(prepare("mine", data, source=tmp_path, limit=10).dataset.train.labels) == 10
    assert calls == [
        ("cifar10", None, data / "cifar10" / "download"),
        ("cifar10", tmp_path, data / "mine" / "download"),
    ]
    with pytest.raises(UserError, match="is cifar10, not cifar100"):
        prepare("cifar100", data, source=batches)
    (tmp_path / "cifar-100-python").mkdir()  # beside the other one, as torchvision keeps them
    for name in ("cifar100", "cifar10"):
        assert prepare(name, data, source=tmp_path).kind == f"official {name}"


def test_images_of_ones_own_do_not_take_the_name_of_a_data_set_of_the_paper(tree: Path, data: Path) -> None:
    with pytest.raises(UserError, match=r"cifar10 is the name of a data set of 10 classes, and .* has 3"):
        prepare("cifar10", data, source=tree)
    assert not (data / "cifar10" / "test.npz").exists()


def test_other_images_under_the_same_name_are_told(tree: Path, data: Path, tmp_path: Path) -> None:
    prepare("again", data, source=tree)
    copy = shutil.copytree(tree, tmp_path / "copy")
    assert not prepare("again", data, source=copy).notes, "the same images"
    other = shutil.copytree(tree, tmp_path / "other")
    next((other / "train").rglob("*.png")).unlink()
    (first, *_) = prepare("again", data, source=other).notes
    assert first == f"again was prepared from {copy} before: runs trained on that do not resume"


def test_corrupted_sets(tree: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "CIFAR-10-C"
    source.mkdir()
    labels = np.tile([0, 1, 2], 4)
    write_blocks(source / "fog.npy", (np.full((12, 32, 32, 3), severity, np.uint8) for severity in range(5)))
    np.save(source / "labels.npy", np.tile(labels, 5))
    with pytest.raises(UserError, match="prepare the clean images of 'folder' first"):
        prepare("folder", data, source=source)

    prepare("folder", data, source=tree)
    assert prepare("folder", data, source=source, limit=5).changed
    imported = prepare("folder", data, source=source)
    assert (imported.changed, imported.kind) == (True, "CIFAR-10-C folder")
    corrupted = open_corrupted(data / "folder" / "corrupted", "folder")
    assert aligned(corrupted, imported.dataset.test)
    assert_idempotent(lambda: prepare("folder", data, source=source), data)
    with pytest.raises(UserError, match="set `limit` to 12 to keep them"):
        prepare("folder", data, source=source, limit=5)

    other = prepare("folder", data, source=tree, limit=6)
    assert other.changed
    assert "--dataset folder --source PATH" in other.stale_corruptions
    assert (data / "folder" / "corrupted" / "fog.npy").is_file()

    monkeypatch.setattr("rsslcli.core.data.prepare.published_origin", lambda *_: "0" * 32)
    prepare("folder", data, source=tree)
    prepare("folder", data, source=source)
    assert json.loads((data / "folder" / "corrupted" / "downloaded.json").read_text())["origin"] == "0" * 32


def test_record_is_small_and_plain(tree: Path, data: Path) -> None:
    dataset = prepare("folder", data, source=tree, limit=9).dataset
    record = json.loads((data / "folder" / "prepared.json").read_text())
    assert record["kind"] == "image folder"
    assert record["limit"] == 9
    assert (record["train"], record["test"]) == (dataset.train.checksum, dataset.test.checksum)


def test_test_images_that_are_training_images_too_are_told_and_recorded(tree: Path, data: Path) -> None:
    (tree / "test" / "bee" / "copy.png").write_bytes((tree / "train" / "bee" / "2.png").read_bytes())
    Image.open(tree / "train" / "cow" / "0.png").save(tree / "test" / "cow" / "copy.bmp")
    prepared = prepare("folder", data, source=tree)
    assert prepared.notes == (
        "test images that are training images too, pixel for pixel at 32x32: 2 in all, "
        "e.g. 'test/bee/copy.png' = 'train/bee/2.png': the accuracy on them flatters; "
        "remove them from one of the splits",
    )
    record = json.loads((data / "folder" / "prepared.json").read_text())
    assert record["test_in_training"] == 2
    assert record["test_in_training_examples"][1] == "'test/cow/copy.bmp' = 'train/cow/0.png'"
    assert "contradicting" not in record
    assert prepare("folder", data).notes == prepare("folder", data, source=tree).notes == prepared.notes


def test_the_same_image_in_two_classes_is_told_and_recorded(tree: Path, data: Path) -> None:
    (tree / "train" / "bee" / "copy.png").write_bytes((tree / "train" / "ant" / "2.png").read_bytes())
    (tree / "train" / "bee" / "again.png").write_bytes((tree / "train" / "ant" / "2.png").read_bytes())
    (tree / "test" / "cow" / "twice.png").write_bytes((tree / "test" / "cow" / "0.png").read_bytes())
    prepared = prepare("folder", data, source=tree)
    assert prepared.notes == (
        "images with the same pixels as an image of another class: 3 in all, "
        "e.g. 'train/ant/2.png' = 'train/bee/again.png': only one of the classes can be right",
    )
    assert json.loads((data / "folder" / "prepared.json").read_text())["contradicting"] == 3
    assert prepare("folder", data).notes == prepared.notes


def test_copies_in_the_official_files_are_named_by_their_numbers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels, classes = np.arange(20) % 10, tuple("abcdefghij")
    splits = Arrays(images, labels, classes), Arrays(images[[7, 7]], np.array([7, 8]), classes)
    monkeypatch.setattr(cifar, "read_cifar", lambda *_: splits)
    first, second = prepare("cifar10", data).notes
    assert "2 in all, e.g. test image 0 (h) = training image 7 (h)" in first
    assert "3 in all, e.g. training image 7 (h) = test image 1 (i)" in second


@pytest.mark.parametrize(
    "record",
    [
        "[" * 100_000,
        "5",
        json.dumps({"kind": "\x1b[31m", "source": "/tmp"}),
        json.dumps({"kind": 5, "source": 5}),
        json.dumps({"kind": "image folder", "source": ["/tmp"]}),
        json.dumps({"kind": "image folder", "source": "x" * 5000}),
        json.dumps({"kind": "image folder", "source": "\0"}),
        json.dumps({"kind": "image folder", "damaged": -1, "damaged_examples": 5}),
        json.dumps({"kind": "image folder", "damaged": 10**30, "damaged_examples": ["\x1b[31m"]}),
        json.dumps({"kind": "image folder", "damaged": 2, "damaged_examples": [["\x1b[31m"]]}),
        json.dumps({"kind": "image folder", "contradicting": 9, "contradicting_examples": ["\n\x1b{count}"]}),
        json.dumps({"kind": "image folder", "contradicting": "9", "test_in_training": -1}),
    ],
    ids=range(12),
)
def test_damaged_record(tree: Path, data: Path, record: str) -> None:
    """What is shown of it is printable, and it costs no more than preparing the data set again."""
    prepare("folder", data, source=tree)
    (data / "folder" / "prepared.json").write_text(record)
    found = prepare("folder", data)
    assert found.kind in ("prepared before", "image folder")
    assert all(note.isprintable() for note in found.notes)
    with pytest.raises(UserError, match="needs a source"):
        prepare("folder", data, limit=9)
    assert prepare("folder", data, source=tree).changed
    assert not prepare("folder", data, source=tree).changed


def test_damaged_images_are_left_out_on_demand_and_recorded(tree: Path, data: Path) -> None:
    for name in ("train/ant/1.png", "train/bee/2.png", "test/cow/3.png"):
        (tree / name).write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"cannot decode 3 of 30 images: 'test/cow/3.png'.*: replace or"):
        prepare("folder", data, source=tree)
    assert not (data / "folder").exists()

    prepared = prepare("folder", data, source=tree, skip_damaged=True)
    assert [len(split.labels) for split in (prepared.dataset.train, prepared.dataset.test)] == [16, 11]
    note = "left out: damaged images, 3 in all, e.g. 'test/cow/3.png' (not an image)"
    assert prepared.notes == (note,)
    record = json.loads((data / "folder" / "prepared.json").read_text())
    assert record["damaged"] == 3
    assert record["damaged_examples"][1:] == [
        f"'train/{name}.png' (not an image)" for name in ("ant/1", "bee/2")
    ]

    assert_idempotent(lambda: prepare("folder", data, source=tree, skip_damaged=True), data)
    assert_idempotent(lambda: prepare("folder", data), data)
    assert prepare("folder", data).notes == (note,)  # as often as it is asked for
    with pytest.raises(ImageError):  # without the option it is another data set
        prepare("folder", data, source=tree)


def test_leaving_out_damaged_images_changes_nothing_where_there_are_none(tree: Path, data: Path) -> None:
    prepared = prepare("folder", data, source=tree, skip_damaged=True)
    assert prepared.notes == ()
    assert "damaged" not in json.loads((data / "folder" / "prepared.json").read_text())
    assert_idempotent(lambda: prepare("folder", data, source=tree), data)


def test_a_folder_without_images_says_what_it_holds(data: Path, tmp_path: Path) -> None:
    phone = tmp_path / "phone" / "cat"
    phone.mkdir(parents=True)
    (phone / "IMG_1.HEIC").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        prepare("folder", data, source=tmp_path / "phone")
    assert str(caught.value) == (
        f"{tmp_path / 'phone'} is not a source of images: found only .HEIC files, e.g. 'cat/IMG_1.HEIC': "
        "convert them to JPEG or PNG"
    )


def test_a_set_imported_before_records_named_its_images_is_refused_once_they_change(
    tree: Path, data: Path
) -> None:
    prepared = prepare("folder", data, source=tree)
    folder = prepared.dataset.corrupted_folder
    folder.mkdir()
    labels = prepared.dataset.test.labels
    np.save(folder / "fog.npy", np.zeros((5 * len(labels), 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    load_corrupted(prepared.dataset)
    other = prepare("folder", data, source=tree, limit=6)
    assert other.stale_corruptions
    with pytest.raises(StaleCorruptionsError):
        load_corrupted(other.dataset)
    assert prepare("folder", data, source=tree, limit=6).stale_corruptions
    assert not prepare("folder", data, source=tree).stale_corruptions
