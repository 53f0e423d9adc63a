"""Decode untrusted image files of any format, mode and size to squares, by default 32x32 pixels."""

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from rsslcli.core.data.jpeg import completed
from rsslcli.core.data.store import DEFAULT_SIZE, Images
from rsslcli.core.errors import UserError
from rsslcli.core.files import quietly

MAX_FILE_BYTES = 64 * 2**20  # of an image file; an uncompressed 20-megapixel photo fits
_NEAR = 4  # larger images are averaged down to about this many times the side before resampling
#: Raster formats that Pillow decodes by itself; PostScript, for example, would run another program.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
#: Held by the thread that has turned stderr off.
_STDERR = threading.Lock()
# Pillow logs warnings about damaged images; without a handler they would reach the terminal.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class ImageError(UserError):
    """An unusable image: damaged, too large, or not an image; `reason` says which in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode(
    file: IO[bytes], name: str, *, resize: bool, side: int = DEFAULT_SIZE
) -> tuple[Images, tuple[int, int]]:
    """Decode an image to upright RGB, with transparency over white.

    A JPEG file that lacks only its end marker is accepted.

    Args:
        file: the open file, in any common raster format.
        name: the image's name in messages.
        resize: scale an image of another size (see `_scaled`); otherwise refuse it.
        side: the height and width of the result, in pixels.

    Returns:
        The image, uint8 (side, side, 3), and the width and height it had.

    Raises:
        ImageError: it is damaged, too large or not an image.
        UserError: it has another size, and `resize` is false.
    """
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        reason = f"larger than {MAX_FILE_BYTES >> 20} MiB"
        raise ImageError(f"image {name} is {reason}: remove it, or save it smaller", reason)
    try:
        with quietly():  # warnings about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image, size = _pixels(completed(data), resize, side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = "too many pixels"
        raise ImageError(f"image {name} has {reason}: remove it, or save it smaller", reason) from None
    except MemoryError:  # which says nothing about the image
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else shown(str(error))
        message = f"cannot decode image {name} ({reason}): replace or remove it"
        raise ImageError(message, reason) from error
    if image is None:
        raise UserError(
            f"image {name} is {size[0]}x{size[1]} pixels, not {side}x{side}: resize it, or let it be resized"
        )
    return image, size


def _pixels(data: bytes, resize: bool, side: int) -> tuple[Images | None, tuple[int, int]]:
    """The image in a file and its original size; None for the image if its size is to be refused."""
    with Image.open(io.BytesIO(data), formats=_formats()) as opened:
        size = opened.size
        if resize or size == (side, side):
            if resize:
                opened.draft(None, (_NEAR * side,) * 2)  # decodes a JPEG directly at a fraction of its size
            with _muted_libtiff(opened):
                opened.load()
                if opened.format == "ICO":  # its directory may lie about its images
                    size = opened.size
                if opened.mode.startswith("I") and _is_inverted(opened):
                    raise ValueError("16-bit pixels whose 0 is white")
                turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
                image = ImageOps.exif_transpose(opened) if turned else opened
                if image.size == (side, side):
                    return np.asarray(_to_rgb(image)), size
                if resize:
                    return np.asarray(_scaled(image, side)), size
    return None, size


def _is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF file, which Pillow heeds for 8 bits per pixel, but not for 16."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _scaled(image: Image.Image, side: int) -> Image.Image:
    """The center square of an image, scaled to RGB of `side` x `side` pixels.

    It is converted strip by strip and averaged over blocks of pixels, which limits memory for any mode and
    leaves at least four times the pixels per side for Lanczos resampling.
    """
    length = min(image.size)
    left, top = ((each - length) // 2 for each in image.size)
    block = max(1, length // (_NEAR * side))
    small = Image.new("RGB", (-(-length // block),) * 2)
    for start in range(0, length, 16 * block):
        end = min(start + 16 * block, length)
        strip = _to_rgb(image.crop((left, top + start, left + length, top + end)))
        small.paste(strip.reduce(block), (0, start // block))
    box = (0, 0, length / block, length / block)
    return small.resize((side, side), Image.Resampling.LANCZOS, box=box)


@contextmanager
def _muted_libtiff(image: Image.Image) -> Iterator[None]:
    """Silence libtiff, which writes messages about damaged images straight to the stderr descriptor."""
    if image.format != "TIFF":
        yield
        return
    with _STDERR:  # which is the whole process's
        kept = None
        with suppress(OSError):  # stderr is closed
            kept = os.dup(2)
        try:
            if kept is not None:
                with Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            if kept is not None:
                os.dup2(kept, 2)
                os.close(kept)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel; convert() would clip to 8
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit pixels outside 0 to 65535 have no known range")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name in _FORMATS)


@cache
def extensions() -> frozenset[str]:
    """The extensions of image files, in lower case, such as ".png"."""
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in _formats())


def shown(text: str) -> str:
    """Untrusted text for a one-line message: quoted, control characters escaped, length limited."""
    return repr(text if len(text) <= 120 else text[:117] + "...")
