"""Single corruptions against independent implementations: scikit-image, SciPy, Pillow, OpenCV's output."""

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import color, filters

from rsslcli.core.corruptions import blur, digital, operators, weather
from rsslcli.core.corruptions.generate import corrupt
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.parameters import ICE, TABLE_32, TABLES, parameters
from rsslcli.core.corruptions.registry import FUNCTIONS, apply
from rsslcli.core.data.store import SIZES

Images = NDArray[np.uint8]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def difference(ours: Images, reference: NDArray[np.float64]) -> float:
    """Mean absolute difference in gray levels from a reference in [0, 1], cut off as the original does."""
    return float(np.abs(ours - np.floor(reference.clip(0, 1) * 255 + 1e-3)).mean())


def test_every_name_has_its_function() -> None:
    assert tuple(FUNCTIONS) == CORRUPTIONS


def test_images_of_every_prepared_size_can_be_corrupted() -> None:
    assert tuple(TABLES) == SIZES


@pytest.mark.parametrize("side", TABLES)
def test_every_size_has_parameters_for_every_corruption(side: int) -> None:
    assert TABLES[side].keys() == set(CORRUPTIONS)
    assert {len(row) for row in TABLES[side].values()} == {len(SEVERITIES)}
    assert side in ICE


@pytest.mark.parametrize("side", TABLES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_range_and_determinism(name: str, side: int) -> None:
    pixels = torch.rand(3 if side == 32 else 1, 3, side, side, generator=generator())
    for severity in SEVERITIES if side == 32 else (1, 5):
        before = pixels.clone()
        first, second = (apply(name, pixels, severity, generator(7)) for _ in range(2))
        assert first.shape == pixels.shape
        assert first.dtype == torch.float32
        assert first.isfinite().all()
        assert torch.equal(first, second)
        assert torch.equal(pixels, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_images_of_one_level_stay_finite(name: str, level: float) -> None:
    for severity in SEVERITIES:
        assert apply(name, torch.full((2, 3, 32, 32), level), severity, generator()).isfinite().all()


# Saturate takes color away at severities 1 and 2 and adds it from 3 on; elastic_transform goes from large
# shifts to fine ones.
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"saturate", "elastic_transform"}))
def test_a_higher_severity_changes_more(name: str, images: Images) -> None:
    clean = images[3:].astype(int)  # black, white and gray are exceptions for some
    changes = [np.abs(corrupt(images, name, severity)[3:] - clean).mean() for severity in SEVERITIES]
    assert 0 < changes[0] < changes[4]
    # Others mix two parameters, depend on the images' own structure or on a few random draws.
    if name not in {"frost", "glass_blur", "pixelate", "spatter"}:
        assert changes == sorted(changes)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.usefixtures("small_chunks")
