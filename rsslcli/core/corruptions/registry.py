"""The corruption functions by name, and their parameters applied."""

from collections.abc import Callable

from torch import Generator, Tensor

from rsslcli.core.corruptions import blur, digital, noise, weather
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.corruptions.parameters import parameters

#: (images, generator, *parameters) to the corrupted images
Corruption = Callable[..., Tensor]

_DEFINED = vars(noise) | vars(blur) | vars(weather) | vars(digital)
FUNCTIONS: dict[str, Corruption] = {name: _DEFINED[name] for name in CORRUPTIONS}


def apply(name: str, images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Corrupt images (N, 3, S, S) float32 in [0, 1], with the parameters for S pixels; not clipped."""
    return FUNCTIONS[name](images, generator, *parameters(name, images.shape[-1], severity))
