"""Figure 1, and predictions: the right pictures in the right places, unsmoothed, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor, nn

from rsslcli.core.config import Config
from rsslcli.core.data.store import Split, make_split
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.pictures.drawing import save_png
from rsslcli.core.pictures.tasks import CAPTION_HEIGHT, RIGHT, SIDE, WRONG, draw_tasks
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks import registry
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.registry import TASKS, build_tasks
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.weights.checkpoint import Checkpoint

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


def test_an_augmented_view_is_a_column_that_leaves_the_others_alone(split: Split) -> None:
    plain = draw_tasks(split, ("jigsaw",), rows=3)
    augmented = draw_tasks(split, ("jigsaw",), rows=3, augmented=True)
    assert originals(augmented, 3, split) == originals(plain, 3, split)
    for row in range(3):
        assert np.array_equal(small(augmented, row, 2), small(plain, row, 1))
    assert any(not np.array_equal(small(augmented, row, 1), small(augmented, row, 0)) for row in range(3))


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


# --- Predictions ----------------------------------------------------------------------------------------


def trained(
    tasks: tuple[str, ...], says: dict[str, list[float]], classes: tuple[str, ...] = CLASSES, **options: Any
) -> Checkpoint:
    """A checkpoint whose heads answer `says` (the last layer's biases) to every image."""
    config = Config(tasks=tasks, depth=10, width=1, task_options=options)
    model = MultiTaskNetwork(WideResNet(10, 1, len(classes)), build_tasks(tasks, options))
    for name, head in (("main", model.network.fc), *model.heads.items()):
        last = [layer for layer in head.modules() if hasattr(layer, "bias") and layer.bias is not None][-1]
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(says[name]))
    return Checkpoint(
        config=config, classes=classes, step=1, classifier=model.network.state_dict(),
        heads=model.heads.state_dict(), optimizer={}, lambdas=torch.zeros(len(tasks)), excluded=(),
        train_data="", validation_data="",
    )  # fmt: skip


def scores(count: int, best: int) -> list[float]:
    return [9.0 if index == best else 0.0 for index in range(count)]


def place(row: int, column: int, line: int, lines: int = 2) -> tuple[int, int]:
    """The corner of a cell of a picture with answers: line 0 is the input, 1 the answer, 2 the truth."""
    band = 2 * CELL + GAP + CAPTION_HEIGHT + (CELL + GAP) * (lines - 2)
    down = (0, CELL + GAP, 2 * CELL + GAP + CAPTION_HEIGHT)[line]
    return MARGIN + SIDE + column * (CELL + GAP), MARGIN + LABELS + row * (band + GAP) + down


def shown(picture: Image.Image, row: int, column: int, line: int, lines: int = 2) -> Array:
    left, top = place(row, column, line, lines)
    image = np.asarray(picture)[top : top + CELL, left : left + CELL]
    assert np.array_equal(image, image[::5, ::5].repeat(5, 0).repeat(5, 1))
    return image[::5, ::5]


def verdict(picture: Image.Image, row: int, column: int) -> str:
    """Whether a tick or a cross stands below an answer, by its color and by its shape."""
    left, top = place(row, column, 1)
    area = np.asarray(picture)[top + CELL : top + CELL + CAPTION_HEIGHT, left : left + 20]
    marks = {name: (area == ImageColor.getrgb(c)).all(2) for name, c in (("right", RIGHT), ("wrong", WRONG))}
    found = [name for name, mark in marks.items() if mark.any()]
    assert len(found) <= 1
    if not found:
        return ""
    rows, columns = np.nonzero(marks[found[0]])
    corner = ((rows < rows.min() + 4) & (columns < columns.min() + 4)).any()
    assert corner == (found[0] == "wrong"), "a cross reaches into the upper left corner, a tick does not"
    return found[0]


