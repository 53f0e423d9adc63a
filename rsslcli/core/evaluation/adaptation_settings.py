"""The settings of an adaptation at test time: their defaults and limits. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rsslcli.core.errors import UserError, counted, short_repr, unknown

AdaptationMethod = Literal["bn", "tent", "tasks"]
Stream = Literal["shuffled", "sorted", "mixed"]

ADAPTATION_METHODS: tuple[AdaptationMethod, ...] = get_args(AdaptationMethod)
STREAMS: tuple[Stream, ...] = get_args(Stream)

#: What each method takes for a field that is None. docs/results.md says how the numbers were chosen.
_DEFAULTS: dict[AdaptationMethod, dict[str, Any]] = {
    "bn": {"prior": 512.0, "steps": 0, "learning_rate": 0.0, "episodic": False},
    "tent": {"prior": 0.0, "steps": 1, "learning_rate": 1e-3, "episodic": False},
    "tasks": {"prior": 512.0, "steps": 1, "learning_rate": 0.1, "episodic": True},
}


@dataclass(frozen=True)
class Adaptation:
    """How a classifier adapts to the images that it classifies, without their labels.

    Attributes:
        method: "bn" mixes the statistics of batch normalization with those of each batch (Schneider et al.
            2020). "tent" also minimizes the entropy of the scores over the scales and shifts (Wang et al.
            2021). "tasks" takes gradient steps on the run's own tasks before it classifies a batch (Sun et
            al. 2020).
        prior: N, the number of images that the training statistics count for: they have the share
            N / (N + n) beside a batch of n images. 0 uses the batch alone, infinity the training
            statistics alone.
        batch_size: the largest number of images in a batch of an evaluation.
        stream: the order of an evaluation's images. "shuffled" draws it by the seed; "sorted" puts the
            classes one after another; "mixed" shuffles the images of all corruptions at a severity together.
        seed: decides the order, and what the tasks draw.
        steps: gradient steps on each batch; 0 for "bn".
        learning_rate: that of Adam in "tent", and of plain gradient descent in "tasks".
        episodic: forget each batch before the next one, instead of at the end of the stream.

    None stands for the default of the method.

    Raises:
        UserError: an unknown method or stream, or a number out of range.
    """

    method: AdaptationMethod = "bn"
    prior: float | None = None
    batch_size: int = 200
    stream: Stream = "shuffled"
    seed: int = 0
    steps: int | None = None
    learning_rate: float | None = None
    episodic: bool | None = None

    @property
    def name(self) -> str:
        """The method, and those of prior, batch size, stream and seed that are not its defaults.

        Examples: "bn", "bn-prior0-sorted".
        """
        usual = Adaptation(self.method)
        words: list[str] = [self.method]
        for name, word in (("prior", "prior"), ("batch_size", "batch"), ("stream", ""), ("seed", "seed")):
            if (value := getattr(self, name)) != getattr(usual, name):
                words.append(f"{word}{value:g}" if isinstance(value, float) else f"{word}{value}")
        return "-".join(words)

    def __post_init__(self) -> None:
        if self.method not in ADAPTATION_METHODS:
            raise unknown("adaptation", self.method, ADAPTATION_METHODS)
        if self.stream not in STREAMS:
            raise unknown("stream", self.stream, STREAMS)
        given = [name for name in ("steps", "learning_rate", "episodic") if getattr(self, name) is not None]
        if self.method == "bn" and given:
            raise UserError(f"{given[0]}: bn takes no gradient steps; choose tent or tasks, or leave it out")
        for name, value in _DEFAULTS[self.method].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("batch_size", "seed", *(("steps",) if self.method != "bn" else ())):
            minimum = 0 if name == "seed" else 1
            value = getattr(self, name)
            if type(value) is not int or not minimum <= value < 2**63:
                raise UserError(f"`{name}`: expected a whole number from {minimum}, got {short_repr(value)}")
        for name in ("prior", "learning_rate"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not value >= 0:  # not `value < 0`: NaN must fail too
                raise UserError(f"`{name}`: expected a number from 0, got {short_repr(value)}")
        if self.learning_rate == math.inf:
            raise UserError("`learning_rate`: expected a finite number")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data for JSON, without those that the method does not use."""
        values = dataclasses.asdict(self)
        if self.prior == math.inf:
            values["prior"] = "inf"  # JSON has no infinity
        if self.method == "bn":
            for name in ("steps", "learning_rate", "episodic"):
                del values[name]
        return values


def describe_adaptation(settings: Mapping[str, Any]) -> str:
    """The settings of an adaptation, as `Adaptation.to_dict` gives them, in a few words."""
    order = {"sorted": "sorted by class", "mixed": f"all corruptions mixed by seed {settings['seed']}"}
    parts = [
        f"{settings['method']}: prior {float(settings['prior']):g}",
        f"batches of at most {settings['batch_size']} images",
        order.get(settings["stream"], f"shuffled by seed {settings['seed']}"),
    ]
    if "steps" in settings:
        steps = counted(settings["steps"], "step")
        parts.append(f"{steps} at a learning rate of {settings['learning_rate']:g}")
        if settings["episodic"] != _DEFAULTS[settings["method"]]["episodic"]:
            parts.append("each batch forgotten" if settings["episodic"] else "batches remembered")
    return ", ".join(parts)
