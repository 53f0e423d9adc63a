"""A step is the same program each time, which a CUDA graph or a compiler may keep."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from rsslcli.core.config import Config
from rsslcli.core.data import augmix
from rsslcli.core.data.gathering import ImageSource
from rsslcli.core.errors import UserError
from rsslcli.core.ranks import World
from rsslcli.core.tasks.registry import TASKS
from rsslcli.core.training.step import Trainer, TrainingData
from rsslcli.core.training.uncertainty import update_uncertainty


def make_trainer(world: World | None = None, **options: Any) -> Trainer:
    settings = {
        "tasks": tuple(TASKS),
        "weighting": "automl",
        "epochs": 3,
        "warmup_epochs": 1,
        "depth": 10,
        "width": 1,
    }
    config = Config(**(settings | {"batch_size": 8, "meta_batch_size": 4} | options))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (24,), generator=generator)
    data = TrainingData(ImageSource(images), labels, ImageSource(images[:12]), labels[:12])
    return Trainer(config, data, 10, world)


class Recorder(TorchDispatchMode):
    """Notes every operation, the numbers it is given, and the shapes of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        def shown(value: Any) -> Any:
            if isinstance(value, Tensor):
                return f"{value.dtype}{list(value.shape)}{value.stride()}"
            return "generator" if isinstance(value, torch.Generator) else value

        self.operations.append(f"{func} {tree_map(shown, args)} {tree_map(shown, kwargs or {})}")
        return func(*args, **(kwargs or {}))


