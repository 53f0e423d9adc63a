"""Compare our corruptions with those of the benchmark's original generators on the same clean images.

    python benchmarks/corruption_fidelity.py GOLDEN.npz [GOLDEN.npz ...]

GOLDEN.npz holds `clean` (N, S, S, 3) uint8 and, per corruption, the original's output (5, N, S, S, 3), or for
a deterministic corruption that of the first images only. For a random one it may hold statistics instead: per
severity and image `<name>/change` (mean absolute change from the clean image), `<name>/mean` and
`<name>/std` (of the pixels), each (5, N), and `<name>/spectrum` (5, 8).

Deterministic corruptions are compared pixel by pixel, random ones by these four, over all images. The
spectrum is the mean power of the gray image's change in eight rings of frequency; the ring that differs most
is printed. Ours are drawn for at least 200 images, so that their randomness adds little to a difference.
Every miss of a target is marked; the exit code is 1 if there is any.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsslcli.core.corruptions.generate import corrupt
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES

DETERMINISTIC = {
    "brightness", "contrast", "defocus_blur", "gaussian_blur",
    "jpeg_compression", "pixelate", "saturate", "zoom_blur",
}  # fmt: skip
#: May change the images by 15 % more or less, the other random ones by 10 %.
LOOSE = {"glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"}
RINGS = 8
DRAWN = 200  # images drawn at least

Images = NDArray[np.uint8]
Values = NDArray[np.float64]  # one per severity


class Measure(NamedTuple):
    """What is compared: its five values, and the largest that is allowed."""

    name: str
    values: Values
    limit: float
    form: str


class Statistics(NamedTuple):
    """Of one severity: three values per image, and the spectrum of all."""

    change: Values
    mean: Values
    std: Values
    spectrum: Values


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare our corruptions with the original generators'.")
    parser.add_argument("golden", type=Path, nargs="+")
    misses = []
    for path in parser.parse_args().golden:
        with np.load(path) as file:
            golden = dict(file)
        side = golden["clean"].shape[1]
        print(f"{len(golden['clean'])} images of {side}×{side}\n")
        print("| corruption | measure | target | 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|---|---|")
        for name in CORRUPTIONS:
            for measure in compare(name, golden):
                missed = np.abs(measure.values) > measure.limit
                cells = [
                    format(value, measure.form) + " **miss**" * bool(miss)
                    for value, miss in zip(measure.values, missed, strict=True)
                ]
                limit = format(measure.limit, measure.form.lstrip("+"))
                print(f"| {name} | {measure.name} | {limit} | {' | '.join(cells)} |", flush=True)
                misses += [f"{name} {measure.name} at {side}"] * int(missed.sum())
        print()
    print(f"{len(misses)} misses{': ' * bool(misses)}{', '.join(dict.fromkeys(misses))}")
    return 1 if misses else 0


def compare(name: str, golden: dict[str, NDArray[Any]], drawn: int = DRAWN) -> list[Measure]:
    """Compare a corruption with the original's output, by one measure or by four.

    For a random one, we draw at least `drawn` images.
    """
    clean = golden["clean"]
    if name in DETERMINISTIC:
        theirs = golden[name].astype(float)
        first = clean[: theirs.shape[1]]
        ours = np.stack([corrupt(first, name, severity) for severity in SEVERITIES])
        return [Measure("difference", np.abs(ours - theirs).mean((1, 2, 3, 4)), 1.5, ".3f")]

    repeated = np.tile(clean, (-(-drawn // len(clean)), 1, 1, 1))
    ours_per_severity = [statistics(corrupt(repeated, name, severity), repeated) for severity in SEVERITIES]
    theirs_per_severity = [original(name, golden, severity) for severity in SEVERITIES]
    pairs = list(zip(ours_per_severity, theirs_per_severity, strict=True))

    def relative(value: Any) -> Values:
        return np.array([value(ours) / value(theirs) - 1 for ours, theirs in pairs])

    farthest = [
        max(ours.spectrum / theirs.spectrum, key=lambda ratio: abs(np.log(ratio))) for ours, theirs in pairs
    ]
    return [
        Measure("change", relative(lambda one: one.change.mean()), 0.15 if name in LOOSE else 0.10, "+.1%"),
        Measure("mean", relative(lambda one: one.mean.mean()), 0.05, "+.1%"),
        Measure("deviation", relative(pooled_deviation), 0.05, "+.1%"),
        Measure("spectrum, factor", np.exp2(np.abs(np.log2(farthest))), 1.5, ".2f"),
    ]


def original(name: str, golden: dict[str, NDArray[Any]], severity: int) -> Statistics:
    """The statistics of the original's output, as stored or from its images."""
    index = severity - 1
    if f"{name}/change" in golden:
        return Statistics(*(golden[f"{name}/{statistic}"][index] for statistic in Statistics._fields))
    return statistics(golden[name][index], golden["clean"])


def statistics(images: Images, clean: Images) -> Statistics:
    """The statistics of corrupted images (N, S, S, 3)."""
    change = images.astype(np.float32) - clean
    side = images.shape[1]
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency)
    ring = np.minimum(radius / 0.5 * RINGS, RINGS - 1).astype(int)  # the last one includes the corners
    power = (np.abs(np.fft.fft2(change.mean(3))) ** 2).mean(0)
    spectrum = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    each = (1, 2, 3)
    return Statistics(
        np.abs(change).mean(each, np.float64),
        images.mean(each, np.float64),
        images.std(each, np.float64),
        spectrum,
    )


def pooled_deviation(one: Statistics) -> float:
    """The standard deviation of the pixels of all images."""
    return float(np.sqrt((one.std**2 + one.mean**2).mean() - one.mean.mean() ** 2))


if __name__ == "__main__":
    raise SystemExit(main())
