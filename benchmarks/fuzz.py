"""Feed every reader of files with damaged, foreign and hostile input, and watch what it does.

    python benchmarks/fuzz.py --inputs 10000 [--only NAME] [--seed N] [--save FOLDER]

A reader may take an input or refuse it with one printable line. Anything else is a problem: another
exception, output, a warning, more time or memory than the limits (even if the reader hides that memory ran
out), or a change of any file outside the reader's folder. Problems are printed, their inputs saved,
and the exit code is 1. If the process itself dies, the input is in the file `current-…` beside them. Ctrl-C
ends with the table so far.
"""

from __future__ import annotations

import argparse
import codecs
import ctypes
import faulthandler
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from harness import memory_of, peak_memory, reset_peak_memory
from hostile_pickles import Called, Filled, Poisoned
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image, features
from safetensors.torch import save as safetensors_of

from rsslcli.core.config import Config
from rsslcli.core.corruptions.generate import generate_corrupted
from rsslcli.core.data import cifar
from rsslcli.core.data.archives import READ_ERRORS
from rsslcli.core.data.cifar import official_name, read_cifar
from rsslcli.core.data.corrupted import open_corrupted
from rsslcli.core.data.image_files import find_images
from rsslcli.core.data.image_tree import is_image_tree, read_image_tree
from rsslcli.core.data.importing import find_imported, import_corrupted
from rsslcli.core.data.prepare import prepare
from rsslcli.core.data.published import download_corrupted
from rsslcli.core.data.store import describe_split, load_split, make_split, save_split
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.presets import make_config
from rsslcli.core.progress import silent
from rsslcli.core.report.inventory import list_runs
from rsslcli.core.tasks.registry import TASKS, build_tasks
from rsslcli.core.training.metrics import Metrics
from rsslcli.core.weights.checkpoint import Checkpoint, load_checkpoint, load_classifier, save_checkpoint

DEADLINE = 5.0  #: seconds for one input
MEMORY = 2 << 30  #: bytes of address space beyond what the libraries take
GROWTH = 300 << 20  #: bytes by which one input may raise the peak of the memory in use
#: Where hostile input wants to write: beside the folder in which a reader works, and at the root.
CANARY = "canary"
STDERR = os.dup(2)  #: the real one, also while output is redirected

#: An input: the name of the file in the reader's folder, and its bytes.
Input = tuple[str, bytes]
Inputs = st.SearchStrategy[Input]


@dataclass(frozen=True)
class Reader:
    """What is fed: `reads` get a folder that holds `files`, one of them replaced by an input.

    All of them are called, even if one refuses the input.
    """

    files: Mapping[str, bytes]
    reads: Sequence[Callable[[Path], object]]
    inputs: Inputs
    writes: bool = False  #: whether reading changes the folder, which is then made anew every time


@dataclass
class Result:
    """What became of a reader's inputs."""

    name: str
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)


# --- Spoiling bytes -------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -(2**31))
places = st.integers(0, 160) | st.integers(0, 1 << 20) | st.integers(-200, -1)
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "set", "number", "drop", "insert", "repeat", "splice", "cut"]),
        places,
        st.integers(0, 1 << 12),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=3,
)


