"""AugMix on the device: the whole batch at once, every choice drawn per image.

Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty (ICLR 2020),
at the authors' severity of 3. As in their code, operations take and return whole numbers from 0 to 255, and
agree with Pillow's. Each operation either maps the values of a channel by a table or the coordinates by an
affine matrix, so one gather and one `grid_sample` apply a different operation to each image of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rsslcli.core.randomness import BatchRandom

#: Number of chains per image.
WIDTH = 3
#: Number of operations in the longest chain.
DEPTH = 3
#: The range of levels; operations are defined up to 10.
LEVELS = (0.1, 3.0)

#: Added before rounding down, so that whole numbers survive an interpolation in float32.
TOLERANCE = 1 / 256


def augmix(images: Tensor, random: BatchRandom) -> Tensor:
    """One AugMix view of each image.

    Three chains of one to three random operations transform the image. Their mean, with Dirichlet(1, 1, 1)
    weights, is mixed with the image itself, with a Beta(1, 1) weight.

    Args:
        images: float32 or float64 (N, 3, H, W) in [0, 1]; the chains round them to multiples of 1/255.
        random: the source of random numbers, one row for each of the N images.

    Returns:
        (N, 3, H, W) in [0, 1], of the images' dtype and memory layout.
    """
    depths = random.integers(images, DEPTH, WIDTH, 1)
    drawn = random.integers(images, len(OPERATIONS), WIDTH, DEPTH)
    levels = signed_levels(random.uniform(images, WIDTH, DEPTH))
    weights = mean_weights(random.uniform(images, WIDTH - 1))
    strength = random.uniform(images, 1, 1, 1)

    # All chains take DEPTH steps; those beyond a chain's own depth leave the image as it is.
    steps = torch.arange(DEPTH, device=images.device)
    operations = torch.where(steps <= depths, drawn, len(OPERATIONS)).flatten(0, 1)
    pixels = (images * 255).round().repeat_interleave(WIDTH, 0).contiguous()
    pixels = apply_operations(pixels, operations, levels.flatten(0, 1))
    chains = pixels.mul_((weights / 255).view(-1, 1, 1, 1)).view(len(images), WIDTH, *images.shape[1:])
    return torch.lerp(images, chains.sum(1), strength).clamp_(0, 1)


def signed_levels(uniform: Tensor) -> Tensor:
    """Turn uniform numbers in [0, 1) into levels whose sign is the direction of a geometric operation."""
    direction = 2 * uniform - 1
    low, high = LEVELS
    return torch.copysign(low + (high - low) * direction.abs(), direction)


def mean_weights(uniform: Tensor) -> Tensor:
    """Turn k − 1 uniform numbers per row into Dirichlet(1, …, 1) weights of k: the gaps between them."""
    cuts = uniform.sort(1).values
    return F.pad(cuts, (0, 1), value=1.0) - F.pad(cuts, (1, 0))


def apply_operations(pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Apply a sequence of operations to each image.

    Args:
        pixels: whole numbers from 0 to 255, float32 or float64 (M, 3, H, W).
        operations: int64 (M, D), indices into `OPERATIONS`; `len(OPERATIONS)` leaves the image as it is.
        levels: (M, D) between −10 and 10, of the pixels' dtype; geometric operations use the sign.

    Returns:
        The same shape and dtype. An operation gives Pillow's numbers, or one more or less where the unrounded
        result is within `TOLERANCE` of a whole number.
    """
    height, width = pixels.shape[2:]
    matrices = _matrix(levels, 1, 0, 0, 0, 1, 0)
    for index, make_matrix in enumerate(MATRICES.values(), len(TABLES)):
        chosen = (operations == index)[..., None, None]
        matrices = torch.where(chosen, make_matrix(levels, height, width), matrices)
    pixels = pixels.clone()
    for operation, level, matrix in zip(operations.T, levels.abs().T, matrices.unbind(1), strict=True):
        has_table = operation < len(TABLES)
        has_matrix = ~has_table & (operation < len(OPERATIONS))
        pixels = _apply_where(has_table, _map_values, pixels, operation[:, None, None], level[:, None, None])
        pixels = _apply_where(has_matrix, transform, pixels, matrix)
    return pixels


def _apply_where(
    chosen: Tensor, function: Callable[..., Tensor], pixels: Tensor, *parameters: Tensor
) -> Tensor:
    """Apply a function that leaves all but the chosen (M,) images as they are, and may change `pixels`.

    Only a CPU picks out the chosen ones: the host would have to wait for a GPU to know how many there are.
    """
    if pixels.device.type != "cpu":
        return function(pixels, *parameters)
    rows = chosen.nonzero().squeeze(1)
    return pixels.index_copy_(0, rows, function(pixels[rows], *(each[rows] for each in parameters)))


def _map_values(pixels: Tensor, operations: Tensor, levels: Tensor) -> Tensor:
    """Apply the tables of those images whose operation (M, 1, 1) has one."""
    index = pixels.flatten(2).long()
    counts = pixels.new_zeros(*index.shape[:2], 256)
    counts.scatter_add_(2, index, pixels.new_ones(()).expand_as(index))
    values = torch.arange(256, device=pixels.device, dtype=pixels.dtype)
    table = values
    for number, make_table in enumerate(TABLES.values()):
        table = torch.where(operations == number, make_table(values, counts, levels), table)
    return table.gather(2, index).view_as(pixels)


