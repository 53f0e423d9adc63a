"""The guide in docs/data.md, as an engineer with a folder of photographs follows it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsslcli.core.data.corrupted import aligned, open_corrupted
from rsslcli.core.data.store import load_dataset
from rsslcli.core.weights.checkpoint import load_checkpoint

GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
#: What makes a training of the guide one of seconds; the later of two equal options counts.
TINY = "--epochs 1 --depth 10 --train-size 32 --device cpu"
TUNED = "--warmup-epochs 0"
#: Runs commands in one process, which loads PyTorch once; a line with the exit code ends each.
DRIVER = """
import json, sys
from rsslcli.app import main
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as ended:
        print(f"exit {ended.code}", flush=True)
        print(f"exit {ended.code}", file=sys.stderr, flush=True)
"""


def commands(marker: str) -> list[list[str]]:
    """The arguments of the `rssl` commands in the guide's blocks with this marker."""
    blocks = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)```", GUIDE, re.DOTALL)
    words = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert words
    assert all(line[0] == "rssl" for line in words)
    return [line[1:] for line in words]


def run(lines: list[list[str]], home: Path) -> list[tuple[int, str, str]]:
    """Each command's exit code, and what it wrote to stdout and stderr."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RSSL_")}
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(lines)],
        cwd=home,
        env=environment | {"XDG_CACHE_HOME": str(home / ".cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    streams = [
        re.split(r"^exit (\d+)\n", stream, flags=re.MULTILINE) for stream in (result.stdout, result.stderr)
    ]
    assert len(streams[0]) == len(streams[1]) == 2 * len(lines) + 1
    return [
        (int(code), said, told)
        for said, code, told in zip(streams[0][::2], streams[0][1::2], streams[1][::2], strict=False)
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`: 60 images in each of three classes, of many sizes, formats, modes and names."""
    home = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    colors = {"cat": (200, 120, 40), "dog": (40, 90, 200), "horse": (60, 170, 70)}
    sizes = [(500, 375), (640, 480), (375, 600), (800, 600), (512, 512)]
    for label, (name, color) in enumerate(colors.items()):
        folder = home / "photos" / name
        folder.mkdir(parents=True)
        for index in range(60):
            noise = random.integers(0, 60, (12, 16, 3))
            size = (4032, 3024) if (label, index) == (1, 7) else sizes[index % 5]
            image = Image.fromarray((noise + color).clip(0, 255).astype(np.uint8)).resize(size)
            match index % 6:
                case 0:
                    image.convert("L").save(folder / f"grey scan {index}.png", compress_level=1)
                case 1:
                    image.convert("CMYK").save(folder / f"print_{index}.TIFF")
                case 2:
                    image.save(folder / f"Ünïcode ({index}).webp", method=0)
                case _:
                    image.save(folder / f"IMG_{index:04}.JPG")
    return home


@pytest.fixture(scope="module")
def followed(home: Path) -> list[tuple[int, str, str]]:
    """The guide followed from top to bottom, with small trainings."""
    extra = {"train-automl": shlex.split(f"{TINY} {TUNED}"), "train-single": shlex.split(TINY)}
    lines = [line + extra.get(line[0], []) for line in commands("own data")]
    assert [line[0] for line in lines] == [
        "prepare-data", "visualize-tasks", "train-single", "eval-c", "train-single", "eval-c", "report",
        "train-automl", "eval-c", "eval-c", "train-automl",
    ]  # fmt: skip
    train = shlex.split(
        "train-single --task none --dataset mine --device cpu --depth 10 --width 1 --output no"
    )
    impossible = [[*train, "--train-size", "500"], [*train, "--batch-size", "200"]]
    return run([*lines, *commands("own data, refused"), *impossible], home)


def test_the_guide_runs(home: Path, followed: list[tuple[int, str, str]]) -> None:
    assert [code for code, *_ in followed] == [0] * 11 + [2] * 3
    with Image.open(home / "mine.png") as picture:
        assert picture.width > 200
    assert load_checkpoint(home / "runs" / "mine").config.augment == "augmix"
    mine, plain, tuned = (
        json.loads((home / "runs" / name / "eval-c.json").read_text()) for name in ("mine", "plain", "tasks")
    )
    assert (mine["images"], plain["images"], tuned["images"]) == (18, 36, 18)
    assert mine["excluded"] == tuned["excluded"] == list(load_checkpoint(home / "runs" / "tasks").excluded)
    assert mine["corrupted_data"] == plain["corrupted_data"] == tuned["corrupted_data"]
    assert {len(values) for values in mine["accuracy"].values()} == {5}
    assert "note: 18 source images tune λ, not 100" in followed[7][2]
    assert (home / "runs" / "report" / "report.html").is_file()


def test_preparing_says_what_the_guide_says(home: Path, followed: list[tuple[int, str, str]]) -> None:
    _, said, told = followed[0]
    promised = re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL)[0]
    expected = promised.replace("/home/you/.cache", str(home / ".cache")).splitlines()
    assert said.splitlines() == [expected[0], expected[3]]
    assert told.splitlines() == [expected[1], expected[2], expected[4]]


def test_what_was_prepared(home: Path, followed: list[tuple[int, str, str]]) -> None:
    data = load_dataset(home / ".cache" / "rssl", "mine")
    assert data.train.classes == ("cat", "dog", "horse")
    for split, count in ((data.train, 48), (data.test, 12)):
        assert np.bincount(split.labels).tolist() == [count] * 3
    assert aligned(open_corrupted(data.corrupted_folder, "mine"), data.test)
    # Each class has the color of its photographs, but for the gray ones.
    means = data.train.images.reshape(144, -1, 3).mean(1)
    colored = np.ptp(means, axis=1) > 1
    assert 96 < colored.sum() < 144
    assert (means[colored].argmax(1) == np.array([0, 2, 1])[data.train.labels[colored]]).all()


def test_other_sizes_are_refused_by_option(followed: list[tuple[int, str, str]]) -> None:
    _, said, told = followed[11]
    assert said == ""
    assert re.fullmatch(
        r"rssl: error: image '\w+/.*' is \d+x\d+ pixels, not 64x64: resize it, or let it be resized\n",
        told,
    )


def test_too_much_is_asked_of_few_images(home: Path, followed: list[tuple[int, str, str]]) -> None:
    assert [told for *_, told in followed[12:]] == [
        "rssl: error: train_size: 500 of the 144 images of 3 classes: choose from 3 to 144\n",
        "rssl: error: batch_size: 200 is more than the 144 training images: lower it\n",
    ]
    assert not (home / "no").exists()
