"""JPEG files without an end marker: read where nothing else is missing, refused where anything is."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.data.decoding import ImageError, decode
from rsslcli.core.data.jpeg import with_end_marker

VARIANTS: dict[str, dict[str, object]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 1},
    "few restart markers": {"restart_marker_rows": 1},
    "progressive with restart markers": {"progressive": True, "restart_marker_blocks": 2},
    "full chroma": {"subsampling": 0},
}


def pictures() -> Iterator[Image.Image]:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    yield Image.fromarray(noise)
    yield Image.fromarray(noise[:3, :4]).resize((47, 33), Image.Resampling.BICUBIC)
    yield Image.fromarray(noise[..., 0]).convert("L")
    yield Image.new("RGB", (64, 64), "white")  # whose scan is but a few bytes of zeros


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_jpeg_without_its_end_marker_is_read(variant: str) -> None:
    for picture in pictures():
        whole = encoded(picture, **VARIANTS[variant])
        expected, _ = decode(io.BytesIO(whole), "x", resize=True)
        for missing in (1, 2):
            cut = whole[:-missing]
            completed = with_end_marker(cut)
            assert completed is not None
            assert np.array_equal(pixels(completed), pixels(whole))
            found, size = decode(io.BytesIO(cut), "x", resize=True)
            assert np.array_equal(found, expected)
            assert size == picture.size


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_jpeg_that_lacks_more_is_never_read_as_another_picture(variant: str) -> None:
    """Cut at every third byte: what is accepted, such as a lost row beyond the border, changes no pixel."""
    refused = 0
    for picture in pictures():
        whole = encoded(picture, **VARIANTS[variant])
        expected = pixels(whole)
        for length in range(2, len(whole) - 2, 3):
            completed = with_end_marker(whole[:length])
            refused += completed is None
            assert completed is None or np.array_equal(pixels(completed), expected)
    assert refused > 500


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_jpeg_that_an_interrupted_copy_left_with_zeros_is_refused(variant: str, kept: float) -> None:
    whole = encoded(next(pictures()).resize((200, 160)), quality=97, **VARIANTS[variant])
    start = int(kept * len(whole))
    assert len(whole) - start > 600
    cut = whole[:start] + bytes(len(whole) - start)
    with pytest.raises(ImageError, match=r"cannot decode image x \('truncated JPEG'\)"):
        decode(io.BytesIO(cut), "x", resize=True)
    found, _ = decode(io.BytesIO(whole[:-2] + bytes(1000)), "x", resize=True)
    expected, _ = decode(io.BytesIO(whole + b"a second picture, say"), "x", resize=True)
    assert np.array_equal(found, expected)


def test_a_progressive_jpeg_cut_between_two_scans_is_refused() -> None:
    whole = encoded(next(pictures()), progressive=True)
    starts = [index for index in range(len(whole)) if whole[index : index + 2] == b"\xff\xda"]
    assert len(starts) > 3
    for start in starts[1:]:
        tables = whole.rindex(b"\xff\xc4", 0, start)  # of this scan
        for length in (start, tables):
            assert with_end_marker(whole[:length]) is None
            with pytest.raises(ImageError, match=r"cannot decode image x .*truncated"):
                decode(io.BytesIO(whole[:length]), "x", resize=True)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xc0\0\x03\x08", b"\x89PNG", bytes(99)]
)
def test_what_is_no_jpeg_or_has_no_image_is_left_alone(data: bytes) -> None:
    assert with_end_marker(data) is None
    assert with_end_marker(encoded(next(pictures()))) is None
