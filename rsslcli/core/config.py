"""The settings of a training run: their defaults, limits and checks. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rsslcli.core.errors import UserError, short_repr, unknown
from rsslcli.core.networks.names import WRN, check_network_word, is_custom
from rsslcli.core.plain_yaml import dump_yaml, read_mapping
from rsslcli.core.tasks.registry import check_task_words

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "tf32", "bfloat16"]
BatchNormMode = Literal["per-task", "joint", "all"]
ValidationCorruptions = Literal["all", "extra"]
Weighting = Literal["fixed", "automl", "uncertainty", "random", "upgrad"]
Augment = Literal["standard", "augmix"]
OptimizerName = Literal["sgd", "adamw"]
AutomlVariant = Literal["cosine", "constant-sum", "relative", "sgd-lookahead"]

DEVICES: tuple[Device, ...] = get_args(Device)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BATCH_NORM_MODES: tuple[BatchNormMode, ...] = get_args(BatchNormMode)
VALIDATION_CORRUPTIONS: tuple[ValidationCorruptions, ...] = get_args(ValidationCorruptions)
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
AUTOML_VARIANTS: tuple[AutomlVariant, ...] = get_args(AutomlVariant)

#: The name of the Jensen-Shannon consistency loss of AugMix among the losses and weights of a run.
JSD = "jsd"

#: Every number is below this limit, so that it fits an int64.
_LIMIT = 2**63


def _at_least(minimum: int, *, below: int = _LIMIT) -> dict[str, Any]:
    """Declare the range of a number, as the metadata of a field of `Config`."""
    return {"minimum": minimum, "below": below}


def _one_of(choices: Sequence[str]) -> dict[str, Any]:
    """Declare the choices of a word, as the metadata of a field of `Config`."""
    return {"choices": choices}


@dataclass(frozen=True)
class Config:
    """All settings of a training run. The defaults are the preset `paper`.

    They are the paper's values where it states them; docs/method.md explains the others.

    Raises:
        UserError: a value of the wrong type or out of range, or values that contradict each other.
    """

    dataset: str = "cifar10"
    #: Self-supervision tasks in the order of λ; none for the baseline. Names only; they need not be
    #: registered, so runs with custom tasks stay readable.
    tasks: tuple[str, ...] = ()
    #: What sets λ: "fixed" keeps its initial value, "automl" is Algorithm 1, and the others are its rivals;
    #: see docs/method.md.
    weighting: Weighting = field(default="fixed", metadata=_one_of(WEIGHTINGS))
    epochs: int = field(default=100, metadata=_at_least(1))
    batch_size: int = field(default=64, metadata=_at_least(2))
    #: "standard" crops and flips; "augmix" adds two AugMix views of each image, and the consistency loss.
    augment: Augment = field(default="standard", metadata=_one_of(AUGMENTS))
    #: Weight of the Jensen-Shannon consistency loss between an image and its two AugMix views. At 0, the main
    #: task trains on one AugMix view of each image instead.
    jsd_weight: float = field(default=12.0, metadata=_at_least(0))
    #: Let Algorithm 1 tune that weight like those of the tasks.
    tune_jsd: bool = False
    #: Train on a seeded, class-balanced subset of this many images; None uses all of them.
    train_size: int | None = field(default=None, metadata=_at_least(1))
    lr: float = field(default=0.1, metadata=_at_least(0))
    min_lr: float = field(default=1e-6, metadata=_at_least(0))
    #: "sgd" couples weight decay to the gradient; "adamw" decouples it, and ignores `momentum`, `nesterov`.
    optimizer: OptimizerName = field(default="sgd", metadata=_one_of(OPTIMIZERS))
    #: The trunk's learning rate divided by that of the classifier and the heads; 0 freezes the trunk.
    trunk_lr_factor: float = field(default=1.0, metadata=_at_least(0))
    momentum: float = field(default=0.9, metadata=_at_least(0, below=1))
    nesterov: bool = True
    weight_decay: float = field(default=5e-4, metadata=_at_least(0))
    #: Decay per step of the exponential moving average of the weights, which evaluation uses; 0 for none.
    ema: float = field(default=0.0, metadata=_at_least(0, below=1))
    initial_lambda: float = field(default=0.5, metadata=_at_least(0))
    #: β, the learning rate of λ.
    meta_lr: float = field(default=0.1, metadata=_at_least(0))
    meta_batch_size: int = field(default=25, metadata=_at_least(2))
    #: The look-ahead's α divided by the learning rate α_t.
    lookahead_scale: float = field(default=1.0, metadata=_at_least(0))
    #: Departures of Algorithm 1 from the paper's; see docs/method.md.
    automl_variants: tuple[AutomlVariant, ...] = field(default=(), metadata=_one_of(AUTOML_VARIANTS))
    #: τ, the epochs at the start during which λ stays fixed.
    warmup_epochs: int = field(default=5, metadata=_at_least(0))
    #: Number of source images whose corrupted versions tune λ; every evaluation excludes them.
    validation_images: int = field(default=100, metadata=_at_least(1))
    #: Which corruptions tune λ: "all", as in the paper, or "extra", the four that the benchmark reserves
    #: for tuning, so that the other 15 stay unseen.
    validation_corruptions: ValidationCorruptions = field(
        default="all", metadata=_one_of(VALIDATION_CORRUPTIONS)
    )
    #: "wrn", a classifier of torchvision such as "resnet18", or "package.module:function"; docs/networks.md.
    network: str = WRN
    #: The trunk's initial weights: "none", "imagenet" for torchvision's, or a file.
    weights: str = "none"
    #: Size of the WideResNet, "wrn"; other networks ignore it.
    depth: int = field(default=40, metadata=_at_least(10))
    width: int = field(default=2, metadata=_at_least(1))
    batch_norm: BatchNormMode = field(default="per-task", metadata=_one_of(BATCH_NORM_MODES))
    #: Options by task, such as {bir: {sigma: 1.5}}.
    task_options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    #: The fraction of each batch that the tasks see, above 0 and at most 1.
    task_share: float = 1.0
    seed: int = field(default=0, metadata=_at_least(0))
    device: Device = field(default="auto", metadata=_one_of(DEVICES))
    precision: Precision = field(default="float32", metadata=_one_of(PRECISIONS))
    #: Compile trunk and heads with torch.compile.
    compile: bool = False

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check_type(option.name, getattr(self, option.name), str(option.type))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "automl_variants", tuple(self.automl_variants))
        check_task_words(self.tasks)
        check_task_words(self.task_options)
        for option in dataclasses.fields(self):
            _check_limits(option, getattr(self, option.name))
        if self.lr <= 0:
            raise UserError(f"lr: the learning rate must be above 0, got {self.lr}")
        if not 0 < self.task_share <= 1:
            raise UserError(f"task_share: expected above 0 and at most 1, got {short_repr(self.task_share)}")
        if self.min_lr > self.lr:
            raise UserError(f"min_lr: {self.min_lr} is above lr, {self.lr}")
        check_network_word(self.network)
        if self.weights == "imagenet" and (self.network == WRN or is_custom(self.network)):
            raise UserError(
                f"weights: torchvision has no ImageNet weights of '{self.network}': choose another "
                "`network`, such as resnet18"
            )
        if self.optimizer != "sgd" and "sgd-lookahead" in self.automl_variants:
            raise UserError("automl_variants: sgd-lookahead needs `optimizer` sgd")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise UserError("nesterov: needs a momentum above 0; set nesterov to false")
        if (self.depth - 4) % 6:
            raise UserError(
                f"depth: a WideResNet has 6n + 4 layers (10, 16, 22, 28, 34, 40, …), got {self.depth}"
            )
        if self.tune_jsd and not (self.automl and self.uses_augmix and self.jsd_weight):
            raise UserError(
                "tune_jsd: needs `weighting` automl, `augment` augmix, and a `jsd_weight` above 0"
            )
        if self.weighting != "fixed" and not (self.tasks or self.tune_jsd):
            raise UserError(
                f"tasks: {WEIGHTING_TITLES[self.weighting]} sets the weights of tasks; choose at least one"
            )
        # YAML reads 1 as a whole number; equal settings are then written and compared alike.
        for option in dataclasses.fields(self):
            if option.type == "float":
                object.__setattr__(self, option.name, float(getattr(self, option.name)))

    @property
    def automl(self) -> bool:
        """True if Algorithm 1 tunes λ."""
        return self.weighting == "automl"

    @property
    def uses_augmix(self) -> bool:
        """True if training uses AugMix."""
        return self.augment == "augmix"

    @property
    def is_baseline(self) -> bool:
        """True if the main task trains alone and without AugMix."""
        return not self.tasks and not self.uses_augmix

    @property
    def is_single(self) -> bool:
        """True if the main task trains alone, or with one task at a fixed weight."""
        return self.weighting == "fixed" and len(self.tasks) <= 1

    @property
    def weighted(self) -> tuple[str, ...]:
        """The losses whose weights λ a run holds: those of the tasks, in their order, and a few others.

        "jsd" follows where Algorithm 1 tunes it. The rivals that weight the main loss too begin with "main".
        """
        first = ("main",) if self.weighting in ("uncertainty", "random") else ()
        return (*first, *self.tasks, *((JSD,) if self.tune_jsd else ()))

    @property
    def name(self) -> str:
        """A short name of what the run trains: "baseline", "rotation", "fixed-rotation-bir", "automl-…"."""
        parts = ["augmix"] if self.uses_augmix else []
        if not self.is_single:
            parts.append(self.weighting)
        parts += [*self.tasks, *((JSD,) if self.tune_jsd else ())]
        return "-".join(parts) or "baseline"

    @property
    def augmix_views(self) -> int:
        """How many AugMix views of each image the main task sees: two for the divergence, or else one."""
        return (2 if self.jsd_weight else 1) if self.uses_augmix else 0

    @property
    def network_title(self) -> str:
        """The network as people write it, such as "WRN-40-2" or "resnet18"."""
        return f"WRN-{self.depth}-{self.width}" if self.network == WRN else self.network

    @property
    def untuned(self) -> str:
        """Why AutoML cannot change λ in this run, in one line; empty if it can, or if `automl` is false."""
        if not self.automl:
            return ""
        if self.warmup_epochs >= self.epochs:
            return (
                f"`warmup_epochs`: AutoML tunes nothing, since λ is fixed in {self.warmup_epochs} epochs of "
                f"{self.epochs}: expected below {self.epochs}"
            )
        starts_at_0 = not (self.initial_lambda or self.tune_jsd)
        if "constant-sum" in self.automl_variants and (len(self.weighted) < 2 or starts_at_0):
            return (
                "`automl_variants`: AutoML tunes nothing, since constant-sum fixes the λ of a single task, "
                "and λ that start at 0: leave it out"
            )
        names = ("meta_lr", "lookahead_scale") + ("trunk_lr_factor",) * (not self.tune_jsd)
        stuck = next((name for name in names if not getattr(self, name)), None)
        return f"`{stuck}`: AutoML tunes nothing, since at 0 no λ moves: expected above 0" if stuck else ""

    @property
    def stays_at_0(self) -> bool:
        """True if the tasks' λ are 0 and no rule moves them from there."""
        return (
            bool(self.tasks)
            and self.weighting in ("fixed", "upgrad", "uncertainty")
            and not self.initial_lambda
        )

    def to_yaml(self) -> str:
        """The configuration as YAML, which `read_config_file` reads back."""
        return dump_yaml(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data for files; `Config.from_dict` restores it."""
        lists = {"tasks": list(self.tasks), "automl_variants": list(self.automl_variants)}
        return dataclasses.asdict(self) | lists

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """Restore a configuration from `to_dict`, also of version 0.1.

        Raises:
            UserError: an invalid value.
            TypeError: an unknown option.
        """
        return cls(**modernize(data))


WEIGHTING_TITLES: dict[Weighting, str] = {
    "automl": "AutoML",
    "uncertainty": "uncertainty weighting",
    "random": "random loss weighting",
    "upgrad": "UPGrad",
}


def modernize(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of version 0.1 in today's terms: it had `automl`, true or false, in place of `weighting`."""
    values = {key: value for key, value in data.items() if key != "automl"}
    if isinstance(old := data.get("automl"), bool):
        values.setdefault("weighting", "automl" if old else "fixed")
    elif "automl" in data:
        raise UserError(f"automl: expected true or false, got {short_repr(old)}")
    return values


def check_effective(config: Config) -> None:
    """Raise UserError if a new run would silently differ from what its configuration says.

    That is the case if AutoML cannot change λ, if the tasks' λ stays 0, or if tasks would train a frozen
    trunk. `Config` accepts all of these, so that older runs with such settings can still be read.
    """
    if config.untuned:
        raise UserError(config.untuned)
    if config.stays_at_0:
        raise UserError(
            f"`initial_lambda`: with λ fixed at 0, {', '.join(config.tasks)} would have no effect: expected "
            "above 0, or no tasks for the baseline"
        )
    if config.tasks and not config.trunk_lr_factor:
        raise UserError(
            "`trunk_lr_factor`: tasks act on the trunk alone, which is frozen at 0: expected above 0, or no "
            "tasks"
        )


def read_config_file(file: Path) -> dict[str, Any]:
    """Read the options in a YAML file, a mapping whose keys are fields of `Config`.

    Raises:
        UserError: the file cannot be read, is not plain YAML, or has an unknown option.
    """
    values = modernize(read_mapping(file))
    known = [option.name for option in dataclasses.fields(Config)]
    for key in values:
        if key not in known:
            raise UserError(f"{file}: {unknown('option', key, known)}")
    return values


def _check_limits(option: dataclasses.Field[Any], value: Any) -> None:
    """Raise UserError unless `value` is within the limits of its field."""
    choices = option.metadata.get("choices")
    for word in value if isinstance(value, tuple) else (value,):
        if choices and word not in choices:
            raise UserError(f"{option.name}: {unknown(option.name, word, choices)}")
    minimum = option.metadata.get("minimum")
    if minimum is None or value is None:
        return
    below = option.metadata["below"]
    if not minimum <= value < below:  # not `value < minimum or …`: NaN must fail too
        upper = f", below {'2^63' if below == _LIMIT else below}" if value > minimum else ""
        raise UserError(f"{option.name}: expected at least {minimum}{upper}, got {short_repr(value)}")


def _check_type(name: str, value: object, annotation: str) -> None:
    """Raise UserError unless `value` has the annotated type; YAML decides types by how a value is written."""
    if annotation.startswith("tuple"):
        fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        expected = "a list of names"
    elif annotation.startswith("Mapping"):
        fits = isinstance(value, Mapping)
        expected = "a mapping such as {bir: {sigma: 1.5}}"
        for task, options in value.items() if isinstance(value, Mapping) else ():
            if not _are_options(options):
                wrong = f"options of {short_repr(task)} such as {{sigma: 1.5}}"
                raise UserError(f"{name}: expected {wrong}, each a number, true or false")
    elif annotation == "bool":
        fits = isinstance(value, bool)
        expected = "true or false"
    elif annotation.startswith("int"):
        is_number = isinstance(value, int) and not isinstance(value, bool)
        fits = is_number or (value is None and "None" in annotation)
        expected = "a whole number"
    elif annotation == "float":
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        expected = "a number"
    else:
        fits = isinstance(value, str)
        expected = "a word"
    if not fits:
        raise UserError(f"{name}: expected {expected}, got {short_repr(value)}")


def _are_options(value: object) -> bool:
    """True if `value` maps names to numbers; `build_tasks` checks the names and ranges."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(number, int | float) and abs(number) < _LIMIT
        for name, number in value.items()
    )
