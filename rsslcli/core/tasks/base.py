"""`Task`, the base class of all self-supervision tasks."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from rsslcli.core.randomness import BatchRandom


@dataclass(frozen=True)
class Task(ABC):
    """A self-supervision task: a transform of images into inputs and targets, a head, and a loss.

    To define a custom task, derive a class from this one in a file or package: see docs/tasks.md. The fields
    of the dataclass are the task's options: positive numbers, or booleans. A class that adds options needs
    the decorator `@dataclass(frozen=True)`; its `__post_init__` may raise ValueError for values out of range.
    """

    #: Factor of the loss, in addition to λ.
    scale: float = 1.0

    #: The task's title in Figure 1; by default its name.
    title: ClassVar[str] = ""
    #: For a classification task: the meaning of each score, in a word or two.
    answers: ClassVar[Sequence[str]] = ()
    #: True if the inputs are the unchanged images, so that the task shares the main task's forward pass.
    clean_input: ClassVar[bool] = False

    def __post_init__(self) -> None:  # noqa: B027
        """Check the options; the default accepts them."""

    @classmethod
    def options(cls) -> dict[str, float | bool]:
        """The task's options and their defaults."""
        return {option.name: getattr(cls, option.name) for option in dataclasses.fields(cls)}

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """The network θaux that maps trunk features (M, features) to the task's outputs (supplement A.1).

        It must draw no random numbers (no dropout), so that runs resume exactly. Its convolutions, and the
        biases of its linear layers, are initialized like those of the trunk.
        """

    @abstractmethod
    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        """Make inputs and targets from a batch of images.

        It must work on any device, including `meta`, and must not copy values to the host.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            random: the source of random numbers, one row per image.

        Returns:
            inputs: float (M, 3, H, W) in [0, 1], where M = v · N; the v views of image i are i, i + N, …
            targets: the targets of `loss`, with first dimension M.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the batch, times `scale`: a scalar of the dtype of `outputs`."""

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor | None:
        """Show the network's outputs as images, for `rssl visualize-tasks` with a checkpoint.

        Ideally, a picture is what the original would be if the network were right. The default returns the
        outputs if they are images. Without a picture, the likeliest classes are shown, by
        `answers` or by number, if the outputs are scores.

        Args:
            inputs: float (M, 3, H, W) in [0, 1], on the CPU.
            outputs: the outputs of the head.

        Returns:
            float (M, 3, H, W), clamped to [0, 1] when shown; or None.
        """
        return outputs if outputs.shape == inputs.shape else None
