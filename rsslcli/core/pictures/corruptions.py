"""An image under every corruption at every severity, in one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rsslcli.core.corruptions.generate import corrupt
from rsslcli.core.corruptions.names import CORRUPTIONS, GROUPS, SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet, aligned, check_source, open_corrupted
from rsslcli.core.data.image_files import read_image_file
from rsslcli.core.data.store import SIZES, Dataset, Images
from rsslcli.core.errors import UserError
from rsslcli.core.pictures.drawing import GAP, MARGIN, Pen, cell_side
from rsslcli.core.progress import Progress, silent

#: The least side of a cell in pixels: each pixel of a 32×32 image becomes a crisp 3×3 square.
CELL = 96
#: The distance between the images of a group.
SPACE = 6
#: Room for the names of corruptions, at the left of their images.
LABELS = 118
#: Room above a group.
SEPARATION = 10
#: Room for the name of a group, and for the numbers of the severities.
HEADING = 34
LINE = 24
RULE = "#B8C4CE"
MUTED = "dimgray"


def prepared_versions(
    dataset: Dataset, index: int, names: Sequence[str], note: Callable[[str], None] = lambda text: None
) -> dict[str, Images]:
    """Read test image `index` from the prepared corrupted set of a data set.

    Args:
        dataset: the data set; no corrupted set needs to be prepared for it.
        index: the image in its test set.
        names: the corruptions wanted.
        note: called with one line if a set is there but cannot be used.

    Returns:
        By corruption, the image at severities 1 to 5, uint8 (5, S, S, 3). Corruptions that the set lacks are
        missing, all of them if it has no version of this image.
    """
    folder = dataset.corrupted_folder
    if not (folder / "labels.npy").is_file():
        return {}
    try:
        corrupted = open_corrupted(folder, dataset.name)
        check_source(corrupted, dataset)
    except UserError as error:
        note(f"the prepared corrupted set is not shown: {error}")
        return {}
    if index >= corrupted.images_per_cell or not aligned(corrupted, dataset.test):
        return {}
    return {name: _versions(corrupted, name, index) for name in names if name in corrupted.names}


def _versions(corrupted: CorruptedSet, name: str, index: int) -> Images:
    return np.stack([corrupted.cell(name, severity)[index] for severity in SEVERITIES])


def read_own_image(path: Path) -> Images:
    """Read an image file in the largest size that it fills among those for which there are corruptions.

    Returns:
        uint8 (S, S, 3) with S one of 32, 64 and 224; 32 for a smaller image.

    Raises:
        UserError: the file is missing, damaged, too large or not an image.
    """
    largest = SIZES[-1]
    image, original = read_image_file(path, largest)
    side = max((size for size in SIZES if size <= min(original)), default=SIZES[0])
    return image if side == largest else read_image_file(path, side)[0]


def generate_versions(image: Images, names: Sequence[str], progress: Progress = silent) -> dict[str, Images]:
    """Corrupt one image, uint8 (S, S, 3), as `prepared_versions` returns it; always the same."""
    found = {}
    for done, name in enumerate(names):
        progress(f"corrupting: {name}", done, len(names))
        found[name] = np.concatenate([corrupt(image[None], name, severity) for severity in SEVERITIES])
    progress("done", len(names), len(names))
    return found


def draw_corruptions(image: Images, versions: Mapping[str, Images], caption: Sequence[str]) -> Image.Image:
    """Draw an image and its corrupted versions: a row per corruption, a column per severity.

    The rows are sorted into the groups of the benchmark; several groups are divided over two columns of rows.

    Args:
        image: the original, uint8 (S, S, 3).
        versions: by corruption, uint8 (5, S, S, 3).
        caption: lines of text beside the original.

    Returns:
        An RGB picture; small images are enlarged, not smoothed, and none is reduced.
    """
    cell = cell_side(len(image), CELL)
    groups = {
        group: shown
        for group, names in GROUPS.items()
        if (shown := [name for name in CORRUPTIONS if name in names and name in versions])
    }
    panels = _divided(groups, cell)
    panel_width = LABELS + GAP + len(SEVERITIES) * (cell + SPACE) - SPACE
    top = MARGIN + max(cell, LINE * len(caption)) + MARGIN
    width = 2 * MARGIN + len(panels) * panel_width + (len(panels) - 1) * 2 * MARGIN
    height = top + HEADING + max(_height(panel, cell) for panel in panels) + MARGIN
    pen = Pen(width, height, cell)
    pen.image(MARGIN, MARGIN, image)
    beside = MARGIN + cell + GAP
    for number, line in enumerate(caption):
        pen.text(beside, MARGIN + number * LINE, line, width - beside - MARGIN)
    for number, panel in enumerate(panels):
        _draw_panel(pen, MARGIN + number * (panel_width + 2 * MARGIN), top, panel_width, panel, versions)
    return pen.picture


#: Names of corruptions by group.
_Groups = Mapping[str, Sequence[str]]


def _height(groups: _Groups, cell: int) -> int:
    return sum(SEPARATION + HEADING + len(names) * (cell + SPACE) for names in groups.values())


def _divided(groups: _Groups, cell: int) -> list[_Groups]:
    """The groups in two panels whose heights differ as little as possible; a single group in one."""
    names = list(groups)

    def parts(cut: int) -> list[_Groups]:
        return [{name: groups[name] for name in part} for part in (names[:cut], names[cut:])]

    cuts = [parts(cut) for cut in range(1, len(names))]
    return min(cuts, key=lambda pair: max(_height(each, cell) for each in pair), default=[groups])


def _draw_panel(
    pen: Pen, left: int, top: int, width: int, groups: _Groups, versions: Mapping[str, Images]
) -> None:
    """Draw the numbers of the severities, and below them the groups."""
    first = left + LABELS + GAP
    places = [first + number * (pen.cell + SPACE) for number in range(len(SEVERITIES))]
    pen.canvas.text((first - GAP, top), "severity", fill=MUTED, font=pen.small, anchor="ra")
    for severity, place in zip(SEVERITIES, places, strict=True):
        middle = (place + pen.cell / 2, top)
        pen.canvas.text(middle, str(severity), fill=MUTED, font=pen.small, anchor="ma")
    y = top + HEADING
    for group, names in groups.items():
        y += SEPARATION
        pen.canvas.line([(left, y - 6), (left + width - 1, y - 6)], fill=RULE, width=2)
        pen.canvas.text((left, y), group, fill="black", font=pen.large)
        y += HEADING
        for name in names:
            label = pen.wrap(name.replace("_", " "), LABELS, pen.small)
            beside = (first - GAP, y + pen.cell / 2)
            pen.canvas.multiline_text(
                beside,
                label,
                fill="black",
                font=pen.small,
                anchor="rm",
                align="right",
            )
            for place, version in zip(places, versions[name], strict=True):
                pen.image(place, y, version)
            y += pen.cell + SPACE
