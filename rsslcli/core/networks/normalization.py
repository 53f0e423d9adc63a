"""Normalization of a classifier's input: (x − mean) / std per channel, x in [0, 1]. Imports nothing heavy."""

from __future__ import annotations

import math

from rsslcli.core.errors import UserError, short_repr, unknown

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

#: x·2 − 1: ours, and that of AugMix (Hendrycks et al. 2020) and its forerunners.
HALF: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
#: Mean and standard deviation of red, green and blue, by name.
NORMALIZATIONS: dict[str, Normalization] = {
    "half": HALF,
    # Of CIFAR-10's training images, as in the usual PyTorch code of the WideResNet's training.
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def parse_normalization(text: str) -> Normalization:
    """The normalization called `text`, or the one it spells out: "R,G,B/R,G,B", means before deviations.

    Raises:
        UserError: it is neither, or no normalization of values in [0, 1].
    """
    if "/" not in text:
        if text not in NORMALIZATIONS:
            raise unknown("normalization", text, [*NORMALIZATIONS, "R,G,B/R,G,B"])
        return NORMALIZATIONS[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    return check_normalization(mean, std, f"normalization {short_repr(text)}")


def check_normalization(mean: tuple[float, ...], std: tuple[float, ...], where: str) -> Normalization:
    """`mean` and `std`, if they can be those of three channels of values in [0, 1].

    Raises:
        UserError: they cannot; the message begins with `where`.
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
