"""One training step: a batch, its losses, Algorithm 1, the optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.data.augment import random_batch, to_float
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.ranks import World
from rsslcli.core.runtime import derive_seed, seeded_generator
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.automl import MAIN, automl_gradients, fixed_gradients
from rsslcli.core.training.multitask import MultiTaskNetwork


@dataclass(frozen=True)
class DeviceData:
    """The images that steps draw from, as uint8 on the device.

    Attributes:
        images: (N, H + 8, W + 8, 3), padded for cropping.
        labels: int64 (N,).
        validation_images: (V, H, W, 3), corrupted images that tune λ; V may be 0.
        validation_labels: int64 (V,).
    """

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor


class Trainer:
    """What changes from step to step: the network, λ and the optimizer.

    Args:
        config: the settings.
        data: the images, on the device where all this happens.
        classes: outputs of the classifier.
        world: the processes that share every batch; each has a trainer, and all hold the same state.

    A step makes no value travel to the host and reads none from it but indices and the learning rate, so
    it also runs on the `meta` device. Every step of a kind (warm-up, or after it) runs the same operations
    on tensors of the same shapes.
    """

    def __init__(self, config: Config, data: DeviceData, classes: int, world: World | None = None) -> None:
        self.config, self.data, self.device = config, data, data.images.device
        self.world = world or World()
        for option in ("batch_size", "meta_batch_size"):
            if getattr(config, option) < self.world.size:
                raise UserError(
                    f"{option}: {getattr(config, option)} images cannot be shared by {self.world.size} ranks"
                )
        tasks = build_tasks(config.tasks, config.task_options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "weights"))
            network = WideResNet(config.depth, config.width, classes)
            model = MultiTaskNetwork(
                network,
                tasks,
                batch_norm=config.batch_norm,
                autocast=config.precision == "bfloat16",
                compile=config.compile,
            )
        # Channels-last is the faster layout for convolutions, on the CPU as on CUDA.
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.psi, self.heads = self.model.psi(), self.model.head_parameters()
        self.lambdas = torch.full((len(tasks),), config.initial_lambda, device=self.device)
        #: α_t of the step, on the device.
        self.rate = torch.zeros((), device=self.device)
        self.generator = seeded_generator(self.device, config.seed, "step")
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        self.steps_per_epoch = len(data.labels) // config.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size: {config.batch_size} is more than the {len(data.labels)} training images: "
                "lower it"
            )
        self.steps = self.steps_per_epoch * config.epochs

    def learning_rate(self, step: int) -> float:
        """α_t, cosine-annealed over all steps from `lr` to `min_lr`."""
        config = self.config
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def tunes_lambdas(self, step: int) -> bool:
        """Whether Algorithm 1 updates λ in this step: the warm-up of τ epochs is over."""
        return self.config.automl and step // self.steps_per_epoch >= self.config.warmup_epochs

    def epoch_order(self, epoch: int) -> Tensor:
        """The order in which epoch `epoch` visits the training images: int64 (N,) on the device."""
        generator = seeded_generator(self.device, self.config.seed, "epoch", epoch)
        return torch.randperm(len(self.data.labels), generator=generator, device=self.device)

    def step(self, step: int, chosen: Tensor) -> dict[str, Tensor]:
        """Train on one batch: Algorithm 1, or its plain form where λ is fixed.

        Args:
            step: counts from 0; the seed of all that the step draws.
            chosen: int64 (batch,), which training images, on the device.

        Returns:
            Detached scalars on the device: "loss/<task>" and "lambda/<task>".
        """
        learning_rate = self.learning_rate(step)
        self.rate.fill_(learning_rate)
        if self.generator is not None:
            self.generator.manual_seed(derive_seed(self.config.seed, "step", step))
        try:
            losses = self.gradients(chosen, tune=self.tunes_lambdas(step))
        except RuntimeError as error:
            if not (self.config.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException)):
                raise
            reason = str(error).strip().splitlines()[0]
            raise RsslError(f"the network cannot be compiled: {reason}; leave out --compile") from None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        lambdas = self.lambdas.clone().unbind()
        return (
            {f"loss/{task}": losses[task] for task in (MAIN, *self.config.tasks)}
            | {f"lambda/{task}": weight for task, weight in zip(self.config.tasks, lambdas, strict=True)}
            | ({"loss/meta": losses["meta"]} if "meta" in losses else {})
        )

    def gradients(self, chosen: Tensor, *, tune: bool) -> dict[str, Tensor]:
        """All of a step but the optimizer: sets every `.grad`, and λ where it is tuned.

        A CUDA graph can hold it: it is the same operations on the same shapes each time, and what changes
        from step to step stands in tensors (`rate`, `chosen`) and in the state of `generator`.

        Args:
            chosen: int64 (batch,), which training images, on the device.
            tune: whether to update λ.

        Returns:
            The losses of the whole batch by task, detached scalars; "meta" among them where λ is tuned.
        """
        config, data, world = self.config, self.data, self.world
        own, share = world.shard(config.batch_size), world.share(config.batch_size)
        random, chosen = BatchRandom(self.generator, config.batch_size, own), chosen[own]
        images = to_float(random_batch(data.images, chosen, random))
        groups = (
            {task: share * loss for task, loss in group.items()}
            for group in self.model.losses(images, data.labels[chosen], random)
        )
        if tune:
            drawn = torch.randint(
                len(data.validation_labels),
                (config.meta_batch_size,),
                generator=self.generator,
                device=self.device,
            )
            drawn = drawn[world.shard(config.meta_batch_size)]
            meta_share = world.share(config.meta_batch_size)
            validation_loss = self.model.validation_loss(
                to_float(data.validation_images[drawn]), data.validation_labels[drawn]
            )
            losses = automl_gradients(
                groups,
                self.psi,
                self.heads,
                self.lambdas,
                lambda psi: meta_share * validation_loss(psi),
                alpha=config.lookahead_scale * self.rate,
                beta=config.meta_lr,
                sum_over_ranks=world.all_reduce,
            )
        else:
            weights = dict(zip(config.tasks, self.lambdas.unbind(), strict=True))
            losses = fixed_gradients(groups, self.model.parameters(), weights)
        self._sum_over_ranks(losses, share)
        return losses

    def _sum_over_ranks(self, losses: dict[str, Tensor], share: float) -> None:
        """Make whole what each rank has its share of, in one exchange.

        Gradients, losses, and the running statistics: all ranks go on from their mean.
        """
        if self.world.size == 1:
            return
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        for buffer in statistics:
            buffer.mul_(share)
        self.world.all_reduce_together([*gradients, *losses.values(), *statistics])
