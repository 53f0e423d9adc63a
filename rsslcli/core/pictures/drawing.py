"""Cells with images and labels in a picture, as the pictures of tasks and of corruptions share them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rsslcli.core.data.store import Images
from rsslcli.core.files import replacing

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP = 12
MARGIN = 24
FONT_SIZE = 21
CAPTION_SIZE = 18


def cell_side(size: int, least: int) -> int:
    """The side of a cell of at least `least` pixels that enlarges an image of `size` by whole pixels."""
    return size * -(-least // size)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, atomically."""
    with replacing(path) as file:
        picture.save(file, "PNG", optimize=True)


class Pen:
    """Draws into a white picture: images in square cells, and text."""

    def __init__(self, width: int, height: int, cell: int) -> None:
        self.picture = Image.new("RGB", (width, height), "white")
        self.canvas = ImageDraw.Draw(self.picture)
        self.cell = cell
        self.large, self.small = (ImageFont.load_default(size) for size in (FONT_SIZE, CAPTION_SIZE))

    def image(self, left: int, top: int, pixels: Images) -> None:
        """An image, uint8 (H, W, 3) or (H, W, 1), scaled to a cell, with its corner at (left, top)."""
        # Whole multiples stay crisp; other sizes would lose lines of pixels.
        method = Image.Resampling.LANCZOS if self.cell % len(pixels) else Image.Resampling.NEAREST
        scaled = Image.fromarray(pixels).resize((self.cell, self.cell), method)
        self.picture.paste(scaled, (left, top))

    def title(self, left: int, bottom: int, title: str) -> None:
        """The title of a column, wrapped into lines."""
        self.canvas.multiline_text(
            (left + self.cell / 2, bottom),
            self.wrap(title, self.cell, self.large),
            fill="black",
            font=self.large,
            anchor="md",
            align="center",
            spacing=2,
        )

    def text(self, left: float, top: float, text: str, room: float) -> None:
        """A line of small text, truncated to the width `room`."""
        shown = text
        while shown and self.canvas.textlength(shown, font=self.small) > room:
            text = text[:-1]
            shown = f"{text.rstrip()}…" if text else ""
        self.canvas.text((left, top), shown, fill="black", font=self.small)

    def wrap(self, text: str, room: float, font: Font) -> str:
        """Break text into lines that are no wider than `room` if no word is."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.canvas.textlength(longer, font=font) <= room:
                lines[-1] = longer
            else:
                lines.append(word)
        return "\n".join(lines)
