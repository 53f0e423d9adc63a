"""Time every corruption, and the whole generator in threads; project to 10,000 images, as CIFAR-10-C has.

    python benchmarks/corruption_speed.py [--images N] [--size S | --golden GOLDEN.npz] [--whole]

The images are random noise of S×S pixels, the worst case for JPEG, or those of GOLDEN.npz, repeated. N is
rounded up to whole chunks of the generator, which pads the last one. With --whole, a separate process also
writes the files of all 95 blocks of N images to a temporary folder, with a worker per thread of PyTorch, and
its peak memory is printed.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import Worker, peak_memory

from rsslcli.core.corruptions.generate import CHUNK, corrupt, generate_corrupted
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES

FULL_SIZE = 10_000


def make_images(count: int, size: int, golden: Path | None) -> np.ndarray:
    """Images (count, size, size, 3) uint8: noise, or those of `golden`."""
    if golden:
        with np.load(golden) as file:
            return np.resize(file["clean"], (count, size, size, 3))
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def whole(count: int, size: int, golden: Path | None) -> dict[str, Callable[[], object]]:
    """The generator, for a fresh process whose peak memory is that of the generator alone."""
    images = make_images(count, size, golden)

    def generate() -> tuple[float, float, int]:
        """Wall time and processor time in seconds, peak memory in bytes."""
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            busy = time.process_time()
            generate_corrupted(images, np.zeros(len(images), np.int64), Path(folder))
            return time.perf_counter() - start, time.process_time() - busy, peak_memory()

    return {"generate": generate}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the corruptions.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, choices=CHUNK, default=32)
    parser.add_argument("--golden", type=Path, help="see corruption_fidelity.py")
    parser.add_argument("--whole", action="store_true", help="time the writing of all files too")
    options = parser.parse_args()
    if options.images < 1:
        parser.error("--images must be 1 or more")
    size = options.size
    if options.golden:
        with np.load(options.golden) as file:
            size = file["clean"].shape[1]
    if size not in CHUNK:
        parser.error(
            f"{options.golden}: {size}×{size} pixels; the generator takes {', '.join(map(str, CHUNK))}"
        )
    count = -(-options.images // CHUNK[size]) * CHUNK[size]
    if count != options.images:
        print(f"{count:,} images in place of {options.images:,}: whole chunks of {CHUNK[size]}")
    images = make_images(count, size, options.golden)

    print("milliseconds of processor time per image, one thread\n")
    print("| corruption | 1 | 2 | 3 | 4 | 5 | mean |\n|---|---|---|---|---|---|---|")
    total = 0.0
    for name in CORRUPTIONS:
        corrupt(images[:1], name, 1)  # fills the caches
        times = []
        for severity in SEVERITIES:
            start = time.thread_time()
            corrupt(images, name, severity)
            times.append((time.thread_time() - start) / len(images))
        total += sum(times)
        cells = [f"{1000 * seconds:.3f}" for seconds in (*times, float(np.mean(times)))]
        print(f"| {name} | {' | '.join(cells)} |")
    blocks = len(CORRUPTIONS) * len(SEVERITIES)
    print(f"\nmean of all: {1000 * total / blocks:.3f} ms", end=", ")
    print(f"projected for {blocks} x {FULL_SIZE:,} images: {total * FULL_SIZE:.0f} s of processor time")

    if options.whole:
        workers = torch.get_num_threads()
        with Worker(whole, count, size, options.golden, threads=workers) as process:
            seconds, busy, peak = process.value("generate")
        each = 1000 * seconds / len(images) / blocks
        print(f"{blocks} x {len(images):,} images written, {workers} worker(s): {seconds:.1f} s", end=", ")
        print(f"{each:.3f} ms per image and corruption, {busy:.1f} s of processor time", end=", ")
        print(f"projected for {FULL_SIZE:,}: {seconds / len(images) * FULL_SIZE:.0f} s")
        print(f"peak memory {peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
