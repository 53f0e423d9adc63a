"""Peak memory of the commands as the number of images grows: python benchmarks/memory.py --images 2000 20000

Images of 224x224 pixels are made up in a temporary folder: a few JPEG files under many names. For each number
of them, the script prepares a data set, generates a corruption, trains for a while and evaluates, and prints
the most anonymous memory that each command had at a time, sampled every 20 ms. Pages of files that the system
keeps in spare memory do not count: it drops them when another program needs the room. Linux only.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import memory_of
from PIL import Image

DISTINCT = 64
CLASSES = 4
GENERATE = "--corruptions generate"
TRAIN = (
    "train-automl --dataset made-up --tasks rotation --depth 10 --width 1 --batch-size 16 --epochs 2 "
    "--warmup-epochs 0 --output run"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000], help="training images")
    parser.add_argument("--test-images", type=int, default=400)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=60, help="how long to train")
    options = parser.parse_args()
    prepare = f"prepare-data --dataset made-up --source images --size {options.size}"
    print("command, training images → peak of anonymous memory in MiB")
    with tempfile.TemporaryDirectory() as scratch:
        for images in options.images:
            folder = Path(scratch) / str(images)
            make_images(folder / "images", images, options.test_images)
            for name, command, seconds in (
                ("prepare-data", prepare, None),
                (f"prepare-data {GENERATE}", f"{prepare} {GENERATE} --only brightness", None),
                ("train-automl", TRAIN, options.seconds),
                ("eval-c", "eval-c run --corruptions brightness", None),
            ):
                peak = peak_anonymous(command, folder, seconds)
                print(f"{name:>35} {images:>7} → {peak / 2**20:6,.0f}", flush=True)


def make_images(folder: Path, train: int, test: int) -> None:
    """Write JPEG files of 256x256 pixels into class folders: hard links to a few different ones."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(DISTINCT):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            place = folder / split / f"class-{index % DISTINCT % CLASSES}" / f"{index:06}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / f"{index % DISTINCT}.jpg", place)
    for index in range(DISTINCT):
        (folder / f"{index}.jpg").unlink()


def peak_anonymous(command: str, folder: Path, seconds: float | None) -> int:
    """Run a command of rssl, for some seconds at most; the most anonymous memory that it had, in bytes."""
    environment = os.environ | {"RSSL_DATA_DIR": "data"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rsslcli", *shlex.split(command)],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        peak = 0
        began = time.monotonic()
        while process.poll() is None:
            peak = max(peak, memory_of("RssAnon", process.pid))
            if seconds is not None and time.monotonic() - began > seconds:
                process.send_signal(signal.SIGINT)  # it saves what it has, and ends
                seconds = None
            time.sleep(0.02)
    if process.returncode not in (0, 130):
        raise SystemExit(f"rssl {command} failed: {(folder / 'log.txt').read_text()[-500:]}")
    return peak


if __name__ == "__main__":
    main()
