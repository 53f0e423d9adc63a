"""The weights from which the trunk of a new run starts: torchvision's of ImageNet, or those in a file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.errors import RsslError, UserError, sanitize, short_repr
from rsslcli.core.networks.backbones import Backbone
from rsslcli.core.networks.names import WRN
from rsslcli.core.networks.network import Network
from rsslcli.core.weights.checkpoint import NORMALIZATION_ADVICE, Checkpoint, load_classifier


def load_initial_weights(
    network: Network, config: Config, note: Callable[[str], None] = lambda text: None
) -> Checkpoint | None:
    """Load the weights that `config.weights` names into the trunk of `network`; its classifier stays new.

    Args:
        network: a new network of `config`.
        config: the settings, whose `weights` are not "none".
        note: called with one line for each thing to know, such as a stem that starts new.

    Returns:
        The checkpoint of the run whose weights they are; None if they are from elsewhere.

    Raises:
        UserError: the file is missing, of another kind or damaged, or of another network.
        RsslError: ImageNet's weights cannot be downloaded.
    """
    before = None
    if config.weights == "imagenet":
        where, state = _imagenet(network, config)
    else:
        where = config.weights
        state, before = _from_file(Path(where), config, note)
    own = network.state_dict()
    stem = f"trunk.{network.new_stem}." if isinstance(network, Backbone) and network.new_stem else None
    if stem and getattr(state.get(f"{stem}weight"), "shape", None) == own[f"{stem}weight"].shape:
        stem = None  # weights of a network that has the stem for small images itself
    new = tuple(filter(None, ("fc.", stem)))
    state = {name: value for name, value in state.items() if not name.startswith(new)}
    for name in [*own, *state]:
        given = state.get(name)
        if given is None:
            fits = name.startswith(new) or name in ("mu", "sigma") or name.endswith("num_batches_tracked")
        else:
            fits = name in own and given.shape == own[name].shape
        if not fits:
            tensor = short_repr(name.removeprefix("trunk."))
            raise UserError(
                f"weights: {where} is not of {config.network_title}: {tensor} is missing, has another shape "
                "or is not part of it"
            )
    network.load_state_dict(own | state)
    if stem:
        note(f"the first convolution starts new: images of {network.built_for} pixels need a smaller one")
    return before


def _imagenet(network: Network, config: Config) -> tuple[str, dict[str, Tensor]]:
    """Where ImageNet's weights of a network come from, and these; set the normalization that they need."""
    from torchvision.models import get_model_weights

    assert isinstance(network, Backbone)
    weights = get_model_weights(config.network).DEFAULT
    where = f"{weights} of torchvision"
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    try:
        told = io.StringIO()  # torch prints where it downloads
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            state = weights.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
    except OSError as error:  # also of urllib
        raise RsslError(
            f"{where} cannot be downloaded ({sanitize(error)}): fetch {weights.url} elsewhere and put it at "
            f"{cached}"
        ) from None
    except Exception as error:  # torch may raise anything on damaged files
        raise UserError(
            f"{cached} cannot be read ({sanitize(error, 100)}): delete it, and try again"
        ) from None
    preset = weights.transforms()
    network.set_normalization(preset.mean, preset.std)
    return where, network.renamed(state)


def _from_file(
    path: Path, config: Config, note: Callable[[str], None]
) -> tuple[dict[str, Tensor], Checkpoint | None]:
    """The weights of the network of `config`, and the checkpoint if they are of a run."""
    if not path.exists():
        raise UserError(f"weights: there is no file {path}: expected none, imagenet, or a file of weights")

    def tell(text: str) -> None:
        note(text.removesuffix(NORMALIZATION_ADVICE))  # training has no such option

    trained, checkpoint = load_classifier(path, network=config.network, note=tell)
    if config.network == WRN and trained.mu is not None:
        raise UserError(f"weights: {path} normalizes its input in another way than runs of a WideResNet do")
    return trained.state_dict(), checkpoint
