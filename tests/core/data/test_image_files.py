"""Images that a person names, as files, folders or archives, are those that `prepare-data` would read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.data.image_files import ImageFiles, find_images
from rsslcli.core.data.image_tree import read_image_tree
from rsslcli.core.errors import UserError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 50), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def read(found: ImageFiles, batch: int = 2) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The pixels by name, and why the others are left out."""
    skipped: dict[str, str] = {}
    pixels: dict[str, np.ndarray] = {}
    for images, arrays in found.read(32, batch, skipped.__setitem__):
        assert 1 <= len(images) == len(arrays) <= batch
        pixels |= {image.name: array for image, array in zip(images, arrays, strict=True)}
    return pixels, skipped


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of several formats and sizes in class folders, and what is none."""
    for index in range(4):
        picture(tmp_path / "photos" / "ant" / f"{index}.png", index)
        picture(
            tmp_path / "photos" / "bee" / f"{index}.JPG", 10 + index, (32, 32) if index % 2 else (90, 300)
        )
    picture(tmp_path / "photos" / "bee" / "deep" / "gray.png", 20, mode="L")
    (tmp_path / "photos" / "bee" / "list.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", ["", ".tar", ".zip"])
def test_the_pixels_are_those_that_are_prepared(photos: Path, suffix: str) -> None:
    source = photos
    if suffix:
        source = Path(shutil.make_archive(str(photos), suffix[1:], photos))
    found = find_images([source])
    pixels, skipped = read(found)
    train, test = read_image_tree(photos)
    prepared = {
        str(source / file): image
        for split in (train, test)
        for file, image in zip(split.files, split.images, strict=True)
    }
    assert pixels.keys() == prepared.keys()
    assert all((pixels[name] == prepared[name]).all() for name in prepared)
    assert not skipped
    assert found.notes == ["not used: files of other formats (.txt), 1 in all, e.g. 'bee/list.txt'"]
    assert {image.folders for image in found.images} == {("ant",), ("bee",), ("bee", "deep")}


def test_files_are_read_in_the_order_in_which_they_are_named(photos: Path, tmp_path: Path) -> None:
    odd = shutil.copy(photos / "ant" / "0.png", tmp_path / "no extension")
    paths = [
        photos / "bee" / "1.JPG",
        odd,
        photos / "ant",
        photos / "bee" / "0.JPG",
        photos / "bee" / "1.JPG",
    ]
    names = [image.name for image in find_images(paths).images]
    assert names == [*map(str, paths[:2]), *(f"{photos}/ant/{i}.png" for i in range(4)), *map(str, paths[3:])]
    pixels, _ = read(find_images([photos / "ant" / "0.png", odd]))
    first, second = pixels.values()
    assert (first == second).all()


def test_unusable_images_are_skipped_with_the_reason(photos: Path) -> None:
    (photos / "ant" / "0.png").write_bytes(b"text")
    (photos / "ant" / "1.png").write_bytes((photos / "ant" / "1.png").read_bytes()[:300])
    found = find_images([photos])
    (photos / "ant" / "2.png").unlink()
    pixels, skipped = read(found, batch=100)
    names = [f"{photos}/ant/{index}.png" for index in range(3)]
    assert list(skipped) == names
    assert (skipped[names[0]], skipped[names[2]]) == ("not an image", "no such file")
    assert len(pixels) == 6


def test_the_limits_of_the_decoder_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = picture(tmp_path / "bomb.png", size=(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    assert read(find_images([bomb]))[1] == {str(bomb): "too many pixels"}


def test_links_to_one_image_are_images_of_their_own(photos: Path) -> None:
    (photos / "ant" / "link.png").symlink_to(photos / "bee" / "0.JPG")
    archive = Path(shutil.make_archive(str(photos), "tar", photos))
    (photos / "ant" / "link.png").unlink()
    (photos / "ant" / "link.png").symlink_to("../bee/0.JPG")
    inside = Path(shutil.make_archive(f"{photos}-inside", "tar", photos))
    assert [note[:15] for note in find_images([archive]).notes] == ["not used: links", "not used: files"]
    pixels, _ = read(find_images([inside]))
    assert (pixels[f"{inside}/ant/link.png"] == pixels[f"{inside}/bee/0.JPG"]).all()


def test_a_changed_archive_is_an_error(photos: Path) -> None:
    archive = Path(shutil.make_archive(str(photos), "tar", photos))
    found = find_images([archive])
    os.utime(archive, (1, 1))
    with pytest.raises(UserError, match=r"photos\.tar changed while it was being read"):
        read(found)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "1.HEIC").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("none.png", "no such file or folder: .*none.png"),
        ("pipe.png", "pipe.png is neither a file nor a folder"),
        (
            "raw",
            r"no images in .*raw: found only \.HEIC files, e\.g\. '1\.HEIC': convert them to JPEG or PNG",
        ),
    ):
        with pytest.raises(UserError, match=message):
            find_images([tmp_path / name])
