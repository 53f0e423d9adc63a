"""The embedded data set: small drawn pictures of ten shapes, to try everything without a download.

Each shape is filled with one of five fine patterns; each pattern fills two shapes. A network soon relies on
them, as it does on textures in photographs. Blur, noise and weather hide them, so corrupted pictures are
harder.

Each picture is lit from above: the sky is lighter and bluer than the warm ground, the shaded shape is upright
within 25 degrees, and its shadow lies below it. This gives the self-supervision tasks (rotation, color)
something to learn. Only exactly rounded arithmetic is used, so the pictures are the same on every machine.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rsslcli.core.data.store import Images, Labels

Array = npt.NDArray[np.float64]
#: A shape about the size of the unit circle, y up: signed distance to its outline, negative inside.
Distance = Callable[[Array, Array], Array]
#: How dark a fill is, in [0, 1], from vertical and horizontal stripes, each 1 within a stripe.
Pattern = Callable[[Array, Array], Array]

VERSION = 2  # increase with every change of the pictures
TRAIN_SIZE = 4000
TEST_SIZE = 1000
_SIZE = 32
_TILT = 25  # degrees either way
_CHUNK = 250  # images drawn at once


def _circle(radius: float = 0.9) -> Distance:
    return lambda x, y: np.sqrt(x * x + y * y) - radius


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.2


def _crescent(x: Array, y: Array) -> Array:
    return np.maximum(_circle(0.95)(x, y), -_circle(0.8)(x - 0.42, y - 0.12))


def _heart(x: Array, y: Array) -> Array:
    """Two disks on a square that stands on its corner."""
    x = np.abs(x)
    y = y - 0.1
    lobe = np.sqrt((x - 0.42) ** 2 + (y - 0.27) ** 2) - 0.52
    tip = np.maximum((x - y) * math.sqrt(0.5) - 0.63, np.maximum(y - 0.3, x - 0.94))
    return np.minimum(lobe, tip)


def _polygon(*corners: tuple[float, float]) -> Distance:
    """The polygon with these corners, given in order."""

    def distance(x: Array, y: Array) -> Array:
        nearest = np.full_like(x, np.inf)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex = bx - ax
            ey = by - ay
            px = x - ax
            py = y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            dx = px - along * ex
            dy = py - along * ey
            nearest = np.minimum(nearest, dx * dx + dy * dy)
            if ey:
                inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


def _regular(radii: Sequence[float]) -> Distance:
    """The polygon whose corners have these radii at equal angles, starting at the top."""
    turns = [_direction(360 * index / len(radii)) for index in range(len(radii))]
    return _polygon(*((radius * sin, radius * cos) for radius, (cos, sin) in zip(radii, turns, strict=True)))


def _direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that every math library gives the same values."""
    angle = math.radians(degrees)
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def _plain(vertical: Array, horizontal: Array) -> Array:
    return np.zeros_like(vertical)


def _vertical(vertical: Array, horizontal: Array) -> Array:
    return vertical


def _horizontal(vertical: Array, horizontal: Array) -> Array:
    return horizontal


def _checks(vertical: Array, horizontal: Array) -> Array:
    return np.abs(vertical - horizontal)


def _dots(vertical: Array, horizontal: Array) -> Array:
    return vertical * horizontal


#: Per class: the outline, and the pattern of the fill.
SHAPES: dict[str, tuple[Distance, Pattern]] = {
    "arrow": (
        _polygon((0, 1), (0.75, 0.1), (0.3, 0.1), (0.3, -0.95), (-0.3, -0.95), (-0.3, 0.1), (-0.75, 0.1)),
        _plain,
    ),
    "circle": (_circle(), _vertical),
    "crescent": (_crescent, _horizontal),
    "cross": (
        _polygon(
            (0.3, 0.95), (0.3, 0.3), (0.95, 0.3), (0.95, -0.3), (0.3, -0.3), (0.3, -0.95),
            (-0.3, -0.95), (-0.3, -0.3), (-0.95, -0.3), (-0.95, 0.3), (-0.3, 0.3), (-0.3, 0.95),
        ),
        _checks,
    ),
    "heart": (_heart, _dots),
    "hexagon": (_regular([0.97] * 6), _plain),
    "ring": (_ring, _vertical),
    "square": (_polygon((0.78, 0.78), (0.78, -0.78), (-0.78, -0.78), (-0.78, 0.78)), _horizontal),
    "star": (_regular([1.05, 0.45] * 5), _checks),
    "triangle": (_polygon((0, 0.95), (0.95, -0.75), (-0.95, -0.75)), _dots),
}  # fmt: skip


