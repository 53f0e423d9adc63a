"""Normalization of a classifier's input, (x − mean) / std per channel with x in [0, 1]. Imports no torch."""

from __future__ import annotations

import math

from rsslcli.core.errors import UserError, short_repr, unknown

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

#: x·2 − 1: used by this package, and by AugMix (Hendrycks et al. 2020) and its predecessors.
HALF: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
#: Mean and standard deviation of red, green and blue, by name.
NORMALIZATIONS: dict[str, Normalization] = {
    "half": HALF,
    # The statistics of CIFAR-10's training images, as in the usual PyTorch training code for WideResNets.
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    # The statistics with which torchvision's classifiers are trained.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def parse_normalization(text: str) -> Normalization:
    """Parse a normalization: a name, or the means and standard deviations as "R,G,B/R,G,B".

    Raises:
        UserError: `text` is neither, or does not fit values in [0, 1].
    """
    if "/" not in text:
        if text not in NORMALIZATIONS:
            raise unknown("normalization", text, [*NORMALIZATIONS, "R,G,B/R,G,B"])
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean = std = ()
    return check_normalization(mean, std, f"normalization {short_repr(text)}")


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...], where: str) -> Normalization:
    """Return `mean` and `std` if they fit three channels of values in [0, 1].

    Raises:
        UserError: they do not; the message begins with `where`.
    """
    numbers = (*mean, *std)
    if (
        (len(mean), len(std)) != (3, 3)
        or not all(map(math.isfinite, numbers))
        or not all(0 <= number <= 1 for number in numbers)
        or min(std) < 1e-3
    ):
        raise UserError(
            f"{where}: expected three means and three standard deviations of values in [0, 1], such as "
            "0.49,0.48,0.45/0.25,0.24,0.26"
        )
    return mean, std
