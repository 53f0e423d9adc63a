"""Where the settings of a run come from: presets, files and options, merged in layers. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.errors import UserError, sanitize, unknown
from rsslcli.core.plain_yaml import dump_yaml
from rsslcli.core.tasks.registry import build_tasks, check_task_names

#: The tasks see a quarter of each batch: cheaper, without a loss beyond the noise (docs/results.md).
_TASK_SHARE = 0.25

#: Presets: the settings in which each differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # The defaults: the paper's settings, and ours where it states none.
    "paper": {},
    # For a classifier to use: what the studies found to help (docs/results.md), at the paper's size.
    "robust": {"augment": "augmix"},
    # A few epochs from weights of ImageNet: usual choices for AdamW, which no study here measured.
    "finetune": {
        "network": "resnet50",
        "weights": "imagenet",
        "epochs": 10,
        "warmup_epochs": 1,
        "optimizer": "adamw",
        "lr": 1e-3,
        "trunk_lr_factor": 0.1,
        "weight_decay": 0.05,
        # The look-ahead then starts with the paper's step of 0.1, as with SGD, and with a tenth in the trunk.
        "lookahead_scale": 100.0,
    },
    # Settings of the published precursor code that differ (docs/method.md).
    "precursor": {
        "batch_norm": "joint",
        "warmup_epochs": 6,
        "meta_lr": 0.01,
        "lookahead_scale": 10.0,
        "task_options": {
            "color": {"scale": 2.0},
            "ir": {"hidden": True},
            "bir": {"hidden": True, "sigma": 7 / 255},
            "inpaint": {"hidden": True},
        },
    },
    # The whole study in a few hours on two CPU cores, see `rssl reproduce`.
    "small": {
        "epochs": 8,
        "warmup_epochs": 1,
        "depth": 16,
        "width": 1,
        "train_size": 3000,
        # Only 322 steps tune λ here, compared with the paper's 74,000.
        "meta_lr": 1.0,
        "task_share": _TASK_SHARE,
    },
    # A run of minutes on two CPU cores, on the embedded data set.
    "quick": {
        "dataset": "shapes",
        "epochs": 6,
        "warmup_epochs": 2,
        "depth": 10,
        "width": 1,
        "train_size": 2000,
        "task_share": _TASK_SHARE,
    },
}


#: The label of the options on the command line.
COMMAND_LINE = "command line"
#: The sources of a configuration, each a label and its values. Later layers win.
Layers = Sequence[tuple[str, Mapping[str, Any]]]


def make_config(
    preset: str = "paper", file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Make a configuration from a preset, a YAML file and `overrides`; later ones win.

    Args:
        preset: a name of `PRESETS`.
        file: a YAML file whose keys are fields of `Config`.
        overrides: values by field; None values are ignored.

    Raises:
        UserError: an unknown preset, option or task, an unreadable file, or an invalid value.
    """
    return merge(config_layers(preset, file, overrides))


def config_layers(
    preset: str = "paper", file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> list[tuple[str, Mapping[str, Any]]]:
    """The layers that `make_config` merges, labeled for `explain`."""
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    layers = []
    if file is not None:
        layers.append((str(file), read_config_file(file)))
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    layers.append((COMMAND_LINE, given))
    epochs = {name: value for _, layer in layers for name, value in layer.items()}.get("epochs")
    return [(f"preset {preset}", PRESETS[preset]), *_shorter_warmup(preset, epochs), *layers]


def _shorter_warmup(preset: str, epochs: object) -> Layers:
    """The layer that scales the warm-up of a run with fewer epochs than its preset.

    The warm-up keeps the preset's fraction of the epochs, rounded, and leaves at least one epoch to tune λ.
    The layer lies right above the preset, so an explicit `warmup_epochs` wins. `epochs` is not checked yet:
    `Config` rejects invalid values.
    """
    usual = Config(**PRESETS[preset])
    if not isinstance(epochs, int) or not 0 < epochs < usual.epochs:
        return []
    share = math.floor(usual.warmup_epochs * epochs / usual.epochs + 0.5)
    origin = f"preset {preset}, its share: {usual.warmup_epochs} of {usual.epochs} epochs"
    return [(origin, {"warmup_epochs": min(share, epochs - 1)})]


def merge(layers: Layers, *, known_tasks: bool = True) -> Config:
    """Merge layers into a configuration.

    Args:
        layers: from `config_layers`.
        known_tasks: require that all tasks are registered here, as training does.

    Raises:
        UserError: an invalid value, or an unknown task.
    """
    values: dict[str, Any] = {}
    for _, layer in layers:
        values |= layer
    try:
        config = Config(**values)
    except UserError as error:
        option, _, problem = str(error).partition(":")
        place = next((label for label, layer in reversed(layers) if option in layer), "")
        if place == COMMAND_LINE:
            raise UserError(f"`{option}`:{problem}") from None
        raise UserError(f"{place}: {error}") if Path(place).is_file() else error  # noqa: B904
    if known_tasks:
        check_task_names(config.tasks)
        check_task_names(config.task_options)
    return config


def check_task_options(file: Path) -> None:
    """Raise UserError unless the tasks take the `task_options` in a file; with any, this imports torch."""
    if options := read_config_file(file).get("task_options"):
        try:
            build_tasks((), options)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None


def explain(layers: Layers) -> str:
    """The merged configuration as YAML, which `read_config_file` reads back.

    A comment at each option says where its value comes from: the last layer that sets it, or "default".
    """
    origins = {name: origin for origin, layer in layers for name in layer}
    text = dump_yaml(merge(layers).to_dict(), default_flow_style=None, width=math.inf)
    lines = []
    for line in text.splitlines():
        origin = sanitize(origins.get(line.partition(":")[0], "default"))
        # An indented line continues the option above.
        lines.append(line if line.startswith(" ") else f"{line:<40}  # {origin}")
    return "\n".join(lines) + "\n"