def spoiled(data: bytes, changes: Sequence[tuple[str, int, int, bytes]], other: bytes = b"") -> bytes:
    """`data` with changes: flipped bits, changed fields, cut, repeated and spliced pieces."""
    result = bytearray(data)
    for kind, anywhere, number, junk in changes:
        place = anywhere % max(1, len(result))
        match kind:
            case "flip" if result:
                result[place] ^= 1 << number % 8
            case "set":
                result[place : place + len(junk)] = junk
            case "number":
                size, order = (1, 2, 4, 8)[number % 4], ("little", "big")[number // 4 % 2]
                value = NUMBERS[number // 8 % len(NUMBERS)] % (1 << 8 * size)
                result[place : place + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
            case "drop":
                del result[place : place + number % 64 + 1]
            case "insert":
                result[place:place] = junk
            case "repeat":
                result[place:place] = result[place : place + number]
            case "splice" if other:
                start = number * 7 % len(other)
                result[place : place + number % 512] = other[start : start + number % 512]
            case "cut":
                del result[place:]
    return bytes(result)


def damaged(*originals: bytes) -> st.SearchStrategy[bytes]:
    """Originals with random changes."""
    return st.builds(spoiled, st.sampled_from(originals), edits, st.sampled_from(originals))


def named(name: str, *strategies: st.SearchStrategy[bytes]) -> Inputs:
    """Inputs under one file name."""
    return st.tuples(st.just(name), st.one_of(*strategies))


# --- Values in place of others --------------------------------------------------------------------------

texts = st.sampled_from(
    ["", "x", "\x1b[31mred", "a\nb", "\u202e", "\udcff", "🐝", "x" * 300, "../up", "\0", "NaN", "1e999"]
) | st.text(max_size=6)
numbers = st.sampled_from(
    [*NUMBERS, 2**64, 10**400, -(2**64), 0.5, -0.5, 1e308, float("nan"), float("inf"), -float("inf")]
)
scalars = st.none() | st.booleans() | numbers | texts


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def doubling(depth: int, kind: type[list[Any]] | type[tuple[Any, ...]] = list) -> Any:
    """A few lists or tuples that stand for 2 ** depth of them."""
    value = kind()
    for _ in range(depth):
        value = kind((value, value))
    return value


json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)


@st.composite
def swapped(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any]) -> Any:
    """`tree`, of dictionaries and lists, with some of its values replaced, added or removed."""

    def change(node: Any) -> Any:
        is_inner = isinstance(node, dict | list) and node
        if not is_inner or (node is not tree and draw(st.integers(0, 5)) == 0):
            return draw(values)
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key, copy = draw(st.sampled_from(keys)), type(node)(node)
        action = draw(st.integers(0, 9))
        if action == 0:
            del copy[key]
        elif action == 1 and isinstance(copy, dict):
            copy[draw(texts)] = draw(values)
        elif action == 1:
            copy.insert(key, draw(values))
        else:
            copy[key] = change(node[key])
        return copy

    for _ in range(draw(st.integers(1, 2))):
        tree = change(tree)
    return tree


def as_json(value: object) -> bytes:
    """JSON, or a huge number in place of values that cannot be written as JSON."""
    try:
        return json.dumps(value).encode()
    except ValueError:
        return b"1" * 5000


def json_inputs(name: str, *originals: bytes) -> Inputs:
    """Records with other values, damaged ones, and anything."""
    trees = [json.loads(original) for original in originals]
    long = b"[1" + b"0" * 5000 + b"]"
    hostile = [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"", long, b"1e999", b"NaN"]
    return named(
        name,
        st.one_of(*(swapped(tree, json_values) for tree in trees)).map(as_json),
        damaged(*originals),
        json_values.map(as_json),
        st.sampled_from(hostile),
        st.binary(max_size=40),
    )


# --- Checkpoints ----------------------------------------------------------------------------------------


@cache
def example_checkpoint() -> bytes:
    """A valid checkpoint of the smallest network."""
    network = WideResNet(10, 1, 3)
    tasks = ("rotation", "rgb")
    heads = torch.nn.ModuleDict({name: task.head(64) for name, task in build_tasks(tasks).items()})
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[-1].grad = torch.ones_like(parameters[-1])
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        save_checkpoint(
            path,
            Checkpoint(
                config=Config(tasks=tasks, weighting="automl", depth=10, width=1, dataset="mine"),
                classes=("ant", "bee", "cow"),
                step=7,
                classifier=network.state_dict(),
                heads=heads.state_dict(),
                optimizer=optimizer.state_dict(),
                lambdas=torch.tensor([0.25, 0.5]),
                excluded=(1, 5),
                train_data="a" * 64,
                validation_data="b" * 64,
            ),
        )
        return path.read_bytes()


class Evil:
    """Runs code when it is unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (f"../{CANARY}/executed",)


TENSORS = (
    torch.tensor(float("nan")), torch.tensor([0.5, float("inf")]), torch.tensor([-0.5, 0.5]), torch.ones(2),
    torch.ones(1).expand(10**12), torch.ones(1).expand(3, 10**9), torch.zeros(0, 10**9),
    torch.zeros(10**9, 0), torch.tensor(1), torch.ones(3, 64, dtype=torch.int32), torch.ones(3, 64).half(),
    torch.ones(3, 64).bfloat16(), torch.full((3, 64), 1e300, dtype=torch.float64),
    torch.ones(2, dtype=torch.complex64), torch.ones(2).bool(), torch.ones(2).to_sparse(),
    torch.empty(3, 64, device="meta"), torch.ones(64, 3).t(), torch.zeros(()),
    torch.nn.Parameter(torch.ones(2)), torch.zeros(16, 3, 3, 3), torch.zeros(3, 64),
    torch.zeros(1600, 0, 3, 3), torch.zeros(16, 16, 3, 3),
)  # fmt: skip

#: Functions that a checkpoint may name, to be called with any arguments.
FUNCTIONS = (
    OrderedDict, Counter, set, bytearray, complex, codecs.encode, torch.Size, torch.device, torch.Tensor,
    torch.FloatStorage, torch.UntypedStorage, torch._utils._rebuild_tensor, torch._utils._rebuild_tensor_v2,
    torch._utils._rebuild_parameter, torch.serialization._get_layout,
)  # fmt: skip
PLAIN = (
    bytearray(b"\xff"), {1, "a", (1, 2)}, 1j, b"x\xff", (), {}, [], Counter("aab"), OrderedDict(a=1),
    torch.Size([2, 3]), torch.bfloat16, torch.device("cuda", 0), torch.strided, frozenset([1]), np.float64(1),
    argparse.Namespace(a=1), {torch.int8: 1, (1, "a"): 2}, "latin1", "latin-1", "punycode", "a" * 90_000,
)  # fmt: skip

tensors = st.integers(0, len(TENSORS) - 1).map(TENSORS.__getitem__)
arguments = (
    tensors
    | scalars
    | st.sampled_from(PLAIN)
    | st.integers(1, 60).map(lambda depth: doubling(depth, tuple))
    | st.lists(st.integers(1, 60).map(lambda depth: doubling(depth, tuple)) | tensors, max_size=2)
)
objects = (
    tensors
    | scalars
    | st.sampled_from([Evil(), *PLAIN])
    | st.builds(Called, st.sampled_from(FUNCTIONS), arguments)
    | st.builds(Called, st.sampled_from(FUNCTIONS), arguments, arguments)
    | st.builds(Filled, arguments, arguments)
    | st.sampled_from([30, 300]).map(nested)
    | st.integers(1, 60).map(doubling)
    | st.sampled_from(["get", "items", "keys", "values", "__class__"]).map(Poisoned)
    | st.dictionaries(texts | st.integers(-1, 50), scalars | tensors, max_size=3)
)


def saved(content: Any, archive: bool = True) -> bytes:
    """What torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=archive)
    return stream.getvalue()


