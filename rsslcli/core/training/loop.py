"""The training loop: epochs, metrics, checkpoints, resuming."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from rsslcli.core.config import Config, check_effective
from rsslcli.core.data.augment import pad_images
from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.store import Dataset, class_balanced_subset
from rsslcli.core.data.validation import draw_validation_set
from rsslcli.core.errors import DivergedError, InterruptedTrainingError, RsslError, UserError
from rsslcli.core.evaluation.accuracy import clean_images, count_correct
from rsslcli.core.evaluation.class_names import list_names
from rsslcli.core.files import remove, replacing
from rsslcli.core.locks import locked
from rsslcli.core.ranks import World
from rsslcli.core.run_folder import CHECKPOINT, CONFIG, FINISHED, LOG, METRICS, RunFolder
from rsslcli.core.runtime import describe_device, resolve_device, set_precision
from rsslcli.core.training.events import EpochDone, Event, Notice, Started, StepsDone
from rsslcli.core.training.metrics import Metrics
from rsslcli.core.training.step import DeviceData, Trainer
from rsslcli.core.version import __version__
from rsslcli.core.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

#: A checkpoint is written after every epoch, and within a long one this often.
CHECKPOINT_SECONDS = 600.0


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        directory: the run directory.
        checkpoint: the file of its weights.
        clean_accuracy: after the last epoch, a fraction of 1.
        clean_images: of how many test images: no more than an epoch has, and none that tune λ.
        lambdas: the weight of each task at the end.
        seconds: how long this process took.
    """

    directory: Path
    checkpoint: Path
    clean_accuracy: float
    clean_images: int
    lambdas: dict[str, float]
    seconds: float


