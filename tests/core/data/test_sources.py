"""Readers of image trees and of the official archives, against friendly and hostile input."""

import gzip
import hashlib
import io
import logging
import pickle
import sys
import tarfile
import urllib.error
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from rsslcli.core.data import archives, cifar, decoding, listing
from rsslcli.core.data.cifar import official_name, read_cifar
from rsslcli.core.data.decoding import ImageError, decode
from rsslcli.core.data.fetching import Archive, fetch
from rsslcli.core.data.image_tree import is_image_tree, read_image_tree
from rsslcli.core.data.store import Arrays
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.progress import silent

REAL = Path(__file__).parents[4] / "shared" / "data" / "cifar10-images.tar.gz"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tree(prefix: str = "") -> dict[str, bytes]:
    """Two classes, three training images and two test images each, seeded in the order of reading."""
    return {prefix + name: content for name, content in _tree()}


@cache
def _tree() -> list[tuple[str, bytes]]:
    return [
        (f"{split}/{name}/{index:03}.png", encoded(picture(label * count + index)))
        for split, count in (("train", 3), ("test", 2))
        for label, name in enumerate(("ant", "bee"))
        for index in range(count)
    ]


def as_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def as_tar(path: Path, files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as archive:
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def read(source: Path, limit: int | None = None) -> tuple[Arrays, Arrays]:
    return read_image_tree(source, limit=limit, resize=False)


def assert_is_tree(result: tuple[Arrays, Arrays]) -> None:
    for arrays, count in zip(result, (3, 2), strict=True):
        assert arrays.classes == ("ant", "bee")
        assert arrays.labels.tolist() == [0, 1] * count
        assert (arrays.labels.dtype, arrays.images.dtype) == (np.int64, np.uint8)
        seeds = [label * count + index for index in range(count) for label in range(2)]
        assert np.array_equal(arrays.images, [picture(seed) for seed in seeds])


def refused(source: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(source)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("prefix", ["", "data/", "./", "./data/"])
@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip"])
def test_folder_and_archives_read_alike(tmp_path: Path, prefix: str, suffix: str) -> None:
    pack = {"": as_folder, ".zip": as_zip}.get(suffix, as_tar)
    assert_is_tree(read(pack(tmp_path / f"tree{suffix}", tree(prefix))))


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(sorted(tree())), gzip=st.booleans())
def test_order_in_the_archive_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], gzip: bool
) -> None:
    path = tmp_path_factory.mktemp("order") / ("tree.tgz" if gzip else "tree.tar")
    files = tree()
    assert_is_tree(read(as_tar(path, {name: files[name] for name in order})))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_is_one_line_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix, pack = data.draw(st.sampled_from([("tar", as_tar), ("tar.gz", as_tar), ("zip", as_zip)]))
    path = pack(tmp_path_factory.mktemp("damage") / f"tree.{suffix}", tree())
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    message = "harmless"
    try:
        read(path)
    except UserError as error:
        message = str(error)
    assert message.isprintable()


def test_truncated_archives(tmp_path: Path) -> None:
    for suffix in ("tar", "tar.gz"):
        path = as_tar(tmp_path / f"tree.{suffix}", tree())
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 7])
        refused(path, "cannot read .* damaged or incomplete")


def test_a_tar_cut_between_two_members_is_not_complete(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "tree.tar", tree())
    content = path.read_bytes()
    for cut in range(512, len(content), 512):
        if content[cut : cut + 6] == b"train/":
            path.write_bytes(content[:cut])
            refused(path, "cut short: no end of the archive .* damaged or incomplete")


def test_a_zip_without_its_directory_is_damaged(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "tree.zip", tree())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"no directory at the end of the zip.*damaged or incomplete"):
        is_image_tree(path)


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    sheet = as_zip(tmp_path / "notes.xlsx", {"sheet.xml": b""}).read_bytes()
    assert_is_tree(read(as_tar(tmp_path / "tree.tar", tree() | {"zz/notes.xlsx": sheet})))


def test_damaged_header_does_not_end_the_archive(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "tree.tar", tree() | {"train/ant/9.png": encoded(picture(9))})
    content = bytearray(path.read_bytes())
    content[content.index(b"train/ant/9.png")] ^= 1
    path.write_bytes(content)
    refused(path, "damaged header")


