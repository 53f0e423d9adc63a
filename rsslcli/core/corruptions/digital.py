"""Changes of tone, resolution, coding and geometry. The shape contract of every corruption is in `noise`."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from rsslcli.core.corruptions.operators import apply_separably, box_matrix

BRIGHTNESS_ADDED = (0.05, 0.1, 0.15, 0.2, 0.3)
CONTRAST_KEPT = (0.75, 0.5, 0.4, 0.3, 0.15)
PIXELATE_SCALE = (0.95, 0.9, 0.85, 0.75, 0.65)
JPEG_QUALITY = (80, 65, 58, 50, 40)


def brightness(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Raise V of HSV: with hue and saturation kept, all channels grow alike; black becomes grey."""
    value = images.amax(1, keepdim=True)
    raised = (value + BRIGHTNESS_ADDED[severity - 1]).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-6)), raised)


def contrast(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Draw every channel towards its mean over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + CONTRAST_KEPT[severity - 1] * (images - mean)


def pixelate(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Shrink and enlarge with Pillow's BOX filter, which rounds to whole grey levels after each pass."""
    height, width = images.shape[-2:]
    scale = PIXELATE_SCALE[severity - 1]
    small_height, small_width = int(height * scale), int(width * scale)
    levels = (images * 255).round()
    levels = (levels @ box_matrix(width, small_width).T + 0.5).floor()
    levels = (box_matrix(height, small_height) @ levels + 0.5).floor()
    enlarge_rows, enlarge_columns = box_matrix(small_height, height), box_matrix(small_width, width)
    return apply_separably(levels, enlarge_rows, enlarge_columns) / 255


def jpeg_compression(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Encode as JPEG and decode, with Pillow."""
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = np.stack([_through_jpeg(image, JPEG_QUALITY[severity - 1]) for image in levels])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).float() / 255


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