def repacked(data: bytes, changes: Sequence[tuple[str, int, int, bytes]], member: int, plain: bool) -> bytes:
    """A file of torch.save with one changed member and right checksums; mostly its pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        infos = old.infolist()
        chosen = next(i for i in infos if i.filename.endswith(".pkl")) if member > 9 else infos[member]
        for info in infos:
            content = old.read(info)
            kind = zipfile.ZIP_STORED if plain or info is not chosen else zipfile.ZIP_DEFLATED
            new.writestr(info.filename, spoiled(content, changes) if info is chosen else content, kind)
    return stream.getvalue()


def checkpoint_inputs(name: str, content: dict[str, Any], *originals: bytes) -> Inputs:
    """Files of torch.save: other values, a damaged pickle in a sound archive, damage, hostile pickles."""
    archives = st.sampled_from([data for data in originals if data[:2] == b"PK"])
    return named(
        name,
        *[st.builds(saved, swapped(content, objects), st.booleans())] * 4,
        *[st.builds(repacked, archives, edits, st.integers(0, 30), st.integers(0, 3).map(bool))] * 2,
        damaged(*originals),
        objects.map(saved),
        st.sampled_from([*(pickle.dumps(each, 2) for each in (Evil(), {"state_dict": Evil()}, {}))]),
        st.binary(max_size=60).map(lambda junk: b"\x80\x02" + junk + b"."),
    )


def checkpoint_reader() -> Reader:
    data = example_checkpoint()
    content = torch.load(io.BytesIO(data), weights_only=True)

    inputs = checkpoint_inputs("checkpoint.pt", content, data)
    return Reader({"checkpoint.pt": data}, [load_checkpoint, load_classifier], inputs)


def state_dict_reader() -> Reader:
    state = {f"module.{name}": value for name, value in WideResNet(10, 1, 3).state_dict().items()}
    content = {"state_dict": state, "epoch": 3}
    files = [saved(content), saved(content, False), saved(dict(state))]
    return Reader(
        {"weights.pt": files[0]},
        [lambda folder: load_classifier(folder / "weights.pt")],
        checkpoint_inputs("weights.pt", content, *files),
    )


def safetensors_reader() -> Reader:
    state = {f"module.{name}": value for name, value in WideResNet(10, 1, 3).state_dict().items()}
    data = safetensors_of(state, {"format": "pt"})
    length = 8 + int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8:length]), data[length:]

    def with_header(header: bytes, size: int = 0) -> bytes:
        """A file with any header, whose length is right but for `size`."""
        return (max(0, len(header) + size)).to_bytes(8, "little") + header + tensors

    kinds = st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "BOOL", "C64", "U16", "F4"])
    lists = st.lists(st.sampled_from([0, 1, 3, 64, 3 * 64 * 4, len(tensors), *NUMBERS]), max_size=4)
    headers = swapped(header, json_values | kinds | lists).map(as_json)
    return Reader(
        {"weights.safetensors": data},
        [lambda folder: load_classifier(folder / "weights.safetensors")],
        named(
            "weights.safetensors",
            *[headers.map(with_header)] * 3,
            st.builds(with_header, headers, st.sampled_from(NUMBERS[:10])),
            damaged(data),
            damaged(data[:length]),
            st.sampled_from([b"{" * 99_999, b'{"a":' * 50_000, b"{}", b"{"]).map(with_header),
            st.binary(max_size=60).map(lambda junk: junk[:8].ljust(8, b"\0") + b"{" + junk),
        ),
    )


# --- Settings -------------------------------------------------------------------------------------------

PIECES = (
    *Config.__dataclass_fields__, *TASKS, ": ", "\n", "\n  ", "\n- ", "{", "}", "[", "]", ", ", "? ", "&a ",
    "*a", "!!int ", "!!float ", "!!bool ", "!!str ", "!!binary ", "!!timestamp ", "!!set ", "!!omap ",
    "!!pairs ", "!!python/object/apply:os.system ['touch ../canary/x']", "!!python/name:os.system",
    "!!python/object/new:type ", "<<: ", "1e-6", ".nan", "-.inf", "0x_", "1:30", "1_0", "''", '"\\e[31m"',
    "'", "~", "2020-13-01", "|\n ", ">\n ", "%TAG ", "---", "...", "#", "\t", "é", "\u2028", "\u202e",
    "{sigma: 2}", "true", "5", "9" * 4000, "[" * 300, "&a [*a]",
)  # fmt: skip


def bomb(levels: int, width: int, merge: bool) -> bytes:
    """Few lines that stand for width ** levels values."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels + 1):
        names = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{names}]}}" if merge else f"[{names}]"))
    return "\n".join([*lines, f"lr: *a{levels}"]).encode()


def config_reader() -> Reader:
    original = Config(tasks=("bir", "ir"), task_options={"bir": {"sigma": 1.5}}).to_yaml().encode()

    def read(folder: Path) -> None:
        config = make_config(file=folder / "my.yaml")
        build_tasks(config.tasks, config.task_options)
        (folder / "again.yaml").write_text(config.to_yaml(), encoding="utf-8")
        assert make_config(file=folder / "again.yaml") == config

    def dumped(value: object) -> bytes:
        try:
            return yaml.safe_dump(value).encode(errors="surrogatepass")
        except ValueError:
            return b"9" * 5000

    inputs = named(
        "my.yaml",
        damaged(original),
        swapped(yaml.safe_load(original), json_values).map(dumped),
        st.lists(st.sampled_from(PIECES), max_size=14).map(lambda pieces: "".join(pieces).encode()),
        st.builds(bomb, st.integers(1, 30), st.integers(1, 9), st.booleans()),
        st.builds(lambda a, b, n: (a + b * n)[:20_000].encode(),
                  st.sampled_from(["", "lr: ", "lr: 1"]),
                  st.sampled_from([*PIECES, "9", ":59", "a: ", "{", "- "]), st.integers(1, 800)),
        st.binary(max_size=60),
    )  # fmt: skip
    return Reader({"my.yaml": original}, [read], inputs)


# --- Images ---------------------------------------------------------------------------------------------


def picture(seed: int = 0) -> np.ndarray:
    """A random image."""
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@cache
def example_images() -> tuple[bytes, ...]:
    """Valid image files in every mode and format."""
    image = Image.fromarray(picture())
    gray, alpha = image.convert("L"), image.convert("RGBA")
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)
    files = [encoded(i, "PNG") for i in (image, gray, alpha, deep, image.quantize(9), image.convert("1"))]
    files += [encoded(image, "PNG", save_all=True, append_images=[image], default_image=True)]
    files += [encoded(i, "JPEG") for i in (image, gray, image.convert("CMYK"))]
    turned = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"
    files += [encoded(image, "JPEG", progressive=True, exif=turned)]
    files += [encoded(image.quantize(9), "GIF", save_all=True, append_images=[gray], transparency=1)]
    files += [encoded(image, kind) for kind in ("BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX")]
    kinds = ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
    files += [encoded(image, "TIFF", compression=kind) for kind in kinds]
    files += [encoded(deep, "TIFF"), encoded(alpha, "WEBP", save_all=True, append_images=[alpha])]
    files += [encoded(alpha, "ICO", sizes=[(32, 32)]), encoded(image, "TGA", compression="tga_rle")]
    files += [encoded(image, "JPEG2000")] if features.check("jpg_2000") else []
    files += [encoded(image, "AVIF", speed=10)] if features.check("avif") else []
    return tuple(files)


