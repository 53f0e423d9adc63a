"""The corruptions of CIFAR-10-C by name. Imports nothing heavy, so that the command line answers at once."""

#: The 15 corruptions that the benchmark tests on (Hendrycks and Dietterich 2019).
STANDARD = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
#: The four that its authors keep for tuning.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
#: All 19, over which the paper averages (section 3).
CORRUPTIONS = STANDARD + EXTRA
SEVERITIES = (1, 2, 3, 4, 5)
