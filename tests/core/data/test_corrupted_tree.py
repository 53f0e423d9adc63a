"""Corrupted sets of image files, in the layout of ImageNet-C."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.data.corrupted import aligned
from rsslcli.core.data.corrupted_source import is_corrupted_set
from rsslcli.core.data.corrupted_tree import corruption_folders
from rsslcli.core.data.decoding import ImageError
from rsslcli.core.data.image_tree import is_image_tree
from rsslcli.core.data.importing import import_corrupted
from rsslcli.core.data.prepare import prepare
from rsslcli.core.errors import UserError

CLASSES = ("n01", "n02", "n03")
PER_CLASS = 3
SIZE = 64


def pixels(*key: int) -> np.ndarray:
    return np.random.default_rng(key).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    for label, name in enumerate(CLASSES):
        for index in range(PER_CLASS):
            save(tmp_path / "clean" / "train" / name / f"{index}.png", pixels(9, label, index))
            save(tmp_path / "clean" / "test" / name / f"val-{index}.png", pixels(0, label, index))
    return tmp_path / "clean"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two corruptions, one of them below the folder of its group."""
    for code, folder in ((1, "fog"), (2, "noise/gaussian_noise")):
        for severity in range(1, 6):
            for label, name in enumerate(CLASSES):
                for index in range(PER_CLASS):
                    place = tmp_path / "c" / folder / str(severity) / name / f"val-{index}.png"
                    save(place, pixels(code, severity, label, index))
    return tmp_path / "c"


def test_every_image_comes_to_its_place(clean: Path, source: Path, tmp_path: Path) -> None:
    assert is_corrupted_set(source)
    assert not is_corrupted_set(clean)
    assert set(corruption_folders(source)) == {"fog", "gaussian_noise"}
    data = prepare("mine", tmp_path / "data", source=clean, size=SIZE).dataset
    prepared = prepare("mine", tmp_path / "data", source=source)
    assert (prepared.kind, prepared.changed) == ("folder of corrupted images", True)
    corrupted = prepared.corrupted
    assert corrupted is not None
    assert corrupted.names == ("gaussian_noise", "fog")
    assert corrupted.size == SIZE
    assert aligned(corrupted, data.test), "in the order of the test images"
    for position, label in enumerate(corrupted.labels):
        index = position // len(CLASSES)  # the first image of every class, then the second
        assert np.array_equal(data.test.images[position], pixels(0, label, index))
        for severity in range(1, 6):
            assert np.array_equal(
                corrupted.cell("fog", severity)[position], pixels(1, severity, label, index)
            )
    (source / "fog" / "2" / "n01" / "._val-0.png").touch()  # hidden, as in clean trees
    assert not prepare("mine", tmp_path / "data", source=source).changed, "compared, and the same"


def test_two_sets_in_one_folder_are_not_mixed(clean: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "two" / "mild")
    shutil.copytree(source / "fog", tmp_path / "two" / "severe" / "fog")
    prepare("mine", tmp_path / "data", source=clean, size=SIZE)
    with pytest.raises(
        UserError, match=r"holds several corrupted test sets, such as .*mild and .*severe: give"
    ):
        prepare("mine", tmp_path / "data", source=tmp_path / "two")
    assert not (tmp_path / "data" / "mine" / "corrupted").exists()


def test_a_misspelled_corruption_is_told(clean: Path, source: Path, tmp_path: Path) -> None:
    data = prepare("mine", tmp_path / "data", source=clean, size=SIZE).dataset
    shutil.copytree(source / "fog", source / "frosst")
    (source / "readme").mkdir()
    notes: list[str] = []
    corrupted, _ = import_corrupted(source, data.corrupted_folder, test=data.test, note=notes.append)
    assert (corrupted.names, corrupted.folder) == (("gaussian_noise", "fog"), data.corrupted_folder)
    told = f"not used: {source / 'frosst'}, which has the name of no corruption: should it be 'frost'?"
    assert told in notes
    assert not [text for text in notes if "readme" in text]


def test_a_limit_takes_images_evenly_from_the_classes(clean: Path, source: Path, tmp_path: Path) -> None:
    prepare("mine", tmp_path / "data", source=clean, size=SIZE)
    corrupted = prepare("mine", tmp_path / "data", source=source, limit=4).corrupted
    assert corrupted is not None
    assert corrupted.labels.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda c: shutil.rmtree(c / "fog" / "4"), "has no fog at severity 4: get it again"),
        (lambda c: (c / "fog" / "2" / "n03" / "val-1.png").unlink(), "'n03/val-1.png' is missing"),
        (
            lambda c: [path.unlink() for path in (c / "noise" / "gaussian_noise" / "1").rglob("*.png")],
            "gaussian_noise/1 has no images: get it again",
        ),
        (lambda c: [path.unlink() for path in c.rglob("*.png")], "gaussian_noise/1 has no images: get it"),
        (lambda c: save(c / "fog" / "5" / "n01" / "x.png", pixels(1)), "'n01/x.png' is there alone"),
        (
            lambda c: (c / "fog" / "3" / "n01" / "val-0.png").write_bytes(b"no image"),
            r"cannot decode image '.*fog/3/n01/val-0\.png' \(not an image\): get it again$",
        ),
        (
            lambda c: save(c / "fog" / "3" / "n01" / "val-0.png", pixels(1)[:32, :32]),
            r"val-0\.png' is 32x32 pixels, not 64x64 as in the data set: give corrupted images of that size",
        ),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    damage: object, match: str, clean: Path, source: Path, tmp_path: Path
) -> None:
    data = prepare("mine", tmp_path / "data", source=clean, size=SIZE).dataset
    damage(source)  # type: ignore[operator]
    with pytest.raises(UserError, match=match) as caught:
        import_corrupted(source, data.corrupted_folder, test=data.test)
    assert not list(data.corrupted_folder.rglob("*.npy"))
    assert not isinstance(caught.value, ImageError), "for which the command line offers to leave images out"


def test_other_classes_and_sizes_are_refused(clean: Path, source: Path, tmp_path: Path) -> None:
    small = prepare("small", tmp_path / "data", source=clean, size=32).dataset
    with pytest.raises(UserError, match="is 64x64 pixels, not 32x32"):
        import_corrupted(source, small.corrupted_folder, test=small.test)
    for split in ("train", "test"):
        (clean / split / "n02").rename(clean / split / "n04")
    other = prepare("other", tmp_path / "data", source=clean, size=SIZE).dataset
    with pytest.raises(UserError, match="has a class 'n02', which the data set lacks"):
        import_corrupted(source, other.corrupted_folder, test=other.test)


def test_photographs_of_weather_are_no_corrupted_set(tmp_path: Path) -> None:
    """Class folders `fog` and `snow` hold images, not severities with classes."""
    for name in ("fog", "snow"):
        save(tmp_path / "weather" / "train" / name / "1" / "a.png", pixels(1))
        save(tmp_path / "weather" / name / "b.png", pixels(2))
    assert not is_corrupted_set(tmp_path / "weather")
    assert is_image_tree(tmp_path / "weather")


def test_reading_in_threads_keeps_stderr_and_the_warnings(
    clean: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """TIFF files are read with stderr turned off, and every file without warnings."""
    for path in [*source.rglob("*.png")]:
        Image.open(path).save(path.with_suffix(".tif"))
        path.unlink()
    prepare("toy", tmp_path / "data", source=clean, size=SIZE)
    filters = list(warnings.filters)
    prepare("toy", tmp_path / "data", source=source)
    assert warnings.filters == filters
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"