def test_answers_of_every_kind(split: Split) -> None:
    """A network that always says the same: 90°, the order GRB, one color; and the class dog."""
    names = ("rotation", "rgb", "jigsaw", "color", "inpaint", "ir")
    bins = scores(32, 20) + scores(32, 10)
    says = {
        "main": scores(4, 1), "rotation": scores(4, 1), "rgb": scores(6, 2), "jigsaw": scores(24, 23),
        "color": bins, "inpaint": [9.0, -9.0, -9.0], "ir": [0.0, 0.0, 0.0],
    }  # fmt: skip
    picture = draw_tasks(split, names, rows=4, checkpoint=trained(names, says), seed=3)
    assert picture.size == (
        2 * MARGIN + SIDE + 7 * CELL + 6 * GAP,
        2 * MARGIN + LABELS + 4 * (2 * CELL + GAP + CAPTION_HEIGHT) + 3 * GAP,
    )
    correct: dict[str, int] = {}
    for row in range(4):
        original = shown(picture, row, 0, 0)
        label = int(split.labels[[image.tobytes() for image in split.images].index(original.tobytes())])
        assert verdict(picture, row, 0) == ("right" if label == 1 else "wrong")
        for column, name in enumerate(names, 1):
            given, answer = (shown(picture, row, column, line) for line in (0, 1))
            if name == "rotation":
                assert np.array_equal(answer, np.rot90(given, -1))
            elif name == "rgb":
                assert np.array_equal(answer, given[..., [1, 0, 2]])
            elif name == "jigsaw":
                assert np.array_equal(answer[:16, :16], given[16:, 16:])
            elif name == "inpaint":
                assert (answer[12:20, 12:20] == (255, 0, 0)).all()
                assert np.array_equal(answer[:12], original[:12])
            elif name == "ir":
                assert (np.abs(answer.astype(int) - 127.5) < 1).all()
            else:
                assert (answer != given).any()
                tint = answer.astype(int).mean((0, 1))
                assert tint[2] > tint[0] > tint[1], "A and B above and below 0: violet"
            expected = "right" if np.array_equal(answer, original) else "wrong"
            assert verdict(picture, row, column) == ("" if name in ("color", "inpaint", "ir") else expected)
            correct[name] = correct.get(name, 0) + (expected == "right")
    assert correct["rotation"] == 2, "row 0 and row 3 are turned by 90°"
    edge = np.asarray(picture)[:, : MARGIN + SIDE]
    assert (edge[MARGIN + LABELS : MARGIN + LABELS + CELL] < 200).any(), "the rows have names"


class Negative(Task):
    """Outputs and targets are images that are not the originals."""

    def head(self, features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(features, 3 * 1024), nn.Unflatten(1, (3, 32, 32)), nn.Sigmoid())

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        return images.flip(2), 1 - images

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * nn.functional.mse_loss(outputs, targets)


class Guess(Negative):
    """Classes without names and pictures."""

    def head(self, features: int) -> nn.Module:
        return nn.Linear(features, 2)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        return images, random.integers(images, 2)


def test_a_task_of_ones_own_is_shown_without_a_word_from_it(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_registered", {"negative": Negative, "guess": Guess})
    names = ("negative", "guess")
    says = {"main": scores(4, 0), "negative": [0.0] * 3072, "guess": [3.0, 0.0]}
    picture = draw_tasks(split, names, rows=3, checkpoint=trained(names, says))
    for row in range(3):
        original = shown(picture, row, 0, 0, 3)
        assert np.array_equal(shown(picture, row, 1, 0, 3), original[::-1])
        assert (np.abs(shown(picture, row, 1, 1, 3).astype(int) - 127.5) < 1).all()
        assert np.array_equal(shown(picture, row, 1, 2, 3), 255 - original)
        left, top = place(row, 2, 1, 3)
        bars = np.asarray(picture)[top : top + CELL, left : left + CELL]
        assert (bars[32:42, 1:140] != 255).any(2).all(), "95% of the first bar is filled"
        assert (bars[84 + 2 : 92, 20:150] == 255).all(), "5% of the second one is"


def test_checkpoints_that_do_not_fit(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained(("rotation",), {"main": scores(4, 0), "rotation": scores(4, 0)})
    with pytest.raises(UserError, match=r"has no head for 'ir': it was trained with rotation$"):
        draw_tasks(split, ["ir"], checkpoint=checkpoint)
    with pytest.raises(UserError, match=r"without tasks$"):
        draw_tasks(split, ["ir"], checkpoint=trained((), {"main": scores(4, 0)}))
    with pytest.raises(UserError, match=r"has the classes 'cat', .* but 'these images' has 'a', 'b', "):
        draw_tasks(make([0, 1] * 9, ("a", "b", "c", "d")), ["rotation"], checkpoint=checkpoint)
    monkeypatch.setattr(type(build_tasks(["rotation"])["rotation"]), "head", lambda *_: nn.Linear(64, 5))
    with pytest.raises(UserError, match="heads do not fit the tasks defined here: size mismatch"):
        draw_tasks(split, ["rotation"], checkpoint=checkpoint)


def test_options_of_the_checkpoint_are_those_of_its_heads(split: Split) -> None:
    names = ("ir",)
    checkpoint = trained(
        names, {"main": scores(4, 0), "ir": [0.0] * 3}, ir={"hidden": True, "sigmoid": False}
    )
    assert (shown(draw_tasks(split, names, rows=1, checkpoint=checkpoint), 0, 1, 1) == 0).all()


def test_long_names_are_cut(split: Split) -> None:
    classes = tuple(f"{letter * 80} end" for letter in "wxyz")
    picture = draw_tasks(
        make([0, 1, 2, 3] * 6, classes), [], rows=4, checkpoint=trained((), {"main": scores(4, 0)}, classes)
    )
    assert (np.asarray(picture)[:, -MARGIN + 1 :] == 255).all()
