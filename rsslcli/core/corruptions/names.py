"""The names of the corruptions of CIFAR-10-C. Imports nothing heavy, so the command line starts fast."""

from collections.abc import Collection

#: The 15 corruptions of the benchmark (Hendrycks and Dietterich 2019).
STANDARD = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
#: The four that its authors reserve for tuning.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
#: All 19, which the paper averages over (section 3).
CORRUPTIONS = STANDARD + EXTRA
#: The groups in which the benchmark's authors present them.
GROUPS = {
    "noise": STANDARD[:3],
    "blur": STANDARD[3:7],
    "weather": STANDARD[7:11],
    "digital": STANDARD[11:],
    "extra": EXTRA,
}
SEVERITIES = (1, 2, 3, 4, 5)


def coverage(names: Collection[str]) -> str:
    """How many of the 19 corruptions are in `names`, and which, unless all are.

    Reads well after "mean of": "19", "17 of 19 (missing: snow, fog)", "2 of 19 (snow, fog)".
    """
    present = [name for name in CORRUPTIONS if name in names]
    missing = [name for name in CORRUPTIONS if name not in names]
    if not missing:
        return str(len(present))
    named = ", ".join(present) if len(present) < len(missing) else f"missing: {', '.join(missing)}"
    return f"{len(present)} of {len(CORRUPTIONS)} ({named})"
