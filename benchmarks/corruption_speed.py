"""Time every corruption, and the whole generator on all cores; project to 10,000 images, as CIFAR-10-C has.

    python benchmarks/corruption_speed.py [--images N] [--size S | --golden GOLDEN.npz] [--whole]

The images are random noise of S×S pixels, the worst case for JPEG, or those of GOLDEN.npz, repeated. With
--whole the files of all 95 blocks of N images are written to a temporary folder as well, with all cores, and
the peak memory is printed.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from rsslcli.core.corruptions.generate import corrupt, generate_corrupted
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES

FULL_SIZE = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the corruptions.")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--golden", type=Path, help="see corruption_fidelity.py")
    parser.add_argument("--whole", action="store_true", help="time the writing of all files too")
    options = parser.parse_args()
    shape = (options.images, options.size, options.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if options.golden:
        with np.load(options.golden) as file:
            images = np.resize(file["clean"], (options.images, *file["clean"].shape[1:]))

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
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            busy = time.process_time()
            generate_corrupted(images, np.zeros(len(images), np.int64), Path(folder))
            seconds = time.perf_counter() - start
            busy = time.process_time() - busy
        each = 1000 * seconds / len(images) / blocks
        print(f"{blocks} x {len(images):,} images written with all cores: {seconds:.1f} s", end=", ")
        print(f"{each:.3f} ms per image and corruption, {busy:.1f} s of processor time", end=", ")
        print(f"projected for {FULL_SIZE:,}: {seconds / len(images) * FULL_SIZE:.0f} s")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