def program(trainer: Trainer, step: int) -> list[str]:
    """The operations of `Trainer.gradients` in step `step`; the step itself is done too."""
    recorder = Recorder()
    gradients = trainer.gradients

    def recorded(chosen: Tensor, *, tune: bool) -> dict[str, Tensor]:
        with recorder:
            return gradients(chosen, tune=tune)

    trainer.gradients = recorded  # type: ignore[method-assign]
    trainer.step(step, trainer.epoch_order(step // 3)[step % 3 * 8 :][:8])
    trainer.gradients = gradients  # type: ignore[method-assign]
    return recorder.operations


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": "per-task"},
        {"batch_norm": "joint"},
        {"tasks": ("ir",), "augment": "augmix", "tune_jsd": True},
    ],
    ids=str,
)
def test_every_step_is_the_same_program(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No number that changes from step to step is in an operation: all of them stand in tensors."""
    # As on a GPU, whose steps these are: a CPU counts the images of each operation first.
    monkeypatch.setattr(augmix, "_apply_where", lambda chosen, function, *tensors: function(*tensors))
    trainer = make_trainer(**options)
    trainer.model.train()
    program(trainer, 0)  # fills what is made once, such as the tables of orders and blurs
    warm_up = [program(trainer, step) for step in (1, 2)]
    tuned = [program(trainer, step) for step in (4, 7, 8)]
    assert len(warm_up[0]) > 100
    assert warm_up[0] == warm_up[1]
    assert tuned[0] == tuned[1] == tuned[2]
    assert tuned[0] != warm_up[0]
    assert not [line for line in tuned[0] if "_local_scalar_dense" in line or "nonzero" in line]
    layouts = [(p.stride(), p.grad.stride()) for p in trainer.model.parameters() if p.grad is not None]
    assert all(own == of_gradient for own, of_gradient in layouts), "the optimizer's fast path needs that"


@pytest.mark.parametrize("weighting", ["uncertainty", "random", "upgrad"])
def test_every_step_of_a_rival_is_the_same_program(weighting: str) -> None:
    trainer = make_trainer(weighting=weighting, tasks=("rotation", "ir"))
    trainer.model.train()
    program(trainer, 0)
    first, second = (program(trainer, step) for step in (1, 4))
    assert first == second
    assert not [line for line in first if "_local_scalar_dense" in line or "nonzero" in line]


def test_uncertainty_weights_what_is_minimized() -> None:
    """With AugMix, the main loss is that with its consistency; the metrics show the two apart."""
    options = {"weighting": "uncertainty", "tasks": ("rotation",), "augment": "augmix"}
    trainer = make_trainer(**options, initial_lambda=0.1)
    trainer.model.train()
    before = trainer.lambdas.clone()
    assert before.tolist() == pytest.approx([0.5, 0.1]), "`initial_lambda` is that of the tasks"
    losses = trainer.step(0, trainer.epoch_order(0)[:8])
    whole = losses["loss/main"] + 12 * losses["loss/jsd"]
    expected = before.clone()
    update_uncertainty(expected, torch.stack([whole, losses["loss/rotation"]]), trainer.rate)
    torch.testing.assert_close(trainer.lambdas, expected)
    assert not torch.equal(trainer.lambdas, before)


def test_the_moving_average_is_that_of_weights_and_statistics() -> None:
    trainer = make_trainer(weighting="fixed", tasks=(), ema=0.3)
    trainer.model.train()
    assert trainer.averaged is not None
    expected = {name: value.double() for name, value in trainer.averaged.state_dict().items()}
    for step in range(4):
        trainer.step(step, trainer.epoch_order(0)[:8])
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in trainer.model.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in trainer.averaged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert trainer.classifier is trainer.averaged


def test_the_recorder_sees_a_number_that_changes() -> None:
    """The test above can fail."""
    trainer = make_trainer()
    trainer.model.train()
    program(trainer, 0)
    before = program(trainer, 3)
    object.__setattr__(trainer.config, "meta_lr", 0.2)
    assert program(trainer, 4) != before


@pytest.mark.parametrize("option", ["batch_size", "meta_batch_size"])
def test_refuses_batches_too_small_to_share(option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: 4 images are too few for 5 ranks"):
        make_trainer(World(0, 5), **{"batch_size": 8, "meta_batch_size": 8, option: 4})


def test_a_run_without_tasks_is_not_refused_for_settings_that_have_no_effect() -> None:
    options = {"tasks": (), "weighting": "fixed", "batch_size": 8, "meta_batch_size": 4, "task_share": 0.125}
    assert make_trainer(World(0, 5), **options).steps


@pytest.mark.slow
def test_compiled_steps_compute_the_same() -> None:
    plain, compiled = (
        make_trainer(compile=each, tasks=("rotation", "ir"), lr=0.01) for each in (False, True)
    )
    for trainer in (plain, compiled):
        trainer.model.train()
        for step in (0, 1, 3, 4):  # in the warm-up and after it
            values = trainer.step(step, trainer.epoch_order(step // 3)[:8])
            trainer.last = {name: float(value) for name, value in values.items()}  # type: ignore[attr-defined]
    assert compiled.last == pytest.approx(plain.last, rel=1e-3)  # type: ignore[attr-defined]
    for (name, expected), value in zip(
        plain.model.named_parameters(), compiled.model.parameters(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.slow
def test_a_compiler_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    rssl = Path(sys.executable).with_name("rssl")
    result = subprocess.run(
        [rssl, "train-single", "--task", "none", "--preset", "quick", "--compile", "--output", "run"],
        cwd=tmp_path,
        env=os.environ | {"CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "rssl: error: the network cannot be compiled" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("home", ["cuda", "cpu"])
def test_what_a_seed_draws_beside_cuda_does_not_depend_on_where_the_images_are(home: str) -> None:
    """They may fit into its memory in one run, and not in the next one."""
    trainer = SimpleNamespace(
        device=torch.device("cuda"), generator=None, host_generator=torch.Generator().manual_seed(3),
        config=SimpleNamespace(meta_batch_size=5),
        data=SimpleNamespace(validation_labels=range(9), validation_images=SimpleNamespace(home=home)),
    )  # fmt: skip
    drawn = Trainer._draw_validation(trainer)  # type: ignore[arg-type]
    assert drawn.tolist() == torch.randint(9, (5,), generator=torch.Generator().manual_seed(3)).tolist()


def test_a_consistency_loss_that_is_not_tuned_counts_by_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of L_main + w · JSD, written out on the views that the step drew."""
    trainer = make_trainer(tasks=(), weighting="fixed", augment="augmix", jsd_weight=2.0)
    trainer.model.train()
    model = copy.deepcopy(trainer.model)
    drawn: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    original = trainer.model.losses

    def spying(images: Tensor, labels: Tensor, random: Any, views: list[Tensor], **options: Any) -> Any:
        drawn.append((images, labels, views))
        return original(images, labels, random, views, **options)

    monkeypatch.setattr(trainer.model, "losses", spying)
    found = trainer.gradients(torch.arange(8), tune=False)
    ((images, labels, views),) = drawn
    scores = model.network.fc(model.network.features(torch.cat([images, *views])))
    p = scores.softmax(1).reshape(3, 8, 10)
    jsd = (p * (p.log() - p.mean(0).log())).sum(2).mean()
    main = F.cross_entropy(scores[:8], labels)
    (main + 2.0 * jsd).backward()
    torch.testing.assert_close(found, {"main": main.detach(), "jsd": jsd.detach()}, rtol=1e-4, atol=1e-6)
    for (name, p), q in zip(model.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5, msg=name)
