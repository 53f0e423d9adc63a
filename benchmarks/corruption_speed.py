"""Time every corruption, and the whole generator on all cores; project to the size of CIFAR-10-C.

    python benchmarks/corruption_speed.py [--images N] [--whole]

The images are random noise, the worst case for JPEG. With --whole the files of all 95 blocks of N images are
written to a temporary folder as well, with all cores, and the peak memory is printed.
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
    parser.add_argument("--whole", action="store_true", help="time the writing of all files too")
    options = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)

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
    print(f"\nprojected for 95 x {FULL_SIZE:,} images: {total * FULL_SIZE:.0f} s of processor time")

    if options.whole:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            generate_corrupted(images, np.zeros(len(images), np.int64), Path(folder))
            seconds = time.perf_counter() - start
        print(f"95 x {len(images):,} images written with all cores: {seconds:.1f} s", end=", ")
        print(f"projected for {FULL_SIZE:,}: {seconds / len(images) * FULL_SIZE:.0f} s")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
