"""Tell complete JPEG files that lack only their end marker from truncated ones."""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_END_OF_IMAGE = 0xD9
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive
_SCAN = 0xDA
#: The next marker: within the data of a scan, FF 00 stands for FF, and D0 to D7 are restart markers.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_FILLERS = 16
_SECTOR = 512  # bytes of a disk that are written together, and are zeros until then
_STRIP = 64  # rows that are hashed at a time


def completed(data: bytes) -> bytes:
    """The file itself, but a JPEG file that lacks only its end marker gets one.

    Raises:
        OSError: it is a JPEG file that lacks more. Pillow does not notice that if other bytes follow, such as
            the zeros that an interrupted copy leaves.
    """
    if not data.startswith(_START) or data.endswith(_END):
        return data
    if any(marker == _END_OF_IMAGE for marker, _, _ in _segments(data)):
        return data  # which something follows
    whole = with_end_marker(data)
    if whole is None:
        raise OSError("truncated JPEG")
    return whole


def with_end_marker(data: bytes) -> bytes | None:
    """Complete a JPEG file that lacks only its end marker; None if it lacks more, or has one.

    A scan does not state its length. But bytes after the last bit that a decoder needs do not change the
    picture, while a decoder that lacks bits takes them from what follows. So nothing is missing if the
    picture is the same with several different continuations.
    """
    written = data.rstrip(b"\0")
    if len(data) - len(written) >= _SECTOR:  # fewer may belong to a scan
        data = written
    data = data.rstrip(b"\xff")  # half the end marker
    scan = _last_scan(data) if data.startswith(_START) else None
    if scan is None:
        return None
    restarts = _RESTART.findall(data, scan)
    expected = (restarts[-1][0] + 1) % 8 if restarts else 0
    completed = _continued(data, 0, expected)
    pixels = _digest(completed)
    same = all(_digest(_continued(data, filler, expected)) == pixels for filler in range(1, _FILLERS))
    return completed if pixels is not None and same else None


def _last_scan(data: bytes) -> int | None:
    """The start of the last scan's data; None unless it ends the file and all coefficients are present."""
    missing: set[tuple[int, int]] = {(0, 0)}  # components and coefficients whose last bit has not been coded
    scan = None
    for marker, segment, place in _segments(data):
        scan = place if marker == _SCAN else None
        if marker in _FRAMES:
            missing = {(component, index) for component in segment[6::3] for index in range(64)}
        elif marker == _SCAN and len(segment) > 3 and segment[-1] & 15 == 0:
            covered = range(segment[-3], segment[-2] + 1)
            missing -= {(component, index) for component in segment[1:-3:2] for index in covered}
    return None if missing else scan


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The markers of a JPEG file, each with its segment and the place after that."""
    place = len(_START)
    while found := _MARKER.search(data, place):
        place = found.end()
        segment = data[place + 2 : place + int.from_bytes(data[place : place + 2], "big")]
        place += 2 + len(segment)
        yield found[1][0], segment, place


def _continued(data: bytes, number: int, expected: int) -> bytes:
    """A JPEG file followed by one of several fillers and by the end marker.

    The fillers differ in their first four bits, so no short code is a prefix of all of them. A decoder of a
    file cut before a restart marker waits for the `expected` one before it takes any bits.
    """
    filler = bytes([number << 4]) + hashlib.shake_128(bytes([number])).digest(63).replace(b"\xff", b"\xfe")
    return data + filler + bytes([0xFF, 0xD0 + expected]) + filler + _END


def _digest(data: bytes) -> bytes | None:
    """A hash of the pixels of a JPEG file; None if it does not decode."""
    digest = hashlib.sha256()
    with suppress(OSError), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        for top in range(0, image.height, _STRIP):
            digest.update(image.crop((0, top, image.width, min(top + _STRIP, image.height))).tobytes())
        return digest.digest()
    return None