class TestAgainstReference:
    def test_gaussian_blur(self, images: Images, severity: int) -> None:
        sigma = TABLE_32["gaussian_blur"][severity - 1]
        reference = np.stack([filters.gaussian(image / 255, sigma, channel_axis=-1) for image in images])
        assert difference(corrupt(images, "gaussian_blur", severity), reference) < 0.01

    def test_defocus_blur(self, images: Images, severity: int) -> None:
        kernel = blur.disk(*parameters("defocus_blur", 32, severity))[0, 0].double().numpy()
        assert kernel.sum() == pytest.approx(1)
        assert np.array_equal(kernel, kernel.T)
        reference = ndimage.correlate(images / 255, kernel[None, :, :, None], mode="mirror")
        # Sums of fifths and ninths are often whole gray levels, which rounding errors push either way.
        assert difference(corrupt(images, "defocus_blur", severity), reference) < 0.15

    def test_zoom_blur(self, images: Images, severity: int) -> None:
        images = images[:8]
        factors = np.arange(1, *parameters("zoom_blur", 32, severity))
        reference = images / 255
        for factor in factors:
            crop = int(np.ceil(32 / factor))
            start = (32 - crop) // 2
            middle = images[:, start : start + crop, start : start + crop] / 255
            zoomed = ndimage.zoom(middle, (1, factor, factor, 1), order=1)
            trim = (zoomed.shape[1] - 32) // 2
            reference = reference + zoomed[:, trim : trim + 32, trim : trim + 32]
        assert difference(corrupt(images, "zoom_blur", severity), reference / (len(factors) + 1)) < 0.01

    @pytest.mark.parametrize("name", ["brightness", "saturate"])
    def test_hsv(self, images: Images, severity: int, name: str) -> None:
        hsv = color.rgb2hsv(images / 255)
        if name == "brightness":
            hsv[..., 2] = (hsv[..., 2] + TABLE_32["brightness"][severity - 1]).clip(0, 1)
        else:
            factor, summand = TABLE_32["saturate"][severity - 1]
            hsv[..., 1] = (hsv[..., 1] * factor + summand).clip(0, 1)
        assert difference(corrupt(images, name, severity), color.hsv2rgb(hsv)) < 0.1

    def test_contrast(self, images: Images, severity: int) -> None:
        pixels = images / 255
        mean = pixels.mean((1, 2), keepdims=True)
        reference = (pixels - mean) * TABLE_32["contrast"][severity - 1] + mean
        assert difference(corrupt(images, "contrast", severity), reference) < 0.01

    def test_pixelate(self, images: Images, severity: int) -> None:
        side = int(32 * TABLE_32["pixelate"][severity - 1])
        ours = corrupt(images, "pixelate", severity)
        for image, result in zip(images, ours, strict=True):
            small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
            assert np.array_equal(result, np.asarray(small.resize((32, 32), Image.Resampling.BOX)))

    def test_jpeg_compression(self, images: Images, severity: int) -> None:
        for image, result in zip(images, corrupt(images, "jpeg_compression", severity), strict=True):
            file = BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=TABLE_32["jpeg_compression"][severity - 1])
            assert np.array_equal(result, np.asarray(Image.open(file)))

    def test_noise_has_the_stated_strength(self, severity: int) -> None:
        gray = torch.full((20, 3, 32, 32), 0.5)
        index = severity - 1
        assert apply("gaussian_noise", gray, severity, generator()).std().item() == pytest.approx(
            TABLE_32["gaussian_noise"][index], rel=0.02
        )
        assert apply("speckle_noise", gray, severity, generator()).std().item() == pytest.approx(
            0.5 * TABLE_32["speckle_noise"][index], rel=0.02
        )
        assert apply("shot_noise", gray, severity, generator()).var().item() == pytest.approx(
            0.5 / TABLE_32["shot_noise"][index], rel=0.03
        )
        hit = apply("impulse_noise", gray, severity, generator())
        assert (hit != 0.5).float().mean().item() == pytest.approx(TABLE_32["impulse_noise"][index], rel=0.1)
        assert (hit == 1).float().sum() / (hit != 0.5).sum() == pytest.approx(0.5, abs=0.05)


def test_glass_blur_takes_pixels_from_above_and_left(images: Images) -> None:
    """At severity 1 the Gaussian is too narrow to blur, so every pixel is one of four of the clean image."""
    result = corrupt(images, "glass_blur", 1)
    above, left = np.roll(images, 1, 1), np.roll(images, 1, 2)
    candidates = np.stack([images, above, left, np.roll(above, 1, 2)])
    assert (candidates == result).all(-1).any(0).all()
    assert np.array_equal(result[:, :2], images[:, :2])
    assert np.array_equal(result[:, :, :2], images[:, :, :2])