def draw_shapes(count: int, seed: int, split: str) -> tuple[Images, Labels, tuple[str, ...]]:
    """Draw `count` pictures in shuffled order; the counts of the classes differ by at most one.

    Different `split` names give independent pictures.

    Returns:
        The images, uint8 (count, 32, 32, 3), the labels, int64 (count,), and the class names.
    """
    random = np.random.default_rng([seed, *split.encode()])
    labels = random.permutation(np.arange(count, dtype=np.int64) % len(SHAPES))
    images = np.empty((count, _SIZE, _SIZE, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        images[start : start + _CHUNK] = _draw(labels[start : start + _CHUNK], random)
    return images, labels, tuple(SHAPES)


def _draw(labels: Labels, random: np.random.Generator) -> Images:
    """Draw a picture for each label; the order of random draws defines the pictures."""
    count = len(labels)
    scalar = (count, 1, 1)

    def between(low: float, high: float, shape: tuple[int, ...] = scalar) -> Array:
        return low + (high - low) * random.random(shape)

    # Pixel centers in [-1, 1], x to the right, y up.
    axis = (np.arange(_SIZE) + 0.5) / (_SIZE / 2) - 1
    x = np.broadcast_to(axis, (count, _SIZE, _SIZE))
    y = np.broadcast_to(-axis[:, None], (count, _SIZE, _SIZE))

    # Sky above the horizon, ground below, only one of them in two of five pictures; lighter toward the top.
    horizon = between(-0.7, 0.1) + between(-0.15, 0.15) * x
    horizon = horizon + (random.random(scalar) < 0.4) * random.choice([-2, 2], scalar)
    sky = _color(between(0.5, 0.66), between(0.15, 0.6), between(0.55, 0.95))
    ground = _color(between(0.05, 0.33), between(0.2, 0.7), between(0.25, 0.6))
    canvas = _mix(ground, sky, _step((y - horizon) / between(0.1, 0.5)))
    canvas = canvas * (1 + between(0.02, 0.18) * y)[..., None]
    canvas = canvas * (1 + between(0, 0.1) * _texture(between, 6, count))[..., None]

    # Distractors behind the shape: soft blobs and sharp bars in any color.
    for _ in range(2):
        distance = np.sqrt((x - between(-1, 1)) ** 2 + (y - between(-1, 1)) ** 2) / between(0.1, 0.45)
        canvas = _mix(canvas, _any_color(between), _step(1.5 - distance) * between(0, 0.4))
    canvas = _mix(canvas, _any_color(between), _bar(x, y, between) * between(0, 0.3))

    # The shape: moved, scaled, tilted; with a shadow below, shading from above and a darker rim.
    cos, sin = _tilts(random.integers(-_TILT, _TILT, scalar, endpoint=True))
    scale = between(0.5, 0.75)
    from_x = x - between(-0.25, 0.25)
    from_y = y - between(-0.25, 0.25)
    distance = np.empty(x.shape)
    shadow = np.empty(x.shape)
    pattern = np.empty(x.shape)
    period = between(3, 4) / (_SIZE / 2)  # 3 to 4 pixels
    vertical = _stripes(x / period + between(0, 1))
    horizontal = _stripes(y / period + between(0, 1))
    across = (cos * from_x + sin * from_y) / scale
    along = (cos * from_y - sin * from_x) / scale
    stretch = between(0.93, 1.07)
    for label, (outline, fill_pattern) in enumerate(SHAPES.values()):
        mine = labels == label
        pattern[mine] = fill_pattern(vertical[mine], horizontal[mine])
        distance[mine] = outline(across[mine] * stretch[mine], along[mine] / stretch[mine])
        shadow[mine] = outline(across[mine] * stretch[mine] - 0.1, along[mine] / stretch[mine] + 0.3)
    pixel = 2 / _SIZE / scale
    canvas = _mix(canvas, canvas * 0.45, np.clip(0.5 - shadow / (4 * pixel), 0, 1) * between(0.2, 0.9))
    fill = _color(between(0, 1), between(0.5, 1), between(0.5, 1))
    shade = 1 + between(0.1, 0.35) * along + between(0, 0.15) * _texture(between, 9, count)
    rim = _step(1.5 + distance / pixel) * between(-0.7, 0)
    fill = fill * (shade * (1 + rim) * (1 - between(0.3, 0.6) * pattern))[..., None]
    opacity = between(0.8, 1)
    canvas = _mix(canvas, fill, np.clip(0.5 - distance / pixel, 0, 1) * opacity)

    # A bar in front of the shape in one of five pictures.
    canvas = _mix(canvas, _any_color(between), _bar(x, y, between) * (random.random(scalar) < 0.2))

    # The camera: contrast, exposure and noise (a sum of uniforms approximates a Gaussian).
    canvas = 0.5 + (canvas - 0.5) * between(0.7, 1)[..., None] + between(-0.08, 0.08)[..., None]
    noise = sum(random.random(canvas.shape) for _ in range(4)) - 2
    canvas = canvas + noise * between(0.004, 0.016)[..., None]
    return np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


Between = Callable[..., Array]


def _step(value: Array) -> Array:
    """A smooth step from 0 at 0 to 1 at 1."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def _mix(below: Array, above: Array, alpha: Array) -> Array:
    """Blend a color or picture (N, ., ., 3) over another with opacity `alpha` (N, ., .)."""
    return below + (above - below) * alpha[..., None]


def _color(hue: Array, saturation: Array, value: Array) -> Array:
    """Convert HSV, each (N, 1, 1), to RGB (N, 1, 1, 3)."""
    sector: Array = (np.array([5, 3, 1]) + hue[..., None] * 6) % 6
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    rgb: Array = value[..., None] * (1 - saturation[..., None] * ramp)
    return rgb


def _any_color(between: Between) -> Array:
    return _color(between(0, 1), between(0.1, 1), between(0.2, 1))


def _tilts(degrees: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Cosine and sine of whole degrees from -_TILT to _TILT."""
    table = np.array([_direction(degree) for degree in range(-_TILT, _TILT + 1)])
    return table[degrees + _TILT, 0], table[degrees + _TILT, 1]


def _bar(x: Array, y: Array, between: Between) -> Array:
    """Coverage of a straight bar in any direction."""
    dx = between(-1, 1)
    dy = between(-1, 1)
    offset = (dx * (x - between(-0.8, 0.8)) + dy * (y - between(-0.8, 0.8))) / np.sqrt(
        dx * dx + dy * dy + 1e-3
    )
    return np.clip(0.5 + (between(0.03, 0.12) - np.abs(offset)) * (_SIZE / 2), 0, 1)


def _stripes(place: Array) -> Array:
    """Stripes with soft edges, one per unit of `place`: 1 within, 0 between them."""
    stripes: Array = np.clip(6 * np.abs(place % 1 - 0.5) - 1, 0, 1)
    return stripes


def _texture(between: Between, cells: int, count: int) -> Array:
    """Smooth noise in [-1, 1]: a random grid, interpolated."""
    grid = between(-1, 1, (count, cells + 1, cells + 1))
    place = np.arange(_SIZE) * cells / _SIZE
    low = place.astype(int)
    weight = _step(place - low)
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * weight[:, None]
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * weight