def png(size: tuple[int, int], depth: int, color: int, data: bytes) -> bytes:
    """A PNG file with any header and right checksums."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = b"".join(side.to_bytes(4, "big") for side in size) + bytes([depth, color, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def image_inputs() -> st.SearchStrategy[bytes]:
    sides = st.sampled_from([0, 1, 31, 32, 33, 5000, 65535, 2**31 - 1, 2**32 - 1])
    depths, colors = st.sampled_from([0, 1, 2, 4, 8, 16, 255]), st.integers(0, 7)
    pixels = st.just(b"x\x9c" + bytes(9)) | st.binary(max_size=20)
    starts = st.sampled_from(example_images()).map(lambda data: data[:12])
    return st.one_of(
        *[damaged(*example_images())] * 5,
        st.builds(png, st.tuples(sides, sides), depths, colors, pixels),
        st.builds(bytes.__add__, starts, st.binary(max_size=40)),
        st.binary(max_size=60),
    )


def example_tree() -> dict[str, bytes]:
    """The files of a tree of images: two classes, an image of each in either split."""
    names = [f"{split}/{name}/1.png" for split in ("train", "test") for name in ("ant", "bee")]
    return {name: encoded(Image.fromarray(picture(seed)), "PNG") for seed, name in enumerate(names)}


def read_tree(source: Path) -> None:
    """Read a tree of images as it is read to be prepared: unusable ones are refused."""
    read_image_tree(source, limit=None, progress=silent)


def read_files(source: Path) -> None:
    """Read images as they are read to be classified: unusable ones are skipped, with a printable reason."""
    found = find_images([source])
    assert all(note.isprintable() for note in found.notes)
    skipped: list[str] = []
    read = 0
    for images, pixels in found.read(32, 3, lambda name, reason: skipped.append(reason)):
        assert pixels.shape == (len(images), 32, 32, 3)
        read += len(images)
    assert read + len(skipped) == sum(1 for _ in found.images)
    assert all(reason.isprintable() for reason in skipped)


def image_reader() -> Reader:
    return Reader(example_tree(), [read_tree, read_files], named("train/bee/1.png", image_inputs()))


# --- Archives -------------------------------------------------------------------------------------------


def hostile_names(names: Sequence[str]) -> st.SearchStrategy[str]:
    """Names for the members of an archive: right ones, ones that lead elsewhere, unprintable ones."""
    file = names[0].rpartition("/")[2]
    strange = [
        f"../{CANARY}/{file}", f"../../../{CANARY}/{file}", f"/{CANARY}/{file}",
        f"train/../../{CANARY}/{file}", f"train/ant/../../../{file}", f"train/\x1b[31m/{file}",
        f"test/a\nb/{file}", f"train/🐝/{file}",
        f"test/🐝/{file}", f"train//ant/./{file}", f"train/\udcff/{file}", "train/ant/", "train/new/",
        f"train/{'x' * 300}/{file}", f"a/{names[0]}", "train", "", f"C:\\{file}", f"train\\ant\\{file}",
        "train/ant/link/" + file, "train/ant/2.gif", "train/ant/.3.png",
    ]  # fmt: skip
    return st.sampled_from([*names, *names, *strange]) | st.text(max_size=10)


def plain(files: Mapping[str, bytes]) -> list[tuple[str, bytes, int]]:
    """The members of a valid archive: names, contents, and 0 for nothing special."""
    return [(name, content, 0) for name, content in files.items()]


@st.composite
def members(draw: st.DrawFn, files: Mapping[str, bytes], kinds: int = 31) -> list[tuple[str, bytes, int]]:
    """Names, contents and kinds of an archive's members: valid ones, among them a few that are not."""
    contents = st.sampled_from([*files.values()]) | st.binary(max_size=30)
    result = plain(files)
    for _ in range(draw(st.integers(0, 3))):
        member = draw(st.tuples(hostile_names([*files]), contents, st.integers(0, kinds - 1)))
        if result and draw(st.booleans()):
            result[draw(st.integers(0, len(result) - 1))] = member
        else:
            result.insert(draw(st.integers(0, len(result))), member)
    return result


TYPES = b"0\x00123456789KLSxgXAVDZ"


