"""Compare our corruptions with those of the benchmark's original generator on the same clean images.

    python benchmarks/corruption_fidelity.py GOLDEN.npz

GOLDEN.npz holds `clean` (N, 32, 32, 3) uint8 and, per corruption, the original's output
(5, N, 32, 32, 3). Deterministic corruptions are compared pixel by pixel, random ones by three statistics
over all images: the mean absolute change from the clean image, the mean and the standard deviation of the
pixels. Every miss of a target is marked; the exit code is 1 if there is any.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsslcli.core.corruptions.generate import corrupt
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES

DETERMINISTIC = {
    "brightness", "contrast", "defocus_blur", "gaussian_blur",
    "jpeg_compression", "pixelate", "saturate", "zoom_blur",
}  # fmt: skip
NOISE = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"}

Blocks = NDArray[np.float64]  # (5, N, 32, 32, 3), gray levels


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare our corruptions with the original generator's.")
    parser.add_argument("golden", type=Path)
    with np.load(parser.parse_args().golden) as file:
        golden = dict(file)
    clean = golden["clean"]

    misses = 0
    print("| corruption | measure | target | 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|---|---|")
    for name in CORRUPTIONS:
        ours = np.stack([corrupt(clean, name, severity) for severity in SEVERITIES]).astype(float)
        for measure, values, limit, form in compare(
            name, ours, golden[name].astype(float), clean.astype(float)
        ):
            missed = np.abs(values) > limit
            misses += int(missed.sum())
            cells = [
                format(value, form) + " **miss**" * bool(miss)
                for value, miss in zip(values, missed, strict=True)
            ]
            print(f"| {name} | {measure} | {format(limit, form[1:])} | {' | '.join(cells)} |")
    print(f"\n{misses} misses")
    return 1 if misses else 0


def compare(
    name: str, ours: Blocks, theirs: Blocks, clean: Blocks
) -> list[tuple[str, NDArray[Any], float, str]]:
    """Give the measures of a corruption: what, its five values, the largest allowed, the number's format."""
    if name in DETERMINISTIC:
        return [("difference", average(np.abs(ours - theirs)), 1.5, " .3f")]
    return [
        ("change", relative(average(np.abs(ours - clean)), average(np.abs(theirs - clean))),
         0.10 if name in NOISE else 0.15, "+.1%"),
        ("mean", relative(average(ours), average(theirs)), 0.05, "+.1%"),
        ("deviation", relative(ours.std((1, 2, 3, 4)), theirs.std((1, 2, 3, 4))), 0.05, "+.1%"),
    ]  # fmt: skip


def average(blocks: Blocks) -> NDArray[Any]:
    return blocks.mean((1, 2, 3, 4))


def relative(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[Any]:
    return ours / theirs - 1


if __name__ == "__main__":
    raise SystemExit(main())