def train(
    config: Config,
    directory: Path,
    dataset: Dataset,
    corrupted: CorruptedSet | None = None,
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World | None = None,
) -> TrainingResult:
    """Train a network into a run directory: configuration, metrics, log and checkpoint.

    Args:
        config: the settings.
        directory: the run directory, made where it is missing.
        dataset: what to train on.
        corrupted: the corrupted test set; needed to tune λ, where `config.automl`.
        resume: go on from the directory's checkpoint; from the start where it has none yet.
        on_event: told what happens.
        should_stop: asked after every step; if true, the run is saved and the training stops.
        world: the processes that train this run together, from `join_world`. Each calls this function; the
            first one writes the files and tells what happens.

    Raises:
        UserError: the directory holds a run already and `resume` is false, another process is writing it,
            data does not fit, or a new run would tune no λ or have tasks without effect (`check_effective`).
        InterruptedTrainingError: `should_stop` said so, on any rank.
        DivergedError: a loss, a λ or a weight is not finite; the checkpoint is from before.
        RsslError: a file cannot be written.
    """
    if RunFolder(directory).checkpoint.exists() and not resume:
        raise UserError(f"{directory} holds a run already: add --resume to go on, or choose another --output")
    if not resume:
        check_effective(config)
    with _Run(config, directory, dataset, corrupted, on_event, should_stop, world or World()) as run:
        try:
            for epoch in range(run.step // run.trainer.steps_per_epoch, config.epochs):
                run.train_epoch(epoch)
                run.finish_epoch(epoch)
        except DivergedError as error:
            run.note(str(error))
            raise DivergedError(f"{error}. {run.last_good()}") from None
        return run.result()


class _Run:
    """A run directory and the trainer that fills it."""

    def __init__(
        self,
        config: Config,
        directory: Path,
        dataset: Dataset,
        corrupted: CorruptedSet | None,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
        world: World,
    ) -> None:
        self.config, self.directory, self.dataset, self.world = config, directory, dataset, world
        self.on_event = on_event if world.is_main else lambda event: None
        self.should_stop: Callable[[], bool] = lambda: world.any(should_stop())
        self.began = self.saved = time.perf_counter()
        self.device = resolve_device(config.device)

        validation = draw_validation_set(config, dataset, corrupted)
        self.excluded = validation.source
        self.validation_data = corrupted.identity if config.automl and corrupted else ""
        images, labels = dataset.train.images, dataset.train.labels
        if config.train_size is not None:
            chosen = class_balanced_subset(labels, config.train_size, config.seed, "train_size")
            images, labels = images[chosen], labels[chosen]
        device_data = DeviceData(
            pad_images(torch.from_numpy(images).to(self.device)),
            torch.from_numpy(labels).to(self.device),
            torch.from_numpy(validation.images).to(self.device),
            torch.from_numpy(validation.labels).to(self.device),
        )
        self.trainer = Trainer(config, device_data, len(dataset.train.classes), world)
        self.clean = clean_images(dataset.test, corrupted, self.excluded)
        if len(self.clean) > len(labels):  # an epoch is not tested on more images than it trained on
            kept = class_balanced_subset(dataset.test.labels[self.clean], len(labels), config.seed)
            self.clean = self.clean[kept]
        self.checkpoint = RunFolder(directory).checkpoint
        self.step = self._restore() if self.checkpoint.exists() else 0
        self.saved_step = self.step
        self.reported_zero = False

    def __enter__(self) -> _Run:
        config, trainer, device = self.config, self.trainer, describe_device(self.device)
        with ExitStack() as stack:
            metrics, log = None, Path(os.devnull)
            if self.world.is_main:
                stack.enter_context(locked(self.directory))
                for name in (CONFIG, METRICS, CHECKPOINT):
                    for leftover in self.directory.glob(f".{name}.*.part"):  # of a process that was killed
                        remove(leftover)
                with replacing(self.directory / CONFIG) as file:
                    file.write(config.to_yaml().encode())
                metrics, log = self.directory / METRICS, self.directory / LOG
            self.metrics = stack.enter_context(Metrics(metrics, self.step))
            self.log = stack.enter_context(log.open("ab", buffering=0))
            images, validation = len(trainer.data.labels), len(trainer.data.validation_labels)
            self.note(
                f"rssl {__version__}, torch {torch.__version__}, {device}: {config.name} on "
                f"{self.dataset.name}, {images} images, {validation} to tune λ, "
                f"steps {self.step} to {trainer.steps}"
                + (f", {self.world.size} ranks" if self.world.size > 1 else "")
            )
            self.on_event(
                Started(
                    config=config,
                    directory=self.directory,
                    device=device,
                    images=images,
                    validation_images=validation,
                    step=self.step,
                    steps=trainer.steps,
                    steps_per_epoch=trainer.steps_per_epoch,
                )
            )
            set_precision(config.precision, self.device, self._notice)
            if config.untuned:
                self._notice(f"this run keeps λ as it is: {config.untuned}")
            if config.automl and len(self.excluded) < config.validation_images:
                self._notice(
                    f"{len(self.excluded)} source images tune λ, not {config.validation_images}: "
                    "half of those that are corrupted, the others are left to test on"
                )
            self._files = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def train_epoch(self, epoch: int) -> None:
        """Do the steps of the epoch that are left; every step's random choices follow from its number."""
        trainer, batch = self.trainer, self.config.batch_size
        trainer.model.train()
        order = trainer.epoch_order(epoch)
        first = epoch * trainer.steps_per_epoch
        self.epoch_began, self.epoch_steps = time.perf_counter(), first + trainer.steps_per_epoch - self.step
        for step in range(self.step, first + trainer.steps_per_epoch):
            position = (step - first) * batch
            values = trainer.step(step, order[position : position + batch])
            self.step = step + 1
            counters = {"step": self.step, "epoch": epoch + 1, "lr": trainer.learning_rate(step)}
            record = self.metrics.add(counters, values, batch)
            if record is not None:
                self.on_event(StepsDone(record))
            if step + 1 == first + trainer.steps_per_epoch:
                break  # what is saved at the end of an epoch includes its accuracy
            if self.should_stop():
                self.save()
                self.stop()
            if time.perf_counter() - self.saved > CHECKPOINT_SECONDS:
                self.save()
        record = self.metrics.flush()
        if record is not None:
            self.on_event(StepsDone(record))

    def finish_epoch(self, epoch: int) -> None:
        """Measure the clean accuracy, record it, save."""
        trainer, test = self.trainer, self.dataset.test
        seconds = time.perf_counter() - self.epoch_began
        trainer.model.eval()
        own = self.clean[self.world.shard(len(self.clean))]
        counts = count_correct(
            trainer.model.network, test.images, test.labels, self.device, own, self.config.precision
        )
        correct, undecided = self.world.all_reduce(torch.tensor(counts)).tolist()
        if undecided:
            self._check_finite()  # which knows better where it began
            raise DivergedError(
                f"training diverged by step {self.step}: the highest score of {undecided} of "
                f"{len(self.clean)} clean test images is NaN or infinite; lower --lr"
            )
        record = {
            "step": self.step,
            "epoch": epoch + 1,
            "clean_accuracy": correct / len(self.clean),
            "clean_images": len(self.clean),
            "images_per_second": round(self.epoch_steps * self.config.batch_size / seconds, 2),
            "seconds": round(seconds, 3),
        }
        self.metrics.write(record)
        self.save()
        tested = f"{len(self.clean)} of {len(test.labels)} test images"
        self.note(f"epoch {epoch + 1}: clean accuracy {record['clean_accuracy']:.4f} on {tested}")
        self.on_event(EpochDone(record))
        self._report_zero()
        if self.step < trainer.steps and self.should_stop():
            self.stop()

    def stop(self) -> NoReturn:
        """Leave the run, which is saved, to be resumed."""
        self.note(f"stopped at step {self.step}")
        raise InterruptedTrainingError(
            f"stopped at step {self.step} of {self.trainer.steps}, all saved in {self.directory}"
        )

    def result(self) -> TrainingResult:
        """What the finished run came to."""
        self.note(FINISHED)
        lambdas = dict(zip(self.config.tasks, self.trainer.lambdas.tolist(), strict=True))
        seconds = time.perf_counter() - self.began
        return TrainingResult(
            directory=self.directory,
            checkpoint=self.checkpoint,
            clean_accuracy=self.metrics.clean_accuracy,
            clean_images=len(self.clean),
            lambdas=lambdas,
            seconds=seconds,
        )

    def note(self, text: str) -> None:
        """Add a line to the log."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            self.log.write(f"{now} {text}\n".encode())
        except OSError as error:
            raise RsslError(f"cannot write {self.directory / LOG}: {error.strerror}") from None

    def save(self) -> None:
        """Write the checkpoint; the metrics up to it are on disk before it is."""
        self.metrics.flush()
        self.metrics.sync()
        self._check_finite()
        trainer = self.trainer
        if self.world.is_main:
            save_checkpoint(
                self.checkpoint,
                Checkpoint(
                    config=self.config,
                    classes=self.dataset.train.classes,
                    step=self.step,
                    classifier=trainer.model.network.state_dict(),
                    heads=trainer.model.heads.state_dict(),
                    optimizer=trainer.optimizer.state_dict(),
                    lambdas=trainer.lambdas,
                    excluded=self.excluded,
                    train_data=self.dataset.train.checksum,
                    validation_data=self.validation_data,
                ),
            )
        self.saved, self.saved_step = time.perf_counter(), self.step

    def _check_finite(self) -> None:
        """Raise DivergedError where a weight is not a finite number."""
        for name, value in self.trainer.model.state_dict().items():
            if not value.isfinite().all():
                raise DivergedError(
                    f"training diverged by step {self.step}: {name} is not finite; lower --lr"
                )

    def last_good(self) -> str:
        """What a failed run has left."""
        if not self.checkpoint.exists():
            return "There is no checkpoint yet"
        return f"The last good checkpoint is of step {self.saved_step}: {self.checkpoint}"

    def _report_zero(self) -> None:
        """Report once that tuning has brought every task's weight to zero."""
        tuned = self.trainer.tunes_lambdas(self.step - 1)
        if tuned and not self.reported_zero and not self.trainer.lambdas.any():
            self.reported_zero = True
            self._notice(f"all λ are 0 after step {self.step}, so no task has an effect: try a lower meta_lr")

    def _notice(self, text: str) -> None:
        """Tell a person, and the log."""
        self.note(text)
        self.on_event(Notice(text))

    def _restore(self) -> int:
        """Put the checkpoint's state into the trainer and return the number of steps done."""
        saved, trainer = load_checkpoint(self.checkpoint), self.trainer
        now = (self.dataset.train.checksum, self.validation_data, self.excluded)
        if saved.classes != self.dataset.train.classes:
            # The same names in another order are other data too: the labels differ.
            names = (list_names(saved.classes), list_names(self.dataset.train.classes))
            raise UserError(
                f"{self.checkpoint} was trained on the classes {names[0]}, and '{self.dataset.name}' has "
                f"{names[1]} now: prepare the data of before again"
            )
        if (saved.train_data, saved.validation_data, saved.excluded) != now:
            raise UserError(
                f"{self.checkpoint} was trained on other data than is prepared now: prepare that data again"
            )
        try:
            trainer.model.network.load_state_dict(saved.classifier)
            trainer.model.heads.load_state_dict(saved.heads)
            trainer.optimizer.load_state_dict(saved.optimizer)
            trainer.lambdas.copy_(saved.lambdas)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.checkpoint} does not fit its configuration: {reason}") from None
        return saved.step
