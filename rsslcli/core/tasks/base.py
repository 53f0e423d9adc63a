"""What a self-supervision task is."""

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

    To make one, derive a class from this, in a file or a package of your own: see docs/tasks.md.
    The fields of the dataclass are the task's options: positive numbers, or true and false. A class with
    options of its own is decorated with `@dataclass(frozen=True)`.
    """

    #: Multiplies the loss, before λ does.
    scale: float = 1.0

    #: How Figure 1 calls the task; its name serves where this is empty.
    title: ClassVar[str] = ""
    #: Of a task that classifies: what each score stands for, in a word or two.
    answers: ClassVar[Sequence[str]] = ()
    #: Whether the inputs are the images as they are, so that the main task's forward pass serves this one.
    clean_input: ClassVar[bool] = False

    @classmethod
    def options(cls) -> dict[str, float | bool]:
        """The task's options with their defaults."""
        return {option.name: getattr(cls, option.name) for option in dataclasses.fields(cls)}

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """The network θaux that maps trunk features (M, features) to the task's outputs (supplement A.1).

        It draws no random numbers (no dropout), so that a resumed run goes on exactly. Its convolutions, and
        the biases of its linear layers, are initialized as those of the trunk.
        """

    @abstractmethod
    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        """Derive the task from a batch.

        Works on any device, `meta` included, and does not wait for it.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            random: where random numbers come from: a row for each of the N images.

        Returns:
            inputs: float (M, 3, H, W) in [0, 1]. Where M = v · N, the v views of image i are i, i + N, …
            targets: what `loss` compares the outputs with, first dimension M.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the batch, times `scale`: a scalar of the dtype of `outputs`."""

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor | None:
        """What the network makes of each input, as an image that `visualize-tasks --checkpoint` shows.

        Best is what the image would be if the network were right, to be compared with the original. The
        default is the outputs, where they are images; where there is no picture, the likeliest of `answers`
        are shown.

        Args:
            inputs: float (M, 3, H, W) in [0, 1], on the CPU.
            outputs: what the head made of them.

        Returns:
            float (M, 3, H, W), shown as if cut to [0, 1]; or None.
        """
        return outputs if outputs.shape == inputs.shape else None