def as_tar(content: Sequence[tuple[str, bytes, int]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of members; their kind above 0 chooses links, devices, other types, sizes that are not theirs."""
    stream = io.BytesIO()
    for name, data, kind in content:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        if 0 < kind < len(TYPES):
            member.type = TYPES[kind : kind + 1]
            member.linkname = f"../{CANARY}/a.txt" if kind % 2 else name
        elif kind >= len(TYPES):
            member.size = (10**10, 2**40, 8**10, -512, -1024, 0, 511)[kind % 7]
        if kind % 5 == 4:
            sizes = ("99999999999", "-1024", "1e9", "-9" * 30, "\x1b")
            member.pax_headers = {"size": sizes[kind % len(sizes)], "path": name, "\x1b": "x"}
        try:
            header = member.tobuf(form, "utf-8", "surrogateescape")
        except (ValueError, OverflowError):
            header = bytes(512)
        stream.write(header + data + bytes(-len(data) % 512))
    return stream.getvalue() + bytes(1024)


def squeezed(data: bytes, way: str) -> bytes:
    """`data`, compressed; at the cheapest level, since thousands of files are made."""
    import bz2
    import gzip
    import lzma

    match way:
        case "gz":
            return gzip.compress(data, 1)
        case "bz2":
            return bz2.compress(data, 1)
        case "xz":
            return lzma.compress(data, preset=0)
    return data


def tar_inputs(files: Mapping[str, bytes]) -> st.SearchStrategy[bytes]:
    """Tars of hostile members, damaged before and after their compression."""
    valid = as_tar(plain(files))
    ways = st.sampled_from(["", "", "gz", "gz", "bz2", "xz"])
    forms = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
    tars = st.builds(as_tar, members(files), forms)
    return st.one_of(
        tars,
        st.builds(squeezed, tars, ways),
        damaged(valid),
        st.builds(squeezed, st.builds(spoiled, tars, edits), ways),
        st.builds(spoiled, st.builds(squeezed, tars, ways), edits),
        st.builds(squeezed, st.sampled_from([bytes(1 << 20), valid[:512] + bytes(1 << 20)]), ways),
        st.binary(max_size=40),
    )


def as_zip(content: Sequence[tuple[str, bytes, int]]) -> bytes:
    """A zip of members; their kind above 0 chooses links, compressions, sizes that are not theirs."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data, kind in content:
            info = zipfile.ZipInfo(name.encode(errors="replace").decode()[:65535].replace("\0", "_") or "x")
            if kind:
                info.create_system, info.external_attr = 3, (kind % 16) << 28
                info.compress_type = (0, 8, 12, 14)[kind % 4]
            if kind > 27:
                extras = (b"\x75\x70\x01\0\1", b"\x01\0\x10\0" + b"\xff" * 16, b"\x01\0\xff\xff")
                info.extra = extras[kind - 28]
            archive.writestr(info, data)
            if kind > 20:
                info.file_size, info.CRC = (2**40, 2**31, 1, 0)[kind % 4], kind
            elif kind > 16:
                info.flag_bits |= (1, 32, 64, 0x2000)[kind % 4]
    return stream.getvalue()


def archive_reader(name: str, valid: bytes, inputs: st.SearchStrategy[bytes]) -> Reader:
    reads = [
        partial(lambda read, folder: read(folder / name), read)
        for read in (is_image_tree, official_name, read_tree, read_files)
    ]
    return Reader({name: valid}, reads, named(name, inputs))


def tar_reader() -> Reader:
    files = example_tree()
    return archive_reader("images.tar", as_tar(plain(files)), tar_inputs(files))


def zip_reader() -> Reader:
    files = example_tree()
    zips = members(files).map(as_zip)
    valid = as_zip(plain(files))
    spoiled_zips = st.builds(spoiled, zips, edits, st.just(valid))
    inputs = st.one_of(zips, damaged(valid), spoiled_zips, st.binary(max_size=40))
    return archive_reader("images.zip", valid, inputs)


@cache
def example_cifar() -> dict[str, bytes]:
    """The files of a small CIFAR-10, whose md5s take the place of the published ones."""
    from torchvision.datasets import CIFAR10

    files = {}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "label_names": ["a", "b"]}
        files[name] = pickle.dumps(batch)
    md5s = {name: hashlib.md5(data, usedforsecurity=False).hexdigest() for name, data in files.items()}
    CIFAR10.train_list = [[name, md5s[name]] for name in files if name.startswith("data")]
    CIFAR10.test_list = [["test_batch", md5s["test_batch"]]]
    CIFAR10.meta = CIFAR10.meta | {"md5": md5s["batches.meta"]}
    return files


def read_cifar_whose_md5_is(archive_of: bytes, source: Path) -> None:
    """Read CIFAR-10 where `archive_of` is the published archive."""
    folder, archive, _ = cifar.OFFICIAL["cifar10"]
    md5 = hashlib.md5(archive_of, usedforsecurity=False).hexdigest()
    cifar.OFFICIAL["cifar10"] = (folder, archive, md5)
    official_name(source)
    read_cifar("cifar10", source, source.parent / "scratch")


def cifar_reader() -> Reader:
    """An archive like the published one: nothing is unpacked or unpickled before its md5 is right."""
    files = example_cifar()
    folder, archive, _ = cifar.OFFICIAL["cifar10"]
    valid = squeezed(as_tar(plain({f"{folder}/{name}": data for name, data in files.items()})), "gz")
    reads = [
        partial(lambda name, place: read_cifar_whose_md5_is(valid, place / name), name)
        for name in (archive, "unpacked")
    ]
    evil = pickle.dumps(Evil())
    batches = st.tuples(
        st.sampled_from([f"unpacked/{folder}/{name}" for name in files]),
        damaged(*files.values()) | st.just(evil) | st.binary(max_size=30),
    )
    hostile = {f"{folder}/{name}": data for name, data in files.items()} | {f"{folder}/x": evil}
    every = {archive: valid} | {f"unpacked/{folder}/{name}": data for name, data in files.items()}
    inputs = named(archive, tar_inputs(hostile), damaged(valid)) | batches
    return Reader(every, reads, inputs, writes=True)


def unpacked_cifar_reader() -> Reader:
    """Hostile archives whose md5 is right all the same: what is unpacked never leaves its folder."""
    folder, archive, _ = cifar.OFFICIAL["cifar10"]
    files = {f"{folder}/{name}": data for name, data in example_cifar().items()}

    def read(place: Path) -> None:
        try:
            read_cifar_whose_md5_is((place / archive).read_bytes(), place / archive)
        except RsslError:
            raise
        except (*READ_ERRORS, KeyError):  # of tarfile, from which the md5 keeps a user
            raise UserError("cannot unpack it") from None
        finally:
            assert not [*place.glob("scratch/*")]

    # Kinds beyond the types claim wrong sizes, on which tarfile may loop.
    hostile = members(files | {f"{folder}/x": pickle.dumps(Evil())}, len(TYPES))
    inputs = hostile.map(lambda content: squeezed(as_tar(content), "gz"))
    return Reader(
        {archive: squeezed(as_tar(plain(files)), "gz")}, [read], named(archive, inputs), writes=True
    )


# --- Arrays ---------------------------------------------------------------------------------------------

HEADERS = (
    "{'descr': %r, 'fortran_order': %r, 'shape': %r, }",
    "{'descr': %r, 'fortran_order': %r, 'shape': %r, 'more': '\\d'}",
    "{'descr': %r, 'fortran_order': %r, 'shape': (10L,) and %r}",
)
DESCRIPTIONS = (
    "|u1", "<i8", ">i8", "<i4", ">u2", "<u8", "|O", "<f4", "|S5", "<U3", "|V0", "<M8[s]", "|b1", "<c8",
    "\x1b", [("a", "<i4")], [("\x1b", "|u1", (3,))], ("|u1", (10**9,)), "<U999999999", "<i3", None, 5,
)  # fmt: skip
SHAPES = (
    (), (0,), (5,), (10,), (-5,), (10**15,), (2**62, 4), (2**63,), (5, 32, 32, 3), (10, 32, 32, 3),
    (10, 3, 32, 32), (2, 32, 32, 3), (5, 32, 32), (True, 5), [5], 5, None, (1,) * 40, ("x",), (0, 32, 32, 3),
    (10, 32, -32, -3),
)  # fmt: skip


def npy(array: np.ndarray, header: str = "", version: int = 1) -> bytes:
    """A .npy file, with any header over the array's bytes."""
    if not header:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()
    text = header.encode("utf-8")[:60000] + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
LABELS = np.tile([0, 1], 5)


def arrays(original: np.ndarray) -> st.SearchStrategy[bytes]:
    """.npy files: headers that claim something else, arrays of another kind, damaged ones."""
    claims = st.builds(
        lambda form, *parts: form % parts,
        st.sampled_from(HEADERS), st.sampled_from(DESCRIPTIONS), st.booleans(), st.sampled_from(SHAPES),
    )  # fmt: skip
    others = [
        original.astype(">i8"), original.astype("<u2"), original * 1.0, original[:-1], original[:0],
        original.T, original.astype(np.int64) - 1, original.astype(np.uint64) + 2**63, original + 100,
        np.array("text"), np.zeros((5, 32, 32, 3), np.uint8), original[::-1],
        original.astype(object).ravel()[:9], np.zeros(5, int),
    ]  # fmt: skip
    return st.one_of(
        st.builds(npy, st.just(original), claims, st.sampled_from([1, 1, 1, 2, 3, 0])),
        st.sampled_from([npy(array) for array in others]),
        damaged(npy(original)),
        st.just(b"PK\x03\x04"),
        st.binary(max_size=40),
    )


def corrupted_files() -> dict[str, bytes]:
    return {"labels.npy": npy(LABELS), "fog.npy": npy(IMAGES)}


def corrupted_reader() -> Reader:
    def read(folder: Path) -> None:
        opened = open_corrupted(folder, "mine")
        assert opened.cell("fog", 5).shape == (2, 32, 32, 3)
        assert len(opened.identity) == 64

    inputs = named("labels.npy", arrays(LABELS)) | named("fog.npy", arrays(IMAGES))
    return Reader(corrupted_files(), [read], inputs)


TEST = make_split(IMAGES[:2], [0, 1], ("ant", "bee"))


def cifar_c_reader() -> Reader:
    files = {f"CIFAR-10-C/{name}": data for name, data in corrupted_files().items()}

    def read(folder: Path) -> None:
        download_corrupted("cifar10", folder / "corrupted", test=TEST, source=folder / "c.tar")

    replaced = st.builds(
        lambda labels, fog: as_tar([("x/labels.npy", labels, 0), ("fog.npy", fog, 0)]),
        arrays(LABELS) | st.just(npy(LABELS)),
        arrays(IMAGES) | st.just(npy(IMAGES)),
    )
    inputs = named("c.tar", replaced, tar_inputs(files))
    return Reader({"c.tar": as_tar(plain(files))}, [read], inputs, writes=True)


def npz(parts: Mapping[str, bytes], kind: int) -> bytes:
    """An .npz file of finished members; its kind chooses compression and missing members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if kind == 1 else zipfile.ZIP_STORED) as archive:
        for index, (name, content) in enumerate(parts.items()):
            if kind != index + 2:
                archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def example_split() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_split(Path(folder) / "s.npz", TEST.images, TEST.labels, TEST.classes)
        return (Path(folder) / "s.npz").read_bytes()


def split_reader() -> Reader:
    valid = example_split()
    metadata = {"format": "rssl-split-1", "classes": [*TEST.classes], "checksum": TEST.checksum}

    def honest(classes: Any) -> bytes:
        """Metadata whose checksum is right, whatever the classes are."""
        try:
            checksum = make_split(TEST.images, TEST.labels, classes).checksum
        except (ValueError, TypeError, IndexError):
            checksum = ""
        return as_json(metadata | {"classes": classes, "checksum": checksum})

    def text(data: bytes) -> bytes:
        return npy(np.array(data.decode(errors="replace")))

    parts = {"images": npy(TEST.images), "labels": npy(TEST.labels), "metadata": text(as_json(metadata))}
    texts = st.one_of(
        swapped(metadata, json_values).map(as_json),
        json_values.map(honest),
        st.lists(scalars, min_size=2, max_size=3).map(honest),
        damaged(as_json(metadata)),
        st.sampled_from([b"[" * 99999, b"{}", b"1" * 5000]),
    ).map(text)
    changed = st.one_of(
        st.fixed_dictionaries({"images": arrays(TEST.images)}),
        st.fixed_dictionaries({"labels": arrays(TEST.labels)}),
        st.fixed_dictionaries({"metadata": texts}),
    ).map(lambda change: parts | change)
    return Reader(
        {"train.npz": valid},
        [
            lambda folder: load_split(folder / "train.npz"),
            lambda folder: describe_split(folder / "train.npz"),
        ],
        named("train.npz", st.builds(npz, changed, st.sampled_from([0] * 9 + [1, 2, 3, 4])), damaged(valid)),
    )


# --- Records --------------------------------------------------------------------------------------------


def made(build: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `build` puts into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def recorded(name: str, build: Callable[[Path], object], *reads: Callable[[Path], object]) -> Reader:
    """A reader of the record `name`, one of the files that `build` makes."""
    files = made(build)
    return Reader(files, reads, json_inputs(name, files[name]), writes=True)


def generated_reader() -> Reader:
    def generate(severities: Sequence[int], folder: Path) -> None:
        generate_corrupted(TEST.images, TEST.labels, folder, corruptions=["contrast"], severities=severities)

    name = "corruptions.json"
    files, whole = (made(partial(generate, severities)) for severities in ([1], [1, 2, 3, 4, 5]))
    blocks = st.sampled_from(["contrast.npy", "contrast.npy.partial"])
    inputs = json_inputs(name, files[name], whole[name]) | st.tuples(blocks, arrays(IMAGES))
    return Reader(files, [partial(generate, [])], inputs, writes=True)


def downloaded_reader() -> Reader:
    def find(folder: Path) -> None:
        find_imported(folder / "corrupted", "origin", None, test=TEST)

    def import_again(folder: Path) -> None:
        import_corrupted(folder / "c.tar", folder / "corrupted", test=TEST, origin="origin")

    def build(folder: Path) -> None:
        (folder / "c.tar").write_bytes(as_tar(plain(corrupted_files())))
        import_again(folder)

    return recorded("corrupted/downloaded.json", build, find, import_again)


def prepared_reader() -> Reader:
    def find(folder: Path) -> None:
        assert prepare("mine", folder).kind.isprintable()

    def prepare_again(folder: Path) -> None:
        prepare("mine", folder, source=folder / "images")

    def prepare_part(folder: Path) -> None:
        prepare("mine", folder, limit=2)

    def build(folder: Path) -> None:
        for name, content in example_tree().items():
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(content)
        prepare_again(folder)

    return recorded("mine/prepared.json", build, find, prepare_again, prepare_part)


def listed_reader() -> Reader:
    def read(folder: Path) -> None:
        for entry in list_runs(folder):
            assert 0 <= (entry.mean_accuracy or 0) <= 1
            assert 0 <= (entry.clean_accuracy or 0) <= 1
            assert f"{entry.problem}{entry.evaluated_on}{entry.begun.isoformat()}".isprintable()

    log = b"2026-03-01T10:00:00+00:00 rssl 0.1.0\nT epoch 100: clean accuracy 0.5\nT finished\n"
    evaluation = {"clean_accuracy": 0.5, "mean_accuracy": 0.4, "images": 9, "excluded": [], "dataset": "x"}
    files = {
        "run/checkpoint.pt": b"",
        "run/config.yaml": Config().to_yaml().encode(),
        "run/log.txt": log,
        "run/eval-c.json": as_json(evaluation),
        "run/failed.txt": b"no memory",
    }
    inputs = json_inputs("run/eval-c.json", files["run/eval-c.json"])
    damages = (named(name, damaged(files[name])) for name in files if files[name])
    return Reader(files, [read], st.one_of(inputs, *damages))


def counts_reader() -> Reader:
    torch.manual_seed(0)  # counts are of one classifier
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2))

    def read(folder: Path) -> None:
        result = evaluate(
            classifier,
            TEST,
            open_corrupted(folder, "mine"),
            device=torch.device("cpu"),
            severities=[1],
            partial=folder / "counts.json",
        )
        assert 0 <= result.clean_accuracy <= 1
        assert 0 <= (result.mean_at(1) or 0) <= 1

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(description: str, done: int, total: int) -> None:
        if done == total:
            raise Stopped

    def build(folder: Path) -> None:
        for name, content in corrupted_files().items():
            (folder / name).write_bytes(content)
        with suppress(Stopped):
            evaluate(
                classifier, TEST, open_corrupted(folder, "mine"), device=torch.device("cpu"), severities=[1],
                partial=folder / "counts.json", progress=stop,
            )  # fmt: skip

    return recorded("counts.json", build, read)


def metrics_reader() -> Reader:
    record = b'{"step": 1, "epoch": 1, "lr": 0.1, "loss/main": 2.5}'

    def read(folder: Path) -> None:
        Metrics(folder / "metrics.jsonl", 5).__exit__()

    name = "metrics.jsonl"
    lines = json_inputs(name, record).map(lambda item: (name, record + b"\n" + item[1] + b"\n" + record))
    inputs = lines | named(name, damaged(b"\n".join([record] * 4)))
    return Reader({name: record + b"\n"}, [read], inputs)


READERS: dict[str, Callable[[], Reader]] = {
    "checkpoint": checkpoint_reader, "state dict": state_dict_reader, "safetensors": safetensors_reader,
    "YAML settings": config_reader, "image file": image_reader, "tar of images": tar_reader,
    "zip of images": zip_reader, "CIFAR archive": cifar_reader, "unpacked CIFAR": unpacked_cifar_reader,
    "prepared split": split_reader, "corrupted set": corrupted_reader, "CIFAR-10-C archive": cifar_c_reader,
    "corruptions.json": generated_reader, "downloaded.json": downloaded_reader,
    "prepared.json": prepared_reader, "counts of eval-c": counts_reader, "metrics.jsonl": metrics_reader,
    "run in a list": listed_reader,
}  # fmt: skip


# --- Watching -------------------------------------------------------------------------------------------


class HangError(BaseException):
    """An input took longer than the deadline; no `except Exception` stops it."""


def hang(*_: object) -> None:
    raise HangError


class Watch:
    """A folder for a reader, beside files that must not change, and everything that the reader prints."""

    def __init__(self, reader: Reader, root: Path) -> None:
        self.reader, self.root, self.folder = reader, root, root / "work"
        self.lay_out()

    def lay_out(self) -> None:
        """Make everything anew."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.root / CANARY).mkdir()
        (self.root / CANARY / "a.txt").write_text("untouched")
        (self.root / "output").touch()
        self.fill()
        self.before = self.surroundings()

    def fill(self) -> None:
        for name, content in self.reader.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def surroundings(self) -> list[tuple[str, bytes]]:
        """The files around the folder, with the output so far, and canaries wherever a reader put them."""
        canaries = [Path("/", CANARY), *Path("/").glob(f"{CANARY}/**/*"), *self.folder.rglob(CANARY)]
        outside = [self.root, *self.root.glob(f"{CANARY}/**/*"), *self.root.glob("*")]
        outside += [path for path in canaries if path.exists()]
        return [(str(path), path.read_bytes() if path.is_file() else b"") for path in sorted(outside)]

    def read(self, item: Input) -> tuple[str, str]:
        """Let the reader have an input: "accepted", "refused" or "problem", and why."""
        if self.reader.writes:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            self.fill()
        name, content = item
        (self.folder / name).write_bytes(content)
        reset_peak_memory()
        in_use, peak_before = memory_of("VmRSS"), peak_memory()
        # Beyond the deadline of the interpreter, a loop in a library is ended from outside.
        faulthandler.dump_traceback_later(10 * DEADLINE, exit=True, file=STDERR)
        with (
            output_to(self.root / "output"),
            working_in(self.folder),
            warnings.catch_warnings(record=True) as shown,
        ):
            warnings.simplefilter("always")
            outcome, why = self.outcome()
        faulthandler.cancel_dump_traceback_later()
        if not self.reader.writes and name in self.reader.files:
            (self.folder / name).write_bytes(self.reader.files[name])
        for warning in shown:
            outcome, why = "problem", f"warning {str(warning.message)[:200]!r}"
        if peak_memory() > max(peak_before, in_use + GROWTH):
            outcome, why = "problem", f"takes {(peak_memory() - in_use) >> 20} MiB"
        if self.surroundings() != self.before:
            outcome, why = "problem", "changes files outside its folder, or prints"
            self.lay_out()
        return outcome, why

    def outcome(self) -> tuple[str, str]:
        """What becomes of the input in the folder, within the deadline."""
        try:
            signal.setitimer(signal.ITIMER_REAL, DEADLINE)
            try:
                found = [outcome_of(read, self.folder) for read in self.reader.reads]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except HangError:
            return "problem", f"takes longer than {DEADLINE:g} s"
        return max(found, key=lambda each: ("accepted", "refused", "problem").index(each[0]))


def outcome_of(read: Callable[[Path], object], folder: Path) -> tuple[str, str]:
    """What becomes of the input when one function of a reader reads it."""
    try:
        read(folder)
    except RsslError as error:
        if out_of_memory(error):
            return "problem", f"refused as memory ran out: {str(error)[:300]!r}"
        if not str(error).isprintable() or len(str(error)) > 1000:
            return "problem", f"message {str(error)[:1200]!r}"
        return "refused", str(error)
    except (HangError, KeyboardInterrupt):
        raise
    except BaseException as error:
        return "problem", f"{type(error).__name__}: {str(error)[:300]!r} at {place(error)}"
    return "accepted", ""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error was caused by a lack of memory: without the limit, the input would have taken more."""
    while error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make `folder` the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def place(error: BaseException) -> str:
    """Where an exception was raised last in this project."""
    found, step = "?", error.__traceback__
    while step:
        name = Path(step.tb_frame.f_code.co_filename)
        if "rsslcli" in name.parts or name == Path(__file__):
            found = f"{name.name}:{step.tb_lineno}"
        step = step.tb_next
    return found


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send whatever is printed, also by C libraries, to a file."""
    flush_all()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        flush_all()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def flush_all() -> None:
    """Write out what Python and C libraries have printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def fuzz(reader: Reader, inputs: int, seed: int, root: Path, save: Path, result: Result) -> None:
    """Give `reader` this many different inputs, and count in `result` what becomes of them."""
    watch = Watch(reader, root)
    save.mkdir(parents=True, exist_ok=True)
    for item in reader.files.items():  # what it must take; this also imports all that it needs
        outcome, why = watch.read(item)
        if outcome != "accepted":
            result.problems.append(f"a valid {item[0]}: {outcome} {why}")
    seen: set[bytes] = set()
    began = time.perf_counter()

    def feed(item: Input) -> None:
        digest = hashlib.sha256(item[0].encode() + item[1]).digest()
        if digest in seen or len(seen) >= inputs:
            return
        seen.add(digest)
        label, file = result.name.replace(" ", "-"), Path(item[0]).name
        current = save / f"current-{label}-{file}"
        current.write_bytes(item[1])
        start = time.perf_counter()
        outcome, why = watch.read(item)
        now = time.perf_counter()
        result.slowest, result.seconds = max(result.slowest, now - start), now - began
        if outcome == "problem":
            kept = current.replace(save / f"{label}-{digest.hex()[:8]}-{file}")
            result.problems.append(f"{why} ({kept})")
        current.unlink(missing_ok=True)
        result.accepted += outcome == "accepted"
        result.refused += outcome == "refused"

    for number in range(inputs):
        if len(seen) >= inputs:
            break
        # In portions, as hypothesis keeps in memory what it has drawn.
        options = settings(
            max_examples=min(400, max(50, inputs - len(seen))),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seeded(seed * inputs + number)(options(given(reader.inputs)(feed)))()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="for each reader")
    parser.add_argument("--only", metavar="NAME", default="", help="the readers whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, default=Path("fuzz-problems"), help="where offending inputs go")
    arguments = parser.parse_args()
    chosen = [name for name in READERS if arguments.only in name]
    if not chosen:
        parser.error(f"no reader's name holds '{arguments.only}': {', '.join(READERS)}")
    save = arguments.save.resolve()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, hang)

    results = []
    print(
        f"{'reader':20} {'inputs':>7} {'accepted':>8} {'refused':>8} {'seconds':>8} {'slowest':>8}  problems"
    )
    try:
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
            for name in chosen:
                reader = READERS[name]()
                if not results:  # the libraries are loaded now
                    size = memory_of("VmSize")
                    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
                result = Result(name)
                results.append(result)
                try:
                    root = Path(scratch) / "fuzz"
                    fuzz(reader, arguments.inputs, arguments.seed, root, save, result)
                finally:
                    total = result.accepted + result.refused + len(result.problems)
                    print(
                        f"{result.name:20} {total:7} {result.accepted:8} {result.refused:8} "
                        f"{result.seconds:8.1f} {result.slowest:8.2f}  {len(result.problems)}",
                        flush=True,
                    )
                    for problem in sorted(set(result.problems))[:20]:
                        print(f"    {problem}", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    finally:
        with suppress(OSError):  # it is not empty
            save.rmdir()
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main())
