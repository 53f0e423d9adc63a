"""The picture of corruptions: the right versions in the right places, unsmoothed, from the prepared set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.corruptions.generate import corrupt, generate_corrupted
from rsslcli.core.corruptions.names import CORRUPTIONS, GROUPS, SEVERITIES
from rsslcli.core.data.store import Dataset, Images, make_split
from rsslcli.core.pictures.corruptions import (
    draw_corruptions,
    generate_versions,
    prepared_versions,
    read_own_image,
)


def noise(*shape: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def dataset(folder: Path, seed: int = 0) -> Dataset:
    split = make_split(noise(6, 32, 32, 3, seed=seed), np.array([0, 1, 0, 1, 0, 1]), ("cat", "dog"))
    return Dataset("mine", folder, split, split)


def test_every_corruption_is_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(CORRUPTIONS)


@pytest.mark.parametrize(("size", "times"), [(32, 3), (64, 2), (224, 1)])
def test_each_version_stands_in_its_row_and_column_enlarged_by_whole_pixels(size: int, times: int) -> None:
    names = ("snow", "fog")
    image = noise(size, size, 3)
    versions = {name: noise(5, size, size, 3, seed=seed) for seed, name in enumerate(names, 1)}
    picture = np.asarray(draw_corruptions(image, versions, ["a line"]))
    cell = size * times

    def at(left: int, top: int) -> Images:
        return picture[top : top + cell, left : left + cell]

    def enlarged(pixels: Images) -> Images:
        return pixels.repeat(times, 0).repeat(times, 1)

    assert np.array_equal(at(24, 24), enlarged(image))
    top = 24 + cell + 24 + 34 + 10 + 34  # below the original, the severities, and the name of the group
    for row, name in enumerate(names):
        for column in range(5):
            shown = at(24 + 118 + 12 + column * (cell + 6), top + row * (cell + 6))
            assert np.array_equal(shown, enlarged(versions[name][column])), (name, column)
        label = picture[top + row * (cell + 6) :][:cell, 24 : 24 + 118]
        assert (label < 100).any(), "each row has a name"
    numbers = picture[24 + cell + 24 :][:34, 24 + 118 + 12 :]
    assert all((numbers[:, i * (cell + 6) :][:, :cell] < 150).any() for i in range(5)), "severities are named"


def test_the_prepared_set_is_shown_and_what_it_lacks_is_left_to_the_generator(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert prepared_versions(data, 2, ["contrast"]) == {}
    images, labels = data.test.images[:4], data.test.labels[:4]
    generate_corrupted(images, labels, data.corrupted_folder, corruptions=["gaussian_noise"], workers=1)
    found = prepared_versions(data, 2, ["contrast", "gaussian_noise"])
    assert list(found) == ["gaussian_noise"]
    for severity, version in zip(SEVERITIES, found["gaussian_noise"], strict=True):
        assert np.array_equal(version, corrupt(images, "gaussian_noise", severity)[2])
    assert prepared_versions(data, 5, ["gaussian_noise"]) == {}, "only four of the images are corrupted"

    notes: list[str] = []
    assert prepared_versions(dataset(tmp_path, seed=1), 2, ["gaussian_noise"], notes.append) == {}
    assert len(notes) == 1
    assert "made for other test images" in notes[0]


def test_the_same_image_gives_the_same_picture() -> None:
    image = noise(32, 32, 3)
    names = ["gaussian_noise", "contrast"]
    first, again = (draw_corruptions(image, generate_versions(image, names), []) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert np.array_equal(
        generate_versions(image, ["contrast"])["contrast"][4:], corrupt(image[None], "contrast", 5)
    )


@pytest.mark.parametrize(
    ("width", "height", "side"), [(300, 224, 224), (100, 64, 64), (90, 63, 32), (9, 9, 32)]
)
def test_an_own_image_is_read_in_the_largest_size_that_it_fills(
    tmp_path: Path, width: int, height: int, side: int
) -> None:
    Image.new("RGB", (width, height), "teal").save(tmp_path / "own.png")
    assert read_own_image(tmp_path / "own.png").shape == (side, side, 3)
