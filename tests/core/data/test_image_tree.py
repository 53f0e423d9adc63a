"""What is taken from a tree of images, from a folder as from an archive, and what is said of the rest."""

import io
import os
import random
import re
import shutil
import tarfile
import unicodedata
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsslcli.core.data import archives, file_tree
from rsslcli.core.data.file_tree import MAX_DEPTH, open_tree, walk
from rsslcli.core.data.image_tree import is_image_tree, read_image_tree, tree_fingerprint
from rsslcli.core.data.store import Arrays
from rsslcli.core.errors import UserError

LOST_LINKS = "links that lead nowhere, in circles or out of an archive"
SUFFIXES = ("", ".tar", ".tar.gz", ".zip")


@cache
def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *names: str, start: int = 0) -> Path:
    """A picture of its own in each of these files below `root`."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(start + index) if path.suffix in (".png", ".PNG") else b"text")
    return root


def classes(prefix: str = "", count: int = 5, names: tuple[str, ...] = ("ant", "bee")) -> list[str]:
    return [f"{prefix}{name}/{index}.png" for name in names for index in range(count)]


def packed(root: Path, suffix: str) -> Path:
    """The folder itself, or an archive of it, with its links as links."""
    path = root.with_name(f"{root.name}{suffix}")
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for folder, folders, files in os.walk(root):
                for name in (*folders, *files):
                    member = Path(folder, name)
                    place = member.relative_to(root).as_posix()
                    if member.is_symlink():
                        link = zipfile.ZipInfo(place)
                        link.create_system, link.external_attr = 3, 0o120777 << 16
                        archive.writestr(link, str(member.readlink()))
                    else:
                        archive.write(member, place)
    elif suffix:
        with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as archive:
            archive.add(root, ".")
    return path


def read(source: Path) -> tuple[Arrays, Arrays, list[str], list[str]]:
    """Both splits, the notes, and the images that were left out."""
    notes: list[str] = []
    damaged: list[str] = []
    train, test = read_image_tree(source, damaged=damaged, note=notes.append)
    return train, test, [text.replace(str(source), "SOURCE") for text in notes], damaged


def told(source: Path) -> list[str]:
    return read(source)[2]


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image_tree(source)
    assert str(caught.value).isprintable()
    return str(caught.value).replace(str(source), "SOURCE")


def outcome(source: Path) -> tuple[object, ...]:
    """All that can be told of a tree from outside."""
    try:
        train, test, notes, damaged = read(source)
    except UserError as error:
        return (re.sub(r"\S*/SOURCE\S*|SOURCE\S*", "SOURCE", str(error).replace(str(source), "SOURCE")),)
    return (
        *((part.images.tobytes(), part.labels.tolist(), part.classes) for part in (train, test)),
        notes,
        damaged,
    )


# --- A folder and its archive -------------------------------------------------------------------------------


NAMES = [
    f"{folder}{name}"
    for folder in (
        "",
        "train/",
        "train/ant/",
        "train/bee/",
        "train/bee/deep/",
        "Test/ant/",
        "Test/bee/",
        "val/x/",
    )
    for name in ("1.png", "2.png", "notes.txt", "x", ".hidden.png", "é.png", "broken.png")
]
STEPS = st.tuples(
    st.sampled_from(["file", "file", "file", "link", "link", "hard link", "folder"]),
    st.sampled_from(NAMES),
    st.sampled_from(
        [*NAMES, "train", "train/ant", "train/bee", "train/bee/deep", "Test", ".", "none", "a/b.png"]
    ),
)


def build(root: Path, steps: list[tuple[str, str, str]]) -> Path:
    """A tree on disk, of what the steps make that the file system allows; links stay inside it."""
    for split, count in (("train", 3), ("Test", 2)):
        write(root, *classes(f"{split}/", count), start=10 * count)
    for number, (kind, name, target) in enumerate(steps):
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                broken = name.endswith("broken.png")
                path.write_bytes(b"broken" if broken else picture(100 + number))
            elif kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to(os.path.relpath(root / target, path.parent))
            else:
                os.link(root / target, path, follow_symlinks=False)
        except OSError:  # there is something already, or nothing to link to
            continue
    return root


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(STEPS, min_size=1, max_size=12))
def test_what_a_folder_gives_its_archives_give(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]
) -> None:
    """The same images, labels, names, notes with their counts and examples, and errors."""
    folder = build(tmp_path_factory.mktemp("same") / "tree", steps)
    expected = outcome(folder)
    for suffix in SUFFIXES[1:]:
        assert outcome(packed(folder, suffix)) == expected, suffix
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hard_and_symbolic_links_are_images(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes("train/"), *classes("test/", 2, ("ant",)), "store/blob")
    (root / "store" / "blob").write_bytes(picture(77))
    for index in range(5):
        os.link(root / f"train/ant/{index}.png", root / f"train/ant/hard {index}.png")
        (root / f"train/ant/soft {index}.png").symlink_to(f"../bee/{index}.png")
    (root / "train/bee/blob.png").symlink_to("../../store/blob")  # whose own name is no image's
    (root / "test/bee").symlink_to("../train/bee")
    (root / "test/ant/chain.png").symlink_to("../bee/blob.png")
    source = packed(root, suffix)
    train, test, notes, _ = read(source)
    assert np.bincount(train.labels).tolist() == [15, 6]
    assert np.bincount(test.labels).tolist() == [3, 6]
    ants, bees = ([image.tobytes() for image in train.images[train.labels == label]] for label in (0, 1))
    assert ants[5:10] == ants[:5]
    assert ants[10:] == bees[:5]
    assert test.images[test.labels == 0][2].tobytes() == bees[5]
    assert notes == ["not used: folders beside train/ and test/, 1 in all: store"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_cannot_be_followed_is_counted(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes())
    (root / "ant/nowhere.png").symlink_to("none.png")
    (root / "ant/self.png").symlink_to("self.png")
    (root / "bee/a.png").symlink_to("b.png")
    (root / "bee/b.png").symlink_to("a.png")
    (root / "bee/back").symlink_to("..")
    os.mkfifo(root / "bee/pipe.png")
    source = packed(root, suffix) if suffix != ".zip" else root  # a zip archive has no pipes
    lost = (
        "not used: links that lead nowhere, in circles or out of an archive, 5 in all, e.g. 'ant/nowhere.png'"
    )
    assert told(source)[1:] == [
        lost, "not used: devices, pipes or other special files, 1 in all, e.g. 'bee/pipe.png'"
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_a_link_out_of_an_archive_is_not_followed_but_counted(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, "secret/1.png", start=99)
    root = write(tmp_path / "tree", *classes())
    (root / "ant/absolute.png").symlink_to(tmp_path / "secret/1.png")
    (root / "ant/up.png").symlink_to("../../secret/1.png")
    (root / "ant/folder").symlink_to("../../secret")
    (root / "bee/up and back.png").symlink_to("../../tree/bee/0.png")
    train, test, notes, _ = read(packed(root, suffix))
    assert len(train.labels) + len(test.labels) == 10
    assert notes[1:] == [f"not used: {LOST_LINKS}, 4 in all, e.g. 'ant/absolute.png'"]
    train, test, notes, _ = read(root)  # on disk they are followed
    assert len(train.labels) + len(test.labels) == 14
    assert notes[1:] == ["images in subfolders of their class folders, 1 in all, e.g. 'ant/folder/1.png'"]


def test_a_hard_link_shares_what_was_there_before_it(tmp_path: Path) -> None:
    """As unpacking has it: GNU tar stores a file that it is given twice as a link to itself."""
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:

        def add(name: str, content: bytes = b"", link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type, member.linkname = (tarfile.LNKTYPE, link) if link else (tarfile.REGTYPE, "")
            archive.addfile(member, io.BytesIO(content))

        for name in classes():
            add(name, picture(1))
        add("ant/early.png", link="ant/late.png")
        add("ant/late.png", picture(2))
        add("ant/same.png", link="ant/late.png")
        add("ant/late.png", picture(3))
        add("bee/0.png", link="bee/0.png")
        add("bee/folder.png", link="ant")
        add("bee/out.png", link="../../etc/passwd")
    train, test, notes, _ = read(path)
    ants = [image.tobytes() for part in (train, test) for image in part.images[part.labels == 0]]
    assert len(ants) == 7  # five, and these two
    for seed in (2, 3):
        assert np.asarray(Image.open(io.BytesIO(picture(seed)))).tobytes() in ants
    assert len(train.labels) + len(test.labels) == 12
    assert notes[1:] == [f"not used: {LOST_LINKS}, 3 in all, e.g. 'ant/early.png'"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folders_of_links_that_multiply_are_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten links to a folder of ten links, and so on, stand for more files than there are atoms."""
    root = write(tmp_path / "tree", *classes(), "bee/level0/x.png")
    for level in range(1, 20):
        (root / f"bee/level{level}").mkdir()
        for link in range(10):
            (root / f"bee/level{level}/{link}").symlink_to(f"../level{level - 1}")
    monkeypatch.setattr(file_tree, "MAX_MEMBERS", 5000)
    assert refusal(packed(root, suffix)) == (
        "SOURCE holds more than 5,000 files and folders: prepare a part of it"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_subfolders_of_a_class_are_read_to_a_bounded_depth(tmp_path: Path, suffix: str) -> None:
    deep = "/".join(["d"] * (MAX_DEPTH - 1))
    root = write(
        tmp_path / "tree", *classes(), "ant/indoor/a.png", f"ant/{deep}/b.png", f"bee/{deep}/d/c.png",
        f"bee/{deep}/d/e/d.png",
    )  # fmt: skip
    train, test, notes, _ = read(packed(root, suffix))
    assert len(train.labels) + len(test.labels) == 12
    assert notes[1:] == [
        f"images in subfolders of their class folders, 2 in all, e.g. 'ant/{deep}/b.png'",
        f"not used: folders inside more than {MAX_DEPTH} others, 1 in all, e.g. 'bee/{deep}/d'",
    ]


def test_a_name_of_a_million_folders_takes_no_time(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *classes())
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
        archive.addfile(tarfile.TarInfo("ant/" + "d/" * 400_000 + "x.png"))
    deepest = max(len(entry.parts) for entry in walk(open_tree(path), open_tree(path).top))
    assert deepest == MAX_DEPTH + 1
    assert "1 in all" in told(path)[-1]


def test_classes_one_folder_too_high_are_told(tmp_path: Path) -> None:
    doubt = "if those are the classes, or splits, arrange the images as train/<class>/*"
    years = [f"{split}/{year}/" for split in ("train", "test") for year in (2023, 2024)]
    above = write(tmp_path / "above", *(name for year in years for name in classes(year)))
    assert f"the classes are 2023, 2024, and in all of their folders are folders named ant, bee: {doubt}" in (
        "\n".join(told(above))
    )
    covered = [f"{year}/{name}" for year in (2023, 2024) for name in ("cover.png", *classes())]
    assert f"folders named ant, bee: {doubt}" in "\n".join(told(write(tmp_path / "covered", *covered)))
    # Folders that classes have by chance, or one in common, are their own matter.
    own = [f"train/{name}/{part}/{i}.png" for name, part in ("ax", "ay", "bx", "bz") for i in range(3)]
    own += classes("test/", names=("a", "b"))
    assert doubt not in "\n".join(told(write(tmp_path / "own", *own)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hidden_folders_are_neither_classes_nor_parts_of_them(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes("train/"), *classes("test/"))
    hidden = [
        f"{split}/{place}.ipynb_checkpoints/0.png" for split in ("train", "test") for place in ("", "ant/")
    ]
    train, test, *_ = read(packed(write(root, *hidden, start=50), suffix))
    assert train.classes == ("ant", "bee")
    assert (len(train.labels), len(test.labels)) == (10, 10)


def test_numbers_that_sort_as_text_are_told(tmp_path: Path) -> None:
    numbers = classes(names=tuple(map(str, range(12))))
    (note,) = (text for text in told(write(tmp_path / "text", *numbers)) if "sort as text" in text)
    assert "label 2 is class '10'" in note
    padded = classes(names=tuple(f"{number:02}" for number in range(12)))
    assert "sort as text" not in "".join(told(write(tmp_path / "padded", *padded)))


def test_names_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_NAME_BYTES", 2**20)
    path = tmp_path / "t.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for index in range(30):
            archive.addfile(tarfile.TarInfo(f"ant/{index}{'x' * 40_000}.png"))
    assert refusal(path) == "SOURCE has more than 1 MiB of names: prepare a part of it"


# --- What is not taken --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whatever_is_not_taken_is_counted_with_an_example(tmp_path: Path, suffix: str) -> None:
    root = write(
        tmp_path / "tree", *classes("train/"), *classes("test/"), "train/cover.png", "train/ant/a.heic",
        "train/ant/deep/b.HEIC", "val/ant/1.png", "raw/x.png", "README.md", "train/list.csv",
    )  # fmt: skip
    assert told(packed(root, suffix)) == [
        "not used: folders beside train/ and test/, 2 in all: raw, val",
        "not used: images outside the class folders, 1 in all, e.g. 'train/cover.png'",
        "not used: files of other formats (.HEIC, .heic), 2 in all, e.g. 'train/ant/a.heic'",
    ]


def test_members_whose_names_lead_out_of_the_archive_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*classes(), "../ant/up.png", "/ant/absolute.png", "ant/../../up.png"):
            archive.writestr(name, picture(1))
    assert told(path)[1:] == [
        "not used: members whose names lead out of the archive, 3 in all, e.g. '../ant/up.png'"
    ]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_an_archive_without_images_says_what_it_holds(tmp_path: Path, suffix: str) -> None:
    phone = write(tmp_path / "phone", "cat/IMG_1.HEIC", "dog/IMG_2.HEIC")
    assert refusal(packed(phone, suffix)) == (
        "no folders of images in SOURCE: found only .HEIC files, e.g. 'cat/IMG_1.HEIC': "
        "convert them to JPEG or PNG"
    )
    links = write(tmp_path / "links", "cat/.keep")
    (links / "cat/a.png").symlink_to("gone.png")
    message = refusal(packed(links, suffix))
    assert f"found only {LOST_LINKS}, e.g. 'cat/a.png': expected train/" in message
    deep = write(tmp_path / "deep", *classes("a/b/"))
    assert "found images such as 'a/b/ant/0.png': expected train/" in refusal(packed(deep, suffix))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_class_without_images_says_what_it_holds(tmp_path: Path, suffix: str) -> None:
    alone = write(tmp_path / "alone", *classes(), "cow/1.heic")
    assert refusal(packed(alone, suffix)) == (
        "no images of class 'cow' in SOURCE (found only .heic files, e.g. 'cow/1.heic': "
        "convert them to JPEG or PNG): add some, or remove the folder"
    )
    both = write(
        tmp_path / "both", *classes("train/"), *classes("test/"), "train/cow/1.png", "test/cow/1.txt"
    )
    assert refusal(packed(both, suffix)) == (
        "no images of class 'cow' in test/ of SOURCE (found only .txt files, e.g. 'test/cow/1.txt'): "
        "add some to both splits"
    )


def test_images_of_one_color_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *classes())
    gray = np.random.default_rng(0).integers(0, 256, (40, 40))
    Image.fromarray(gray.astype(np.uint16)).save(root / "ant/0.png")  # as black as 16 bits make it
    Image.new("RGBA", (32, 32), (200, 10, 10, 0)).save(root / "bee/0.png")
    os.link(root / "bee/0.png", root / "bee/again.png")
    Image.fromarray((gray * 257).astype(np.uint16)).save(root / "bee/1.png")
    assert told(root)[-1] == (
        "3 of 11 images have a single color, e.g. 'ant/0.png': perhaps they are fully transparent, "
        "or 16-bit with values below 256, which become black"
    )


# --- Names --------------------------------------------------------------------------------------------------

COMPOSED = "Öl é"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
assert COMPOSED != DECOMPOSED


def renamed(names: list[str], form: str) -> list[str]:
    return [
        unicodedata.normalize(form, name.replace("ant", COMPOSED).replace(".png", " é.png")) for name in names
    ]


def test_what_is_held_out_does_not_depend_on_the_unicode_form(tmp_path: Path) -> None:
    results = [read(write(tmp_path / form, *renamed(classes(count=9), form))) for form in ("NFC", "NFD")]
    for first, second in zip(*(result[:2] for result in results), strict=True):
        assert first.classes == second.classes == ("bee", COMPOSED)
        assert np.array_equal(first.images, second.images)
        assert np.array_equal(first.labels, second.labels)


def test_a_class_whose_name_has_another_unicode_form_in_each_split_is_one(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *renamed(classes("train/"), "NFC"), *renamed(classes("test/"), "NFD"))
    train, test, notes, _ = read(root)
    assert train.classes == test.classes == ("bee", COMPOSED)
    assert notes == []


def test_two_folders_of_one_name_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    root = write(
        tmp_path / "tree", *classes(), f"{COMPOSED}/1.png", f"{DECOMPOSED}/2.png", "Ant/1.png", "Ant/2.png"
    )
    if len(list(root.iterdir())) < 5:
        pytest.skip("the file system itself takes them for one")
    train, test, notes, _ = read(root)
    assert train.classes == ("Ant", "ant", "bee", COMPOSED)
    assert np.bincount(np.concatenate([train.labels, test.labels])).tolist() == [2, 5, 5, 2]
    assert notes[1:] == [f"class '{COMPOSED}' has 2 folders: their names differ only in Unicode form"]


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_separate_folders_in_archives_from_windows(tmp_path: Path, system: int) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate([*classes("train/"), *classes("test/")]):
            member = zipfile.ZipInfo(name.replace("/", "\\"))
            member.create_system = system
            archive.writestr(member, picture(index))
    train, test, notes, _ = read(path)
    assert (len(train.labels), len(test.labels), notes) == (10, 10, [])


def test_a_zip_without_an_encoding_is_read_as_utf_8_if_it_can_be(tmp_path: Path) -> None:
    """As that of macOS is; zipfile alone takes such names for those of DOS."""
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate([*classes("train/"), *classes("test/")]):
            archive.writestr(name.replace("ant", "a_nt"), picture(index))
    # "é" in UTF-8 has two bytes, and so no other length changes; the flag is not set.
    path.write_bytes(path.read_bytes().replace(b"a_nt", "ént".encode()).replace(b"bee", b"b\x82e"))
    train, *_ = read(path)
    assert train.classes == ("bée", "ént"), "in DOS, byte 82 is é"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_backslash_in_a_name_from_elsewhere_is_no_separator(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes(), "ant/back\\slash.png", "a\\b.txt")
    train, test, *_ = read(packed(root, suffix))
    assert train.classes == ("ant", "bee")
    assert len(train.labels) + len(test.labels) == 11


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "Testing")])
@pytest.mark.parametrize("prefix", ["", "data/"])
def test_the_folders_of_splits_go_by_other_names_too(
    tmp_path: Path, names: tuple[str, str], prefix: str, suffix: str
) -> None:
    root = write(tmp_path / "tree", *classes(f"{prefix}{names[0]}/", 4), *classes(f"{prefix}{names[1]}/", 3))
    train, test, notes, _ = read(packed(root, suffix))
    assert (len(train.labels), len(test.labels), notes) == (8, 6, [])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_split_that_is_a_lost_link_is_refused_and_not_made_of_the_other(
    tmp_path: Path, suffix: str
) -> None:
    root = write(tmp_path / "tree", *classes("data/train/"))
    (root / "data/test").symlink_to("../elsewhere")
    message = "'data/test' in SOURCE leads nowhere or out of it: replace it with the folder itself"
    assert refusal(packed(root, suffix)) == message


