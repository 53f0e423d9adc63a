"""The training loop: epochs, metrics, checkpoints and resuming."""

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
from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.gathering import ChosenImages, ImageSource
from rsslcli.core.data.store import Dataset, check_image_size, class_balanced_subset
from rsslcli.core.data.validation import draw_validation_set
from rsslcli.core.errors import DivergedError, InterruptedTrainingError, RsslError, UserError, short_repr
from rsslcli.core.evaluation.class_names import list_names
from rsslcli.core.evaluation.measuring import count_correct
from rsslcli.core.evaluation.selection import clean_images
from rsslcli.core.files import remove, replacing
from rsslcli.core.locks import locked
from rsslcli.core.ranks import World
from rsslcli.core.run_folder import CHECKPOINT, CONFIG, FINISHED, LOG, METRICS, RunFolder
from rsslcli.core.runtime import describe_device, keeping_precision, resolve_device, set_precision
from rsslcli.core.training.events import EpochDone, Event, Notice, Started, StepsDone
from rsslcli.core.training.metrics import Metrics
from rsslcli.core.training.step import Trainer, TrainingData
from rsslcli.core.version import __version__
from rsslcli.core.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

#: Checkpoints are written after every epoch, and within long epochs this often.
CHECKPOINT_SECONDS = 600.0
_LARGE_FOR_ADAMW = 0.02


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    directory: Path  #: the run directory
    checkpoint: Path  #: the checkpoint file
    clean_accuracy: float  #: clean accuracy after the last epoch, in [0, 1]
    clean_images: int  #: number of test images for it: none that tune λ, and at most as many as an epoch has
    lambdas: dict[str, float]  #: the final λ, by the names in `config.weighted`
    seconds: float  #: the time that this process took


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
        directory: the run directory, created if missing.
        dataset: the data to train on.
        corrupted: the corrupted test set; needed to tune λ if `config.automl`.
        resume: continue from the directory's checkpoint, or start if it has none yet.
        on_event: called with each event.
        should_stop: called after every step; if it returns true, the run is saved and training stops.
        world: the ranks that train this run together, from `join_world`. Each calls this function; rank 0
            writes the files and reports events.

    Raises:
        UserError: the directory holds a run and `resume` is false, or what is left of one; another process
            is writing it; the data does not fit; or settings would have no effect (`check_effective`).
        InterruptedTrainingError: `should_stop` returned true on any rank.
        DivergedError: a loss, a λ or a weight is not finite; the checkpoint is an earlier one.
        RsslError: a file cannot be written.
    """
    if not RunFolder(directory).checkpoint.exists():
        RunFolder(directory).check_unused()
        check_effective(config)
    elif not resume:
        raise UserError(
            f"{directory} holds a run already: pass `resume` to continue, or choose another `output`"
        )
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
        self.config = config
        self.directory = directory
        self.dataset = dataset
        self.world = world
        self.on_event = on_event if world.is_main else lambda event: None
        self.should_stop: Callable[[], bool] = lambda: world.any(should_stop())
        self.began = self.saved_at = time.perf_counter()
        self.device = resolve_device(config.device)

        validation = draw_validation_set(config, dataset, corrupted)
        self.tuning = self.excluded = validation.source
        self.validation_data = corrupted.identity if config.automl and corrupted else ""
        labels = dataset.train.labels
        chosen = None
        if config.train_size is not None:
            chosen = class_balanced_subset(labels, config.train_size, config.seed, "train_size")
            labels = labels[chosen]
        training_data = TrainingData(
            ImageSource(ChosenImages([dataset.train.images], chosen), self.device),
            torch.from_numpy(labels).to(self.device),
            ImageSource(validation.images, self.device),
            torch.from_numpy(validation.labels).to(self.device),
        )
        self.trainer = Trainer(config, training_data, len(dataset.train.classes), world)
        self.checkpoint = RunFolder(directory).checkpoint
        self.notices: list[str] = []
        exists = self.checkpoint.exists()
        differ = len({*world.gather(str(exists))}) > 1
        self.step = 0 if differ else self._restore() if exists else self._start()
        if differ or len({*world.gather(str(self.step))}) > 1:
            raise UserError(f"{directory}: not every rank sees its checkpoint: use a folder that all share")
        self.clean = clean_images(dataset.test, corrupted, self.excluded)
        if len(self.clean) > len(labels):  # do not test on more images than an epoch trains on
            kept = class_balanced_subset(dataset.test.labels[self.clean], len(labels), config.seed)
            self.clean = self.clean[kept]
        self.saved_step = self.step
        self.reported_zero = False

    def __enter__(self) -> _Run:
        config = self.config
        trainer = self.trainer
        device = describe_device(self.device)
        with ExitStack() as stack:
            metrics = None
            log = Path(os.devnull)
            if self.world.is_main:
                stack.enter_context(locked(self.directory))
                for name in (CONFIG, METRICS, CHECKPOINT):
                    for leftover in self.directory.glob(f".{name}.*.part"):  # left by a killed process
                        remove(leftover)
                with replacing(self.directory / CONFIG) as file:
                    file.write(config.to_yaml().encode())
                metrics = self.directory / METRICS
                log = self.directory / LOG
            self.metrics = stack.enter_context(Metrics(metrics, self.step))
            self.log = stack.enter_context(log.open("ab", buffering=0))
            images = len(trainer.data.labels)
            validation = len(trainer.data.validation_labels)
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
            for text in self.notices:
                self._notice(text)
            stack.enter_context(keeping_precision())
            set_precision(config.precision, self.device, self._notice)
            if config.optimizer == "adamw" and config.lr > _LARGE_FOR_ADAMW:
                self._notice(f"`lr` {config.lr:g} is large for adamw, which usually takes 0.001 or less")
            if config.untuned:
                self._notice(f"this run leaves λ unchanged: {config.untuned}")
            if config.automl and len(self.tuning) < config.validation_images:
                self._notice(
                    f"{len(self.tuning)} source images tune λ, not {config.validation_images}: half of the "
                    "corrupted images; the other half is kept for testing"
                )
            self._files = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def train_epoch(self, epoch: int) -> None:
        """Do the remaining steps of the epoch. A step's random choices depend only on its number."""
        trainer = self.trainer
        batch = self.config.batch_size
        trainer.model.train()
        order = trainer.epoch_order(epoch)
        first = epoch * trainer.steps_per_epoch
        self.epoch_began = time.perf_counter()
        self.epoch_steps = first + trainer.steps_per_epoch - self.step
        for step in range(self.step, first + trainer.steps_per_epoch):
            position = (step - first) * batch
            values = trainer.step(step, order[position : position + batch])
            self.step = step + 1
            counters = {"step": self.step, "epoch": epoch + 1, "lr": trainer.learning_rate(step)}
            record = self.metrics.add(counters, values, batch)
            if record is not None:
                self.on_event(StepsDone(record))
            if step + 1 == first + trainer.steps_per_epoch:
                break  # `finish_epoch` saves the end of an epoch, after measuring its accuracy
            if self.should_stop():
                self.save()
                self.stop()
            if time.perf_counter() - self.saved_at > CHECKPOINT_SECONDS:
                self.save()
        record = self.metrics.flush()
        if record is not None:
            self.on_event(StepsDone(record))

    def finish_epoch(self, epoch: int) -> None:
        """Measure and record the clean accuracy, then save."""
        trainer = self.trainer
        test = self.dataset.test
        seconds = time.perf_counter() - self.epoch_began
        trainer.model.eval()
        local = self.clean[self.world.shard(len(self.clean))]
        counts = count_correct(
            trainer.classifier, test.images, test.labels, self.device, local, self.config.precision
        )
        correct, undecided = self.world.all_reduce(torch.tensor(counts)).tolist()
        if undecided:
            self._check_finite()  # its message names the weight
            raise DivergedError(
                f"training diverged by step {self.step}: the highest score of {undecided} of "
                f"{len(self.clean)} clean test images is NaN or infinite; lower `lr`"
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
        """End this process's part of a saved run, which can be resumed."""
        self.note(f"stopped at step {self.step}")
        raise InterruptedTrainingError(
            f"stopped at step {self.step} of {self.trainer.steps}, all saved in {self.directory}"
        )

    def result(self) -> TrainingResult:
        """Log the end of the run and return its result."""
        self.note(FINISHED)
        lambdas = dict(zip(self.config.weighted, self.trainer.lambdas.tolist(), strict=True))
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
        """Append a line to the log."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            self.log.write(f"{now} {text}\n".encode())
        except OSError as error:
            raise RsslError(f"cannot write {self.directory / LOG}: {error.strerror}") from None

    def save(self) -> None:
        """Write the checkpoint, after the metrics up to it are on the disk."""
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
                    average=trainer.averaged.state_dict() if trainer.averaged else {},
                    image_size=self.dataset.size,
                ),
                make_folder=False,
            )
        self.saved_at = time.perf_counter()
        self.saved_step = self.step

    def _check_finite(self) -> None:
        """Raise DivergedError if a weight is not finite."""
        for name, value in self.trainer.model.state_dict().items():
            if not value.isfinite().all():
                raise DivergedError(
                    f"training diverged by step {self.step}: {name} is not finite; lower `lr`"
                )

    def last_good(self) -> str:
        """Say which checkpoint a failed run leaves."""
        if not self.checkpoint.exists():
            return "There is no checkpoint yet"
        return f"The last good checkpoint is of step {self.saved_step}: {self.checkpoint}"

    def _report_zero(self) -> None:
        """Report once that all task weights are zero."""
        tuned = self.trainer.tunes_lambdas(self.step - 1)
        if tuned and not self.reported_zero and not self.trainer.lambdas.any():
            self.reported_zero = True
            self._notice(
                f"all λ are 0 after step {self.step}, so no task has an effect: try a lower `meta_lr`"
            )

    def _notice(self, text: str) -> None:
        """Write a line to the log and report it as an event."""
        self.note(text)
        self.on_event(Notice(text))

    def _start(self) -> int:
        """Give a new run its initial weights and return the number of steps done, 0."""
        trainer = self.trainer
        if self.config.weights != "none":
            from rsslcli.core.weights.initial import load_initial_weights  # it imports torchvision

            with self.world.main_first():  # so that one rank downloads
                before = load_initial_weights(trainer.model.network, self.config, self.notices.append)
            self._leave_out(before)
            if trainer.averaged:
                trainer.averaged.load_state_dict(trainer.model.network.state_dict())
        return 0

    def _leave_out(self, before: Checkpoint | None) -> None:
        """Leave out of every test also what tuned λ in the run whose weights this one starts from."""
        if before and before.excluded and before.config.dataset == self.config.dataset:
            self.excluded = tuple(sorted({*self.tuning, *before.excluded}))
            self.validation_data = self.validation_data or before.validation_data

    def _restore(self) -> int:
        """Load the checkpoint's state into the trainer and return the number of steps done."""
        saved = load_checkpoint(self.checkpoint)
        trainer = self.trainer
        check_image_size(saved.image_size, self.dataset.size, self.dataset.name)
        mine = self.config.to_dict()
        for name, value in saved.config.to_dict().items():
            if name not in ("device", "compile") and mine[name] != value:
                raise UserError(
                    f"{self.checkpoint} was trained with `{name}` {short_repr(value)}, not "
                    f"{short_repr(mine[name])}: resume it with its own settings"
                )
        if saved.classes != self.dataset.train.classes:
            # The same names in another order are other data too: the labels differ.
            names = (list_names(saved.classes), list_names(self.dataset.train.classes))
            raise UserError(
                f"{self.checkpoint} was trained on the classes {names[0]}, and '{self.dataset.name}' has "
                f"{names[1]} now: prepare the earlier data again"
            )
        fits = saved.validation_data == self.validation_data
        if self.config.weights in ("none", "imagenet"):
            fits = fits and saved.excluded == self.tuning
        else:  # a run that began with the weights of another one leaves out what tuned that one, too
            fits = (fits or not self.config.automl) and {*saved.excluded} >= {*self.tuning}
        if saved.train_data != self.dataset.train.checksum or not fits:
            raise UserError(
                f"{self.checkpoint} was trained on different data than is prepared now: prepare it again"
            )
        try:
            trainer.model.network.load_state_dict(saved.classifier)
            trainer.model.heads.load_state_dict(saved.heads)
            trainer.optimizer.load_state_dict(saved.optimizer)
            trainer.lambdas.copy_(saved.lambdas)
            if trainer.averaged:
                trainer.averaged.load_state_dict(saved.average)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{self.checkpoint} does not fit its configuration: {reason}") from None
        self.excluded, self.validation_data = saved.excluded, saved.validation_data
        return saved.step
