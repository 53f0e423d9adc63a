"""A custom task: is the image upside down?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli import BatchRandom, Task


class Flip(Task):
    title = "Upside down"
    answers = ("upright", "upside down")

    def head(self, features: int) -> nn.Module:
        return nn.Linear(features, 2)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        flipped = random.integers(images, 2)
        return self.flip(images, flipped), flipped

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)

    def picture(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return self.flip(inputs, outputs.argmax(1))

    def flip(self, images: Tensor, flipped: Tensor) -> Tensor:
        return torch.where(flipped.bool()[:, None, None, None], images.flip(2), images)