@pytest.mark.parametrize(
    "names",
    [
        [*classes(), *classes("train/", names=("steam", "diesel"))],
        [*classes(), "cow/0.png", *classes("cow/training/", names=("day", "night"))],
        [*classes("test/"), *classes("training_set/", 20)],
    ],
)
def test_a_split_folder_that_may_be_a_class_or_have_a_partner_is_asked_about(
    tmp_path: Path, names: list[str]
) -> None:
    message = refusal(write(tmp_path / "tree", *names))
    assert message.startswith("SOURCE holds several trees of classes, in ")


def test_images_without_labels_may_lie_beside_one_split(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *classes("train/"), "unlabeled/0.png", "unlabeled/day/1.png", "2.png")
    train, _, notes, _ = read(root)
    assert train.classes == ("ant", "bee")
    assert any(note.startswith("not used: images outside the class folders, 3 in all") for note in notes)


def test_classes_of_images_and_of_folders_of_images_are_classes_alike(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *classes("", 5, ("good",)), *classes("defect/", 5, ("dent", "scratch")))
    train, test, _, _ = read(root)
    assert train.classes == ("defect", "good")
    assert len(train.labels) + len(test.labels) == 15


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *classes("train/"), *classes("training/"), *classes("test/"))
    assert (
        refusal(root) == "SOURCE has several folders for train/, train, training: put all its images in one"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_splits_of_unknown_names_are_to_be_renamed_and_not_removed(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes("fit/"), *classes("exam/"))
    message = refusal(packed(root, suffix))
    assert (
        "several trees of classes, in exam, fit: if they are the splits, rename them to train and test"
        in message
    )
    assert "leave" not in message


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_validation_images_without_test_images_are_to_be_renamed(
    tmp_path: Path, suffix: str, name: str
) -> None:
    root = write(tmp_path / "tree", *classes("train/"), *classes(f"{name}/"))
    assert refusal(packed(root, suffix)) == (
        f"SOURCE has {name}/ but no test/: rename {name}/ to test/; or move {name}/ out of it, "
        "and a fifth of train/ is the test set"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tiny_imagenet_is_read_or_told_what_it_lacks(tmp_path: Path, suffix: str) -> None:
    root = write(
        tmp_path / "tree", *classes("data/train/", names=("n01/images", "n02/images")),
        "data/train/n01/n01_boxes.txt", "data/val/images/v0.png", "data/val/val_annotations.txt",
        "data/test/images/t0.png", "data/words.txt",
    )  # fmt: skip
    advice = "sort the images of val/ into test/<class>/ by 'data/val/val_annotations.txt', which is not read"
    assert refusal(packed(root, suffix)) == (
        "train/ and test/ of SOURCE have no class in common (n01, n02 in train/, images in test/): name "
        "their class folders alike; if the images of test/ have no labels, rename it to unlabeled/, "
        f"and {advice}"
    )
    (root / "data/test").rename(root / "data/unlabeled")
    assert refusal(packed(root, suffix)) == (
        f"SOURCE has val/ but no test/: {advice}; "
        "or move val/ out of it, and a fifth of train/ is the test set"
    )
    (root / "data/test/n01").mkdir(parents=True)
    (root / "data/val/images/v0.png").rename(root / "data/test/n01/v0.png")
    write(root, "data/test/n02/v1.png")
    train, test, notes, _ = read(packed(root, suffix))
    assert train.classes == ("n01", "n02")
    assert (len(train.labels), len(test.labels)) == (10, 2)
    assert (
        notes[1]
        == "images in subfolders of their class folders, 10 in all, e.g. 'data/train/n01/images/0.png'"
    )


def test_all_classes_that_a_split_lacks_are_named(tmp_path: Path) -> None:
    root = write(
        tmp_path / "tree",
        *classes("train/", names=("ant", "bee", "cat", "dog")),
        *classes("test/", names=("ant", "Bee")),
    )
    assert refusal(root) == (
        "no images of class 'Bee' in train/ of SOURCE, and none of 3 classes (bee, cat, dog) in test/ "
        "of SOURCE: add some to both splits"
    )


# --- Damaged images -----------------------------------------------------------------------------------------


def damage(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(picture(0)[:200])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_damaged_images_are_listed_at_once(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes(count=12))
    damage(root, "bee/3.png", "ant/5.png")
    message = refusal(packed(root, suffix))
    assert re.fullmatch(
        r"cannot decode 2 of 24 images: 'ant/5.png' \(.*\), 'bee/3.png' \(.*\): replace or remove them",
        message,
    )
    damage(root, *classes(count=6))
    message = refusal(packed(root, suffix))
    assert message.startswith("cannot decode 12 of 24 images: 'ant/0.png' (")
    assert message.endswith(" and 2 more: replace or remove them")
    assert message.count(".png") == 10


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_images_can_be_left_out(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "tree", *classes("train/", 6), *classes("test/", 4))
    whole = [part.images for part in read(root)[:2]]
    damage(root, "train/ant/2.png", "train/bee/2.png", "test/bee/3.png")
    source = packed(root, suffix)
    train, test, _, damaged = read(source)
    assert [text.split(" ")[0] for text in damaged] == [
        "'test/bee/3.png'",
        "'train/ant/2.png'",
        "'train/bee/2.png'",
    ]
    assert np.array_equal(train.images, np.delete(whole[0], [4, 5], 0))
    assert np.array_equal(test.images, np.delete(whole[1], [7], 0))
    assert train.labels.tolist() == [0, 1] * 5
    assert test.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    damage(root, *classes("test/", 4, ("bee",)))
    with pytest.raises(UserError, match=r"all test images of class 'bee' in .* are damaged: replace them"):
        read(packed(root, suffix))


def test_a_damaged_member_of_a_zip_archive_is_one_damaged_image(tmp_path: Path) -> None:
    path = packed(write(tmp_path / "tree", *classes()), ".zip")
    content = path.read_bytes()
    at = content.index(picture(7))  # stored as it is
    path.write_bytes(content[: at + 90] + b"damage" + content[at + 96 :])
    assert "'bee/2.png' (\"Bad CRC-32" in refusal(path)
    train, test, _, damaged = read(path)
    assert len(train.labels) + len(test.labels) == 9
    assert len(damaged) == 1


def test_a_truncated_archive_is_no_matter_of_single_images(tmp_path: Path) -> None:
    path = packed(write(tmp_path / "tree", *classes()), ".tar.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="damaged or incomplete"):
        read(path)


def test_folders_that_names_imply_count_as_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "tree", *(f"{index}/a/b/c/d/{index}.png" for index in range(10)))
    path = tmp_path / "tree.zip"
    with zipfile.ZipFile(path, "w") as archive:  # without members for the folders
        for file in root.rglob("*.png"):
            archive.write(file, file.relative_to(root))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 49)
    assert "unpacks to more than 49 members" in refusal(path)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 50)
    open_tree(path)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "tree", *classes())
    original = Path.open

    def opened(self: Path, *args: object, **options: object) -> object:
        if self.name == "3.png":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", opened)
    assert refusal(root).startswith(
        "cannot decode 2 of 10 images: 'ant/3.png' ('Permission denied'), 'bee/3.png'"
    )
    assert len(read(root)[3]) == 2


def test_what_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    for suffix in ("", ".tar"):
        source = packed(write(tmp_path / "tree", *classes(count=20)), suffix)

        def change(description: str, done: int, total: int, source: Path = source) -> None:
            if source.is_dir():
                (source / "bee/9.png").unlink(missing_ok=True)
            else:
                os.utime(source, (1, 1))

        with pytest.raises(UserError, match="changed while it was being read: try again"):
            read_image_tree(source, progress=change)


def test_the_fingerprint_covers_what_links_and_subfolders_give(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", *classes(), "ant/deep/x.png")
    (root / "ant/link.png").symlink_to("../store.bin")
    (root / "store.bin").write_bytes(picture(50))
    before = tree_fingerprint(root)
    assert tree_fingerprint(root) == before
    for name in ("store.bin", "ant/deep/x.png"):
        os.utime(root / name, (random.randrange(10**9),) * 2)
        assert tree_fingerprint(root) != before
        before = tree_fingerprint(root)
    assert is_image_tree(root)


def test_files_that_change_places_change_the_fingerprint(tmp_path: Path) -> None:
    """Also those of one size and date, as of bitmaps from an archive."""
    root = write(tmp_path / "tree", *classes())
    one, other = root / "ant/0.png", root / "bee/0.png"
    other.write_bytes(one.read_bytes()[::-1])
    for path in (one, other):
        os.utime(path, (1, 1))
    before = tree_fingerprint(root)
    aside = one.rename(root / "aside")
    other.rename(one)
    aside.rename(other)
    assert tree_fingerprint(root) != before
