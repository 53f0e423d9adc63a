"""The functions of the corruptions by name."""

from collections.abc import Callable

from torch import Generator, Tensor

from rsslcli.core.corruptions import blur, digital, noise

Corruption = Callable[[Tensor, int, Generator], Tensor]

FUNCTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        noise.gaussian_noise,
        digital.brightness,
        digital.contrast,
        digital.pixelate,
        digital.jpeg_compression,
        blur.gaussian_blur,
    )
}