def special(name: str, kind: bytes, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


def test_hostile_members_are_passed_over_and_nothing_is_written(tmp_path: Path) -> None:
    hostile = (
        special("train/ant/link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("train/ant/hard.png", tarfile.LNKTYPE, "train/ant/000.png"),
        special("train/ant/device.png", tarfile.CHRTYPE),
        special("train/ant/pipe.png", tarfile.FIFOTYPE),
        special("/train/ant/absolute.png", tarfile.REGTYPE, size=9),
        special("../train/ant/up.png", tarfile.REGTYPE, size=9),
        special("train/ant/../../../up.png", tarfile.REGTYPE, size=9),
        special("train/../train/ant/up.png", tarfile.REGTYPE, size=9),
        special("train/ant/.hidden.png", tarfile.REGTYPE, size=9),
        special("train/.git/x.png", tarfile.REGTYPE, size=9),
        special("train/ant/notes.txt", tarfile.REGTYPE, size=9),
        special("train/loose.png", tarfile.REGTYPE, size=9),
        special("validation/ant/x.png", tarfile.REGTYPE, size=9),
        special("a/b/train/ant/x.png", tarfile.REGTYPE, size=9),
    )
    path = as_tar(tmp_path / "tree.tar", tree(), hostile)
    assert_is_tree(read(path))
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_endless_header(tmp_path: Path, kind: bytes) -> None:
    path = as_tar(tmp_path / "t.tar.gz", tree(), (special("name", kind, size=2**21),))
    refused(path, "header of 2097152 bytes")


def test_endless_header_while_the_kind_of_a_source_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tarfile.is_tarfile, for one, reads the whole of the first header into memory."""
    path = as_tar(tmp_path / "t.tar.gz", tree(), (special("name", b"L", size=2**21),))
    large: list[int] = []
    original = gzip.GzipFile.read

    def reading(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        large.extend([size] if size is None or not 0 <= size <= 2**20 else [])
        return original(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", reading)
    assert not is_image_tree(path)
    assert official_name(path) is None
    assert not large


@pytest.mark.parametrize("size", [-512, -1024, -(2**40)])
@pytest.mark.parametrize("pax", [False, True])
def test_a_size_below_zero_does_not_lead_in_circles(tmp_path: Path, size: int, pax: bool) -> None:
    member = special("x", tarfile.REGTYPE, size=0 if pax else size)
    if pax:
        member.pax_headers = {"size": str(size)}
    header = member.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)
    path = as_tar(tmp_path / "t.tar", tree())
    path.write_bytes(path.read_bytes()[:1024] + header + path.read_bytes()[1024:])
    refused(path, "damaged or incomplete")


def test_archives_that_unpack_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = {"train/ant/zeros.txt": bytes(2**21)}
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 2**20)
    for name, pack in (("t.tar.gz", as_tar), ("t.tar.xz", as_tar), ("t.zip", as_zip)):
        path = pack(tmp_path / name, tree() | zeros)
        assert path.stat().st_size < 2**16
        refused(path, "unpacks to more than .* members or 0.000976562 GiB: prepare a part of it")
    claimed = special("train/ant/huge.txt", tarfile.REGTYPE)
    claimed.size = 2**40  # of which nothing is there: it is not looked for
    path = tmp_path / "claimed.tar.gz"
    sparse = special("train/ant/sparse.txt", tarfile.REGTYPE)
    sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**21)}
    for member in (claimed, sparse):
        path.write_bytes(gzip.compress(member.tobuf() + bytes(1024)))
        refused(path, "unpacks to more than")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 9)
    for name, pack in (("u.tar.gz", as_tar), ("u.zip", as_zip)):
        refused(pack(tmp_path / name, tree()), "unpacks to more than 9 members")


def test_links_in_a_zip_archive_are_passed_over(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "tree.zip", tree())
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("train/ant/link.png")
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    assert_is_tree(read(path))


def test_names_in_a_zip_archive_that_do_not_decode(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "tree.zip", tree() | {"train/ant/é.png": b"x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    refused(path, "damaged or incomplete")


def test_last_of_duplicate_members_counts(tmp_path: Path) -> None:
    path = tmp_path / "tree.tar"
    as_tar(path, {"train/ant/000.png": encoded(picture(77)), **{f"./{k}": v for k, v in tree().items()}})
    assert_is_tree(read(path))


def test_names_are_escaped_in_messages(tmp_path: Path) -> None:
    for name in ("train/ant/\x1b[31m\n.png", "train/ant/\udcff.png", "train/ant/" + "x" * 200 + ".png"):
        refused(
            as_tar(tmp_path / "tree.tar", tree() | {name: b"no image"}), "cannot decode image 'train/ant/"
        )
    evil = {name.replace("ant", "a\nnt"): content for name, content in tree().items()}
    refused(as_tar(tmp_path / "tree.tar", evil), r"class named 'a\\nnt'")
    for part in ("\x1b[31m", "\u202e", "\udcff", "a\x9bb"):
        evil = {name.replace("ant", part): content for name, content in tree().items()}
        refused(as_tar(tmp_path / "tree.tar", evil), "rename it to printable characters")
    bees = {name.replace("bee", "🐝 bee"): content for name, content in tree().items()}
    assert read(as_tar(tmp_path / "tree.tar", bees))[0].classes == ("ant", "🐝 bee")


def test_files_on_disk_with_strange_names(tmp_path: Path) -> None:
    for name in ("\x1b[31m.png", "a\nb.png", "\udcff.png", "🐝.png"):
        folder = as_folder(
            tmp_path / f"{len(list(tmp_path.iterdir()))}", tree() | {f"train/ant/{name}": b"x"}
        )
        refused(folder, "cannot decode image 'train/ant/")
        as_folder(folder, {f"train/ant/{name}": encoded(picture(0))})
        assert len(read(folder)[0].labels) == 7


def test_wrong_size_names_the_image_and_its_size(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "t.tar", tree() | {"train/bee/x.png": encoded(np.zeros((48, 33, 3), np.uint8))})
    refused(path, "image 'train/bee/x.png' is 33x48 pixels, not 32x32: resize it, or let it be resized")


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bytearray(encoded(Image.new("1", (32, 32))))
    bomb[16:24] = (20000).to_bytes(4, "big") * 2  # its width and height
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    path = as_tar(tmp_path / "t.tar", tree() | {"train/bee/x.png": bytes(bomb)})
    refused(path, "'train/bee/x.png' has too many pixels")
    with pytest.raises(UserError, match="has too many pixels: remove it, or save it smaller"):
        read_image_tree(path)
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 2**20)
    large = encoded(picture(0)) + bytes(2**20)
    refused(as_tar(tmp_path / "t.tar.gz", tree() | {"train/bee/x.png": large}), "larger than 1 MiB")
    refused(as_zip(tmp_path / "t.zip", tree() | {"train/bee/x.png": large}), "larger than 1 MiB")
    monkeypatch.setattr(listing, "MAX_IMAGES", 5)
    refused(as_tar(tmp_path / "t.tar", tree()), "more than 5 images")


def test_an_icon_that_lies_about_its_size(tmp_path: Path) -> None:
    icon = bytearray(encoded(Image.new("RGB", (64, 64)), "ICO", sizes=[(64, 64)]))
    icon[6:8] = b"\x20\x20"
    refused(as_folder(tmp_path / "t", tree() | {"test/ant/x.ico": bytes(icon)}), "64x64 pixels")


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_deflate"])
def test_nothing_is_printed_about_a_damaged_image(
    tmp_path: Path, compression: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """libtiff prints its complaints by itself, and Pillow logs some."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # which are pytest's
    good = encoded(picture(0), "TIFF", compression=compression)
    many = good.replace(b"\x15\x01\3\0\1\0\0\0\3\0", b"\x15\x01\3\0\1\0\0\0\3\xdd")  # samples of a pixel
    refused(as_folder(tmp_path / "t", tree() | {"test/ant/x.tiff": many}), "not an image")
    for place in range(8, len(good), 40):
        content = good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :]
        with suppress(UserError):
            decoding.decode(io.BytesIO(content), "x.tiff", resize=True)
    print("still there", file=sys.stderr)
    assert capfd.readouterr() == ("", "still there\n")


@pytest.mark.parametrize(
    "content", [b"", b"text", encoded(picture(0))[:-900], encoded(picture(0), "JPEG")[:500]]
)
def test_images_that_do_not_decode(tmp_path: Path, content: bytes) -> None:
    refused(
        as_folder(tmp_path / "t", tree() | {"test/ant/x.png": content}),
        "cannot decode image 'test/ant/x.png'",
    )


def test_postscript_is_never_run(tmp_path: Path) -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n"
    refused(as_folder(tmp_path / "t", tree() | {"test/ant/x.png": program}), "not an image")
    assert_is_tree(read(as_folder(tmp_path / "u", tree() | {"test/ant/x.eps": program})))


def test_classes_must_agree_and_have_images(tmp_path: Path) -> None:
    refused(
        as_tar(tmp_path / "a.tar", tree() | {"train/cow/1.png": encoded(picture(0))}),
        "no images of class 'cow' in test/",
    )
    refused(
        as_tar(tmp_path / "b.tar", tree(), (special("test/cow", tarfile.DIRTYPE),)), "class 'cow' in train/"
    )
    folder = as_folder(tmp_path / "c", tree())
    (folder / "train" / "cow").mkdir()
    refused(folder, "class 'cow' in train/")
    refused(as_tar(tmp_path / "d.tar", {"readme.txt": b""}), "no folders of images in .*: expected train/")
    refused(
        as_tar(tmp_path / "g.tar", tree() | {"train/cow/1.heic": b""}), "no images of class 'cow' in train/"
    )
    bees = {name: content for name, content in tree().items() if "bee" in name}
    refused(as_tar(tmp_path / "h.tar", bees), "only one class, 'bee': a classifier needs at least two")
    refused(as_tar(tmp_path / "e.tar", tree("x/") | tree("y/")), "several trees")
    refused(as_folder(tmp_path / "f", tree("x/") | tree("y/")), "several trees")


def gradient() -> np.ndarray:
    return np.broadcast_to(np.linspace(0, 65535, 32), (32, 32)).astype(np.uint16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (lambda: Image.fromarray(picture(1)[..., 0]), picture(1)[..., :1].repeat(3, 2)),
        (lambda: Image.fromarray(gradient()), (gradient() >> 8)[..., None].repeat(3, 2)),
        (lambda: Image.fromarray(picture(1)[..., 0] > 99), (picture(1)[..., :1] > 99).repeat(3, 2) * 255),
        (lambda: Image.fromarray(picture(1) // 128 * 255).quantize(8), picture(1) // 128 * 255),
        (
            lambda: Image.merge(
                "RGBA", [*Image.fromarray(picture(1)).split(), Image.new("L", (32, 32), 255)]
            ),
            picture(1),
        ),
        (lambda: Image.new("RGBA", (32, 32), (9, 9, 9, 0)), np.full((32, 32, 3), 255)),
        (lambda: Image.new("LA", (32, 32), (0, 0)), np.full((32, 32, 3), 255)),
    ],
    ids=["gray", "16 bit", "1 bit", "palette", "opaque", "transparent", "gray and transparent"],
)
def test_image_modes(tmp_path: Path, image: Callable[[], Image.Image], expected: np.ndarray) -> None:
    files = tree() | {"test/ant/000.png": encoded(image())}
    _, test = read(as_folder(tmp_path / "t", files))
    assert np.array_equal(test.images[0], expected)


def test_other_formats_frames_and_orientation(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    half = Image.fromarray(np.repeat(np.uint8([255, 0]), 16)[:, None, None].repeat(32, 1).repeat(3, 2))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    files = tree() | {
        "test/ant/1.gif": encoded(red, "GIF", save_all=True, append_images=[blue]),
        "test/ant/2.bmp": encoded(red, "BMP"),
        "test/ant/3.tiff": encoded(red, "TIFF"),
        "test/ant/4.webp": encoded(red, "WEBP", lossless=True),
        "test/ant/5.JPG": encoded(red.convert("CMYK"), "JPEG", quality=100),
        "test/ant/6.ppm": encoded(red, "PPM"),
        "test/ant/7.jpeg": encoded(half, "JPEG", exif=exif),
    }
    _, test = read(as_folder(tmp_path / "t", files))
    ants = test.images[test.labels == 0]
    for index in range(6):
        assert np.abs(ants[2 + index] - np.array([255.0, 0, 0])).max() < 4
    assert ants[8][:12].max() < 20
    assert ants[8][20:].min() > 235
    refused(
        as_folder(tmp_path / "u", tree() | {"test/ant/f.tiff": encoded(Image.new("F", (32, 32)), "TIFF")}),
        "floating-point",
    )


@pytest.mark.parametrize("size", [32, 50])
@pytest.mark.parametrize("value", [65_536, -1])
def test_32_bit_pixels_beyond_16_bits_are_refused_not_clipped(size: int, value: int) -> None:
    pixels = np.full((size, size), 40_000, np.int32)
    fits, _ = decoding.decode(io.BytesIO(encoded(Image.fromarray(pixels), "TIFF")), "name", resize=True)
    assert (fits == 40_000 >> 8).all()
    pixels[size // 2, size // 2] = value
    with pytest.raises(UserError, match="outside 0 to 65535 have no known range"):
        decoding.decode(io.BytesIO(encoded(Image.fromarray(pixels), "TIFF")), "name", resize=True)


def photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Sky above ground, with a red disk a quarter as wide as the center square, in its middle."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = min(size) / 8
    pixels = np.where((y < height / 2)[..., None], [90, 150, 230], [60, 140, 40]).astype(np.uint8)
    pixels[np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) < radius] = [200, 20, 30]
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    return image.quantize(8) if mode == "P" else image.convert(mode)


PHOTOS: dict[str, bytes] = {
    "gray.png": encoded(photo((70, 50), "L")),
    "large.jpg": encoded(photo((1600, 1200)), "JPEG", quality=95),
    "cmyk.jpg": encoded(photo((300, 400), "CMYK"), "JPEG", quality=95),
    "palette.gif": encoded(photo((500, 300), "P"), "GIF"),
    "large palette.png": encoded(photo((700, 900), "P")),
    "alpha.png": encoded(photo((45, 300), "RGBA")),
    "16 bit.png": encoded(photo((400, 600), "I;16")),
    "1 bit.png": encoded(photo((64, 64), "L").point(lambda value: 255 * (value > 110), "1")),
    "small.webp": encoded(photo((20, 28)), "WEBP", lossless=True),
    "odd.tiff": encoded(photo((333, 257)), "TIFF"),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_every_mode_is_resized_to_the_same_picture(tmp_path: Path, name: str) -> None:
    """Whatever the format, mode and shape, the disc stays round, in the middle, and as wide as a quarter."""
    notes: list[str] = []
    files = tree() | {f"test/ant/{name}": PHOTOS[name]}
    _, test = read_image_tree(as_folder(tmp_path / "t", files), note=notes.append)
    (image,) = (each for each in test.images if not any(np.array_equal(each, picture(s)) for s in range(4)))
    gray = any(word in name for word in ("gray", "bit"))
    expected = np.asarray(photo((960, 960), "L" if gray else "RGB").convert("RGB").reduce(30)).astype(int)
    if "1 bit" in name:
        expected = (expected > 110) * 255
    difference = np.abs(image - expected)
    y, x = np.mgrid[:32, :32] - 15.5
    edges = (np.abs(np.hypot(x, y) - 4) < 2) | (np.abs(y) < 2)  # which resampling softens
    assert difference[~edges].max() < 12
    assert difference.mean() < 4
    assert np.array_equal(image[..., 0], image[..., 2]) == gray
    with Image.open(io.BytesIO(PHOTOS[name])) as opened:
        size = f"{opened.width}x{opened.height}"
    assert notes == [f"1 of 11 images resized to 32x32, the center square of each: they had {size} pixels"]


def test_transparency_is_white_and_orientation_kept_in_large_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    sideways = photo((900, 600)).transpose(Image.Transpose.ROTATE_90)
    clear = photo((600, 600), "RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((600, 600)))  # the sky is clear
    palette = photo((600, 600), "P")
    white = palette.getpixel((0, 0))
    files = tree() | {
        "test/ant/1.jpg": encoded(sideways, "JPEG", quality=95, exif=exif),
        "test/ant/2.png": encoded(clear),
        "test/ant/3.png": encoded(palette, transparency=white),
    }
    _, test = read_image_tree(as_folder(tmp_path / "t", files))
    turned, gradient, cut_out = test.images[test.labels == 0][2:].astype(int)
    assert np.abs(turned[:14] - [90, 150, 230])[:, :8].max() < 10
    assert gradient[0].min() > 245
    assert np.abs(gradient[31] - [60, 140, 40]).max() < 10
    assert cut_out[0].min() == 255
    assert np.abs(cut_out[31] - [60, 140, 40]).max() < 10


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(["RGB", "L", "P", "LA", "RGBA", "1", "CMYK", "I;16"]),
)
def test_any_size_keeps_the_mean_of_the_centre_square(width: int, height: int, mode: str) -> None:
    """No strip is lost or counted twice, and extreme shapes do not fail."""
    gray = np.random.default_rng(width * height).integers(0, 256, (height, width), dtype=np.uint8)
    gray[: height // 2] //= 2
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) << 8)
    else:
        image = Image.fromarray((gray > 99) * np.uint8(255) if mode == "1" else gray).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    buffer.seek(0)
    result, size = decoding.decode(buffer, "x", resize=True)
    assert (result.shape, result.dtype, size) == ((32, 32, 3), np.uint8, (width, height))
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.asarray(image.convert("RGB") if mode == "P" else Image.fromarray(gray))
    square = square[top : top + side, left : left + side].astype(float)
    if mode == "1":
        square = (square > 99) * 255.0
    if side >= 8:  # a few pixels made large weigh the border less
        assert abs(result.mean() - square.mean()) < 4 + 60 / side


def test_resized_images_are_counted(tmp_path: Path) -> None:
    extra = {
        f"train/bee/{width}.png": encoded(Image.new("RGB", (width, 40), "red")) for width in (8, 40, 2000)
    }
    notes: list[str] = []
    source = as_tar(tmp_path / "t.tar", tree() | extra)
    train, _ = read_image_tree(source, note=notes.append)
    assert (train.images[train.labels == 1][3:] == [255, 0, 0]).all()
    assert notes[:1] == [
        "3 of 13 images resized to 32x32, the center square of each: they had 8x40 to 2000x40 pixels"
    ]
    refused(source, "pixels, not 32x32")
    notes.clear()
    assert_is_tree(read_image_tree(as_tar(tmp_path / "u.tar", tree()), note=notes.append))
    assert notes == []


def test_a_rotation_in_a_png_of_old_programs_is_applied() -> None:
    """ImageMagick 6 kept the EXIF data in text, in hexadecimal."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = b"Exif\x00\x00" + exif.tobytes().removeprefix(b"Exif\x00\x00")
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    upright = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(buffer, "PNG", pnginfo=text)
    found, _ = decode(io.BytesIO(buffer.getvalue()), "x", resize=False)
    assert np.array_equal(found, upright)


def test_16_bits_whose_zero_is_white_are_refused_not_read_as_a_negative() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32), 60000, np.uint16)).save(buffer, "TIFF")
    content = bytearray(buffer.getvalue())
    found, _ = decode(io.BytesIO(content), "x", resize=True)
    assert {*found.ravel()} == {60000 >> 8}
    entry = content.index(bytes([6, 1, 3, 0, 1, 0, 0, 0]))  # PhotometricInterpretation: one short number
    content[entry + 8] = 0
    with pytest.raises(ImageError, match="16-bit pixels whose 0 is white"):
        decode(io.BytesIO(content), "x", resize=True)


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "_pixels", fail)
    with pytest.raises(MemoryError):
        decode(io.BytesIO(encoded(picture(0))), "x", resize=True)


def test_a_large_image_takes_little_memory_beside_its_own() -> None:
    """A palette of 25 million pixels, converted as a whole, would be 100 MB; it is converted in parts."""
    large = Image.new("P", (5000, 5000))
    large.putpalette([10, 20, 30])
    peak = 0
    original = decoding._to_rgb

    def measured(image: Image.Image) -> Image.Image:
        nonlocal peak
        peak = max(peak, image.width * image.height)
        return original(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_to_rgb", measured)
        result, size = decoding.decode(io.BytesIO(encoded(large)), "x", resize=True)
    assert size == (5000, 5000)
    assert (result == [10, 20, 30]).all()
    assert peak < 5000 * 5000 / 7


def unsplit(count: int = 10, prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{index}.png": encoded(picture(10 * label + index))
        for label, name in enumerate(("ant", "bee"))
        for index in range(count)
    }


def members(arrays: Arrays, count: int = 20) -> list[set[int]]:
    """Which pictures each class has, by seed."""
    known = {picture(seed).tobytes(): seed for seed in range(count)}
    return [
        {known[image.tobytes()] for image in arrays.images[arrays.labels == label]}
        for label in range(len(arrays.classes))
    ]


@pytest.mark.parametrize("prefix", ["", "photos/", "train/", "photos/train/"])
@pytest.mark.parametrize("suffix", ["", ".tar.gz", ".zip"])
def test_classes_alone_are_split(tmp_path: Path, prefix: str, suffix: str) -> None:
    pack = {"": as_folder, ".zip": as_zip}.get(suffix, as_tar)
    strangers = {f"{prefix}ant/1.heic": b"", f"{prefix}bee/notes.TXT": b"", f"{prefix}bee/.DS_Store": b""}
    strangers |= {
        f"__MACOSX/{prefix}ant/._1.png": b"",
        f"{prefix}cover.png": encoded(picture(0)),
        "README": b"",
    }
    notes: list[str] = []
    source = pack(tmp_path / f"photos{suffix}", unsplit(prefix=prefix) | strangers)
    train, test = read_image_tree(source, note=notes.append)
    assert train.classes == test.classes == ("ant", "bee")
    assert members(test) == [{4, 6}, {10, 16}]  # the same wherever the images lie
    assert [a | b for a, b in zip(members(train), members(test), strict=True)] == [
        set(range(10)),
        set(range(10, 20)),
    ]
    assert not members(train)[0] & members(test)[0]
    lacking = "test/" if "train" in prefix else "train/ and test/"
    assert notes == [
        f"no {lacking} in {source}: 4 of the 20 images, a fifth of each class, are the test set",
        f"not used: images outside the class folders, 1 in all, e.g. '{prefix}cover.png'",
        f"not used: files of other formats (.TXT, .heic), 2 in all, e.g. '{prefix}ant/1.heic'",
    ]


def test_added_images_hardly_change_the_split(tmp_path: Path) -> None:
    _, before = read_image_tree(as_folder(tmp_path / "t", unsplit(10)))
    _, after = read_image_tree(as_folder(tmp_path / "t", {"ant/new.png": encoded(picture(99))}))
    assert members(before)[1] == members(after, 100)[1]
    assert len(members(before)[0] & members(after, 100)[0]) >= 1


def test_classes_alone_that_are_refused(tmp_path: Path) -> None:
    image = encoded(picture(0))
    for number, (files, match) in enumerate(
        [
            (unsplit(1), "only one image of class '(ant|bee)' in .*: add some, or remove the folder"),
            (unsplit() | {"cow/1.heic": b""}, "no images of class 'cow' in .*: add some, or remove"),
            (
                {"train/1.png": image, "val/2.png": image},
                "lie in 'train', 'val' without a class: expected train/",
            ),
            ({"train/1.png": image, "test/2.png": image}, "no folders of images in .*: expected train/"),
            (
                unsplit(prefix="train/") | unsplit(prefix="val/"),
                "has val/ but no test/: rename val/ to test/; or move val/ out of it, and a fifth of train/",
            ),
            (unsplit(prefix="a/") | unsplit(prefix="b/"), "several trees of classes, in a, b: if they are"),
            (unsplit(prefix="a/b/"), "no folders of images in .*: expected train/"),
            ({"1.png": image, "2.png": image}, "no folders of images in .*: expected train/"),
            ({"ant/1.png": image, "ant/2.png": image}, "only one class, 'ant'"),
        ]
    ):
        refused(as_folder(tmp_path / f"{number}", files), match)
        refused(as_tar(tmp_path / f"{number}.tar", files), match)


def test_an_archive_of_corrupted_images_is_to_be_unpacked(tmp_path: Path) -> None:
    files = {f"{folder}/{severity}/ant/1.png": b"" for folder in ("fog", "frost") for severity in range(1, 6)}
    refused(
        as_tar(tmp_path / "weather.tar", files),
        "found images such as 'fog/1/ant/1.png': unpack them, since corrupted images are read from a folder",
    )


def test_limit_takes_a_balanced_subset(tmp_path: Path) -> None:
    train, test = read(as_tar(tmp_path / "t.tar", tree()), limit=4)
    assert sorted(train.labels) == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1, 0, 1]  # no more than it has
    whole = read(tmp_path / "t.tar")[0].limited(4)
    assert np.array_equal(train.images, whole.images)


def test_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(b"no archive at all")
    refused(tmp_path / "t.tar", "cannot read")
    refused(tmp_path / "none.tar", "cannot read")


def test_encrypted_zip(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "t.zip", tree())
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + offset] |= 1
    path.write_bytes(content)
    refused(path, "encrypted|password")


@pytest.mark.skipif(not REAL.is_file(), reason=f"needs the CIFAR-10 images at {REAL}")
def test_real_archive() -> None:
    train, test = read(REAL, limit=500)
    assert train.classes == (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    for arrays in (train, test):
        assert np.bincount(arrays.labels).tolist() == [50] * 10
        assert 100 < arrays.images.mean() < 140


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like the official one, of ten images a batch, whose md5s stand in for the published ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
    md5s = {}
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (10, 3072), dtype=np.uint8)
        content: dict[str, object] = {"data": pixels, "labels": list(range(10))}
        if name == "batches.meta":
            content = {"label_names": [f"class{index}" for index in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        md5s[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5s[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5s["batches.meta"]})
    archive = tmp_path / "made" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(folder, folder.name)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.OFFICIAL, "cifar10", (folder.name, archive.name, md5))
    monkeypatch.setitem(cifar._BYTES, "cifar10", archive.stat().st_size)
    return archive


def test_official_archive_and_folders(official: Path, tmp_path: Path) -> None:
    batches = official.parent / "cifar-10-batches-py"
    results = []
    for source in (official, official.parent, batches):
        assert official_name(source) == "cifar10"
        results.append(read_cifar("cifar10", source, tmp_path / "scratch"))
    batches.rename(tmp_path / "elsewhere")
    results.append(read_cifar("cifar10", official.parent, tmp_path / "scratch"))
    assert list((tmp_path / "scratch").iterdir()) == []
    for train, test in results:
        assert (train.images.shape, test.images.shape) == ((50, 32, 32, 3), (10, 32, 32, 3))
        assert train.classes == tuple(f"class{index}" for index in range(10))
        first = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)[0]
        assert np.array_equal(train.images[0], first.reshape(3, 32, 32).transpose(1, 2, 0))


def test_the_official_archive_unpacks_without_extraction_filters(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Python 3.10.12."""
    extract = tarfile.TarFile.extractall

    def without_filter(self: tarfile.TarFile, path: str) -> None:
        extract(self, path, filter="fully_trusted")

    monkeypatch.delattr(tarfile, "data_filter")
    monkeypatch.setattr(tarfile.TarFile, "extractall", without_filter)
    assert len(read_cifar("cifar10", official, tmp_path / "scratch")[0].labels) == 50


def test_nothing_is_unpickled_before_its_md5_is_checked(official: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    for name in ("data_batch_3", "test_batch", "batches.meta"):
        path = official.parent / "cifar-10-batches-py" / name
        good = path.read_bytes()
        path.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(UserError, match="damaged or incomplete"):
            read_cifar("cifar10", official.parent, tmp_path / "scratch")
        path.write_bytes(good)
    official.write_bytes(official.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"is not the official cifar-10-python\.tar\.gz, or damaged"):
        read_cifar("cifar10", official, tmp_path / "scratch")
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "scratch").exists()


class Response(io.BytesIO):
    """A server's answer."""

    status = 200

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}


def test_download(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def answer(opener: object, request: urllib.request.Request, timeout: float) -> Response:
        calls.append(request.full_url)
        return Response(official.read_bytes())

    monkeypatch.setattr("urllib.request.OpenerDirector.open", answer)
    for _ in range(2):
        train, _test = read_cifar("cifar10", None, tmp_path / "download")
        assert len(train.labels) == 50
    assert calls == ["https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"]


def test_failed_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_connection(opener: object, request: object, timeout: float) -> Response:
        raise urllib.error.URLError("no\nroute")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", no_connection)
    monkeypatch.setattr("rsslcli.core.data.fetching.PAUSE", 0.0)
    with pytest.raises(RsslError, match=r"cannot download https://.*`source`") as caught:
        read_cifar("cifar10", None, tmp_path)
    assert caught.value.exit_code == 1
    assert str(caught.value).isprintable()
    page = Response(b"login page")
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda *_, timeout: page)
    with pytest.raises(RsslError, match="returned another file"):
        fetch(Archive("https://example.org/x", md5="0" * 32), tmp_path / "x", silent)
    assert list(tmp_path.iterdir()) == []
