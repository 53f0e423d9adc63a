"""The corruption functions by name."""

from collections.abc import Callable

from torch import Generator, Tensor

from rsslcli.core.corruptions import blur, digital, noise, weather
from rsslcli.core.corruptions.names import CORRUPTIONS

Corruption = Callable[[Tensor, int, Generator], Tensor]

FUNCTIONS: dict[str, Corruption] = {
    name: getattr(module, name)
    for name in CORRUPTIONS
    for module in (noise, blur, weather, digital)
    if hasattr(module, name)
}
