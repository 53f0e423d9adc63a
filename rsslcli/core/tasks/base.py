"""What a self-supervision task is."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from rsslcli.core.randomness import BatchRandom


@dataclass(frozen=True)
class Task(ABC):
    """A self-supervision task: a transform of images into inputs and targets, a head, and a loss.

    To add one, derive a class from this, in a file of its own, and name it in `rsslcli.core.tasks.TASKS`.
    The fields of the dataclass are the task's options: positive numbers, or true and false.
    """

    #: Multiplies the loss, before λ does.
    scale: float = 1.0

    #: How Figure 1 calls the task.
    title: ClassVar[str]
    #: Whether the inputs are the images as they are, so that the main task's forward pass serves this one.
    clean_input: ClassVar[bool] = False

    @classmethod
    def options(cls) -> dict[str, float | bool]:
        """The task's options with their defaults."""
        return {option.name: getattr(cls, option.name) for option in dataclasses.fields(cls)}

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """The network θaux that maps trunk features (M, features) to the task's outputs (supplement A.1)."""

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
