"""Figure 1: the inputs that tasks make from images, and the answers of a trained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rsslcli.core.data.augment import to_float
from rsslcli.core.data.augmix import augmix
from rsslcli.core.data.store import Images, Split, check_image_size, class_balanced_subset
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.class_names import match_classes
from rsslcli.core.pictures.drawing import GAP, MARGIN, Pen, cell_side
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import derive_seed, seeded_generator
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.guard import outputs_of, picture_of, transformed
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.weights.checkpoint import Checkpoint
from rsslcli.core.weights.trained_tasks import load_heads

#: The least side of a cell in pixels: each pixel of a 32×32 image becomes a crisp 5×5 square.
CELL = 160
LABEL_HEIGHT = 56
#: Where predictions are shown: room below a row of cells for two lines, and left of it for its name.
CAPTION_HEIGHT = 52
SIDE = 26
#: Right and wrong: two colors that the color-blind tell apart too, beside the tick and the cross.
RIGHT = "#0072B2"
WRONG = "#D55E00"
BAR = "#C4D7E4"


def draw_tasks(
    split: Split,
    tasks: Sequence[str],
    *,
    rows: int = 5,
    seed: int = 0,
    augmented: bool = False,
    checkpoint: Checkpoint | None = None,
    dataset: str = "these images",
    classes_by_position: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Image.Image:
    """Draw Figure 1: a row per image; the columns are the original and the input of each task.

    With a checkpoint, a second row shows the answers of its network: the likeliest classes below the
    original, and its picture or likeliest answers below each input. If a task's target is a picture other
    than the original, a third row shows it.

    Args:
        split: the source of the images.
        tasks: names of the tasks, in the order of the columns.
        rows: number of images, of different classes as far as possible.
        seed: seed of the choice of images and of the tasks' random choices.
        augmented: add a column with an AugMix view of each image.
        checkpoint: a network trained with these tasks on these classes, in any order.
        dataset, classes_by_position, note: as for `match_classes`.

    Returns:
        An RGB picture; the pixels of the images are enlarged, not smoothed.

    Raises:
        UserError: too many rows, an unknown task, or a checkpoint that has no such task or other classes.
    """
    if not 1 <= rows <= len(split.labels):
        raise UserError(f"{rows} images: expected 1 to {len(split.labels)}")
    options = checkpoint.config.task_options if checkpoint else {}
    built = build_tasks(tasks, {name: options[name] for name in tasks if name in options})
    if checkpoint is not None:
        check_image_size(checkpoint.image_size, split.size, dataset)
    # The heads were trained with these weights; there is no moving average of heads.
    network = None if checkpoint is None else replace(checkpoint, average={}).network()
    heads = None if checkpoint is None else load_heads(checkpoint, built)
    chosen = _different_classes(split, rows, seed)
    originals = to_float(torch.from_numpy(split.images[chosen]))
    random = BatchRandom(seeded_generator(torch.device("cpu"), seed, "figure"))
    columns = [_Column("Original", originals)]
    if augmented:
        source = BatchRandom(seeded_generator(torch.device("cpu"), seed, "figure augmix"))
        columns.append(_Column("AugMix", augmix(originals, source)))
    if checkpoint is not None and network is not None:
        classifier = checkpoint.network()  # what an evaluation uses
        known = checkpoint.classes
        count = len(known)
        score_of = match_classes(
            known, count, split.classes, dataset, by_position=classes_by_position, note=note
        )
        labels = torch.tensor(score_of)[torch.from_numpy(split.labels[chosen])]
        for column in columns:
            with torch.inference_mode():
                scores = classifier(column.images)
            column.answer(scores, labels, split.classes if classes_by_position else known)
    for name, task in built.items():
        inputs, targets = _examples(name, task, originals, random)
        column = _Column(task.title or name, inputs)
        if network is not None and heads is not None:
            with torch.inference_mode():
                outputs = outputs_of(name, task, heads[name], network.features(inputs))
                column.picture = picture_of(name, task, inputs, outputs)
                column.answer(outputs, targets, task.answers)
                if targets.shape == originals.shape and not torch.equal(targets, originals):
                    column.truth = targets
        columns.append(column)
    return _draw(columns, answered=network is not None)


@dataclass
class _Column:
    """The content of a column, with one row per image."""

    title: str
    images: Tensor  #: float (rows, 3, H, W)
    #: the network's answers as images of the same shape; None if they are not images
    picture: Tensor | None = None
    truth: Tensor | None = None  #: the target images, if they are not the originals
    #: for classification, the probability of each answer: float (rows, answers)
    likely: Tensor | None = None
    right: Tensor | None = None  #: the index of the right answer, int64 (rows,)
    names: Sequence[str] = ()  #: the names of the answers

    def answer(self, outputs: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Store the outputs if they are scores of classes, and the targets their indices; ignore others."""
        classes = outputs.shape[1] if outputs.dim() == 2 else 0
        if classes < 2 or targets.dim() != 1 or targets.is_floating_point():
            return
        if int(targets.min()) >= 0 and int(targets.max()) < classes:
            self.likely = outputs.softmax(1)
            self.right = targets
            self.names = names if len(names) == outputs.shape[1] else list(map(str, range(outputs.shape[1])))


