"""Corruptions of tone, resolution, coding and geometry. `noise` states the interface of every corruption."""

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from rsslcli.core.corruptions.operators import apply_separably, box_matrix, gaussian_filter


def brightness(images: Tensor, generator: Generator, added: float) -> Tensor:
    """Raise V of HSV. With hue and saturation kept, all channels scale alike; black becomes gray."""
    value = images.amax(1, keepdim=True)
    raised = (value + added).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-6)), raised)


def contrast(images: Tensor, generator: Generator, kept: float) -> Tensor:
    """Pull every channel toward its mean over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


def saturate(images: Tensor, generator: Generator, factor: float, offset: float) -> Tensor:
    """Change S of HSV. With hue and V kept, this scales the distance of each channel below the brightest."""
    value = images.amax(1, keepdim=True)
    depth = value - images.amin(1, keepdim=True)
    saturation = (factor * depth / value.clamp(min=1e-6) + offset).clamp(0, 1)
    red = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)  # the hue assigned to gray
    below = torch.where(depth > 0, (value - images) / depth.clamp(min=1e-6), red)
    return value * (1 - saturation * below)


def pixelate(images: Tensor, generator: Generator, scale: float) -> Tensor:
    """Shrink and enlarge with Pillow's BOX filter, which rounds to integer gray levels after each pass."""
    height, width = images.shape[-2:]
    small_height = int(height * scale)
    small_width = int(width * scale)
    levels = (images * 255).round()
    levels = (levels @ box_matrix(width, small_width).T + 0.5).floor()
    levels = (box_matrix(height, small_height) @ levels + 0.5).floor()
    return apply_separably(levels, box_matrix(small_height, height), box_matrix(small_width, width)) / 255


def jpeg_compression(images: Tensor, generator: Generator, quality: int) -> Tensor:
    """Encode as JPEG and decode again, with Pillow."""
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = np.stack([_through_jpeg(image, quality) for image in levels])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).float() / 255


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def elastic_transform(
    images: Tensor, generator: Generator, strength: float, sigma: float, corner_shift: float
) -> Tensor:
    """Shift three corners of a central square at random, then every pixel by a smooth random field.

    `strength` scales the field, which is uniform noise smoothed with `sigma`; the corners move by at most
    `corner_shift` along each axis.
    """
    count, _, height, width = images.shape
    side = min(height, width)
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")

    center = torch.tensor([height // 2, width // 2])
    arm = side // 3
    corners = center + arm * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = corners + corner_shift * (torch.rand(count, 3, 2, generator=generator) * 2 - 1)
    # The affine map from the moved corners back to where they came from says where to sample.
    # In float64, as in `apply_separably`.
    moved = F.pad(moved, (0, 1), value=1.0).double()
    affine = torch.linalg.solve(moved, corners.double().expand(count, 3, 2))
    source = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1).double() @ affine
    images = _sample(images, source.float().view(count, height, width, 2), edge_repeats=False)

    field = torch.rand(2, count, height, width, generator=generator) * 2 - 1
    shift_y, shift_x = strength * gaussian_filter(field, sigma, truncate=3.0, mode="reflect")
    return _sample(images, torch.stack([x + shift_x, y + shift_y], -1), edge_repeats=True)


def _sample(images: Tensor, points: Tensor, edge_repeats: bool) -> Tensor:
    """Interpolate images at points (N, H, W, 2) in pixels, x first; beyond the edge, images are mirrored.

    The mirror lies on the edge pixel or, if `edge_repeats`, on its outer side, which repeats that pixel.
    """
    size = torch.tensor([images.shape[3], images.shape[2]])
    grid = (2 * points + 1) / size - 1 if edge_repeats else 2 * points / (size - 1) - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=not edge_repeats)
