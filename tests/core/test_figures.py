"""Figure 1: the right pictures in the right places, unsmoothed, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.data.store import Split, make_split
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.figures import draw_tasks, save_png
from rsslcli.core.tasks import TASKS

CLASSES = ("cat", "dog", "frog", "newt")
CELL, GAP, MARGIN, LABELS = 160, 12, 24, 56
Array = np.ndarray[Any, np.dtype[np.uint8]]


def make(labels: list[int], classes: tuple[str, ...] = CLASSES) -> Split:
    images = np.random.default_rng(1).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return make_split(images, np.array(labels), classes)


@pytest.fixture(scope="module")
def split() -> Split:
    return make([0, 1, 2, 3] * 6)


def cell(picture: Image.Image, row: int, column: int) -> Array:
    left, top = MARGIN + column * (CELL + GAP), MARGIN + LABELS + row * (CELL + GAP)
    return np.asarray(picture)[top : top + CELL, left : left + CELL]


def small(picture: Image.Image, row: int, column: int) -> Array:
    """The 32×32 image in a cell, which must be enlarged by whole pixels."""
    shown = cell(picture, row, column)
    image = shown[::5, ::5]
    assert np.array_equal(shown, image.repeat(5, 0).repeat(5, 1))
    return image


def originals(picture: Image.Image, rows: int, split: Split) -> list[int]:
    """Which images of the split stand in the first column."""
    places = {image.tobytes(): index for index, image in enumerate(split.images)}
    return [places[small(picture, row, 0).tobytes()] for row in range(rows)]


@pytest.mark.parametrize(("tasks", "rows"), [(tuple(TASKS), 5), (("jigsaw",), 1), ((), 2)])
def test_size_and_originals(tasks: tuple[str, ...], rows: int, split: Split) -> None:
    picture = draw_tasks(split, tasks, rows=rows)
    columns = 1 + len(tasks)
    assert picture.mode == "RGB"
    assert picture.size == (48 + 160 * columns + 12 * (columns - 1), 48 + 56 + 160 * rows + 12 * (rows - 1))
    shown = originals(picture, rows, split)
    assert len(set(shown)) == rows
    pixels = np.asarray(picture).copy()
    for row in range(rows):
        for column in range(columns):
            left, top = MARGIN + column * 172, MARGIN + LABELS + row * 172
            pixels[top : top + 160, left : left + 160] = 255
    assert (pixels[MARGIN + LABELS :] == 255).all(), "between the cells it is white"
    assert (pixels[:, : MARGIN - 4] == 255).all()
    for column in range(columns):
        label = pixels[: MARGIN + LABELS, MARGIN + column * 172 - GAP // 2 :][:, : CELL + GAP]
        assert (label == 0).any(), "every column has a title"
        assert (label[:, [0, -1]] == 255).all(), "which does not run into the next one"


def test_every_column_shows_its_task(split: Split) -> None:
    picture = draw_tasks(split, list(TASKS), rows=5, seed=2)
    column = {name: 1 + i for i, name in enumerate(TASKS)}
    for row in range(5):
        image = small(picture, row, 0)
        shown = {name: small(picture, row, column[name]) for name in TASKS}
        turns = [np.array_equal(shown["rotation"], np.rot90(image, k)) for k in range(4)]
        assert sum(turns) == 1
        assert not turns[0], "a turn that shows nothing"
        assert np.array_equal(shown["ir"], image)
        assert (np.ptp(shown["color"], axis=2) == 0).all()
        assert np.abs(shown["color"][..., 0] - image @ np.array([0.2989, 0.587, 0.114])).max() <= 0.51
        assert (shown["inpaint"][12:20, 12:20] == 255).all()
        outside = np.ones((32, 32), bool)
        outside[12:20, 12:20] = False
        assert np.array_equal(shown["inpaint"][outside], image[outside])
        assert shown["bir"].astype(float).std() < image.astype(float).std()
        assert np.array_equal(np.sort(shown["rgb"], axis=2), np.sort(image, axis=2))
        assert not np.array_equal(shown["rgb"], image)
        for y in (0, 16):
            for x in (0, 16):
                quarter = shown["jigsaw"][y : y + 16, x : x + 16]
                assert any(
                    np.array_equal(quarter, image[v : v + 16, u : u + 16]) for v in (0, 16) for u in (0, 16)
                )
    assert len({bytes(np.rot90(small(picture, row, 0)).tobytes()) for row in range(5)}) == 5


def test_it_is_the_same_every_time_and_another_with_another_seed(split: Split) -> None:
    first, again, other = (draw_tasks(split, ["rgb", "jigsaw"], rows=3, seed=seed) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("labels", "rows", "distinct"),
    [
        ([0, 1, 2, 3] * 5, 3, 3),
        ([0, 1, 2, 3] * 5, 4, 4),
        ([0, 1, 2, 3] * 5, 9, 4),
        ([1] * 9 + [3], 2, 2),
        ([1] * 5 + [3] * 5, 3, 2),  # fewer classes in the split than rows, more by name
        ([2] * 6, 5, 1),
        ([0, 1, 2, 3], 4, 4),
    ],
)
def test_classes_repeat_as_little_as_possible(labels: list[int], rows: int, distinct: int) -> None:
    split = make(labels)
    for seed in range(3):
        shown = originals(draw_tasks(split, ["rotation"], rows=rows, seed=seed), rows, split)
        assert len(set(shown)) == rows
        assert len({labels[index] for index in shown}) == distinct


@pytest.mark.parametrize("rows", [0, -1, 25, 10**9])
def test_too_many_or_no_rows(rows: int, split: Split) -> None:
    with pytest.raises(UserError, match=rf"^{rows} images: expected 1 to 24$"):
        draw_tasks(split, ["ir"], rows=rows)


def test_unknown_tasks(split: Split) -> None:
    with pytest.raises(UserError, match="did you mean 'rotation'"):
        draw_tasks(split, ["rotaton"])


def test_the_png_holds_the_picture(split: Split, tmp_path: Path) -> None:
    picture = draw_tasks(split, ["bir"], rows=2)
    save_png(picture, tmp_path / "new" / "figure.png")
    save_png(picture, tmp_path / "new" / "figure.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
    with Image.open(tmp_path / "new" / "figure.png") as read:
        assert read.format == "PNG"
        assert read.mode == "RGB"
        assert read.tobytes() == picture.tobytes()


def test_a_failing_write_leaves_the_old_file(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, path = draw_tasks(split, ["bir"], rows=1), tmp_path / "figure.png"
    path.write_bytes(b"old")

    def half(_: Image.Image, file: Any, *__: Any, **___: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(RsslError, match="No space left on device") as caught:
        save_png(picture, path)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
