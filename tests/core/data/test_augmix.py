"""AugMix: operations as Pillow computes them, and choices with the distributions of the authors' code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rsslcli.core.data import augmix as module
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.augmix import OPERATIONS, apply_operations, augmix
from rsslcli.core.data.shapes import draw_shapes
from rsslcli.core.randomness import BatchRandom

SIZES = [(32, 32), (17, 40), (64, 64)]


def _affine(*matrix: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )


def pillow(name: str, image: Image.Image, level: float) -> Image.Image:
    """An operation as in the authors' code, https://github.com/google-research/augmix, at a given level."""
    width, height = image.size
    apply: dict[str, Callable[[Image.Image], Image.Image]] = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda image: ImageOps.posterize(image, 4 - int(abs(level) * 4 / 10)),
        "solarize": lambda image: ImageOps.solarize(image, 256 - int(abs(level) * 256 / 10)),
        "rotate": lambda image: image.rotate(int(level * 30 / 10), resample=Image.Resampling.BILINEAR),
        "shear_x": _affine(1, level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": _affine(1, 0, 0, level * 0.3 / 10, 1, 0),
        "translate_x": _affine(1, 0, int(level * (width / 3) / 10), 0, 1, 0),
        "translate_y": _affine(1, 0, 0, 0, 1, int(level * (height / 3) / 10)),
    }
    return apply[name](image)


def pictures(height: int, width: int) -> np.ndarray:
    """Drawn shapes, and noise of many values, few, dark ones, bright ones, and of one value alone."""
    drawn, _, _ = draw_shapes(6, 0, "train")
    shapes = [np.asarray(Image.fromarray(image).resize((width, height))) for image in drawn]
    rng = np.random.default_rng(0)
    ranges = [(0, 256), (100, 103), (0, 40), (200, 256), (77, 78)]
    noise = [rng.integers(*each, (height, width, 3), dtype=np.uint8) for each in ranges]
    return np.stack([*shapes, *noise])


def to_pixels(images: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype)