@pytest.mark.parametrize(("reach", "passes"), [(1, 1), (2, 2), (4, 1)])
def test_glass_blur_copies_neighbors_as_the_original_walk_does(reach: int, passes: int) -> None:
    images = torch.rand(2, 3, 24, 24, generator=generator())
    expected = (images.permute(0, 2, 3, 1).numpy() * 255 + 1e-3).astype(np.uint8)
    random = generator(1)
    for _ in range(passes):
        moves = (reach - 1 - torch.randint(2 * reach, (2, 2, 24, 24), generator=random)).numpy()
        for image, picture in enumerate(expected):
            for y in range(24 - reach, reach, -1):
                for x in range(24 - reach, reach, -1):
                    down, right = moves[:, image, y, x]
                    picture[y, x] = picture[y + down, x + right]
    ours = blur.glass_blur(images, generator(1), 0.05, reach, passes)  # a sigma too small to blur
    assert np.array_equal((ours * 255).round().permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(("radius", "softness"), [(1.5, 0.1), (3, 0.5), (8, 0.5), (10, 0.5)])
def test_defocus_disk_is_softened_with_mirrored_edges(radius: float, softness: float) -> None:
    reach = max(int(radius), 8)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    hard = (x * x + y * y <= radius**2).astype(float)
    soft = np.exp(-(np.arange(-1 - (radius > 8), 2 + (radius > 8)) ** 2) / (2 * softness**2))
    expected = hard / hard.sum()
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, soft / soft.sum(), axis, mode="mirror")
    kernel = blur.disk(radius, softness)[0, 0].numpy()
    outside = (len(expected) - len(kernel)) // 2
    np.testing.assert_allclose(np.pad(kernel, outside), expected, atol=1e-7)


