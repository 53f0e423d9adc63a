"""Augmentation: every image that comes out is a crop of the padded one, flipped or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop as resized

from rsslcli.core.data.augment import AREA, RATIO, TRIES, choose_crops, random_batch, resized_crop, to_float
from rsslcli.core.randomness import BatchRandom

Key = tuple[int, int, bool]


def noise(count: int, height: int = 6, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(1, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)


def crops(image: Tensor) -> dict[bytes, Key]:
    """All crops of an image padded with 4 black pixels, and where they come from, by their bytes."""
    height, width, _ = image.shape
    padded = np.pad(image.numpy(), ((4, 4), (4, 4), (0, 0)))
    found: dict[bytes, Key] = {}
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + height, left : left + width]
            found[crop.tobytes()] = (top, left, False)
            found[crop[:, ::-1].tobytes()] = (top, left, True)
    return found


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (32, 32)])
def test_every_output_is_a_crop_of_the_chosen_image(shape: tuple[int, int], random: BatchRandom) -> None:
    images = noise(5, *shape)
    chosen = torch.tensor([4, 0, 0, 2, 3, 1, 2, 2])
    batch = random_batch(images[chosen], random)
    assert batch.shape == (8, *shape, 3)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    possible = [crops(image) for image in images]
    assert all(len(each) == 162 for each in possible), "the comparison needs crops that all differ"
    for index, image in zip(chosen.tolist(), batch, strict=True):
        assert image.numpy().tobytes() in possible[index]


def test_all_offsets_and_flips_are_equally_likely_and_independent(random: BatchRandom) -> None:
    draws = 162 * 100
    possible = crops(noise(1)[0])
    batch = random_batch(noise(1).expand(draws, -1, -1, -1), random)
    drawn = [possible[image.tobytes()] for image in batch.numpy()]
    counts = np.zeros((9, 9, 2))
    for key in drawn:
        counts[int(key[0]), int(key[1]), int(key[2])] += 1
    assert (counts > 0).all()
    chi_squared = float(((counts - 100) ** 2 / 100).sum())
    assert chi_squared < 161 + 5 * (2 * 161) ** 0.5
    # One image's choices say nothing about the next one's.
    pairs = np.zeros((9, 9))
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        pairs[first[0], second[0]] += 1
    assert float(((pairs - 100) ** 2 / 100).sum()) < 80 + 5 * (2 * 80) ** 0.5


def test_a_seed_decides() -> None:
    state = torch.get_rng_state()
    first, again, other = (
        random_batch(noise(9), BatchRandom(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state), "the global random state must stay"


def test_images_do_not_change(random: BatchRandom) -> None:
    images = noise(4)
    random_batch(images, random).zero_()
    to_float(images).zero_()
    assert torch.equal(images, noise(4))


def test_works_on_the_meta_device() -> None:
    for size in (32, 64):
        batch = random_batch(torch.empty(5, size, size, 3, dtype=torch.uint8, device="meta"), BatchRandom())
        images = to_float(batch)
        assert images.device.type == "meta"
        assert images.shape == (5, 3, size, size)


def test_an_empty_batch() -> None:
    batch = random_batch(noise(2)[:0], BatchRandom())
    assert batch.shape == (0, 6, 6, 3)
    assert to_float(batch).shape == (0, 3, 6, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_float(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 4, 16, 1).repeat(1, 1, 1, 3)
    images[..., 1] = 255 - images[..., 1]
    floats = to_float(images, dtype)
    assert floats.dtype == dtype
    assert floats.shape == (4, 3, 4, 16)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert (float(floats.min()), float(floats.max())) == (0.0, 1.0)
    expected = images.numpy().astype(floats.numpy().dtype).transpose(0, 3, 1, 2) / 255
    assert np.array_equal(floats.numpy(), expected)
    assert torch.equal((floats * 255).round().to(torch.uint8).permute(0, 2, 3, 1), images), "no level is lost"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_any_shape(count: int, height: int, width: int, seed: int) -> None:
    images = noise(count, height, width)
    chosen = torch.arange(count).flip(0)
    batch = random_batch(images[chosen], BatchRandom(torch.Generator().manual_seed(seed)))
    for index, image in zip(chosen.tolist(), batch, strict=True):
        assert image.numpy().tobytes() in crops(images[index])


SIDE = 64
CROPS = [(0, 0, SIDE, SIDE), (3, 5, 20, 17), (44, 0, 20, 64), (10, 50, 1, 9)]


def test_a_resized_crop_is_that_of_torchvision() -> None:
    """At most half a level apart, by rounding."""
    images = noise(len(CROPS), SIDE, SIDE)
    places = torch.tensor(CROPS, dtype=torch.float32).unbind(1)
    for flip in (False, True):
        found = resized_crop(images, *places, torch.full((len(CROPS),), flip))
        assert found.dtype == torch.uint8
        assert found.is_contiguous()
        for image, crop, one in zip(images, CROPS, found, strict=True):
            exact = resized(image.permute(2, 0, 1).double(), *crop, [SIDE, SIDE], antialias=True)
            expected = exact.flip(2) if flip else exact
            assert (one.permute(2, 0, 1) - expected).abs().max() < 0.51


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    count = 4000
    draws = torch.rand(count, TRIES + 1, 4, generator=torch.Generator().manual_seed(3))
    found = torch.stack(choose_crops(draws, SIDE, SIDE), 1)
    top, left, height, width = found.unbind(1)
    assert torch.equal(found, found.round())
    assert (torch.minimum(height, width) >= 1).all()
    assert (torch.minimum(top, left) >= 0).all()
    assert (torch.maximum(top + height, left + width) <= SIDE).all()
    image = torch.empty(3, SIDE, SIDE)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        drawn = [RandomResizedCrop.get_params(image, list(AREA), list(RATIO)) for _ in range(count)]
    for mine, theirs in zip(found.unbind(1), torch.tensor(drawn).unbind(1), strict=True):
        # The two-sample Kolmogorov-Smirnov statistic; by chance it exceeds 1.95 once in a thousand.
        levels = torch.arange(SIDE + 1)[:, None]
        gap = ((mine <= levels).double().mean(1) - (theirs <= levels).double().mean(1)).abs().max()
        assert gap < 1.95 * (2 / count) ** 0.5


def test_large_images_are_cropped_and_scaled(random: BatchRandom) -> None:
    """Of a ramp, a crop shows a part of the values, in order, or flipped."""
    ramp = torch.arange(SIDE, dtype=torch.uint8).mul(3)[None, None, :, None].expand(50, SIDE, SIDE, 3)
    batch = random_batch(ramp, random)
    assert batch.shape == ramp.shape
    rows = batch[:, 0, :, 0].int()
    assert torch.equal(batch[:, :, :, 0].int(), rows[:, None].expand(-1, SIDE, -1)), "rows stay rows"
    steps = rows.diff(dim=1)
    rising = (steps >= 0).all(1)
    assert (rising | (steps <= 0).all(1)).all()
    assert 10 < int(rising.sum()) < 40
    spans = rows.amax(1) - rows.amin(1)
    assert spans.min() < 100 < spans.max()


def test_large_images_have_their_numbers_whatever_the_ranks() -> None:
    images = noise(6, SIDE, SIDE)
    whole = random_batch(images, BatchRandom(torch.Generator().manual_seed(5)))
    for part in (slice(0, 2), slice(2, 6)):
        random = BatchRandom(torch.Generator().manual_seed(5), 6, part)
        assert torch.equal(random_batch(images[part], random), whole[part])
