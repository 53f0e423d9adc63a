"""Figure 1: the inputs that the tasks make of some images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rsslcli.core.data.augment import to_float
from rsslcli.core.data.store import Split, class_balanced_subset
from rsslcli.core.errors import UserError
from rsslcli.core.files import replacing
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.runtime import derive_seed, seeded_generator
from rsslcli.core.tasks import build_tasks
from rsslcli.core.tasks.base import Task

#: Side of a cell in pixels: every pixel of a 32×32 image becomes a square of 5, so it stays crisp.
CELL = 160
GAP = 12
MARGIN = 24
LABEL_HEIGHT = 56
FONT_SIZE = 21


def draw_tasks(split: Split, tasks: Sequence[str], *, rows: int = 5, seed: int = 0) -> Image.Image:
    """Draw Figure 1: a row per image; the columns are the original and the input of each task.

    Args:
        split: where the images come from.
        tasks: names of the tasks, in the order of the columns.
        rows: how many images, of different classes as far as there are.
        seed: chooses the images and makes the tasks' random choices.

    Returns:
        An RGB picture; the pixels of the images are enlarged, not smoothed.
    """
    if not 1 <= rows <= len(split.labels):
        raise UserError(f"{rows} images: expected 1 to {len(split.labels)}")
    built = build_tasks(tasks)
    originals = to_float(torch.from_numpy(split.images[_different_classes(split, rows, seed)]))
    random = BatchRandom(seeded_generator(torch.device("cpu"), seed, "figure"))
    columns = {"Original": originals}
    for task in built.values():
        columns[task.title] = _inputs(task, originals, random)

    width = 2 * MARGIN + len(columns) * CELL + (len(columns) - 1) * GAP
    height = 2 * MARGIN + LABEL_HEIGHT + rows * CELL + (rows - 1) * GAP
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(FONT_SIZE)
    for column, (title, images) in enumerate(columns.items()):
        left = MARGIN + column * (CELL + GAP)
        draw.multiline_text(
            (left + CELL / 2, MARGIN + LABEL_HEIGHT - GAP),
            _wrap(title, draw, font),
            fill="black",
            font=font,
            anchor="md",
            align="center",
            spacing=2,
        )
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for row, image in enumerate(pixels):
            enlarged = Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left, MARGIN + LABEL_HEIGHT + row * (CELL + GAP)))
    return picture


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with replacing(path) as file:
        picture.save(file, "PNG", optimize=True)


def _different_classes(split: Split, rows: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of `rows` images whose classes repeat as little as possible."""
    present = np.unique(split.labels)
    if rows >= len(present):
        return class_balanced_subset(split.labels, rows, seed)
    random = np.random.default_rng(derive_seed(seed, "figure images"))
    classes = random.choice(present, rows, replace=False)
    chosen = [random.choice(np.flatnonzero(split.labels == label)) for label in classes]
    return np.array(chosen, np.int64)


def _inputs(task: Task, originals: Tensor, random: BatchRandom) -> Tensor:
    """An input for every image, drawn again a few times where a random choice changed nothing."""
    rows = len(originals)
    shown = _one_view_each(task.transform(originals, random)[0], rows)
    for _ in range(8):
        same = (shown == originals).flatten(1).all(1)[:, None, None, None]
        shown = torch.where(same, _one_view_each(task.transform(originals, random)[0], rows), shown)
    return shown


def _one_view_each(inputs: Tensor, rows: int) -> Tensor:
    """Of tasks that make several views of an image, one: a different one from row to row, not the first."""
    views = len(inputs) // rows
    if views == 1:
        return inputs
    return torch.stack([inputs[(1 + row % (views - 1)) * rows + row] for row in range(rows)])


def _wrap(title: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Break a title into lines that are no wider than a cell."""
    lines: list[str] = []
    for word in title.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= CELL:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
