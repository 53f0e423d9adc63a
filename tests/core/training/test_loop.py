"""Whole runs on a small data set: what they leave behind, and that they go on exactly."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rsslcli.core.config import Config
from rsslcli.core.corruptions.generate import generate_corrupted
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.shapes import draw_shapes
from rsslcli.core.data.store import Dataset, make_split
from rsslcli.core.data.validation import draw_validation_set, validation_source
from rsslcli.core.errors import DivergedError, InterruptedTrainingError, RsslError, UserError
from rsslcli.core.evaluation.measuring import count_correct
from rsslcli.core.presets import make_config
from rsslcli.core.ranks import World
from rsslcli.core.training.events import EpochDone, Event, Notice, Started, StepsDone
from rsslcli.core.training.loop import train
from rsslcli.core.training.step import Trainer, TrainingData
from rsslcli.core.weights.checkpoint import load_checkpoint, save_checkpoint

CONFIG = Config(
    dataset="toy", tasks=("rotation", "ir"), weighting="automl", epochs=3, warmup_epochs=1, batch_size=16,
    meta_batch_size=5, validation_images=6, depth=10, width=1, device="cpu", lr=0.05,
)  # fmt: skip
STEPS = 4  # per epoch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("toy")
    train_split = make_split(*draw_shapes(STEPS * 16 + 3, 0, "train"))
    return Dataset("toy", folder, train_split, make_split(*draw_shapes(40, 0, "test")))


@pytest.fixture(scope="module")
def corrupted(dataset: Dataset) -> CorruptedSet:
    folder = dataset.folder / "corrupted"
    names = ("contrast", "gaussian_noise")
    generate_corrupted(dataset.test.images[:30], dataset.test.labels[:30], folder, corruptions=names)
    return open_corrupted(folder, "toy")


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def state(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint, by name."""
    saved = load_checkpoint(directory)
    held = saved.optimizer["state"]
    momenta = {f"o.{i}.{name}": value for i, entry in held.items() for name, value in entry.items()}
    average = {f"average.{name}": value for name, value in saved.average.items()}
    return saved.classifier | saved.heads | momenta | {"lambdas": saved.lambdas} | average


def assert_same_state(first: Path, second: Path) -> None:
    one, other = state(first), state(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def timeless(directory: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in ("images_per_second", "seconds")}
        for record in records(directory)
    ]


