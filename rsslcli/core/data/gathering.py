"""The images from which training draws: on the device where they fit, else read batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsslcli.core.data.store import MAPPED_BYTES, Images

#: The part of a GPU's free memory that images may take.
FREE_PART = 0.5
#: Bytes that are read at a time on the way to a GPU.
_CHUNK = 64 << 20


class ChosenImages:
    """The images at some indices of one or several arrays, one array after the other, read when needed.

    Args:
        arrays: uint8 (N, H, W, 3) each, which may be memory maps.
        chosen: int64 (M,), the indices in every array; all by default.
    """

    def __init__(self, arrays: Sequence[Images], chosen: npt.NDArray[np.int64] | None = None) -> None:
        self.arrays = arrays
        self.chosen = np.arange(len(arrays[0])) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.arrays) * len(self.chosen)

    @property
    def nbytes(self) -> int:
        """Bytes that all the images take."""
        return len(self) * int(np.prod(self.arrays[0].shape[1:]))

    @property
    def whole(self) -> Images | None:
        """The only array, if all its images are chosen in their order; else None."""
        first = self.arrays[0]
        alone = len(self.arrays) == 1 and len(self.chosen) == len(first)
        return first if alone and (self.chosen == np.arange(len(first))).all() else None

    def read(self, positions: npt.NDArray[np.int64]) -> Images:
        """The images at these positions among the chosen ones: uint8 (B, H, W, 3)."""
        array, image = np.divmod(positions, len(self.chosen))
        images = np.empty((len(positions), *self.arrays[0].shape[1:]), np.uint8)
        for index in np.unique(array):
            here = array == index
            images[here] = self.arrays[index][self.chosen[image[here]]]
        return images


class ImageSource:
    """Images from which steps draw their batches.

    Args:
        images: uint8 (N, H, W, 3), a tensor on the device of the batches; or images in host memory or files.
        device: the device of the batches, for images that are not yet there.

    Attributes:
        device: the device of the batches.
        home: the device of the indices that `gather` takes: that of the images.
    """

    def __init__(self, images: Tensor | ChosenImages, device: torch.device | None = None) -> None:
        self.images = images
        self.device = device or torch.device("cpu")
        if isinstance(images, ChosenImages) and images.nbytes <= _room(self.device):
            self.images = _loaded(images, self.device)
        if isinstance(self.images, Tensor):
            self.device = self.images.device
        self.home = self.device if isinstance(self.images, Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def side(self) -> int:
        """The height and width of an image, in pixels."""
        shape = self.images.shape if isinstance(self.images, Tensor) else self.images.arrays[0].shape
        return int(shape[1])

    def gather(self, chosen: Tensor) -> Tensor:
        """The images at some indices, int64 (B,) on `home`: uint8 (B, H, W, 3) on the device."""
        if isinstance(self.images, Tensor):
            return self.images[chosen]
        return moved(torch.from_numpy(self.images.read(chosen.numpy())), self.device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device, if it is not there; the host does not wait for a copy to CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _room(device: torch.device) -> float:
    """The bytes of images that a device may hold."""
    if device.type == "cuda":
        return FREE_PART * torch.cuda.mem_get_info(device)[0]
    return MAPPED_BYTES


def _loaded(images: ChosenImages, device: torch.device) -> Tensor:
    """The images as a tensor on a device."""
    if device.type == "cpu":
        whole = images.whole
        return torch.from_numpy(images.read(np.arange(len(images))) if whole is None else whole)
    shape = (len(images), *images.arrays[0].shape[1:])
    found = torch.empty(shape, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK * len(images) // max(images.nbytes, 1))
    for start in range(0, len(images), step):
        part = np.arange(start, min(start + step, len(images)))
        found[start : start + step] = torch.from_numpy(images.read(part))
    return found