def transform(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Transform each image as Pillow's `Image.transform` does, bilinearly and with black outside.

    Args:
        pixels: whole numbers from 0 to 255, float (M, 3, H, W).
        matrices: (M, 2, 3), which map each output position (x, y, 1) to the input position (x, y) that it
            shows; positions are measured in pixels from the top left corner of the image.

    Returns:
        The same shape and dtype, rounded down to whole numbers, as Pillow does.
    """
    height, width = pixels.shape[2:]
    x = torch.arange(width, device=pixels.device, dtype=pixels.dtype) + 0.5
    y = torch.arange(height, device=pixels.device, dtype=pixels.dtype)[:, None] + 0.5
    # `grid_sample` measures positions from −1 at one border of the image to 1 at the other.
    x_source, y_source = (
        (row[:, 0] * x + row[:, 2]) * (2 / size) - 1 + row[:, 1] * (2 / size) * y
        for row, size in zip(matrices[..., None, None].unbind(1), (width, height), strict=True)
    )
    inside = torch.maximum(x_source.abs(), y_source.abs()).lt_(1)
    # Complex numbers are stored as the pairs that it takes; `stack` needs several times as long.
    grid = torch.view_as_real(torch.complex(x_source, y_source))
    sampled = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return sampled.add_(TOLERANCE).floor_().mul_(inside[:, None])


# Tables (M, 3, 256) or (M, 1, 256): what replaces the values 0 to 255. `values` (256,) are these; `counts`
# (M, 3, 256) has the number of pixels of each value in each channel; `levels` (M, 1, 1) are positive.


def posterize(values: Tensor, counts: Tensor, levels: Tensor) -> Tensor:
    """Keep the 4 highest bits, or fewer."""
    step = torch.exp2(4 + _whole(levels, 4)).round()
    return (values / step).floor() * step


def solarize(values: Tensor, counts: Tensor, levels: Tensor) -> Tensor:
    """Invert the values from a threshold on."""
    return torch.where(values < 256 - _whole(levels, 256), values, 255 - values)


def autocontrast(values: Tensor, counts: Tensor, levels: Tensor) -> Tensor:
    """Stretch the range of each channel to 0 to 255, unless it has one value alone."""
    present = counts.clamp(max=1)
    high = (present * values).amax(-1, keepdim=True)
    low = 255 - (present * (255 - values)).amax(-1, keepdim=True)
    flat = low == high
    low = low.masked_fill(flat, 0)
    high = high.masked_fill(flat, 255)
    return ((values - low) * 255 / (high - low)).floor_().clamp_(0, 255)


def equalize(values: Tensor, counts: Tensor, levels: Tensor) -> Tensor:
    """Flatten the histogram of each channel, if 255 pixels or more are below the highest value."""
    darker = counts.cumsum(-1).sub_(counts)
    step = ((counts.clamp(max=1) * darker).amax(-1, keepdim=True) / 255).floor()
    flattened = ((darker + (step / 2).floor()) / step).floor_().clamp_(max=255)
    return torch.where(step > 0, flattened, values)


# Matrices (…, 2, 3) for `transform`. `levels` (…) have the sign of the direction.


def rotate(levels: Tensor, height: int, width: int) -> Tensor:
    """Rotate about the center by up to 30 degrees, counterclockwise if the level is positive."""
    angle = torch.deg2rad(_whole(levels, 30))
    cos = angle.cos()
    sin = angle.sin()
    x = width / 2
    y = height / 2
    return _matrix(levels, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(levels: Tensor, height: int, width: int) -> Tensor:
    """Shift each row by up to 0.3 of its distance from the top."""
    return _matrix(levels, 1, levels * 0.3 / 10, 0, 0, 1, 0)


def shear_y(levels: Tensor, height: int, width: int) -> Tensor:
    """Shift each column by up to 0.3 of its distance from the left."""
    return _matrix(levels, 1, 0, 0, levels * 0.3 / 10, 1, 0)


def translate_x(levels: Tensor, height: int, width: int) -> Tensor:
    """Shift horizontally by up to a third of the width, in whole pixels."""
    return _matrix(levels, 1, 0, _whole(levels, width / 3), 0, 1, 0)


def translate_y(levels: Tensor, height: int, width: int) -> Tensor:
    """Shift vertically by up to a third of the height, in whole pixels."""
    return _matrix(levels, 1, 0, 0, 0, 1, _whole(levels, height / 3))


def _whole(levels: Tensor, maximum: float) -> Tensor:
    """The strength of an operation at each level, `maximum` at 10, rounded toward zero."""
    return (levels * maximum / 10).trunc()


def _matrix(levels: Tensor, *entries: Tensor | float) -> Tensor:
    """Matrices (…, 2, 3) from their six entries; numbers are the same for all levels (…)."""
    columns = [entry if isinstance(entry, Tensor) else torch.full_like(levels, entry) for entry in entries]
    return torch.stack(columns, -1).view(*levels.shape, 2, 3)


TABLES = {function.__name__: function for function in (posterize, solarize, autocontrast, equalize)}
MATRICES = {function.__name__: function for function in (rotate, shear_x, shear_y, translate_x, translate_y)}
#: What the chains draw from. The operations that overlap the test corruptions are left out, as in the paper's
#: main results: contrast, color, brightness, sharpness.
OPERATIONS = (*TABLES, *MATRICES)