@pytest.fixture(scope="module")
def whole(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """A run that nothing interrupted, and its events."""
    directory = tmp_path_factory.mktemp("run") / "whole"
    events: list[Event] = []
    result = train(CONFIG, directory, dataset, corrupted, on_event=events.append)
    assert result.checkpoint == directory / "checkpoint.pt"
    return directory, events


def test_run_directory(whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet) -> None:
    directory, events = whole
    assert make_config(file=directory / "config.yaml") == CONFIG
    saved = load_checkpoint(directory)
    assert (saved.step, saved.config, saved.classes) == (3 * STEPS, CONFIG, dataset.train.classes)
    assert saved.excluded == draw_validation_set(CONFIG, dataset, corrupted).source
    assert len(saved.excluded) == 6

    steps = [r for r in records(directory) if "loss/main" in r]
    epochs = [r for r in records(directory) if "clean_accuracy" in r]
    assert [r["step"] for r in steps] == list(range(1, 3 * STEPS + 1))
    assert [r["epoch"] for r in steps] == [1] * STEPS + [2] * STEPS + [3] * STEPS
    assert [(r["epoch"], r["step"]) for r in epochs] == [(1, STEPS), (2, 2 * STEPS), (3, 3 * STEPS)]
    for record in steps:
        tuned = record["epoch"] > 1
        assert ("loss/meta" in record) == tuned
        assert (record["lambda/rotation"] == 0.5) == (not tuned)
        assert {"loss/rotation", "loss/ir", "lambda/ir", "lr", "images_per_second"} < record.keys()
    rate = [1e-6 + (0.05 - 1e-6) * (1 + np.cos(np.pi * t / 12)) / 2 for t in range(12)]
    assert [r["lr"] for r in steps] == pytest.approx(rate)
    assert "finished" in (directory / "log.txt").read_text()

    assert isinstance(events[0], Started)
    assert (events[0].images, events[0].validation_images, events[0].steps) == (67, 2 * 5 * 6, 12)
    assert [e.record["epoch"] for e in events if isinstance(e, EpochDone)] == [1, 2, 3]
    assert [e.record["step"] for e in events if isinstance(e, StepsDone)][-1] == 12


def test_same_seed_same_run_other_seed_another(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    train(CONFIG, tmp_path / "again", dataset, corrupted)
    assert_same_state(whole[0], tmp_path / "again")
    assert timeless(whole[0]) == timeless(tmp_path / "again")
    train(replace(CONFIG, seed=1, epochs=2), tmp_path / "other", dataset, corrupted)
    assert records(tmp_path / "other")[0]["loss/main"] != records(whole[0])[0]["loss/main"]
    assert load_checkpoint(tmp_path / "other").excluded != load_checkpoint(whole[0]).excluded


@pytest.mark.parametrize("stops", [[1], [STEPS], [STEPS + 2, 2 * STEPS + 1]])
def test_resume_is_exact(
    stops: list[int],
    whole: tuple[Path, list[Event]],
    dataset: Dataset,
    corrupted: CorruptedSet,
    tmp_path: Path,
) -> None:
    """Stopped in the middle of an epoch, at its end, twice: the run ends bit for bit as if it had not."""
    directory, done = tmp_path / "run", 0
    for stop in stops:
        left = [stop - done]

        def should_stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] == 0

        with pytest.raises(InterruptedTrainingError, match=f"step {stop} of 12, all saved in"):
            train(CONFIG, directory, dataset, corrupted, resume=done > 0, should_stop=should_stop)
        done = load_checkpoint(directory).step
        assert done == stop
    train(CONFIG, directory, dataset, corrupted, resume=True)
    assert_same_state(whole[0], directory)
    assert timeless(whole[0]) == timeless(directory)


def test_resume_is_exact_with_cheaper_tasks(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    options = {"rotation": {"views": 1, "hidden": True}}
    config = replace(CONFIG, epochs=2, batch_norm="all", task_share=0.3, task_options=options)
    train(config, tmp_path / "whole", dataset, corrupted)
    asked = iter(range(99))
    with pytest.raises(InterruptedTrainingError):
        train(config, tmp_path / "run", dataset, corrupted, should_stop=lambda: next(asked) == STEPS)
    train(config, tmp_path / "run", dataset, corrupted, resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_resume_after_a_crash_drops_what_came_after_the_checkpoint(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    directory = tmp_path / "run"

    class CrashError(Exception):
        pass

    def crash(event: Event) -> None:
        if isinstance(event, StepsDone) and event.record["step"] > STEPS:
            raise CrashError

    with pytest.raises(CrashError):
        train(CONFIG, directory, dataset, corrupted, on_event=crash)
    assert load_checkpoint(directory).step == STEPS
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "epo')  # and a line that was cut short
    train(CONFIG, directory, dataset, corrupted, resume=True)
    assert_same_state(whole[0], directory)
    assert timeless(whole[0]) == timeless(directory)


def test_a_damaged_line_in_the_metrics_loses_no_other(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(whole[0], directory)
    first, *rest = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join([first, "\n", "{\n", *rest]))
    train(CONFIG, directory, dataset, corrupted, resume=True)
    assert (directory / "metrics.jsonl").read_text() == "".join([first, *rest])


@pytest.mark.parametrize("resume", [True, False])
def test_new_weights_never_get_an_old_evaluation(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path, resume: bool
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(whole[0], directory)
    (directory / "checkpoint.pt").unlink()
    (directory / "eval-c.json").write_text("{}")
    for left in ("eval-c.json", "log.txt"):
        before = {path.name: path.read_bytes() for path in directory.iterdir()}
        with pytest.raises(UserError, match=f"{left} is of a run whose checkpoint is gone: move it away"):
            train(replace(CONFIG, seed=9), directory, dataset, corrupted, resume=resume)
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
        (directory / left).unlink()


def test_finished_run_resumes_to_its_result(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet
) -> None:
    before = state(whole[0])
    result = train(CONFIG, whole[0], dataset, corrupted, resume=True)
    assert (
        result.clean_accuracy == [r for r in records(whole[0]) if "clean_accuracy" in r][-1]["clean_accuracy"]
    )
    assert all(torch.equal(value, before[name]) for name, value in state(whole[0]).items())


def test_refuses(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds a run already: pass `resume`"):
        train(CONFIG, whole[0], dataset, corrupted)
    with pytest.raises(UserError, match="none is prepared"):
        train(CONFIG, tmp_path / "a", dataset)
    with pytest.raises(UserError, match=r"train_size: 999 of the \d+ images of \d+ classes: choose from"):
        train(replace(CONFIG, train_size=999), tmp_path / "a", dataset, corrupted)
    with pytest.raises(UserError, match="only one corrupted source image"):
        validation_source(CONFIG, 1)
    assert len(validation_source(CONFIG, 9)) == 4
    with pytest.raises(UserError, match="batch_size: 200 is more than the 67 training images"):
        train(replace(CONFIG, batch_size=200), tmp_path / "a", dataset, corrupted)
    for name, value in (("seed", 3), ("width", 2), ("weight_decay", 0.1), ("epochs", 9)):
        expected = f"was trained with `{name}` {getattr(CONFIG, name)}, not {value}: resume it with its own"
        with pytest.raises(UserError, match=expected):
            train(replace(CONFIG, **{name: value}), whole[0], dataset, corrupted, resume=True)
    test = dataset.test
    fewer = make_split(test.images[:-1], test.labels[:-1], test.classes)
    with pytest.raises(UserError, match="different data"):
        train(CONFIG, whole[0], replace(dataset, train=fewer), corrupted, resume=True)
    assert not (tmp_path / "a").exists()


def test_the_stricter_protocol_tunes_on_the_extra_corruptions(dataset: Dataset, tmp_path: Path) -> None:
    names = ("contrast", "saturate", "pixelate", "speckle_noise")
    generate_corrupted(dataset.test.images[:30], dataset.test.labels[:30], tmp_path / "c", corruptions=names)
    corrupted = open_corrupted(tmp_path / "c", "toy")
    strict = replace(CONFIG, validation_corruptions="extra")
    every, extra = (draw_validation_set(config, dataset, corrupted) for config in (CONFIG, strict))
    assert every.source == extra.source
    assert (len(every.labels), len(extra.labels)) == (4 * 5 * 6, 2 * 5 * 6)
    source = list(extra.source)
    cells = [corrupted.cell(name, s)[source] for name in ("speckle_noise", "saturate") for s in range(1, 6)]
    assert np.array_equal(extra.images.read(np.arange(60)), np.concatenate(cells))
    assert np.array_equal(extra.labels, np.tile(dataset.test.labels[source], 10))
    generate_corrupted(
        dataset.test.images[:30], dataset.test.labels[:30], tmp_path / "d", corruptions=["contrast"]
    )
    with pytest.raises(UserError, match="none of speckle_noise"):
        draw_validation_set(strict, dataset, open_corrupted(tmp_path / "d", "toy"))


def test_divergence_is_an_error_that_names_the_step(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    with pytest.raises(RsslError, match=r"diverged at step \d+: loss/\w+ is (nan|inf)"):
        train(replace(CONFIG, lr=1e18), tmp_path / "run", dataset, corrupted)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_learns(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline fits a handful of images: the loss falls well below that of guessing, log 10."""
    config = replace(CONFIG, tasks=(), weighting="fixed", epochs=12, train_size=32)
    original = Trainer.step
    data: list[TrainingData] = []

    def step(self: Trainer, step: int, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        data.append(self.data)
        return original(self, step, chosen)

    monkeypatch.setattr(Trainer, "step", step)
    result = train(config, tmp_path / "run", dataset)
    # It is tested on no more images than it trains on, and those have the labels that they had.
    assert result.clean_images == len(data[0].labels) == 32
    known = {
        image.tobytes(): label
        for image, label in zip(dataset.train.images, dataset.train.labels, strict=True)
    }
    images = data[0].images.gather(torch.arange(32)).numpy()
    assert [known[image.tobytes()] for image in images] == data[0].labels.tolist()
    assert len({image.tobytes() for image in images}) == 32
    losses = [r["loss/main"] for r in records(tmp_path / "run") if "loss/main" in r]
    assert losses[0] == pytest.approx(np.log(10), rel=0.2)
    assert losses[-1] < 0.85 * np.log(10)
    assert result.lambdas == {}


def assert_resume_is_exact(config: Config, dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path) -> None:
    """A run that stops after five steps, and goes on, ends as the whole one; it is left in `run`."""
    train(config, tmp_path / "whole", dataset, corrupted)
    asked = iter([False] * 5 + [True])
    with pytest.raises(InterruptedTrainingError):
        train(config, tmp_path / "run", dataset, corrupted, should_stop=lambda: next(asked))
    train(config, tmp_path / "run", dataset, corrupted, resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "run")
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "run")


def test_resume_is_exact_with_a_moving_average_and_augmix(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    """What else a run holds: the average of the weights, and the weight of the consistency loss."""
    config = replace(CONFIG, tasks=("ir",), epochs=2, augment="augmix", tune_jsd=True, ema=0.8)
    assert_resume_is_exact(config, dataset, corrupted, tmp_path)
    saved = load_checkpoint(tmp_path / "run")
    assert saved.lambdas[1] != 12.0
    averaged = saved.network().state_dict()
    assert all(torch.equal(averaged[name], value) for name, value in saved.average.items())
    assert not torch.equal(saved.average["fc.weight"], saved.classifier["fc.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "uncertainty", "augment": "augmix", "tasks": ("ir",)},
        {"weighting": "random", "augment": "augmix", "jsd_weight": 0, "tasks": ("ir",)},
        {"weighting": "upgrad"},
        {"automl_variants": ("sgd-lookahead", "relative", "constant-sum")},
    ],
    ids=str,
)
def test_resume_is_exact_with_other_weights(
    options: dict[str, object], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, **{"tasks": ("rotation", "ir"), "epochs": 2, "depth": 10} | options)  # type: ignore[arg-type]
    assert_resume_is_exact(config, dataset, corrupted, tmp_path)


def test_resume_is_exact_with_another_network_and_optimizer(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    config = replace(
        CONFIG, tasks=("rotation",), epochs=2, network="shufflenet_v2_x0_5", optimizer="adamw", lr=1e-3,
        trunk_lr_factor=0.1, ema=0.8,
    )  # fmt: skip
    assert_resume_is_exact(config, dataset, corrupted, tmp_path)
    assert "o.0.exp_avg" in state(tmp_path / "run")


def test_bfloat16_with_augmix_at_a_high_rate_stays_finite(dataset: Dataset, tmp_path: Path) -> None:
    """Reports of NaN with this loss at a learning rate of 0.1 in half precision do not hold here."""
    config = replace(
        CONFIG, tasks=(), weighting="fixed", augment="augmix", precision="bfloat16", lr=0.1, epochs=8
    )
    train(config, tmp_path / "run", dataset)
    losses = [r["loss/main"] + 12 * r["loss/jsd"] for r in records(tmp_path / "run") if "loss/main" in r]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": "joint"},
        {"precision": "bfloat16"},
        {"weighting": "fixed"},
        {"weighting": "upgrad", "augment": "augmix"},
    ],
    ids=str,
)
def test_other_modes_run(
    options: dict[str, Any], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=2, train_size=32, **options)
    train(config, tmp_path / "run", dataset, corrupted)
    last = [r for r in records(tmp_path / "run") if "loss/main" in r][-1]
    assert (last["lambda/rotation"] != 0.5) == config.automl
    assert ("loss/jsd" in last) == config.uses_augmix
    assert load_checkpoint(tmp_path / "run").excluded == () or config.automl


def test_an_epoch_is_measured_in_the_precision_of_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a whole: the scores come in bfloat16 while it trains and while it is tested."""
    dtypes = []
    original = nn.Linear.forward

    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        scores = original(self, x)
        dtypes.append(scores.dtype)
        return scores

    monkeypatch.setattr(nn.Linear, "forward", forward)
    for precision in ("bfloat16", "float32"):
        dtypes.clear()
        config = replace(CONFIG, tasks=(), weighting="fixed", epochs=1, train_size=32, precision=precision)
        train(config, tmp_path / precision, dataset)
        assert set(dtypes) == {getattr(torch, precision)}


def step_that_breaks(at: int, key: str, value: float) -> Callable[..., dict[str, torch.Tensor]]:
    """`Trainer.step`, but step `at` reports `value` as `key`."""
    original = Trainer.step

    def step(self: Trainer, step: int, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        values = original(self, step, chosen)
        return values | ({key: torch.tensor(value)} if step + 1 == at else {})

    return step


@pytest.mark.parametrize("key", ["loss/ir", "lambda/rotation", "loss/meta"])
def test_divergence_keeps_the_last_good_checkpoint(
    key: str, dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(Trainer, "step", step_that_breaks(STEPS + 2, key, float("nan")))
    expected = rf"step {STEPS + 2}: {key} is nan; lower `lr`. The last good checkpoint is of step {STEPS}: "
    with pytest.raises(DivergedError, match=expected + re.escape(str(run / "checkpoint.pt"))):
        train(CONFIG, run, dataset, corrupted)
    assert load_checkpoint(run).step == STEPS
    assert f"{key} is nan" in (run / "log.txt").read_text()
    assert [record["step"] for record in records(run)] == [1, 2, 3, 4, 4, 5]


def test_weights_that_are_not_finite_are_never_saved(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of a step are those of the weights before it."""
    original = Trainer.step

    def step(self: Trainer, step: int, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        values = original(self, step, chosen)
        if step + 1 == 2 * STEPS:
            with torch.no_grad():
                self.model.network.fc.bias[0] = float("inf")
        return values

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(DivergedError, match=rf"by step {2 * STEPS}: network.fc.bias is not finite"):
        train(CONFIG, tmp_path / "run", dataset, corrupted)
    assert load_checkpoint(tmp_path / "run").step == STEPS


def test_scores_that_are_not_finite_end_the_training_before_they_are_recorded(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their images would count as the first class; the weights may all be finite."""
    run, counts = tmp_path / "run", iter([(5, 0), (5, 2)])
    monkeypatch.setattr("rsslcli.core.training.loop.count_correct", lambda *arguments: next(counts))
    expected = rf"diverged by step {2 * STEPS}: the highest score of 2 of 34 clean test images is NaN"
    with pytest.raises(DivergedError, match=expected):
        train(CONFIG, run, dataset, corrupted)
    assert load_checkpoint(run).step == STEPS
    (record,) = (record for record in records(run) if "clean_accuracy" in record)
    assert (record["clean_accuracy"], record["clean_images"]) == (5 / 34, 34)
    assert "epoch 1: clean accuracy 0.1471 on 34 of 40 test images\n" in (run / "log.txt").read_text()


def test_lambdas_that_tuning_has_made_zero_are_reported_once(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first epoch that tunes, not after the warm-up, in which they have not begun to move."""
    original = Trainer.gradients

    def gradients(self: Trainer, chosen: torch.Tensor, *, tune: bool) -> dict[str, torch.Tensor]:
        losses = original(self, chosen, tune=tune)
        self.lambdas.zero_()
        return losses

    monkeypatch.setattr(Trainer, "gradients", gradients)
    events: list[Event] = []
    config = replace(CONFIG, initial_lambda=0.0)
    train(config, tmp_path / "run", dataset, corrupted, on_event=events.append)
    (notice,) = (event for event in events if isinstance(event, Notice))
    expected = f"all λ are 0 after step {2 * STEPS}, so no task has an effect: try a lower `meta_lr`"
    assert notice.text == expected
    assert notice.text in (tmp_path / "run" / "log.txt").read_text()


def test_a_new_run_that_would_tune_nothing_leaves_nothing_and_an_old_one_goes_on(
    dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = replace(CONFIG, epochs=2, warmup_epochs=2, train_size=32), tmp_path / "run"
    for resume in (False, True):  # which also starts a run
        with pytest.raises(UserError, match="`warmup_epochs`: AutoML tunes nothing"):
            train(config, run, dataset, corrupted, resume=resume)
        assert not run.exists()

    with monkeypatch.context() as as_before:
        as_before.setattr("rsslcli.core.training.loop.check_effective", lambda config: None)
        with pytest.raises(InterruptedTrainingError):
            train(config, run, dataset, corrupted, should_stop=lambda: True)
    events: list[Event] = []
    result = train(config, run, dataset, corrupted, resume=True, on_event=events.append)
    assert result.lambdas == {"rotation": 0.5, "ir": 0.5}
    (notice,) = (event for event in events if isinstance(event, Notice))
    assert notice.text.startswith("this run leaves λ unchanged: `warmup_epochs`: AutoML tunes nothing")


def test_a_run_from_the_weights_of_another_is_not_tested_on_what_tuned_that_one(
    whole: tuple[Path, list[Event]], dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    before = load_checkpoint(whole[0])
    assert before.excluded
    config = replace(
        CONFIG, tasks=(), weighting="fixed", epochs=1, weights=str(whole[0] / "checkpoint.pt"), seed=1
    )
    result = train(config, tmp_path / "a", dataset, corrupted)
    found = load_checkpoint(tmp_path / "a")
    assert (found.excluded, found.validation_data) == (before.excluded, corrupted.identity)
    assert result.clean_images == len(dataset.test.labels) - len(before.excluded)
    train(config, tmp_path / "a", dataset, corrupted, resume=True)
    # Without the corrupted set, which only AutoML needs, the indices are taken at their word.
    result = train(config, tmp_path / "alone", dataset)
    assert result.clean_images == len(dataset.test.labels) - len(before.excluded)
    # AutoML's own images come on top, and a run on other data has no such images.
    tuned = replace(CONFIG, epochs=2, warmup_epochs=1, weights=config.weights, seed=1)
    train(tuned, tmp_path / "b", dataset, corrupted)
    own = validation_source(tuned, corrupted.images_per_cell)
    assert set(load_checkpoint(tmp_path / "b").excluded) == {*own, *before.excluded} > {*own}
    train(tuned, tmp_path / "b", dataset, corrupted, resume=True)
    other = CorruptedSet(corrupted.folder, corrupted.names[:1], corrupted.labels)
    with pytest.raises(UserError, match="different data"):
        train(tuned, tmp_path / "b", dataset, other, resume=True)
    train(replace(config, dataset="other"), tmp_path / "c", dataset, corrupted)
    assert load_checkpoint(tmp_path / "c").excluded == ()


def test_a_run_without_an_image_to_test_on_is_refused(
    whole: tuple[Path, list[Event]], dataset: Dataset, tmp_path: Path
) -> None:
    """After a chain of runs, all of a small test set may have tuned λ."""
    every = tuple(range(len(dataset.test.labels)))
    save_checkpoint(tmp_path / "all.pt", replace(load_checkpoint(whole[0]), excluded=every))
    config = replace(CONFIG, tasks=(), weighting="fixed", epochs=1, weights=str(tmp_path / "all.pt"))
    with pytest.raises(UserError, match="no clean test image is left: all 40 have tuned λ"):
        train(config, tmp_path / "run", dataset)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_rate_that_is_large_for_adamw_is_told(dataset: Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, tasks=(), weighting="fixed", epochs=1, optimizer="adamw")
    for lr, count in ((0.1, 1), (0.001, 0)):
        events: list[Event] = []
        train(replace(config, lr=lr), tmp_path / str(lr), dataset, on_event=events.append)
        notices = [event.text for event in events if isinstance(event, Notice)]
        assert notices == ["`lr` 0.1 is large for adamw, which usually takes 0.001 or less"] * count


@pytest.mark.parametrize(("weights", "other"), [("none", {"0": "10"}), ("first.pt", {"False": "True"})])
def test_ranks_that_do_not_see_the_same_checkpoint_are_told(
    weights: str,
    other: dict[str, str],
    dataset: Dataset,
    corrupted: CorruptedSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their steps differ; or only one has a checkpoint: the other must not wait for it to load `weights`."""
    monkeypatch.setattr(World, "gather", lambda self, text: [text, other.get(text, text)])
    monkeypatch.setattr(World, "main_first", lambda self: pytest.fail("it waits"))
    with pytest.raises(UserError, match="not every rank sees its checkpoint"):
        train(replace(CONFIG, weights=weights), tmp_path / "run", dataset, corrupted)


def test_two_runs_in_one_folder(dataset: Dataset, corrupted: CorruptedSet, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2)

    def also(event: Event) -> None:
        if isinstance(event, StepsDone):
            with pytest.raises(UserError, match="in use by another rssl"):
                train(config, tmp_path / "run", dataset, corrupted, resume=True)

    train(config, tmp_path / "run", dataset, corrupted, on_event=also)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_clean_accuracy_of_an_epoch_is_that_of_the_saved_network(
    ema: float, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its running statistics, and the moving average if there is one; counted by hand."""
    tested: list[dict[str, torch.Tensor]] = []

    def counting(network: nn.Module, *arguments: Any) -> tuple[int, int]:
        tested.append({name: value.clone() for name, value in network.state_dict().items()})
        return count_correct(network, *arguments)

    monkeypatch.setattr("rsslcli.core.training.loop.count_correct", counting)
    config = replace(CONFIG, tasks=(), weighting="fixed", epochs=2, ema=ema)
    result = train(config, tmp_path / "run", dataset)
    network = load_checkpoint(tmp_path / "run").network()
    assert all(torch.equal(value, tested[-1][name]) for name, value in network.state_dict().items())
    images = torch.from_numpy(dataset.test.images.transpose(0, 3, 1, 2) / np.float32(255))
    with torch.inference_mode():
        right = network(images).argmax(1).numpy() == dataset.test.labels
    assert (result.clean_accuracy, result.clean_images) == (right.mean(), 40)


def test_a_long_epoch_is_saved_on_the_way(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsslcli.core.training.loop.CHECKPOINT_SECONDS", 0.0)
    asked = iter([False, False])  # the third time it fails

    with pytest.raises(StopIteration):
        train(
            replace(CONFIG, tasks=(), weighting="fixed"), tmp_path / "run", dataset,
            should_stop=lambda: next(asked),
        )  # fmt: skip
    assert load_checkpoint(tmp_path / "run").step == 2


def test_a_moving_average_starts_from_the_weights_of_the_run_before(
    whole: tuple[Path, list[Event]], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.step
    averages: list[dict[str, torch.Tensor]] = []

    def step(self: Trainer, step: int, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.averaged is not None
        averages.append({name: value.clone() for name, value in self.averaged.state_dict().items()})
        return original(self, step, chosen)

    monkeypatch.setattr(Trainer, "step", step)
    weights = str(whole[0] / "checkpoint.pt")
    config = replace(CONFIG, tasks=(), weighting="fixed", epochs=1, ema=0.9, weights=weights)
    train(config, tmp_path / "run", dataset)
    before = load_checkpoint(whole[0]).classifier
    for name in ("conv1.weight", "bn1.running_var"):
        assert torch.equal(averages[0][name], before[name])
