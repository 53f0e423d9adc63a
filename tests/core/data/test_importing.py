"""Importing a corrupted set: from whatever form, compared whole, its labels checked by its pictures."""

import json
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rsslcli.core.corruptions.generate import generate_corrupted
from rsslcli.core.data.corrupted import CorruptedSet, aligned, open_corrupted, write_blocks
from rsslcli.core.data.corrupted_source import CorruptedSource, is_corrupted_set
from rsslcli.core.data.image_tree import read_image_tree
from rsslcli.core.data.importing import find_imported, import_corrupted
from rsslcli.core.data.matching import note_on_cells
from rsslcli.core.data.store import Images, Labels, Split, make_split
from rsslcli.core.errors import RsslError, UserError

SHARED = Path(__file__).parents[4] / "shared" / "data"
NAMES = ("gaussian_noise", "fog", "saturate")
COUNT = 60
#: How gray images are at each severity.
GRAY = (0.1, 0.3, 0.5, 0.7, 0.9)
#: How names of numbers sort.
NUMBERS = ("1", "10", "2", "3", "4", "5", "6", "7", "8", "9")


def pictures(count: int, seed: int = 0) -> Images:
    """Smooth random images, of which no two look alike."""
    coarse = np.random.default_rng(seed).integers(30, 200, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def write_set(folder: Path, images: Images, labels: Labels, names: Sequence[str] = NAMES) -> Path:
    """Every cell is the images, brighter and with noise."""
    random = np.random.default_rng(1)
    for name in names:
        noise = random.integers(0, 10, images.shape, dtype=np.uint8)
        write_blocks(
            folder / f"{name}.npy", (images + noise + np.uint8(severity) for severity in range(1, 6))
        )
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return folder


@pytest.fixture
def test() -> Split:
    return make_split(pictures(COUNT), np.arange(COUNT) % 10, tuple("abcdefghij"))


@pytest.fixture
def source(tmp_path: Path, test: Split) -> Path:
    return write_set(tmp_path / "CIFAR-10-C", test.images, test.labels)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "corrupted"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_copy(target: Path, source: Path, limit: int | None = None) -> None:
    """Every byte of the first `limit` images of all blocks is there, and nothing else but the record."""
    copy, original = open_corrupted(target, "mine"), open_corrupted(source, "mine")
    assert copy.names == original.names
    assert np.array_equal(copy.labels, original.labels[:limit])
    for name in original.names:
        for severity in range(1, 6):
            assert np.array_equal(copy.cell(name, severity), original.cell(name, severity)[:limit])
    assert content(target).keys() == {
        "labels.npy",
        "downloaded.json",
        *(f"{name}.npy" for name in copy.names),
    }


# --- copying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 25, 1000])
def test_an_import_copies_what_was_asked_for_once(
    source: Path, target: Path, test: Split, limit: int | None
) -> None:
    _, changed = import_corrupted(source, target, test=test, limit=limit)
    assert changed
    check_copy(target, source, limit)
    times = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    _, changed = import_corrupted(source, target, test=test, limit=limit)
    assert not changed
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == times


def test_a_repaired_source_replaces_a_set_that_differs_between_the_samples(
    source: Path, target: Path, test: Split
) -> None:
    whole = np.load(source / "fog.npy")
    broken = whole.copy()
    sampled = np.arange(COUNT) % 3 == 0  # by CorruptedSet.identity
    for severity in range(5):
        broken[severity * COUNT : (severity + 1) * COUNT][~sampled] = 0
    np.save(source / "fog.npy", broken)
    notes: list[str] = []
    before, _ = import_corrupted(source, target, test=test, note=notes.append)
    assert not any("cannot be told" in note for note in notes)
    np.save(source / "fog.npy", whole)
    after, changed = import_corrupted(source, target, test=test, note=notes.append)
    assert before.identity == after.identity
    assert changed
    assert sum("cannot be told from new ones, so evaluate those runs again" in note for note in notes) == 1
    check_copy(target, source)


def test_a_copy_that_was_changed_in_one_byte_is_made_again(source: Path, target: Path, test: Split) -> None:
    import_corrupted(source, target, test=test)
    copy = np.load(target / "saturate.npy")
    copy[-1, -1, -1, -1] ^= 1
    np.save(target / "saturate.npy", copy)
    _, changed = import_corrupted(source, target, test=test)
    assert changed
    check_copy(target, source)


def test_an_archive_with_the_size_and_date_of_the_last_one_is_compared(
    source: Path, target: Path, test: Split, tmp_path: Path
) -> None:
    def pack() -> None:
        with tarfile.open(tmp_path / "c.tar", "w") as archive:
            archive.add(source, "CIFAR-10-C")
        os.utime(tmp_path / "c.tar", (1, 1))

    pack()
    import_corrupted(tmp_path / "c.tar", target, test=test)
    changed = np.load(source / "fog.npy")
    changed[1] ^= 1
    np.save(source / "fog.npy", changed)
    pack()
    import_corrupted(tmp_path / "c.tar", target, test=test)
    check_copy(target, source)


def test_the_record_holds_the_sha256_of_every_file(source: Path, target: Path, test: Split) -> None:
    import_corrupted(source, target, test=test, origin="here")
    record = json.loads((target / "downloaded.json").read_bytes())
    assert record["files"].keys() == {"labels.npy", *(f"{name}.npy" for name in NAMES)}
    assert record["test"] == test.checksum
    assert find_imported(target, "here", None, test=test)
    assert not find_imported(target, "there", None, test=test)
    changed = np.load(target / "fog.npy")
    changed[1, 0, 0, 0] ^= 1
    np.save(target / "fog.npy", changed)
    assert not find_imported(target, "here", None, test=test)


def test_a_set_imported_before_records_had_checksums_is_taken_as_it_is(
    source: Path, target: Path, test: Split
) -> None:
    present, _ = import_corrupted(source, target, test=test)
    old = {"origin": "here", "limit": None, "identity": present.identity}
    (target / "downloaded.json").write_text(json.dumps(old))
    assert find_imported(target, "here", None, test=test)
    (target / "downloaded.json").unlink()
    _, changed = import_corrupted(source, target, test=test, origin="here")
    assert not changed
    assert find_imported(target, "here", None, test=test)


def test_another_set_is_replaced_whole(source: Path, target: Path, test: Split) -> None:
    import_corrupted(source, target, test=test)
    (source / "fog.npy").unlink()
    import_corrupted(source, target, test=test)
    check_copy(target, source)


def test_a_limit_does_not_throw_images_of_these_test_images_away(
    source: Path, target: Path, test: Split
) -> None:
    import_corrupted(source, target, test=test, limit=40)
    before = content(target)
    with pytest.raises(UserError, match=r"holds 40 images of each cell.* set `limit` to 40 to keep them"):
        import_corrupted(source, target, test=test, limit=30)
    assert content(target) == before
    import_corrupted(source, target, test=test, limit=50)
    check_copy(target, source, 50)


def test_a_record_there_is_no_space_for_leaves_the_set_that_was_there(
    source: Path, target: Path, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_corrupted(source, target, test=test, limit=40)
    before = content(target)

    def fail(path: Path, record: object) -> None:
        raise RsslError("no space")

    monkeypatch.setattr("rsslcli.core.data.corrupted.write_json", fail)
    with pytest.raises(RsslError, match="no space"):
        import_corrupted(source, target, test=test)
    assert content(target) == before


def test_a_generated_set_is_replaced_whole(source: Path, target: Path, test: Split) -> None:
    generate_corrupted(test.images, test.labels, target, corruptions=["fog", "contrast"], workers=1)
    (target / "snow.npy.partial").write_bytes(b"begun")
    import_corrupted(source, target, test=test)
    check_copy(target, source)


def test_an_import_holds_one_block_in_memory(tmp_path: Path, target: Path) -> None:
    count = 400
    test = make_split(pictures(count), np.arange(count) % 10, tuple("abcdefghij"))
    source = write_set(tmp_path / "large", test.images, test.labels)
    for changed in (True, False):
        tracemalloc.start()
        try:
            assert import_corrupted(source, target, test=test)[1] == changed
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 3 * count * 3072 < (source / "fog.npy").stat().st_size


# --- interruptions and changes --------------------------------------------------------------------


@pytest.mark.parametrize("description", ["comparing corruptions", "copying corruptions"])
def test_an_interrupted_import_leaves_the_set_that_was_there(
    source: Path, target: Path, test: Split, description: str
) -> None:
    def interrupt(part: str, done: int, total: int) -> None:
        if (part, done) == (description, 2):
            raise KeyboardInterrupt

    import_corrupted(source, target, test=test)
    before = content(target)
    changed = np.load(source / "saturate.npy")
    changed[7] ^= 1
    np.save(source / "saturate.npy", changed)
    with pytest.raises(KeyboardInterrupt):
        import_corrupted(source, target, test=test, progress=interrupt)
    assert content(target) == before
    import_corrupted(source, target, test=test)
    check_copy(target, source)


def replaced(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"x")


def cut_short(path: Path) -> None:
    os.truncate(path, 5000)


@pytest.mark.parametrize("change", [replaced, cut_short, Path.unlink])
def test_a_source_that_changes_while_it_is_read_is_refused(
    source: Path, target: Path, test: Split, change: Callable[[Path], None]
) -> None:
    import_corrupted(source, target, test=test)
    before = content(target)
    np.save(source / "fog.npy", 255 - np.load(source / "fog.npy"))

    def meanwhile(part: str, done: int, total: int) -> None:
        if (part, done) == ("copying corruptions", 1):
            change(source / "gaussian_noise.npy" if change is replaced else source / "saturate.npy")

    with pytest.raises(
        UserError, match=r"(saturate|noise)\.npy changed while it was being read: import it again"
    ):
        import_corrupted(source, target, test=test, progress=meanwhile)
    assert content(target) == before


# --- the forms a set comes in ---------------------------------------------------------------------


def as_parent(source: Path) -> Path:
    (source.parent / "outer").mkdir()
    return Path(shutil.move(source, source.parent / "outer")).parent


def as_tar(suffix: str) -> Callable[[Path], Path]:
    def pack(source: Path) -> Path:
        path = source.parent / f"c.tar{suffix and '.' + suffix}"
        with tarfile.open(path, f"w:{suffix}") as archive:  # type: ignore[call-overload]
            archive.add(source, source.name)
        return path

    return pack


def as_zip(source: Path) -> Path:
    with zipfile.ZipFile(source.parent / "c.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in source.iterdir():
            archive.write(path, f"{source.name}/{path.name}")
    return source.parent / "c.zip"


def with_labels_once(source: Path) -> Path:
    np.save(source / "labels.npy", np.load(source / "labels.npy")[:COUNT])
    return source


@pytest.mark.parametrize(
    "form",
    [as_parent, as_tar(""), as_tar("gz"), as_zip, with_labels_once],
    ids=["parent", "tar", "tar.gz", "zip", "labels once"],
)
def test_a_set_is_taken_in_every_form(
    source: Path, target: Path, test: Split, tmp_path: Path, form: Callable[[Path], Path]
) -> None:
    original = Path(shutil.copytree(source, tmp_path / "original"))
    given = form(source)
    assert is_corrupted_set(given)
    for limit in (30, None):
        for changed in (True, False):
            assert import_corrupted(given, target, test=test, limit=limit)[1] == changed
            check_copy(target, original, limit)


def test_labels_that_are_there_once_and_other_numbers_of_images_are_told(
    source: Path, target: Path, test: Split
) -> None:
    notes: list[str] = []
    fewer = make_split(test.images[:50], test.labels[:50], test.classes)
    import_corrupted(with_labels_once(source), target, test=fewer, note=notes.append)
    assert notes[1:] == [
        f"labels.npy in {source} has one label per image, used for all five severities",
        f"{source} has 60 images at each severity, the test set has 50 images",
    ]


def test_what_is_no_corrupted_set_is_told_from_one(source: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tree / split / name).mkdir(parents=True)
            (tree / split / name / "1.png").write_bytes(b"")
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as archive:
        archive.add(tree, "tree")
    (tmp_path / "text").write_text("text")
    np.save(tree / "labels.npy", np.zeros(5))  # of whatever
    with tarfile.open(tmp_path / "labels.tar", "w") as archive:
        for part in ("labels.npy", "train", "test"):
            archive.add(tree / part, part)
    assert not any(
        is_corrupted_set(tmp_path / name) for name in ("tree", "tree.tar.gz", "labels.tar", "text", "no")
    )
    shutil.move(source, tree)  # images are what its parent holds in the first place
    assert not is_corrupted_set(tree)
    assert is_corrupted_set(tree / source.name)


@pytest.mark.parametrize("part", ["", "train"])
def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "photos" / part
    (tmp_path / "photos" / "train").mkdir(parents=True)
    status = Path.stat

    def deny(opened: object, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", str(opened))

    def stat(self: Path, **options: bool) -> os.stat_result:
        return deny(self) if closed in self.parents else status(self, **options)  # type: ignore[return-value]

    for name in ("scandir", "listdir"):
        opening = getattr(os, name)
        monkeypatch.setattr(os, name, lambda p, o=opening: deny(p) if Path(p) == closed else o(p))
    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(UserError, match=f"^cannot read {closed} .Permission denied.: make it readable$"):
        is_corrupted_set(tmp_path / "photos")


def save(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:  # type: ignore[type-arg]
    return lambda source: np.save(source / name, change(np.load(source / name)))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            lambda source: shutil.rmtree(source) or source.mkdir(),
            "no corrupted test set in .*: it has nothing, not",
        ),
        (
            lambda source: (source / "labels.npy").unlink(),
            r"has no labels\.npy, but gaussian_noise\.npy, fog",
        ),
        (
            lambda source: [(source / f"{n}.npy").unlink() for n in NAMES],
            r"no corrupted test set in .*: it has 'labels\.npy', not the files",
        ),
        (
            save("fog.npy", lambda a: a / 255),
            r"fog\.npy in .* is float64 \(300, 32, 32, 3\), not uint8 \(300, 32",
        ),
        (save("fog.npy", lambda a: a.astype("i4")), r"fog\.npy in .* is int32 \(300"),
        (
            save("fog.npy", lambda a: a.transpose(0, 3, 1, 2)),
            r"fog\.npy in .*(Fortran|is uint8 \(300, 3, 32, 32\))",
        ),
        (save("fog.npy", lambda a: a[:-5]), r"fog\.npy in .* is uint8 \(295, 32, 32, 3\), not uint8 \(300"),
        (
            lambda s: [save(f"{n}.npy", lambda a: a[:-2])(s) for n in NAMES],
            "298 images each, not the same ones at",
        ),
        (save("labels.npy", lambda a: a * 1.0), r"labels\.npy in .* is float64 \(300,\), not 300 integers"),
        (save("labels.npy", lambda a: a[:-1]), r"labels\.npy in .* is uint8 \(299,\), not 300 integers"),
        (save("labels.npy", np.sort), "does not hold the same 60 labels five times"),
        (save("labels.npy", lambda a: a + 1), "has the label 10, outside the 10 classes of the data set"),
        (save("labels.npy", lambda a: a.astype("i1") - 1), "has the label -1, outside the 10 classes"),
        (
            lambda source: os.truncate(source / "fog.npy", 5000),
            r"fog\.npy in .* is damaged .*5000 bytes that claims",
        ),
        (lambda source: os.truncate(source / "fog.npy", 0), r"fog\.npy in .* is damaged or not a \.npy file"),
        (
            lambda source: (source / "fog.npy").write_bytes(b"text"),
            r"fog\.npy in .* is damaged or not a \.npy file",
        ),
        (
            lambda source: (
                [shutil.copytree(source, source / n) for n in "xy"]
                and [p.unlink() for p in source.glob("*.npy")]
            ),
            "holds several corrupted test sets, such as 'x' and 'y': give one of them",
        ),
    ],
    ids=range(17),
)
def test_what_is_wrong_with_a_set_is_told_in_one_line_before_anything_is_replaced(
    source: Path, target: Path, test: Split, spoil: Callable[[Path], object], match: str
) -> None:
    import_corrupted(source, target, test=test)
    before = content(target)
    spoil(source)
    with pytest.raises(UserError, match=match) as caught:
        import_corrupted(source, target, test=test)
    assert str(caught.value).isprintable()
    assert content(target) == before


def test_a_truncated_compressed_archive_leaves_the_set_that_was_there(
    source: Path, target: Path, test: Split
) -> None:
    import_corrupted(source, target, test=test)
    before = content(target)
    path = as_tar("gz")(source)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        import_corrupted(path, target, test=test)
    assert content(target) == before


def test_an_unpacked_file_there_is_no_space_for_is_no_damaged_archive(
    source: Path, target: Path, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = as_zip(source), Path.open

    def full(self: Path, mode: str = "r", *options: object) -> object:
        return write(Path("/dev/full"), "wb", 0) if mode == "ab" else write(self, mode, *options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RsslError, match=r"cannot import .*No space left") as caught:
        import_corrupted(path, target, test=test)
    assert caught.value.exit_code == 1


# --- labels ---------------------------------------------------------------------------------------


def imported(source: Path, target: Path, test: Split) -> str:
    """What is said of the labels."""
    notes: list[str] = []
    import_corrupted(source, target, test=test, note=notes.append)
    return notes[0]


def doubts(source: Path, target: Path, test: Split) -> list[str]:
    """What is said of the set beside its labels."""
    notes: list[str] = []
    import_corrupted(source, target, test=test, note=notes.append)
    return [text.replace(str(source), "SOURCE") for text in notes[1:]]


def test_cells_of_clean_images_are_told_whatever_their_order(source: Path, target: Path, test: Split) -> None:
    assert doubts(source, target, test) == []
    blocks = np.load(source / "fog.npy").reshape(5, COUNT, 32, 32, 3)
    blocks[1] = test.images
    np.save(source / "fog.npy", blocks.reshape(-1, 32, 32, 3))
    told = "not corrupted in SOURCE: most images are the clean ones, pixel for pixel, in fog at severity 2"
    assert doubts(source, target, test) == [told]
    mirrored = make_split(test.images[::-1], test.labels[::-1], test.classes)
    assert doubts(source, target, mirrored) == [told]
    np.save(source / "fog.npy", np.tile(test.images, (5, 1, 1, 1)))
    (note,) = doubts(source, target, test)
    assert note.endswith(
        "in fog at severity 1, fog at severity 2, fog at severity 3, fog at severity 4, fog at severity 5"
    )


def test_severities_in_reverse_order_are_told(source: Path, target: Path, test: Split) -> None:
    for count, name in enumerate(NAMES[:2], start=1):
        blocks = np.load(source / f"{name}.npy").reshape(5, COUNT, 32, 32, 3)[::-1]
        np.save(source / f"{name}.npy", np.ascontiguousarray(blocks).reshape(-1, 32, 32, 3))
        notes = doubts(source, target, test)
        assert len(notes) == (count == 2)
    assert notes[0].startswith("the severities in SOURCE seem to be in reverse order: in 2 of 3 corruptions")


@pytest.mark.parametrize("clean", [slice(None), slice(None, None, -1), slice(20), slice(5, 50)])
def test_right_labels_are_confirmed_whatever_the_order_of_the_images(
    source: Path, target: Path, test: Split, clean: slice
) -> None:
    others = make_split(test.images[clean], test.labels[clean], test.classes)
    assert imported(source, target, others) == (
        f"labels of {source}: 0 = 'a', 1 = 'b', 2 = 'c', 3 = 'd', 4 = 'e', 5 = 'f', "
        "6 = 'g', 7 = 'h', 8 = 'i', 9 = 'j'; the test images agree"
    )


@pytest.mark.parametrize("count", [COUNT, 30, 10])
def test_classes_numbered_in_another_order_are_refused(
    tmp_path: Path, target: Path, source: Path, test: Split, count: int
) -> None:
    """The folders 1 to 10 are sorted as words; the labels count them."""
    import_corrupted(source, target, test=test)
    before = content(target)
    numbers = [NUMBERS.index(str(label + 1)) for label in test.labels[:count]]
    other = make_split(test.images[:count], np.array(numbers), NUMBERS)
    with pytest.raises(
        UserError,
        match=r"images with the label 1, class '10' of the data set, are pictures of class '2': rename",
    ):
        import_corrupted(source, target, test=other)
    assert content(target) == before


def test_two_classes_of_a_hundred_in_each_others_place_are_found(tmp_path: Path, target: Path) -> None:
    labels = np.arange(1000) % 100
    swapped = np.array([{17: 42, 42: 17}.get(label, label) for label in labels])
    test = make_split(pictures(1000), labels, tuple(f"class {n}" for n in range(100)))
    source = write_set(tmp_path / "c", test.images, swapped, ["fog"])
    with pytest.raises(
        UserError, match="label 17, class 'class 17' of the data set, are pictures of class 'class 42'"
    ):
        import_corrupted(source, target, test=test)
    np.save(source / "labels.npy", np.tile(labels, 5))
    assert "0 = 'class 0', 1 = 'class 1', 2 = 'class 2', …, 99 = 'class 99'; the" in imported(
        source, target, test
    )


def test_labels_in_another_order_than_the_images_are_refused(source: Path, target: Path, test: Split) -> None:
    mixed = np.random.default_rng(0).permutation(test.labels)
    np.save(source / "labels.npy", np.tile(mixed, 5))
    with pytest.raises(
        UserError, match=r"CIFAR-10-C is not in the order of its labels: 1\d\d of the 180 images"
    ):
        import_corrupted(source, target, test=test)


def test_labels_mixed_up_within_three_of_a_hundred_classes_are_refused(tmp_path: Path, target: Path) -> None:
    labels = np.arange(1000) % 100
    few = labels < 3
    mixed = labels.copy()
    mixed[few] = np.roll(np.sort(labels[few]), 4)
    test = make_split(pictures(1000), labels, tuple(f"class {n}" for n in range(100)))
    source = write_set(tmp_path / "c", test.images, mixed, ["fog"])
    with pytest.raises(UserError, match=r"is not in the order of its labels: \d\d of the 1000 images"):
        import_corrupted(source, target, test=test)


def test_a_file_of_the_same_images_in_another_order_is_refused(
    source: Path, target: Path, test: Split
) -> None:
    blocks = np.load(source / "fog.npy").reshape(5, COUNT, 32, 32, 3)[:, ::-1]
    np.save(source / "fog.npy", np.ascontiguousarray(blocks).reshape(-1, 32, 32, 3))
    with pytest.raises(UserError, match=r"fog\.npy in .* is not in the order of its labels: \d+ of the 60"):
        import_corrupted(source, target, test=test)


def test_another_order_within_the_classes_is_seen_where_labels_do_not_show_it(
    tmp_path: Path, target: Path
) -> None:
    """As of files img_1.png and img_10.png beside img_001.png and img_010.png, class after class."""
    labels = np.arange(COUNT) % 3
    test = make_split(pictures(COUNT), labels, ("a", "b", "c"))
    order = np.concatenate([np.roll(np.flatnonzero(labels == label), 1) for label in range(3)])
    places = np.argsort(labels, kind="stable")
    other = np.empty(COUNT, np.int64)
    other[places] = order
    assert np.array_equal(labels[other], labels)
    assert not np.array_equal(other, np.arange(COUNT))
    straight = write_set(tmp_path / "straight", test.images, labels)
    turned = write_set(tmp_path / "turned", test.images[other], labels)
    notes: list[str] = []
    first, _ = import_corrupted(straight, target, test=test, note=notes.append)
    assert aligned(first, test)
    assert not any("another order" in text for text in notes)
    second, _ = import_corrupted(turned, target, test=test, note=notes.append)
    assert not aligned(second, test)
    assert "has the test images in another order: they cannot be paired with the clean ones" in notes[-1]
    import_corrupted(turned, target, test=test)  # once more: it is there already
    assert not aligned(open_corrupted(target, "toy"), test)


def test_a_set_in_another_order_is_not_compared_with_images_that_it_does_not_show(
    tmp_path: Path, target: Path
) -> None:
    """The grayer it is, the nearer an image is to any other one."""
    labels = np.zeros(COUNT, np.int64)
    test = make_split(pictures(COUNT), labels, ("a",))
    source = write_set(tmp_path / "turned", np.roll(test.images, 1, 0), labels)
    blocks = [(np.roll(test.images, 1, 0) * (1 - gray) + 115 * gray).astype(np.uint8) for gray in GRAY]
    distances = [float(np.abs(block - test.images.astype(float)).mean()) for block in blocks]
    assert distances == sorted(distances, reverse=True)
    for path in source.glob("*.npy"):
        if path.name != "labels.npy":
            write_blocks(path, iter(blocks))
    notes: list[str] = []
    found, _ = import_corrupted(source, target, test=test, note=notes.append)
    assert "in another order" in notes[1]
    assert len(notes) == 2
    (found.folder / "downloaded.json").unlink()  # which knows the order
    assert "in reverse order" in note_on_cells(found, test, source)[0]


@pytest.mark.parametrize("copied", [False, True])
def test_part_of_a_set_for_other_test_images_is_not_taken_for_a_set_of_these(
    source: Path, target: Path, tmp_path: Path, copied: bool
) -> None:
    """Nor the whole after it: the images of before do not become those of now by a limit."""
    test = make_split(pictures(COUNT), np.arange(COUNT) % 10, tuple("abcdefghij"))
    import_corrupted(source, target, test=test)
    other = make_split(pictures(COUNT, seed=9), test.labels, test.classes)
    again = shutil.copytree(source, tmp_path / "copy") if copied else source
    before = content(target)
    for limit in (9, None):
        with pytest.raises(UserError, match="was imported for earlier test images"):
            import_corrupted(again, target, test=other, limit=limit)
        assert content(target) == before


def test_a_set_of_other_images_is_taken_with_a_note(tmp_path: Path, target: Path, test: Split) -> None:
    source = write_set(tmp_path / "other", pictures(COUNT, seed=9), test.labels)
    assert imported(source, target, test).endswith(
        "9 = 'j'; this could not be checked, because its images are not recognizable as those of the test set"
    )
    check_copy(target, source)


@pytest.mark.parametrize("value", [0, 255])
def test_blank_images_are_no_evidence(tmp_path: Path, target: Path, test: Split, value: int) -> None:
    labels = np.random.default_rng(0).permutation(test.labels)
    source = write_set(tmp_path / "blank", np.full_like(test.images, value), labels)
    np.save(source / "fog.npy", np.full((5 * COUNT, 32, 32, 3), value, np.uint8))
    (source / "saturate.npy").unlink()
    (source / "gaussian_noise.npy").unlink()
    assert "could not be checked" in imported(source, target, test)


def test_images_that_are_there_twice_are_no_evidence(tmp_path: Path, target: Path) -> None:
    images, labels = pictures(40).repeat(2, 0), np.tile([0, 1], 40)
    test = make_split(images, labels, ("a", "b"))
    source = write_set(tmp_path / "c", images, labels[::-1].copy())
    assert "could not be checked" in imported(source, target, test)


def test_labels_are_checked_again_when_the_test_images_have_other_classes(
    source: Path, target: Path, test: Split
) -> None:
    import_corrupted(source, target, test=test, origin="here")
    other = make_split(test.images, np.roll(np.arange(10), 1)[test.labels], test.classes)
    for again in (
        lambda: import_corrupted(source, target, test=other),
        lambda: find_imported(target, "here", None, test=other),
    ):
        with pytest.raises(UserError, match="does not number the classes as the data set does"):
            again()
    longer = make_split(np.concatenate([test.images, pictures(9, 5)]), np.arange(69) % 10, test.classes)
    for again in (
        lambda: import_corrupted(source, target, test=longer),
        lambda: find_imported(target, "here", None, test=test),
    ):
        again()
    assert json.loads((target / "downloaded.json").read_bytes())["test"] == test.checksum


def test_real_images_confirm_the_labels_of_the_original_corruptions(tmp_path: Path, target: Path) -> None:
    if not (SHARED / "cifar10-images.tar.gz").exists() or not (SHARED / "cifar10-c-golden.npz").exists():
        pytest.skip("needs images of CIFAR-10 and their original corruptions in shared/data")
    _, tree = read_image_tree(SHARED / "cifar10-images.tar.gz", limit=10_000)
    with np.load(SHARED / "cifar10-c-golden.npz", allow_pickle=False) as golden:
        folders = [path.split("/")[1] for path in golden["files"]]
        labels = np.array([tree.classes.index(name) for name in folders])
        assert np.array_equal(labels, golden["labels"])
        for name in golden.files:
            if golden[name].ndim == 5:
                write_blocks(tmp_path / "c" / f"{name}.npy", golden[name])
    np.save(tmp_path / "c" / "labels.npy", np.tile(labels, 5))
    assert len(open_corrupted(tmp_path / "c", "cifar10").names) == 19
    assert imported(tmp_path / "c", target, make_split(*tree[:3])).endswith(
        "9 = 'truck'; the test images agree"
    )
    # As folders 1 to 10, which sort as words.
    numbers = np.array([NUMBERS.index(str(label + 1)) for label in range(10)])
    numbered = make_split(tree.images, numbers[tree.labels], NUMBERS)
    with pytest.raises(UserError, match="label 1, class '10' of the data set, are pictures of class '2'"):
        import_corrupted(tmp_path / "c", target, test=numbered)
    # Other photographs, among which a near copy is rare.
    without = ~np.isin(np.arange(len(tree.labels)), _places(tree.images, tmp_path / "c"))
    rest = make_split(tree.images[without], numbers[tree.labels[without]], NUMBERS)
    assert "could not be checked" in imported(tmp_path / "c", tmp_path / "another", rest)
    with pytest.raises(UserError, match="earlier test images, and does not show the present ones"):
        import_corrupted(tmp_path / "c", target, test=rest)


def _places(images: Images, folder: Path) -> list[int]:
    """The images that the corrupted ones at severity 1 were made from: the nearest ones."""
    cell = open_corrupted(folder, "cifar10").cell("jpeg_compression", 1)
    small = images[:, ::4, ::4].reshape(len(images), -1).astype(np.float32)
    few = cell[:, ::4, ::4].reshape(len(cell), -1).astype(np.float32)
    return [int(((small - one) ** 2).sum(1).argmin()) for one in few]


def test_a_source_is_described_by_its_arrays(source: Path, tmp_path: Path, test: Split) -> None:
    found = CorruptedSource(source, tmp_path / "unpacked", classes=10)
    assert (found.names, found.available, found.one_label_each) == (NAMES, COUNT, False)
    assert found.labels.tolist() == test.labels.tolist()
    original = CorruptedSet(source, NAMES, test.labels)
    for severity, block in enumerate(found.blocks("fog", 7), start=1):
        assert np.array_equal(block, original.cell("fog", severity)[:7])
    assert not (tmp_path / "unpacked").exists()
    with pytest.raises(UserError, match=r"has no shot_noise\.npy"):
        CorruptedSource(source, tmp_path / "unpacked", classes=10, complete=True)