def to_array(pixels: Tensor) -> np.ndarray:
    assert torch.equal(pixels, pixels.round().clamp(0, 255)), "not whole numbers from 0 to 255"
    return pixels.permute(0, 2, 3, 1).numpy().astype(np.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_agrees_with_pillow(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    images = pictures(*size)
    for level in (-9.9, -2.97, -1.2, 0.1, 0.31, 1.9, 2.6, 2.99, 7.3):
        operations = torch.full((len(images), 1), OPERATIONS.index(name))
        levels = torch.full((len(images), 1), level, dtype=dtype)
        pixels = apply_operations(to_pixels(images, dtype), operations, levels)
        assert pixels.dtype == dtype
        expected = np.stack([np.asarray(pillow(name, Image.fromarray(image), level)) for image in images])
        difference = np.abs(to_array(pixels) - expected)
        assert difference.max() <= 1, level
        assert (difference > 0).mean() < 0.02, level


def test_each_image_has_its_own_operations_in_order() -> None:
    rng = np.random.default_rng(1)
    images = np.concatenate([pictures(32, 32)[:6]] * 20)
    operations = rng.integers(0, len(OPERATIONS) + 1, (len(images), 3))
    levels = rng.uniform(0.1, 3, operations.shape) * rng.choice([-1, 1], operations.shape)
    pixels = apply_operations(
        to_pixels(images, torch.float64), torch.from_numpy(operations), torch.from_numpy(levels)
    )
    errors = []
    for ours, image, drawn, at in zip(to_array(pixels), images, operations, levels, strict=True):
        expected = Image.fromarray(image)
        names = [OPERATIONS[index] for index in drawn if index < len(OPERATIONS)]
        for name, level in zip(names, at[drawn < len(OPERATIONS)], strict=True):
            expected = pillow(name, expected, level)
        errors.append(np.abs(ours - np.asarray(expected)).mean())
    # A difference of 1 grows where contrast is stretched afterwards.
    assert max(errors) < 0.2
    assert np.mean(errors) < 0.02


def test_a_cpu_leaves_out_only_what_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, random: BatchRandom
) -> None:
    pixels = to_pixels(np.concatenate([pictures(32, 32)] * 6), torch.float32)
    operations = random.integers(pixels, len(OPERATIONS) + 1, 3)
    levels = module.signed_levels(random.uniform(pixels, 3))
    given = pixels.clone()
    chosen = apply_operations(pixels, operations, levels)
    assert torch.equal(pixels, given)
    monkeypatch.setattr(module, "_apply_where", lambda chosen, function, *tensors: function(*tensors))
    assert torch.equal(apply_operations(pixels, operations, levels), chosen)


def test_operations_that_overlap_the_test_corruptions_are_left_out() -> None:
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 9
    assert not {"contrast", "color", "brightness", "sharpness"} & set(OPERATIONS)


def distance(sample: Tensor, cumulative: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov's distance to a distribution, in units of what chance exceeds once in a thousand samples."""
    values = np.sort(sample.double().flatten().numpy())
    steps = np.arange(len(values) + 1) / len(values)
    expected = cumulative(values)
    largest = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    return float(largest * len(values) ** 0.5 / 1.95)


def test_depths_operations_and_levels_are_uniform(
    monkeypatch: pytest.MonkeyPatch, random: BatchRandom
) -> None:
    drawn: list[Tensor] = []

    def keep(pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
        drawn.extend((operations, levels))
        return pixels

    monkeypatch.setattr(module, "apply_operations", keep)
    augmix(torch.zeros(3_000, 3, 1, 1), random)
    operations, levels = drawn
    assert operations.shape == levels.shape == (9_000, 3)
    acts = operations < len(OPERATIONS)
    assert (acts[:, :-1] | ~acts[:, 1:]).all(), "a chain goes on after its end"
    depths = acts.sum(1)
    expected = {1: 3_000, 2: 3_000, 3: 3_000}
    for depth, count in expected.items():
        assert abs(int((depths == depth).sum()) - count) < 200
    # The first operation is independent of the second, and the first chain's of the second chain's.
    pairs = operations[depths > 1, :2], operations[:, 0].view(-1, 3)[:, :2]
    for first, second in (each.unbind(1) for each in pairs):
        counts = torch.bincount(first * 9 + second, minlength=81).double()
        mean = counts.mean()
        assert float(((counts - mean) ** 2 / mean).sum()) < 80 + 5 * 160**0.5
    assert distance(levels.abs(), lambda x: (x - 0.1) / 2.9) < 1
    assert distance(levels, lambda x: np.where(x < 0, x + 3, x + 2.8) / 5.8) < 1
    assert len(levels.unique()) > 0.99 * levels.numel()


def test_chains_are_weighted_by_dirichlet_and_the_original_by_beta(
    monkeypatch: pytest.MonkeyPatch, random: BatchRandom
) -> None:
    def one_color_per_chain(pixels: Tensor, *_: Tensor) -> Tensor:
        return 255 * torch.eye(3, dtype=pixels.dtype).repeat(len(pixels) // 3, 1)[:, :, None, None]

    monkeypatch.setattr(module, "apply_operations", one_color_per_chain)
    shares = augmix(torch.zeros(3_000, 3, 1, 1, dtype=torch.float64), random)[:, :, 0, 0]
    strength = shares.sum(1)
    assert distance(strength, lambda x: x) < 1
    weights = shares / strength[:, None]
    for weight in weights.unbind(1):
        assert distance(weight, lambda x: 1 - (1 - x) ** 2) < 1
    # In a Dirichlet(1, 1, 1) distribution two weights have the correlation −1/2.
    correlations = torch.corrcoef(torch.cat([weights, strength[:, None]], 1).T)
    expected = torch.tensor([[1, -0.5, -0.5, 0], [-0.5, 1, -0.5, 0], [-0.5, -0.5, 1, 0], [0, 0, 0, 1]])
    assert torch.allclose(correlations, expected.double(), atol=0.07)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_views_are_images_like_the_given_ones(
    size: tuple[int, int], dtype: torch.dtype, random: BatchRandom
) -> None:
    images = to_float(torch.from_numpy(np.concatenate([pictures(*size)] * 4)), dtype)
    before = images.clone()
    first, second = (augmix(images, random) for _ in range(2))
    assert torch.equal(images, before)
    for view in (first, second):
        assert view.shape == images.shape
        assert view.dtype == dtype
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= float(view.min()) <= float(view.max()) <= 1
        changed = (view != images).flatten(1).any(1)
        assert changed.double().mean() > 0.9
    assert (first != second).flatten(1).any(1).double().mean() > 0.9


def test_the_original_is_mixed_in_unrounded(
    monkeypatch: pytest.MonkeyPatch, images: Tensor, random: BatchRandom
) -> None:
    monkeypatch.setattr(module, "apply_operations", lambda pixels, *_: pixels)
    error = (augmix(images, random) - images).abs() * 255
    assert 0 < float(error.max()) <= 0.5 + 1e-9


def test_a_seed_decides(images: Tensor) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        augmix(images, BatchRandom(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state), "the global random state must stay"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_of_a_part_are_those_of_the_whole_batch(dtype: torch.dtype) -> None:
    images = to_float(torch.from_numpy(pictures(32, 32)), dtype)
    whole = augmix(images, BatchRandom(torch.Generator().manual_seed(3)))
    for part in (slice(0, 4), slice(4, 5), slice(5, None)):
        random = BatchRandom(torch.Generator().manual_seed(3), len(images), part)
        assert torch.equal(augmix(images[part], random), whole[part])


def test_works_on_the_meta_device() -> None:
    view = augmix(torch.empty(5, 3, 32, 48, device="meta"), BatchRandom())
    assert view.device.type == "meta"
    assert view.shape == (5, 3, 32, 48)


def test_an_empty_batch(random: BatchRandom) -> None:
    assert augmix(torch.empty(0, 3, 8, 8), random).shape == (0, 3, 8, 8)
