"""Weather, and drops on the lens. `noise` states the interface of every corruption."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rsslcli.core.corruptions.blur import smear
from rsslcli.core.corruptions.operators import apply_separably, gaussian_filter, zoom_matrix
from rsslcli.core.corruptions.parameters import ICE

GRAY_SHARES = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
TURQUOISE = torch.tensor([175, 238, 238]).view(3, 1, 1) / 255
BROWN = torch.tensor([63, 42, 20]).view(3, 1, 1) / 255

#: Five kinds of ice: the mean color, and the change per standard deviation of relief, negative if crystals
#: are darker than their background. Measured on frosted images of the original.
ICE_COLOR = torch.tensor([[98, 110, 121], [75, 148, 164], [140, 155, 167], [198, 202, 212], [198, 202, 212]])
ICE_RELIEF = torch.tensor([[34, 34, 34], [25, 10, 8], [26, 26, 26], [-18, -18, -18], [-18, -18, -18]])


def fog(images: Tensor, generator: Generator, thickness: float, decay: float) -> Tensor:
    """Add a fractal cloud, then darken the image to its original brightest value.

    `decay` is that of the roughness from one scale to the next finer one.
    """
    count, _, height, width = images.shape
    brightest = images.amax((1, 2, 3), keepdim=True)
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = plasma(count, side, decay, generator)[:, None, :height, :width]
    return (images + thickness * cloud) * brightest / (brightest + thickness)


def plasma(count: int, side: int, decay: float, generator: Generator) -> Tensor:
    """Fractal clouds (count, side, side) in [0, 1] by the diamond-square algorithm; `side` is a power of two.

    A new point is the mean of its four neighbors, wrapped around the edges, plus uniform noise. The amplitude
    is proportional to the square of `roughness`, as in the original; only the ratio between scales matters.
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
        centers = perturbed(across + across.roll(-1, 2))
        clouds[:, half::step, half::step] = centers
        clouds[:, ::step, half::step] = perturbed(
            centers + centers.roll(1, 1) + corners + corners.roll(-1, 2)
        )
        clouds[:, half::step, ::step] = perturbed(
            centers + centers.roll(1, 2) + corners + corners.roll(-1, 1)
        )
        step = half
        roughness /= decay
    clouds -= clouds.amin((1, 2), keepdim=True)
    return clouds / clouds.amax((1, 2), keepdim=True)


def snow(
    images: Tensor,
    generator: Generator,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    share: float,
) -> Tensor:
    """Whiten the image and add motion-blurred flakes, once as drawn and once rotated by 180°.

    Flakes are what exceeds `threshold` in normal noise enlarged by `zoom`; `radius` and `sigma` are those of
    their motion, `share` is the weight of the image.
    """
    count, _, height, width = images.shape
    flakes = mean + deviation * torch.randn(count, 1, height, width, generator=generator)
    flakes = apply_separably(flakes, zoom_matrix(height, zoom), zoom_matrix(width, zoom))
    flakes = flakes.where(flakes >= threshold, 0).clamp(0, 1)
    degrees = torch.rand(count, generator=generator) * 90 - 135
    flakes = (smear((flakes * 255).floor(), degrees, radius, sigma) + 1e-3).floor() / 255

    gray = (images * GRAY_SHARES).sum(1, keepdim=True)
    whitened = share * images + (1 - share) * torch.maximum(images, gray * 1.5 + 0.5)
    return whitened + flakes + flakes.rot90(2, (2, 3))


def frost(images: Tensor, generator: Generator, image_share: float, ice_share: float) -> Tensor:
    """Lay ice over the image. The original crops it from five photographs; here `ice` synthesizes it."""
    return image_share * images + ice_share * ice(len(images), images.shape[-1], generator)


def ice(count: int, side: int, generator: Generator) -> Tensor:
    """Textures of ice (count, 3, side, side) in [0, 1]: crossing needles on a smooth fractal relief.

    Each has one of five colors, with a random brightness.
    """
    thin, thick, rough = ICE[side]
    kind = torch.randint(len(ICE_COLOR), (count,), generator=generator)
    needles = thin * _standardized(_needles(count, side, generator))
    if thick:
        enlarged = F.interpolate(_needles(count, round(side / 1.5), generator), side, mode="bilinear")
        needles += thick * _standardized(enlarged)
    ground = plasma(count, 1 << (side - 1).bit_length(), 1.4, generator)[:, None, :side, :side]
    relief = _standardized(needles + rough * _standardized(ground))
    relief += 0.5 * torch.randn(count, 1, 1, 1, generator=generator)
    color = ICE_COLOR[kind, :, None, None]
    contrast = ICE_RELIEF[kind, :, None, None]
    return ((color + contrast * relief) / 255).clamp(0, 1)


def _needles(count: int, side: int, generator: Generator) -> Tensor:
    """Planes (count, 1, side, side) of needles in two random directions, one pixel thick."""
    grain = torch.randn(2, count, 1, side, side, generator=generator)
    degrees = torch.rand(2, count, generator=generator) * 180
    return torch.maximum(smear(grain[0], degrees[0], 3, 1.0), smear(grain[1], degrees[1], 3, 1.0))


def _standardized(planes: Tensor) -> Tensor:
    """Standardize each plane of (N, 1, H, W) to mean 0 and standard deviation 1."""
    deviation, mean = torch.std_mean(planes, (2, 3), keepdim=True)
    return (planes - mean) / deviation


