"""One training step: draw a batch, compute its losses, run Algorithm 1, step the optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rsslcli.core.config import JSD, Config
from rsslcli.core.data.augment import random_batch, to_float
from rsslcli.core.data.augmix import augmix
from rsslcli.core.data.gathering import ImageSource, moved
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.networks.batch_norm import STATISTICS
from rsslcli.core.networks.build import build_network
from rsslcli.core.networks.network import Network
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.ranks import World
from rsslcli.core.runtime import derive_seed, seeded_generator
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.automl import MAIN, Parameters, automl_gradients, fixed_gradients
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.training.optimizer import make_optimizer, set_learning_rate, step_factors
from rsslcli.core.training.random_weights import draw_weights
from rsslcli.core.training.task_images import TaskImages
from rsslcli.core.training.uncertainty import update_uncertainty
from rsslcli.core.training.upgrad import upgrad_gradients


@dataclass(frozen=True)
class TrainingData:
    """The images from which steps draw, and their labels, which are on the device."""

    images: ImageSource  #: N images
    labels: Tensor  #: int64 (N,)
    validation_images: ImageSource  #: V corrupted images that tune λ; V may be 0
    validation_labels: Tensor  #: int64 (V,)


class Trainer:
    """The state of training: the network, λ and the optimizer.

    Args:
        config: the settings.
        data: the images and labels. The labels are on the device to train on.
        classes: number of the classifier's outputs.
        world: the ranks that share every batch. Each has a trainer, and all hold the same state.

    A step copies no value to the host. From the host it takes only indices, the learning rate, and images
    that are kept in host memory, so it also runs on the `meta` device. All warm-up steps run the same
    operations on tensors of the same shapes, and so do all later steps.

    Raises:
        UserError: an unknown network or task, or batches that are larger than the data or too small for the
            world.
    """

    def __init__(self, config: Config, data: TrainingData, classes: int, world: World | None = None) -> None:
        self.config = config
        self.data = data
        self.device = data.labels.device
        self.world = world or World()
        for option in ["batch_size", *(["meta_batch_size"] if config.automl else [])]:
            if getattr(config, option) < self.world.size:
                raise UserError(
                    f"{option}: {getattr(config, option)} images are too few for {self.world.size} ranks"
                )
        task_share = config.task_share if config.tasks else 1.0
        self.task_images = TaskImages(task_share, config.batch_size, self.world, self.device)
        tasks = build_tasks(config.tasks, config.task_options)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(config.seed, "weights"))  # that of the CPU alone
            network = build_network(config, classes, data.images.side)
            model = MultiTaskNetwork(
                network,
                tasks,
                batch_norm=config.batch_norm,
                autocast=config.precision == "bfloat16",
                compile=config.compile,
            )
        # Channels-last is the faster layout for convolutions, on the CPU and on CUDA.
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.psi = self.model.psi()
        self.heads = self.model.head_parameters()
        #: λ, in the order of `config.weighted`.
        self.lambdas = torch.full((len(config.weighted),), config.initial_lambda, device=self.device)
        if config.weighting == "uncertainty":
            self.lambdas[0] = 0.5  # of the main loss: ½ exp(−s) at s = 0
        if config.tune_jsd:  # a loss without a head
            self.heads[JSD] = []
            self.lambdas[-1] = config.jsd_weight
        #: α_t of the current step, on the device.
        self.rate = torch.zeros((), device=self.device)
        self.generator = seeded_generator(self.device, config.seed, "step")
        self.host_generator = torch.Generator()
        self.optimizer = make_optimizer(config, self.model)
        self.step_factors = step_factors(config, self.psi)
        #: The network whose weights are the moving average, if there is one.
        self.averaged = copy.deepcopy(network).eval().requires_grad_(False) if config.ema else None
        self.steps_per_epoch = len(data.labels) // config.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size: {config.batch_size} is more than the {len(data.labels)} training images: "
                "lower it"
            )
        self.steps = self.steps_per_epoch * config.epochs

    @property
    def classifier(self) -> Network:
        """The network to evaluate: the moving average, or else the one that trains."""
        return self.averaged or self.model.network

    def learning_rate(self, step: int) -> float:
        """α_t: cosine annealing over all steps from `lr` to `min_lr`."""
        config = self.config
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def tunes_lambdas(self, step: int) -> bool:
        """True if Algorithm 1 updates λ in this step: with AutoML, after the warm-up of τ epochs."""
        return self.config.automl and step // self.steps_per_epoch >= self.config.warmup_epochs

    def epoch_order(self, epoch: int) -> Tensor:
        """The order of the training images in epoch `epoch`: int64 (N,) where the images are."""
        generator = seeded_generator(self.device, self.config.seed, "epoch", epoch)
        order = torch.randperm(len(self.data.labels), generator=generator, device=self.device)
        return order.to(self.data.images.home)

    def step(self, step: int, chosen: Tensor) -> dict[str, Tensor]:
        """Train on one batch as `weighting` says.

        Args:
            step: number of the step, from 0; it seeds all that the step draws.
            chosen: int64 (batch,), indices of the training images, where these are.

        Returns:
            Detached scalars on the device: "loss/<name>" for the main task ("main"), each task and, with
            AugMix, the consistency loss ("jsd"), "lambda/<name>" for each of `config.weighted`, and
            "loss/meta" if λ is tuned.

        Raises:
            RsslError: the network cannot be compiled.
        """
        learning_rate = self.learning_rate(step)
        self.rate.fill_(learning_rate)
        if self.generator is not None:
            self.generator.manual_seed(derive_seed(self.config.seed, "step", step))
        self.host_generator.manual_seed(derive_seed(self.config.seed, "validation batch", step))
        try:
            losses = self.gradients(chosen, tune=self.tunes_lambdas(step))
        except RuntimeError as error:
            if not (self.config.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException)):
                raise
            reason = str(error).strip().splitlines()[0]
            raise RsslError(f"the network cannot be compiled: {reason}; train without `compile`") from None
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self._update_average(step)
        lambdas = self.lambdas.clone().unbind()
        order = [name for name in (MAIN, *self.config.tasks, JSD, "meta") if name in losses]
        return {f"loss/{name}": losses[name] for name in order} | {
            f"lambda/{name}": weight for name, weight in zip(self.config.weighted, lambdas, strict=True)
        }

    def gradients(self, chosen: Tensor, *, tune: bool) -> dict[str, Tensor]:
        """Do a step except for the optimizer: set every `.grad`, and update λ if `tune`.

        A CUDA graph can capture this method while it does not tune: it runs the same operations on the same
        shapes each time, and only tensors (`rate`, `chosen`) and the state of `generator` change from step
        to step.

        Args:
            chosen: int64 (batch,), indices of the training images, where these are.
            tune: update λ.

        Returns:
            The losses of the whole batch by task, detached scalars, and the loss "meta" if `tune`.
        """
        config = self.config
        data = self.data
        world = self.world
        # The mean over the batch is the sum over ranks of `share` times the mean over the local images.
        local = world.shard(config.batch_size)
        share = world.share(config.batch_size)
        shares = dict.fromkeys(config.tasks, self.task_images.share)
        random = BatchRandom(self.generator, config.batch_size, local)
        chosen = chosen[local]
        images = to_float(random_batch(data.images.gather(chosen), random))
        labels = data.labels[moved(chosen, self.device)]
        views = [augmix(images, random) for _ in range(config.augmix_views)]
        of_tasks = self.task_images.random(self.generator)
        consistency: dict[str, Tensor] = {}

        def local_shares() -> Iterator[dict[str, Tensor]]:
            for group in self.model.losses(
                images, labels, of_tasks, views, task_images=self.task_images.indices
            ):
                if JSD in group and not config.tune_jsd:  # then it is a part of the main loss
                    jsd = group.pop(JSD)
                    group[MAIN] = group[MAIN] + config.jsd_weight * jsd
                    consistency[JSD] = share * jsd.detach()
                yield {name: shares.get(name, share) * loss for name, loss in group.items()}

        groups = local_shares()
        weights = dict(zip(config.weighted, self.lambdas.unbind(), strict=True))
        if tune:
            # The look-ahead takes the paper's gradient step, or that of SGD with momentum and weight decay.
            alpha = config.lookahead_scale * self.rate
            factor, drift = self._sgd_step() if "sgd-lookahead" in config.automl_variants else (1.0, 0.0)
            losses = automl_gradients(
                groups,
                self.psi,
                self.heads,
                self.lambdas,
                self._validation_loss(),
                alpha=factor * alpha,
                beta=config.meta_lr,
                drift=drift,
                factors=self.step_factors,
                relative="relative" in config.automl_variants,
                cosine="cosine" in config.automl_variants,
                keep_sum="constant-sum" in config.automl_variants,
                sum_over_ranks=world.all_reduce,
            )
        elif config.weighting == "upgrad":
            losses = upgrad_gradients(
                groups, self.psi, self.heads, self.lambdas, sum_over_ranks=world.all_reduce
            )
        else:
            if config.weighting == "random":
                draw_weights(self.lambdas, self.generator)
            losses = fixed_gradients(groups, self.model.parameters(), weights)
        losses |= consistency
        self._sum_over_ranks(losses, share)
        if config.weighting == "uncertainty":  # here the main loss still includes the consistency loss
            update_uncertainty(self.lambdas, torch.stack([losses[name] for name in weights]), self.rate)
        if consistency:
            losses[MAIN] = losses[MAIN] - config.jsd_weight * losses[JSD]
        return losses

    def _validation_loss(self) -> Callable[[Parameters], Tensor]:
        """Draw a validation batch: the share in L_main(X_val; ψ) of its local part, as a function of ψ."""
        config, data = self.config, self.data
        # Every rank draws the whole batch and keeps its local part.
        drawn = self._draw_validation()[self.world.shard(config.meta_batch_size)]
        loss = self.model.validation_loss(
            to_float(data.validation_images.gather(moved(drawn, data.validation_images.home))),
            data.validation_labels[moved(drawn, self.device)],
        )
        share = self.world.share(config.meta_batch_size)
        return lambda psi: share * loss(psi)

    def _draw_validation(self) -> Tensor:
        """The indices of a validation batch, int64 (meta batch,).

        With CUDA they are drawn on the host: where the images are kept must not change what a seed draws, and
        the host must not wait for the GPU.
        """
        on_host = self.device.type == "cuda"
        return torch.randint(
            len(self.data.validation_labels),
            (self.config.meta_batch_size,),
            generator=self.host_generator if on_host else self.generator,
            device=torch.device("cpu") if on_host else self.device,
        )

    def _sgd_step(self) -> tuple[float, Tensor]:
        """The factor and the drift of SGD's next step, −α · factor · (g + drift) for a gradient g of ψ.

        With momentum m, velocity b and d = g + decay, Nesterov's step is d + m (m b + d), which is
        (1 + m) (d + m² / (1 + m) b).
        """
        config = self.config
        factor = 1 + config.momentum if config.nesterov else 1.0
        carried = config.momentum**2 / factor if config.nesterov else config.momentum
        parts = []
        for p in self.psi.values():
            velocity = self.optimizer.state[p].get("momentum_buffer") if p in self.optimizer.state else None
            decay = config.weight_decay * p.detach()
            parts.append((decay if velocity is None else decay + carried * velocity).reshape(-1))
        return factor, torch.cat(parts)

    def _update_average(self, step: int) -> None:
        """Update the moving average of weights and running statistics, which forgets faster at the start."""
        if self.averaged is None:
            return
        decay = min(self.config.ema, (1 + step) / (10 + step))
        new = self.model.network.state_dict()
        average = {
            name: value for name, value in self.averaged.state_dict().items() if value.is_floating_point()
        }
        torch._foreach_lerp_(list(average.values()), [new[name] for name in average], 1 - decay)

    def _sum_over_ranks(self, losses: dict[str, Tensor], share: float) -> None:
        """Sum the ranks' shares of gradients and losses, and average the running statistics."""
        if self.world.size == 1:
            return
        statistics = [
            buffer
            for name, buffer in self.model.named_buffers()
            if name.endswith(STATISTICS) and buffer.is_floating_point()
        ]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        for buffer in statistics:
            buffer.mul_(share)
        self.world.all_reduce_together([*gradients, *losses.values(), *statistics])