@given(side=st.integers(8, 70), factor=st.floats(1, 4.5))
@settings(max_examples=30, deadline=None)
def test_zoom_is_that_of_the_matrices(side: int, factor: float) -> None:
    images = torch.rand(1, 2, side, side, generator=generator())
    matrix = operators.zoom_matrix(side, factor)
    expected = operators.apply_separably(images, matrix, matrix)
    torch.testing.assert_close(operators.zoom(images, factor), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("severity", [1, 5])
def test_zoom_blur_of_larger_images_is_the_mean_of_scipys_zooms(severity: int) -> None:
    image = np.random.default_rng(0).random((64, 64))
    factors = np.arange(1, *parameters("zoom_blur", 64, severity))
    expected = image.copy()
    for factor in factors:
        crop = int(np.ceil(64 / factor))
        start = (64 - crop) // 2
        zoomed = ndimage.zoom(image[start : start + crop, start : start + crop], factor, order=1)
        trim = (len(zoomed) - 64) // 2
        expected += zoomed[trim : trim + 64, trim : trim + 64]
    ours = apply("zoom_blur", torch.from_numpy(image).float().expand(1, 3, -1, -1), severity, generator())
    np.testing.assert_allclose(ours[0, 0].numpy(), expected / (len(factors) + 1), atol=1e-4)


def test_smear_follows_each_image_s_own_direction() -> None:
    dot = torch.zeros(2, 1, 15, 15)
    dot[:, 0, 7, 7] = 1
    across, down = blur.smear(dot, torch.tensor([0.0, 90.0]), 6, 2.0)
    weights = torch.exp(-(torch.arange(13) ** 2) / 8)
    expected = torch.zeros(15)
    expected[:8] = (weights / weights.sum())[:8].flip(0)
    torch.testing.assert_close(across[0, 7], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(down[0, :, 7], expected, atol=1e-5, rtol=0)


@given(sigma=st.floats(0.1, 8), size=st.integers(2, 40), mode=st.sampled_from(["nearest", "reflect"]))
@settings(max_examples=50, deadline=None)
def test_gaussian_matrix_is_scipys_filter(sigma: float, size: int, mode: str) -> None:
    signal = np.random.default_rng(0).random(size)
    reference = ndimage.gaussian_filter1d(signal, sigma, mode=mode, truncate=3)
    ours = operators.gaussian_matrix(size, sigma, 3.0, mode).double().numpy() @ signal
    np.testing.assert_allclose(ours, reference, atol=1e-6)


@given(source=st.integers(1, 40), target=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_box_matrix_is_pillows_resize(source: int, target: int) -> None:
    signal = np.random.default_rng(source).random((1, source)).astype(np.float32)
    reference = Image.fromarray(signal).resize((target, 1), Image.Resampling.BOX)
    ours = signal @ operators.box_matrix(source, target).T.numpy()
    np.testing.assert_allclose(ours, np.asarray(reference), atol=1e-6)


@pytest.mark.parametrize(("edge_repeats", "mode"), [(True, "reflect"), (False, "mirror")])
def test_sampling_is_scipys_interpolation(edge_repeats: bool, mode: str) -> None:
    image = torch.rand(1, 3, 12, 16, generator=generator())
    points = torch.rand(1, 12, 16, 2, generator=generator(1)) * 40 - 12
    ours = digital._sample(image, points, edge_repeats)
    x, y = points[0, ..., 0].numpy(), points[0, ..., 1].numpy()
    reference = [ndimage.map_coordinates(plane, [y, x], order=1, mode=mode) for plane in image[0].numpy()]
    np.testing.assert_allclose(ours[0].numpy(), np.stack(reference), atol=1e-4)


def test_elastic_transform_moves_the_corners_at_most_by_its_table() -> None:
    """A picture of its own x coordinate shows how far pixels came from; at severity 1 that is affine."""
    ramp = (torch.arange(32.0) / 31).expand(64, 3, 32, 32)
    result = apply("elastic_transform", ramp, 1, generator())
    moved = (result - ramp).abs()[:, :, 6:27, 6:27] * 31
    assert 1 < moved.max() < 2 * 32 * 0.08 * 2


def test_fog_keeps_the_brightest_value_as_a_bound(images: Images) -> None:
    for severity in SEVERITIES:
        assert (corrupt(images, "fog", severity).max((1, 2, 3)) <= images.max((1, 2, 3))).all()


@given(seed=st.integers(0, 2**31), side=st.sampled_from([2, 8, 32]), decay=st.floats(1.2, 3))
@settings(max_examples=20, deadline=None)
def test_plasma_spans_zero_to_one(seed: int, side: int, decay: float) -> None:
    clouds = weather.plasma(3, side, decay, generator(seed))
    assert clouds.shape == (3, side, side)
    assert (clouds.amin((1, 2)) == 0).all()
    assert (clouds.amax((1, 2)) == 1).all()


def test_snow_and_frost_and_water_brighten(images: Images) -> None:
    dark = images // 4
    for name, severity in (
        ("snow", 1),
        ("snow", 5),
        ("frost", 1),
        ("frost", 5),
        ("spatter", 1),
        ("spatter", 3),
    ):
        assert corrupt(dark, name, severity).mean() > dark.mean()


def test_ice_differs_between_images_and_has_five_colors() -> None:
    textures = weather.ice(200, 32, generator())
    assert textures.min() >= 0
    assert textures.max() <= 1
    blueness = (textures[:, 2] - textures[:, 0]).mean((1, 2))
    assert (blueness > 0.2).float().mean() == pytest.approx(0.2, abs=0.1)  # the turquoise kind
    assert textures.mean((1, 2, 3)).std() > 0.1


def test_edges_are_opencvs() -> None:
    """The expected edges are the output of OpenCV 5.0, `cv2.Canny(picture, 50, 150)`."""
    y, x = np.mgrid[:12, :16]
    picture = (60 * np.sin(x / 2.1 + y / 3.7) + 90 * (x * x + y * y < 90) + 70).clip(0, 255).astype(np.uint8)
    edges = weather.find_edges(torch.from_numpy(picture)[None, None].float(), 50, 150)[0, 0]
    drawn = ["".join("#" if pixel else "." for pixel in row) for row in edges.tolist()]
    assert drawn == [
        ".#....#..#...#..",
        "##....##.#..##..",
        "#....##..#..#...",
        "#....#...#.##...",
        "....##..#..#....",
        "....#...#.##...#",
        "...#...#..#....#",
        "......##.##....#",
        "...####..#....##",
        ".###....#.....#.",
        "##.....##....##.",
        "##.....#......#.",
    ]


def test_distance_is_euclidean_up_to_a_limit() -> None:
    edges = torch.rand(5, 1, 32, 24, generator=generator()) < 0.02
    edges[0] = False
    ours = weather._distance(edges, 6)
    assert (ours[0] == 6).all()
    reference = np.stack([ndimage.distance_transform_edt(~plane) for plane in edges[1:, 0].numpy()])
    assert reference.max() > 6
    np.testing.assert_allclose(ours[1:, 0].numpy(), reference.clip(max=6), atol=1e-5)