def spatter(
    images: Tensor,
    generator: Generator,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    muddy: bool,
) -> Tensor:
    """Splash drops on the lens: water that refracts light at its rims, or opaque mud.

    Drops are what exceeds `threshold` in normal noise smoothed with `sigma`; `strength` is that of the water,
    or the sigma of the mud's rim.
    """
    count, _, height, width = images.shape
    drops = mean + deviation * torch.randn(count, 1, height, width, generator=generator)
    drops = gaussian_filter(drops, sigma)
    if muddy:
        mud = gaussian_filter((drops > threshold).float(), strength)
        mud = mud.where(mud >= 0.8, 0)
        return images * (1 - mud) + BROWN * mud

    drops = (drops.where(drops >= threshold, 0) * 255).floor().clamp(max=255)
    water = drops * _rim_light(drops)
    water = water / water.amax((2, 3), keepdim=True).clamp(min=1e-6)
    return images + strength * water * TURQUOISE


def _rim_light(drops: Tensor) -> Tensor:
    """The brightness of water (N, 1, H, W), 0…255, from its depth (N, 1, H, W), 0…255.

    The distance to the edges of the drops, with its histogram equalized, is embossed like a surface. The
    original uses OpenCV, whose distance is a chamfer approximation; ours is exact.
    """
    pixels = drops[0].numel()
    most = 20
    distance = _distance(find_edges(drops, 50, 150), most)
    level = _box_blur(distance).long().flatten(1)

    bins = most + 1
    first_bin = bins * torch.arange(len(level))[:, None]
    histogram = torch.bincount((first_bin + level).flatten(), minlength=bins * len(level)).view(-1, bins)
    below = histogram.cumsum(1)
    lowest = below.gather(1, level.amin(1, keepdim=True))  # pixels at the lowest level present
    equalized = ((below - lowest) * (255 / (pixels - lowest).clamp(min=1))).round()
    # A plane with a single level stays as it is.
    equalized = torch.where(lowest == pixels, torch.arange(float(bins)), equalized)
    surface = equalized.gather(1, level).view_as(distance)

    emboss = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    lit = F.conv2d(F.pad(surface, (1,) * 4, mode="reflect"), emboss[None, None]).clamp(0, 255)
    return _box_blur(lit).round()


def _box_blur(planes: Tensor) -> Tensor:
    """Mean over 3×3 pixels, mirrored at the edges."""
    return F.avg_pool2d(F.pad(planes, (1,) * 4, mode="reflect"), 3, stride=1)


def _distance(edges: Tensor, most: int) -> Tensor:
    """Euclidean distance of each pixel to the nearest edge pixel of its plane (N, 1, H, W), up to `most`."""
    squared = torch.full(edges.shape, float(most**2)).masked_fill(edges, 0)
    return _nearest(_nearest(squared, most, -1), most, -2).sqrt()


def _nearest(squared: Tensor, most: int, axis: int) -> Tensor:
    """For each position on an axis, the minimum of value plus squared distance, within less than `most`."""
    length = squared.shape[axis]
    nearest = squared.clone()
    for offset in range(1, min(most, length)):
        near = squared + offset**2
        for start, source in ((offset, 0), (0, offset)):
            target = nearest.narrow(axis, start, length - offset)
            torch.minimum(target, near.narrow(axis, source, length - offset), out=target)
    return nearest


def _grown(mask: Tensor) -> Tensor:
    """Dilate a bool mask (N, 1, H, W) by one pixel, diagonals included."""
    padded = F.pad(mask, (1,) * 4)
    tall = padded[..., :-2, :] | padded[..., 1:-1, :] | padded[..., 2:, :]
    return tall[..., :-2] | tall[..., 1:-1] | tall[..., 2:]


def find_edges(planes: Tensor, low: float, high: float) -> Tensor:
    """Canny edges (N, 1, H, W) bool of planes in 0…255, like OpenCV: 3×3 Sobel, magnitude |x| + |y|."""
    height, width = planes.shape[-2:]
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    slope = F.conv2d(F.pad(planes, (1,) * 4, mode="replicate"), torch.stack([sobel, sobel.T])[:, None])
    across = slope[:, :1]
    down = slope[:, 1:]
    magnitude = across.abs() + down.abs()

    # Keep only ridges: compare with the two neighbors along the gradient.
    padded = F.pad(magnitude, (1,) * 4)

    def neighbor(dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steepness = down.abs() / across.abs()  # 0/0 only where the magnitude is 0, below every threshold
    horizontal = (magnitude > neighbor(0, -1)) & (magnitude >= neighbor(0, 1))
    vertical = (magnitude > neighbor(-1, 0)) & (magnitude >= neighbor(1, 0))
    falling = (magnitude > neighbor(-1, -1)) & (magnitude > neighbor(1, 1))
    rising = (magnitude > neighbor(-1, 1)) & (magnitude > neighbor(1, -1))
    diagonal = torch.where(across * down >= 0, falling, rising)
    sideways = torch.where(steepness > 1 + 2**0.5, vertical, diagonal)
    ridge = torch.where(steepness < 2**0.5 - 1, horizontal, sideways) & (magnitude > low)

    # Extend strong ridges along weak ones.
    edges = ridge & (magnitude > high)
    while True:
        grown = ridge & _grown(edges)
        if torch.equal(grown, edges):
            return edges
        edges = grown
