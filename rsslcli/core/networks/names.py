"""What a configuration may call a network. Imports no torch.

"wrn" is the paper's WideResNet, a word such as "resnet18" a classifier of torchvision, and
"package.module:function" a network of the user's own. The function takes no arguments and returns a module;
importing it runs code, so no file can name it alone: `allow_network` must be called in this process.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from rsslcli.core.errors import UserError, sanitize, short_repr

#: The WideResNet of the paper.
WRN = "wrn"

_WORD = re.compile(r"[a-z][a-z0-9_]{0,59}")
_CUSTOM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

#: The functions that the user named in this process.
_allowed: set[str] = set()


def is_custom(name: str) -> bool:
    """True if `name` is that of a function of the user's own."""
    return ":" in name


def check_network_word(name: str) -> str:
    """Return `name` if a network can be called that; torchvision need not have it.

    Raises:
        UserError: it is neither a word nor "package.module:function".
    """
    if not (len(name) <= 200 and _CUSTOM.fullmatch(name)) and not _WORD.fullmatch(name):
        raise UserError(
            f"network: expected {WRN}, a classifier of torchvision such as resnet18, or "
            f"package.module:function, got {short_repr(name)}"
        )
    return name


def allow_network(name: str) -> None:
    """Let this process import the network `name`, "package.module:function".

    Configurations and checkpoints with this name then load. Call it only for code that you trust.

    Raises:
        UserError: `name` is of another form.
    """
    if is_custom(check_network_word(name)):
        _allowed.add(name)


def load_custom_network(name: str) -> Callable[[], object]:
    """Import the function `name`, "package.module:function"; modules in the working directory are found too.

    Raises:
        UserError: the user did not name it in this process, or it cannot be imported.
    """
    if name not in _allowed:
        raise UserError(
            f"network {short_repr(name)} is code of your own, which runs only if you name it: pass its name "
            "as `network`"
        )
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if not {"", here} & {*sys.path}:
        sys.path.append(here)
    try:
        function: Callable[[], object] = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the import may raise anything
        raise UserError(f"network {name}: {type(error).__name__}: {sanitize(error)}") from error
    if not callable(function):
        raise UserError(f"network {name}: expected a function that returns a module, found {type(function)}")
    return function
