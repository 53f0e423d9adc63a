"""Weather, and what it leaves on the lens. The shape contract of every corruption is in `noise`."""

import torch
from torch import Generator, Tensor

from rsslcli.core.corruptions.blur import smear
from rsslcli.core.corruptions.operators import apply_separably, zoom_matrix

#: thickness, decay of the roughness from one scale to the next finer
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
#: mean, standard deviation, zoom and threshold of the flakes; radius and sigma of their motion; share of the image
SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
)


def fog(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Add a fractal cloud, then darken the image so that it keeps its brightest value."""
    count, _, height, width = images.shape
    thickness, decay = FOG[severity - 1]
    brightest = images.amax((1, 2, 3), keepdim=True)
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = plasma(count, side, decay, generator)[:, None, :height, :width]
    return (images + thickness * cloud) * brightest / (brightest + thickness)


def plasma(count: int, side: int, decay: float, generator: Generator) -> Tensor:
    """Fractal clouds (count, side, side) in [0, 1] by the diamond-square algorithm; `side` is a power of two.

    A new point is the mean of its four neighbours, round the edges, plus uniform noise. Its amplitude goes
    with the square of `roughness`, as in the original; only the ratio between scales matters.
    """
    clouds = torch.zeros(count, side, side)
    roughness = 1.0
    step = side

    def perturbed(total: Tensor) -> Tensor:
        noise = torch.rand(total.shape, generator=generator) * 2 - 1
        return total / 4 + roughness**2 * noise

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        across = corners + corners.roll(-1, 1)
        centres = perturbed(across + across.roll(-1, 2))
        clouds[:, half::step, half::step] = centres
        clouds[:, ::step, half::step] = perturbed(centres + centres.roll(1, 1) + corners + corners.roll(-1, 2))
        clouds[:, half::step, ::step] = perturbed(centres + centres.roll(1, 2) + corners + corners.roll(-1, 1))
        step = half
        roughness /= decay
    clouds -= clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


def snow(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Whiten the image and add flakes smeared by their fall, once as drawn and once turned by 180°."""
    count, _, height, width = images.shape
    mean, deviation, zoom, threshold, radius, sigma, share = SNOW[severity - 1]
    flakes = mean + deviation * torch.randn(count, 1, height, width, generator=generator)
    flakes = apply_separably(flakes, zoom_matrix(height, zoom), zoom_matrix(width, zoom))
    flakes = flakes.where(flakes >= threshold, 0).clamp(0, 1)
    degrees = torch.rand(count, generator=generator) * 90 - 135
    flakes = smear((flakes * 255).floor() / 255, degrees, radius, sigma)

    red, green, blue = images.split(1, 1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    whitened = share * images + (1 - share) * torch.maximum(images, grey * 1.5 + 0.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))
