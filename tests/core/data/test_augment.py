"""Augmentation: every image that comes out is a crop of the padded one, flipped or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rsslcli.core.data.augment import PADDING, pad_images, random_batch, to_float
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
def test_padding_is_black(shape: tuple[int, int]) -> None:
    images = noise(3, *shape)
    padded = pad_images(images)
    assert PADDING == 4
    assert padded.dtype == torch.uint8
    assert np.array_equal(padded.numpy(), np.pad(images.numpy(), ((0, 0), (4, 4), (4, 4), (0, 0))))


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (32, 32)])
def test_every_output_is_a_crop_of_the_chosen_image(shape: tuple[int, int], random: BatchRandom) -> None:
    images = noise(5, *shape)
    chosen = torch.tensor([4, 0, 0, 2, 3, 1, 2, 2])
    batch = random_batch(pad_images(images), chosen, random)
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
    batch = random_batch(pad_images(noise(1)), torch.zeros(draws, dtype=torch.int64), random)
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
    padded, chosen, state = pad_images(noise(9)), torch.arange(9), torch.get_rng_state()
    first, again, other = (
        random_batch(padded, chosen, BatchRandom(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state), "the global random state must stay"


def test_neither_images_nor_padding_change(random: BatchRandom) -> None:
    images = noise(4)
    padded = pad_images(images)
    before = padded.clone()
    batch = random_batch(padded, torch.tensor([1, 1]), random)
    batch.zero_()
    to_float(images).zero_()
    assert torch.equal(padded, before)
    assert torch.equal(images, noise(4))


def test_works_on_the_meta_device() -> None:
    padded = pad_images(torch.empty(7, 32, 32, 3, dtype=torch.uint8, device="meta"))
    batch = random_batch(padded, torch.empty(5, dtype=torch.int64, device="meta"), BatchRandom())
    images = to_float(batch)
    assert images.device.type == "meta"
    assert images.shape == (5, 3, 32, 32)


def test_an_empty_batch() -> None:
    batch = random_batch(pad_images(noise(2)), torch.empty(0, dtype=torch.int64), BatchRandom())
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
    batch = random_batch(pad_images(images), chosen, BatchRandom(torch.Generator().manual_seed(seed)))
    for index, image in zip(chosen.tolist(), batch, strict=True):
        assert image.numpy().tobytes() in crops(images[index])