def _different_classes(split: Split, rows: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of `rows` images whose classes repeat as little as possible."""
    present = np.unique(split.labels)
    if rows >= len(present):
        return class_balanced_subset(split.labels, rows, seed)
    random = np.random.default_rng(derive_seed(seed, "figure images"))
    classes = random.choice(present, rows, replace=False)
    chosen = [random.choice(np.flatnonzero(split.labels == label)) for label in classes]
    return np.array(chosen, np.int64)


def _examples(name: str, task: Task, originals: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
    """An input and a target per image; redrawn up to 8 times if the random choice left the image as it is."""
    rows = len(originals)
    inputs, targets = (_one_view_each(x, rows) for x in transformed(name, task, originals, random))
    for _ in range(8):
        same = (inputs == originals).flatten(1).all(1)
        drawn = [_one_view_each(x, rows) for x in transformed(name, task, originals, random)]
        inputs, targets = (
            torch.where(same.view(-1, *[1] * (old.dim() - 1)), new, old)
            for old, new in zip((inputs, targets), drawn, strict=True)
        )
    return inputs, targets


def _one_view_each(views: Tensor, rows: int) -> Tensor:
    """Pick one view per image if a task makes several: never the first, and a different one in each row."""
    count = len(views) // rows
    if count == 1:
        return views
    return torch.stack([views[(1 + row % (count - 1)) * rows + row] for row in range(rows)])


def _draw(columns: Sequence[_Column], *, answered: bool) -> Image.Image:
    """Draw the columns: for each image a row of inputs and, if `answered`, the answers to them."""
    rows = len(columns[0].images)
    cell = cell_side(columns[0].images.shape[-1], CELL)
    offsets = {"": 0}
    band = cell
    if answered:
        offsets = {"input": 0, "answer": cell + GAP}
        band = 2 * cell + GAP + CAPTION_HEIGHT
        if any(column.truth is not None for column in columns):
            offsets["truth"] = band
            band += cell + GAP
    side = SIDE if answered else 0
    width = 2 * MARGIN + side + len(columns) * cell + (len(columns) - 1) * GAP
    height = 2 * MARGIN + LABEL_HEIGHT + rows * band + (rows - 1) * GAP
    pen = _Pen(width, height, cell)
    for row in range(rows):
        top = MARGIN + LABEL_HEIGHT + row * (band + GAP)
        for name, offset in offsets.items():
            pen.side(MARGIN - GAP // 2, top + offset, name)
        for index, column in enumerate(columns):
            left = MARGIN + side + index * (cell + GAP)
            if row == 0:
                pen.title(left, top - GAP, column.title)
            pen.image(left, top, _pixels(column.images[row]))
            if column.picture is not None:
                pen.image(left, top + offsets["answer"], _pixels(column.picture[row]))
            if column.likely is not None and column.right is not None:
                likely = column.likely[row]
                right = int(column.right[row])
                below = top + offsets["answer"]
                if column.picture is None:
                    pen.bars(left, below, likely, column.names)
                pen.verdict(left, below + cell, column.names, int(likely.argmax()), right)
            if column.truth is not None:
                pen.image(left, top + offsets["truth"], _pixels(column.truth[row]))
    return pen.picture


class _Pen(Pen):
    """Also draws answers in cells, and the names of rows of cells."""

    def side(self, left: int, top: int, name: str) -> None:
        """The name of a row of cells, written upwards at its left."""
        if not name:
            return
        strip = Image.new("RGB", (self.cell, SIDE), "white")
        ImageDraw.Draw(strip).text(
            (self.cell / 2, SIDE / 2), name, fill="dimgray", font=self.small, anchor="mm"
        )
        self.picture.paste(strip.transpose(Image.Transpose.ROTATE_90), (left, top))

    def verdict(self, left: int, top: int, names: Sequence[str], said: int, right: int) -> None:
        """The network's answer below a cell, with a tick, or with a cross and the right answer."""
        correct = said == right
        x = left + 2
        y = top + 8
        size = 14
        tick = [(x, y + 7), (x + 5, y + 12), (x + size, y + 1)]
        cross = [[(x, y), (x + 12, y + 12)], [(x, y + 12), (x + 12, y)]]
        for line in [tick] if correct else cross:
            self.canvas.line(line, fill=RIGHT if correct else WRONG, width=3, joint="curve")
        self.text(left + size + 9, top + 5, names[said], self.cell - size - 9)
        if not correct:
            self.text(left + size + 9, top + 27, f"truth: {names[right]}", self.cell - size - 9)

    def bars(self, left: int, top: int, likely: Tensor, names: Sequence[str]) -> None:
        """The likeliest answers in place of an image, each with a bar for its probability."""
        for index, (share, answer) in enumerate(zip(*likely.topk(min(3, len(names))), strict=True)):
            y = top + 8 + 52 * index
            percent = f"{100 * float(share):.0f}%"
            room = self.cell - 8 - self.canvas.textlength(percent, font=self.small)
            self.text(left, y, names[int(answer)], room)
            self.canvas.text((left + self.cell, y), percent, fill="black", font=self.small, anchor="ra")
            frame = (left, y + 24, left + self.cell - 1, y + 34)
            self.canvas.rectangle(
                (*frame[:2], left + round((self.cell - 1) * float(share)), frame[3]), fill=BAR
            )
            self.canvas.rectangle(frame, outline="dimgray")


def _pixels(image: Tensor) -> Images:
    """A float image (3, H, W) or, in gray, (1, H, W), as uint8 (H, W, 3) or (H, W, 1)."""
    pixels: Images = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels
