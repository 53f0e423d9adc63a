"""Importing a corrupted set by `rssl prepare-data --source`, as a person does it."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from helpers import Here


@pytest.fixture
def published(home: Path) -> Path:
    """A folder with the folder `C` of two corruptions of the data set `mine`; `second` has none yet."""
    without = shutil.ignore_patterns("corrupted")
    for folder in (home / "data" / "second", home / "outer"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / "data" / "mine", home / "data" / "second", ignore=without)
    (home / "outer" / "C").mkdir(parents=True)
    for name in ("fog", "snow", "labels"):
        shutil.copy(home / "data" / "mine" / "corrupted" / f"{name}.npy", home / "outer" / "C")
    return home / "outer"


COMMAND = "prepare-data --dataset second --source"


@pytest.mark.parametrize("form", ["outer/C", "outer", "C.tar", "C.tar.gz", "C.zip"])
def test_a_corrupted_set_is_imported_in_every_form_and_its_classes_are_shown(
    home: Path, here: Here, published: Path, form: str
) -> None:
    kind = {"C.tar": "tar", "C.tar.gz": "gztar", "C.zip": "zip"}.get(form)
    if kind:
        shutil.make_archive("C", kind, published, "C")
    for done in ("prepared", "already prepared"):
        code, out, err = here(f"{COMMAND} {form}")
        assert (code, out.splitlines()[0].startswith(f"second {done} in")) == (0, True), err
        assert "2 corruptions of 40 images at 5 severities in data/second/corrupted" in out
        classes = sorted(path.name for path in (home / "images" / "train").iterdir())
        expected = ", ".join(f"{number} = {name!r}" for number, name in enumerate(classes))
        assert f"note: labels of {form}: {expected}; the test images agree\n" in err
    here.succeed(f"{COMMAND} {form} --corruptions download")


def test_classes_that_sort_in_another_order_are_refused_and_the_set_that_is_there_stays(
    home: Path, here: Here, published: Path
) -> None:
    for split in ("train", "test"):
        for name, path in zip("jihgfedcba", sorted((home / "images" / split).iterdir()), strict=True):
            shutil.copytree(path, home / "renamed" / split / name)
    command = "prepare-data --dataset renamed --source"
    here.succeed(f"{command} renamed --corruptions generate --only fog")
    before = {path: path.read_bytes() for path in (home / "data" / "renamed" / "corrupted").iterdir()}
    here.refuse(f"{command} outer", "label 0, class 'a' of the data set, are pictures of class 'j': rename")
    here.refuse(f"{command} outer --corruptions download", "outer does not number the classes as the data")
    after = {path: path.read_bytes() for path in (home / "data" / "renamed" / "corrupted").iterdir()}
    assert after == before


def test_a_set_to_import_is_not_generated_too(home: Path, here: Here, published: Path) -> None:
    shutil.copytree(home / "data" / "mine" / "corrupted", home / "data" / "second" / "corrupted")
    before = sorted(path.name for path in (home / "data" / "second" / "corrupted").iterdir())
    here.refuse(
        f"{COMMAND} outer --corruptions generate", "is a corrupted test set.* leave out --corruptions"
    )
    assert sorted(path.name for path in (home / "data" / "second" / "corrupted").iterdir()) == before


def test_a_compressed_archive_of_images_is_still_one_of_images(
    home: Path, here: Here, published: Path
) -> None:
    with tarfile.open(home / "images.tar.gz", "w:gz") as archive:
        archive.add(home / "images", "images")
        archive.add(published, "images/C")
    out = here.succeed("prepare-data --dataset archived --source images.tar.gz")
    assert "(image archive): 160 training and 40 test images" in out


def test_an_imported_set_of_other_test_images_is_to_be_imported_again(
    home: Path, here: Here, published: Path
) -> None:
    shutil.copytree(home / "images", home / "changing")
    command = "prepare-data --dataset changing --source"
    here.succeed(f"{command} changing")
    here.succeed(f"{command} outer")
    next((home / "changing" / "test").rglob("*.png")).unlink()
    code, out, err = here(f"{command} changing")
    assert code == 0
    mend = "rssl prepare-data --dataset changing --source PATH"
    assert f"are of other test images: prepare them again with `{mend}`\n" in err
    assert err.endswith(f"next: {mend}\n")
    assert "--corruptions generate" not in out + err
    here.succeed(f"{command} outer")  # its pictures show the images that are left
