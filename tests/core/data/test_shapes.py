"""The drawn data set: the same everywhere, balanced, and with something to learn for every task."""

import hashlib

import numpy as np

from rsslcli.core.data.shapes import SHAPES, draw_shapes

#: A change here is a change of the pictures: raise `shapes.VERSION` with it.
DIGEST = "19ec8d3073f70c2303d111d464d03c6fa6edd31f7f2f00ec3d72a07dc17ff74f"


def test_recorded_checksum() -> None:
    images, labels, _ = draw_shapes(300, 0, "train")
    assert hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest() == DIGEST


def test_shapes_and_balance() -> None:
    images, labels, classes = draw_shapes(255, 1, "test")
    assert (images.shape, images.dtype) == ((255, 32, 32, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((255,), np.int64)
    assert classes == tuple(SHAPES)
    assert classes == tuple(sorted(classes))
    assert len(classes) == 10
    counts = np.bincount(labels)
    assert counts.max() - counts.min() <= 1


def test_seed_and_split_give_other_pictures() -> None:
    drawn = [draw_shapes(20, seed, split)[0] for seed, split in ((0, "train"), (1, "train"), (0, "test"))]
    assert np.array_equal(drawn[0], draw_shapes(20, 0, "train")[0])
    for index, images in enumerate(drawn):
        for other in drawn[index + 1 :]:
            assert not (images[:, None] == other).all((2, 3, 4)).any()


def test_pictures_have_an_upright_orientation_and_colors_with_meaning() -> None:
    images, _, _ = draw_shapes(500, 0, "train")
    top, bottom = images[:, :6].mean((1, 2)), images[:, -6:].mean((1, 2))
    lighter = top.mean(1) > bottom.mean(1)
    bluer = top[:, 2] - top[:, 0] > bottom[:, 2] - bottom[:, 0]
    assert lighter.mean() > 0.9
    assert bluer.mean() > 0.75


def test_pictures_use_the_range_without_saturating() -> None:
    images, _, _ = draw_shapes(500, 0, "train")
    assert 90 < images.mean() < 150
    assert images.std() > 40
    assert ((images == 0) | (images == 255)).mean() < 0.05
