"""The settings of a training run: presets, YAML files, and their checks. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rsslcli.core.errors import UserError, sanitize, short_repr, unknown
from rsslcli.core.tasks.registry import check_task_names, check_task_words

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "tf32", "bfloat16")
BATCH_NORM_MODES = ("per-task", "joint")
VALIDATION_CORRUPTIONS = ("all", "extra")
#: A configuration file is a page of text; a larger file is something else, and could take PyYAML seconds.
MAX_FILE_BYTES = 1 << 14
#: So is each of its mappings, also once `<<` has merged others into it.
MAX_MAPPING = 200


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. The defaults are the preset `paper`.

    Where the paper gives a value, that is the default; the other defaults are explained in the README.
    """

    dataset: str = "cifar10"
    #: Self-supervision tasks beside the main one, in the order of λ; none is the baseline. Words, which
    #: need not be known here: what only reads a run also reads one whose tasks are somebody's own.
    tasks: tuple[str, ...] = ()
    #: Whether Algorithm 1 tunes λ; otherwise λ stays at its initial value.
    automl: bool = False
    epochs: int = 100
    batch_size: int = 64
    #: Images of a seeded, class-balanced subset to train on; None is all.
    train_size: int | None = None
    lr: float = 0.1
    min_lr: float = 1e-6
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    initial_lambda: float = 0.5
    #: β, the learning rate of λ.
    meta_lr: float = 0.1
    meta_batch_size: int = 25
    #: α of the look-ahead is this times the learning rate α_t.
    lookahead_scale: float = 1.0
    #: τ, epochs at the start during which λ stays fixed.
    warmup_epochs: int = 5
    #: Source images whose corrupted versions tune λ; they are left out of every evaluation.
    validation_images: int = 100
    #: Which corruptions tune λ: "all", as in the paper, or "extra", the four that the benchmark keeps
    #: for tuning, so that the other 15 stay unseen.
    validation_corruptions: str = "all"
    depth: int = 40
    width: int = 2
    batch_norm: str = "per-task"
    #: Options of single tasks, such as {bir: {sigma: 1.5}}.
    task_options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    #: Compile trunk and heads with torch.compile.
    compile: bool = False

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check_type(option.name, getattr(self, option.name), str(option.type))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        check_task_words(self.tasks)
        check_task_words(self.task_options)
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < _LIMIT:
                limit = ", below 2^63" if value > minimum else ""
                raise UserError(f"{name}: expected at least {minimum}{limit}, got {short_repr(value)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if self.lr <= 0:
            raise UserError(f"lr: the learning rate must be above 0, got {self.lr}")
        if self.min_lr > self.lr:
            raise UserError(f"min_lr: {self.min_lr} is above lr, {self.lr}")
        if self.momentum >= 1:
            raise UserError(f"momentum: expected below 1, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov: needs a momentum above 0; set nesterov: false")
        if (self.depth - 4) % 6:
            raise UserError(
                f"depth: a WideResNet has 6n + 4 layers (10, 16, 22, 28, 34, 40), got {self.depth}"
            )
        if self.automl and not self.tasks:
            raise UserError("tasks: AutoML tunes the weights of tasks; name at least one")

    @property
    def name(self) -> str:
        """What the run trains, in one word: "baseline", "rotation", "fixed-rotation-bir", "automl-…"."""
        joined = "-".join(self.tasks) or "baseline"
        if self.automl:
            return f"automl-{joined}"
        return f"fixed-{joined}" if len(self.tasks) > 1 else joined

    @property
    def untuned(self) -> str:
        """Why AutoML changes no λ in this run, in a line; empty where it does, or where `automl` is false."""
        if not self.automl:
            return ""
        if self.warmup_epochs >= self.epochs:
            return (
                f"warmup_epochs: AutoML tunes nothing, since λ is fixed in {self.warmup_epochs} epochs of "
                f"{self.epochs}: expected below {self.epochs}"
            )
        stuck = next((name for name in ("meta_lr", "lookahead_scale") if not getattr(self, name)), None)
        return f"{stuck}: AutoML tunes nothing, since at 0 no λ moves: expected above 0" if stuck else ""

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `read_config_file` reads back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration as plain data, which files hold; `Config(**…)` takes it back."""
        return dataclasses.asdict(self) | {"tasks": list(self.tasks)}


_MINIMUM = {
    "epochs": 1, "batch_size": 2, "train_size": 1, "lr": 0, "min_lr": 0, "momentum": 0, "weight_decay": 0,
    "initial_lambda": 0, "meta_lr": 0, "meta_batch_size": 2, "lookahead_scale": 0, "warmup_epochs": 0,
    "validation_images": 1, "depth": 10, "width": 1, "seed": 0,
}  # fmt: skip
#: No setting is as large; below it, every number converts to any other kind.
_LIMIT = 2**63
_CHOICES = {
    "batch_norm": BATCH_NORM_MODES,
    "validation_corruptions": VALIDATION_CORRUPTIONS,
    "device": DEVICES,
    "precision": PRECISIONS,
}

#: Presets: what each sets beside the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper's settings, and ours where it is silent.
    "paper": {},
    # The published precursor code's, where they differ (README, "Settings").
    "precursor": {
        "batch_norm": "joint",
        "meta_lr": 0.01,
        "lookahead_scale": 10.0,
        "task_options": {
            "color": {"scale": 2.0},
            "ir": {"hidden": True},
            "bir": {"hidden": True, "sigma": 7 / 255},
            "inpaint": {"hidden": True},
        },
    },
    # The whole study in some hours on two CPU cores (`rssl reproduce --preset small`).
    "small": {
        "epochs": 8,
        "warmup_epochs": 1,
        "depth": 16,
        "width": 1,
        "train_size": 3000,
        # λ has 322 steps to move here, against the paper's 74,000.
        "meta_lr": 1.0,
    },
    # Minutes on two CPU cores, on the embedded data set.
    "quick": {
        "dataset": "shapes",
        "epochs": 6,
        "warmup_epochs": 2,
        "depth": 10,
        "width": 1,
        "train_size": 2000,
    },
}


#: What decides a configuration: where values come from, and the values. Later ones win.
Layers = Sequence[tuple[str, Mapping[str, Any]]]


def make_config(
    preset: str = "paper", file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a preset, changed by a YAML file, changed by `overrides` (None values are unset).

    Raises:
        UserError: an unknown preset or option, or a value of the wrong kind.
    """
    return merge(config_layers(preset, file, overrides))


def config_layers(
    preset: str = "paper", file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> list[tuple[str, Mapping[str, Any]]]:
    """What `make_config` merges, with the names by which `explain` tells where a value comes from."""
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    layers = []
    if file is not None:
        layers.append((str(file), read_config_file(file)))
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    layers.append(("command line", given))
    epochs = {name: value for _, layer in layers for name, value in layer.items()}.get("epochs")
    return [(f"preset {preset}", PRESETS[preset]), *_shorter_warmup(preset, epochs), *layers]


def _shorter_warmup(preset: str, epochs: object) -> Layers:
    """The warm-up of a run with fewer epochs than its preset: the preset's share of the epochs, rounded.

    It leaves at least one epoch in which λ is tuned. This layer lies right above the preset, so a warm-up
    that is given wins. `epochs` is unchecked; `Config` refuses what is no number of epochs.
    """
    usual = Config(**PRESETS[preset])
    if not isinstance(epochs, int) or not 0 < epochs < usual.epochs:
        return []
    share = math.floor(usual.warmup_epochs * epochs / usual.epochs + 0.5)
    origin = f"preset {preset}, its share: {usual.warmup_epochs} of {usual.epochs} epochs"
    return [(origin, {"warmup_epochs": min(share, epochs - 1)})]


def merge(layers: Layers, *, known_tasks: bool = True) -> Config:
    """The configuration that the layers come to.

    Args:
        layers: from `config_layers`.
        known_tasks: refuse tasks that are not defined here, which could not be trained.

    Raises:
        UserError: a value of the wrong kind, or a task that is not known here.
    """
    values: dict[str, Any] = {}
    for _, layer in layers:
        values |= layer
    config = Config(**values)
    if known_tasks:
        check_task_names(config.tasks)
        check_task_names(config.task_options)
    return config


def check_effective(config: Config) -> None:
    """Raise UserError where a new run would silently be another one than its configuration says.

    That is AutoML that changes no λ, or tasks whose λ stays 0. `Config` takes both: older runs hold them, and
    must still open.
    """
    if config.untuned:
        raise UserError(config.untuned)
    if config.tasks and not config.automl and not config.initial_lambda:
        raise UserError(
            f"initial_lambda: with λ fixed at 0, {', '.join(config.tasks)} would have no effect: expected "
            "above 0, or no tasks for the baseline"
        )


def explain(layers: Layers) -> str:
    """The configuration of the layers as YAML that `read_config_file` reads back, a comment at each option.

    The comment says where the value comes from: the last layer that has it, or "default".
    """
    origins = {name: origin for origin, layer in layers for name in layer}
    text = yaml.safe_dump(merge(layers).to_dict(), sort_keys=False, default_flow_style=None, width=math.inf)
    lines = []
    for line in text.splitlines():
        origin = sanitize(origins.get(line.partition(":")[0], "default"))
        # What begins with a space is the rest of the option above.
        lines.append(line if line.startswith(" ") else f"{line:<40}  # {origin}")
    return "\n".join(lines) + "\n"


def read_config_file(file: Path) -> dict[str, Any]:
    """The options in a YAML file, a mapping whose keys are fields of `Config`."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{file} is no configuration: it is larger than {MAX_FILE_BYTES >> 10} KiB")
    try:
        values = yaml.load(data, Loader=_Loader)
    except Exception as error:  # PyYAML raises almost anything on values that do not fit their tags
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error or type(error).__name__
        raise UserError(f"{file}{where} is not plain YAML: {sanitize(problem)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected lines such as `epochs: 20`, got a {type(values).__name__}")
    known = [option.name for option in dataclasses.fields(Config)]
    for key in values:
        if key not in known:
            raise UserError(f"{file}: {unknown('option', key, known)}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML as people write it: plain data only, 1e-6 is a number, and no option is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, refused where it has a key twice: the first value would be lost without a word."""
        self._check_size(node)
        keys = [str(key.value) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{short_repr(twice[0])} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names, refused where merges of merges grow without end."""
        super().flatten_mapping(node)
        self._check_size(node)

    def _check_size(self, node: yaml.MappingNode) -> None:
        if len(node.value) > MAX_MAPPING:
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping has more than {MAX_MAPPING} entries", node.start_mark
            )


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _check_type(name: str, value: object, annotation: str) -> None:
    """Raise UserError unless `value` is of the annotated kind; YAML gives whatever its text looks like."""
    if annotation.startswith("tuple"):
        fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        expected = "a list of names"
    elif annotation.startswith("Mapping"):
        fits = isinstance(value, Mapping) and all(map(_are_options, value.values()))
        expected = "a mapping such as {bir: {sigma: 1.5}}"
    elif annotation == "bool":
        fits, expected = isinstance(value, bool), "true or false"
    elif annotation.startswith("int"):
        fits = isinstance(value, int) and not isinstance(value, bool)
        fits, expected = fits or (value is None and "None" in annotation), "a whole number"
    elif annotation == "float":
        fits, expected = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, expected = isinstance(value, str), "a word"
    if not fits:
        raise UserError(f"{name}: expected {expected}, got {short_repr(value)}")


def _are_options(value: object) -> bool:
    """Whether `value` can be the options of a task, which checks them itself when it is built."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(number, int | float) and abs(number) < _LIMIT
        for name, number in value.items()
    )
