"""Algorithm 1 against an independent double-backward implementation, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, ResNet

from rsslcli.core.config import AUTOML_VARIANTS, Config
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.gathering import ImageSource
from rsslcli.core.networks.build import build_network
from rsslcli.core.networks.names import allow_network
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.check import OneDevice
from rsslcli.core.tasks.registry import TASKS, build_tasks
from rsslcli.core.training.automl import MAIN, automl_gradients, fixed_gradients
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.training.optimizer import step_factors
from rsslcli.core.training.step import Trainer, TrainingData
from rsslcli.core.training.upgrad import upgrad_gradients

FOUR = ("rotation", "bir", "color", "ir")
ALPHA, BETA = 0.07, 3.0


def small_resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1])


def layer_norms() -> nn.Module:
    """A network without batch normalization."""
    patches = [nn.Conv2d(3, 6, 8, 8), nn.GELU(), nn.Flatten(), nn.LayerNorm(96)]
    return nn.Sequential(*patches, nn.Linear(96, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 3))


def make_model(tasks: tuple[str, ...], mode: str, network: str = "wrn") -> MultiTaskNetwork:
    allow_network(network)
    torch.manual_seed(3)
    trunk = build_network(Config(network=network, depth=10, width=1), 10)
    model = MultiTaskNetwork(trunk, build_tasks(tasks), batch_norm=mode)
    return model.double().train()


def textbook(
    model: MultiTaskNetwork,
    images: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor],
    lambdas: Tensor,
    trunk_lr_factor: float = 1.0,
    kept: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Algorithm 1 as it stands in the paper: backward through the backward pass, then a second pass.

    The look-ahead of the trunk has a learning rate of its own. If its length is `kept`, λ does not
    change it.

    Returns the meta-gradient, the new λ, and the gradient of the total loss at the new λ by parameter.
    """
    phi = dict(model.named_parameters())
    random = BatchRandom(torch.Generator().manual_seed(11))
    views = {name: task.transform(images, random) for name, task in model.tasks.items()}

    def trunk(x: Tensor, psi: dict[str, Tensor]) -> Tensor:
        class Features(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = model.network

            def forward(self, x: Tensor) -> Tensor:
                return self.network.features(x)

        return functional_call(Features(), {k: v for k, v in psi.items() if k.startswith("network.")}, (x,))

    def total(psi: dict[str, Tensor], weights: Tensor) -> Tensor:
        def head(name: str, features: Tensor) -> Tensor:
            prefix = f"heads.{name}."
            own = {k.removeprefix(prefix): v for k, v in psi.items() if k.startswith(prefix)}
            return functional_call(model.heads[name], own, (features,))

        apart = [n for n in model.tasks if not model.tasks[n].clean_input]
        if model.batch_norm == "joint":
            sizes = [len(images)] + [len(views[n][0]) for n in apart]
            parts = trunk(torch.cat([images] + [views[n][0] for n in apart]), psi).split(sizes)
            features = dict(zip([MAIN, *apart], parts, strict=True))
        else:
            features = {MAIN: trunk(images, psi)} | {n: trunk(views[n][0], psi) for n in apart}
        scores = F.linear(features[MAIN], psi["network.fc.weight"], psi["network.fc.bias"])
        loss = F.cross_entropy(scores, labels)
        for weight, (name, task) in zip(weights, model.tasks.items(), strict=True):
            loss = loss + weight * task.loss(head(name, features.get(name, features[MAIN])), views[name][1])
        return loss

    lambdas = lambdas.clone().requires_grad_()
    psi = {k: v for k, v in phi.items() if k.startswith("network.")}
    grads = torch.autograd.grad(total(phi, lambdas), list(psi.values()), create_graph=True)
    rates = {k: ALPHA if ".fc." in k else ALPHA * trunk_lr_factor for k in psi}
    stretch = (1 + lambdas.sum().detach()) / (1 + lambdas.sum()) if kept else 1.0
    ahead = {k: p - rates[k] * stretch * g for (k, p), g in zip(psi.items(), grads, strict=True)}
    scores = F.linear(trunk(val[0], ahead), ahead["network.fc.weight"], ahead["network.fc.bias"])
    (meta_gradient,) = torch.autograd.grad(F.cross_entropy(scores, val[1]), lambdas)
    updated = (lambdas.detach() - BETA * meta_gradient).clamp(min=0)
    final = torch.autograd.grad(total(phi, updated), list(phi.values()))
    return meta_gradient, updated, dict(zip(phi, final, strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def validation(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.flip(0).roll(3, 3) * 0.8, torch.tensor([1, 5, 0, 9])


@pytest.mark.parametrize("mode", ["per-task", "joint"])
@pytest.mark.parametrize("tasks", [FOUR, ("jigsaw",), tuple(TASKS)])
def test_equals_double_backward(
    mode: str, tasks: tuple[str, ...], images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    lambdas = torch.linspace(0.3, 0.7, len(tasks), dtype=torch.float64)
    val = validation(images)
    expected_gradient, expected_lambdas, expected = textbook(
        make_model(tasks, mode), images, labels, val, lambdas
    )
    assert (expected_gradient.abs() > 1e-6).all(), "the comparison needs gradients that are not zero"
    model = make_model(tasks, mode)
    updated = lambdas.clone()
    automl_gradients(
        model.losses(images, labels, random),
        model.psi(),
        model.head_parameters(),
        updated,
        model.validation_loss(*val),
        alpha=ALPHA,
        beta=BETA,
    )
    assert relative((lambdas - updated) / BETA, (lambdas - expected_lambdas) / BETA) < 1e-9
    inside = expected_lambdas > 0
    assert relative(((lambdas - updated) / BETA)[inside], expected_gradient[inside]) < 1e-9
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[name]) < 1e-9, name
    torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4).step()
    for name, parameter in model.named_parameters():
        # The first step with Nesterov momentum: the velocity is the gradient.
        weights = before[name] - 0.1 * (1 + 0.9) * (expected[name] + 5e-4 * before[name])
        assert relative(parameter.detach(), weights) < 1e-9, name


@pytest.mark.parametrize("mode", ["per-task", "joint", "all"])
@pytest.mark.parametrize("name", ["small_resnet", "layer_norms"])
def test_equals_double_backward_with_any_network_and_a_slower_trunk(
    name: str, mode: str, images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    tasks = ("rotation", "ir")
    network = f"{__name__}:{name}"
    lambdas = torch.tensor([0.4, 0.6], dtype=torch.float64)
    model = make_model(tasks, mode, network)
    other = make_model(tasks, mode, network)
    gradient, expected_lambdas, expected = textbook(
        other, images, labels, validation(images), lambdas, trunk_lr_factor=0.25
    )
    assert (gradient.abs() > 1e-9).all()
    updated = lambdas.clone()
    automl_gradients(
        model.losses(images, labels, random),
        model.psi(),
        model.head_parameters(),
        updated,
        model.validation_loss(*validation(images)),
        alpha=ALPHA,
        beta=BETA,
        factors=step_factors(Config(trunk_lr_factor=0.25), model.psi()),
    )
    assert relative(lambdas - updated, lambdas - expected_lambdas) < 1e-8
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[key]) < 1e-8, key


@pytest.mark.parametrize("mode", ["per-task", "all", "joint"])
def test_other_passes_leave_the_running_statistics_of_any_network(
    mode: str, images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    """The passes of tasks update them in the modes that say so; the meta step never does."""
    network = f"{__name__}:small_resnet"
    model = make_model(("rotation",), mode, network)
    reference = make_model(("rotation",), mode, network)
    automl_gradients(
        model.losses(images, labels, random),
        model.psi(),
        model.head_parameters(),
        torch.full((1,), 0.5, dtype=torch.float64),
        model.validation_loss(*validation(images)),
        alpha=ALPHA,
        beta=BETA,
    )
    view = reference.tasks["rotation"].transform(images, BatchRandom(torch.Generator().manual_seed(11)))[0]
    for batch in {
        "per-task": [images], "all": [images, view], "joint": [torch.cat([images, view])]
    }[mode]:  # fmt: skip
        reference.network.features(batch)
    expected = dict(reference.network.named_buffers())
    assert any(name.endswith("running_mean") for name in expected)
    for name, value in model.network.named_buffers():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("mode", ["per-task", "joint"])
def test_clamps_lambda_at_zero_and_uses_it_clamped(
    mode: str, images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    """With β so large that some λ would turn negative, they stop at 0 and their tasks do not act."""
    lambdas = torch.full((4,), 0.5, dtype=torch.float64)
    val = validation(images)
    gradient, _, _ = textbook(make_model(FOUR, mode), images, labels, val, lambdas)
    model = make_model(FOUR, mode)
    beta = 4 * 0.5 / float(gradient.abs().min())
    automl_gradients(
        model.losses(images, labels, random),
        model.psi(),
        model.head_parameters(),
        lambdas,
        model.validation_loss(*val),
        alpha=ALPHA,
        beta=beta,
    )
    assert torch.equal(lambdas == 0, gradient > 0)
    assert (gradient > 0).any()
    assert (gradient < 0).any()
    for weight, parameters in zip(lambdas, model.head_parameters().values(), strict=True):
        for p in parameters:
            assert p.grad is not None
            assert bool(p.grad.any()) == bool(weight > 0)


@pytest.mark.parametrize("mode", ["per-task", "joint"])
def test_with_beta_zero_it_is_the_plain_gradient(mode: str, images: Tensor, labels: Tensor) -> None:
    lambdas = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    plain, tuned = make_model(FOUR, mode), make_model(FOUR, mode)
    losses = fixed_gradients(
        plain.losses(images, labels, BatchRandom(torch.Generator().manual_seed(11))),
        plain.parameters(),
        dict(zip(FOUR, lambdas, strict=True)),
    )
    also = automl_gradients(
        tuned.losses(images, labels, BatchRandom(torch.Generator().manual_seed(11))),
        tuned.psi(),
        tuned.head_parameters(),
        lambdas,
        tuned.validation_loss(*validation(images)),
        alpha=ALPHA,
        beta=0.0,
    )
    assert {name: float(loss) for name, loss in losses.items()} == {
        name: float(loss) for name, loss in also.items() if name != "meta"
    }
    for (name, p), q in zip(plain.named_parameters(), tuned.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert relative(q.grad, p.grad) < 1e-12, name


@pytest.mark.parametrize("mode", ["per-task", "joint"])
def test_meta_step_leaves_weights_and_running_statistics(
    mode: str, images: Tensor, labels: Tensor, random: BatchRandom
) -> None:
    """Only the main pass (or the joint one) touches the running statistics; nothing touches the weights."""
    model = make_model(FOUR, mode)
    reference = make_model(FOUR, mode)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    automl_gradients(
        model.losses(images, labels, random),
        model.psi(),
        model.head_parameters(),
        torch.full((4,), 0.5, dtype=torch.float64),
        model.validation_loss(*validation(images)),
        alpha=ALPHA,
        beta=BETA,
    )
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    again = BatchRandom(torch.Generator().manual_seed(11))
    if mode == "per-task":
        reference.network.features(images)
    else:
        views = [t.transform(images, again)[0] for t in reference.tasks.values()]
        reference.network.features(torch.cat([images, *views[:3]]))  # `ir` shares the clean images
    expected_buffers = dict(reference.network.named_buffers())
    for name, value in model.network.named_buffers():
        expected = expected_buffers[name]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14, msg=name)


def make_trainer(device: str, **options: object) -> Trainer:
    settings = {
        "tasks": FOUR,
        "weighting": "automl",
        "epochs": 3,
        "warmup_epochs": 1,
        "depth": 10,
        "width": 1,
    }
    config = Config(**(settings | {"batch_size": 8, "meta_batch_size": 4} | options))  # type: ignore[arg-type]
    torch.manual_seed(0)
    images = torch.randint(256, (24, 32, 32, 3), dtype=torch.uint8)
    data = TrainingData(
        ImageSource(images.to(device)),
        torch.randint(10, (24,)).to(device),
        ImageSource(torch.randint(256, (12, 32, 32, 3), dtype=torch.uint8).to(device)),
        torch.randint(10, (12,)).to(device),
    )
    return Trainer(config, data, classes=10)


@pytest.mark.parametrize("mode", ["per-task", "joint"])
@pytest.mark.parametrize("tasks", [tuple(TASKS), ("rotation",), ()])
def test_full_steps_on_the_meta_device(mode: str, tasks: tuple[str, ...]) -> None:
    """No step reads a value back, which raises on `meta`, or mixes in a CPU tensor."""
    trainer = make_trainer("meta", tasks=tasks, weighting="automl" if tasks else "fixed", batch_norm=mode)
    for step in (0, 3):  # in the warm-up and after it
        with OneDevice():
            values = trainer.step(step, trainer.epoch_order(step // 3)[:8])
        assert ("loss/meta" in values) == (bool(tasks) and step == 3)
        assert all(value.device.type == "meta" for value in values.values())


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": "all"},
        {"task_share": 0.5},
        {"task_share": 0.5, "batch_norm": "joint"},
        {"tasks": tuple(TASKS), "task_options": {"rotation": {"views": 1}, "rgb": {"hidden": True}}},
        {"task_share": 0.5, "augment": "augmix", "tune_jsd": True, "ema": 0.99},
        {"augment": "augmix"},
        {"augment": "augmix", "jsd_weight": 0},
        {"weighting": "uncertainty"},
        {"weighting": "random"},
        {"weighting": "upgrad"},
        {"automl_variants": AUTOML_VARIANTS},
    ],
    ids=str,
)
def test_further_steps_on_the_meta_device(options: dict[str, object]) -> None:
    trainer = make_trainer("meta", **options)
    for step in (0, 3):
        with OneDevice():
            values = trainer.step(step, trainer.epoch_order(step // 3)[:8])
        assert [name for name in values if name.startswith("lambda/")] == [
            f"lambda/{name}" for name in trainer.config.weighted
        ]
        assert ("loss/jsd" in values) == (trainer.config.augmix_views == 2)
        assert all(value.device.type == "meta" for value in values.values())


class Products(TorchDispatchMode):
    """Collects the products of float32 matrices, which CUDA may round to TF32."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm") and args[0].dtype is torch.float32:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["automl", "relative", "upgrad"])
def test_no_sum_of_gradients_is_rounded_to_tf32(rule: str) -> None:
    psi = {name: torch.ones(3, requires_grad=True) for name in ("network.conv1.weight", "network.fc.weight")}
    heads = {task: [torch.ones(2, requires_grad=True)] for task in ("rotation", "ir")}

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([p.square().sum() for p in weights.values()]).sum()

    groups = [{MAIN: loss(psi)}, *({task: loss(psi) * head.sum()} for task, (head,) in heads.items())]
    lambdas = torch.full((2,), 0.5)
    with Products() as products:
        if rule == "upgrad":
            upgrad_gradients(groups, psi, heads, lambdas)
        else:
            relative = rule == "relative"
            automl_gradients(groups, psi, heads, lambdas, loss, alpha=0.1, beta=0.1, relative=relative)
        torch.ones(2) @ torch.ones(2, 3)  # which PyTorch takes for a product of matrices
    assert products.found == ["aten.mm.default"]


def test_a_step_in_bfloat16_on_the_meta_device() -> None:
    """There is no autocast on it; its operations are counted there all the same, for the time of a study."""
    trainer = make_trainer("meta", precision="bfloat16")
    assert all(value.is_meta for value in trainer.step(3, trainer.epoch_order(0)[:8]).values())


def test_the_meta_device_catches_a_synchronisation() -> None:
    """The test above can fail: what it looks for does raise."""
    trainer = make_trainer("meta")
    values = trainer.step(0, trainer.epoch_order(0)[:8])
    with pytest.raises((RuntimeError, NotImplementedError)):
        values["loss/main"].item()


def test_lambda_is_fixed_in_the_warm_up_and_moves_after_it() -> None:
    trainer = make_trainer("cpu", warmup_epochs=2)
    trainer.model.train()
    seen = []
    for step in range(trainer.steps):
        order = trainer.epoch_order(step // 3)
        position = step % 3 * 8
        values = trainer.step(step, order[position : position + 8])
        seen.append([float(values[f"lambda/{task}"]) for task in FOUR])
    assert seen[:6] == [[0.5] * 4] * 6
    assert all(later != earlier for earlier, later in pairwise(seen[5:]))


@pytest.mark.parametrize("mode", ["per-task", "joint"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_steps_are_sgd_with_the_scheduled_rate(
    mode: str, warmup: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights after two whole steps equal SGD written out on the steps' gradients, in float64."""
    monkeypatch.setattr("rsslcli.core.training.step.to_float", partial(to_float, dtype=torch.float64))
    trainer = make_trainer("cpu", batch_norm=mode, warmup_epochs=warmup, meta_lr=BETA)
    trainer.model.double().train()
    trainer.lambdas = trainer.lambdas.double()
    trainer.psi, trainer.heads = trainer.model.psi(), trainer.model.head_parameters()
    captured: list[dict[str, Tensor]] = []
    velocity = {name: torch.zeros_like(p) for name, p in trainer.model.named_parameters()}
    expected = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    original = trainer.optimizer.step

    def capture() -> None:
        captured.append({n: p.grad.clone() for n, p in trainer.model.named_parameters()})  # type: ignore[union-attr]
        original()

    trainer.optimizer.step = capture  # type: ignore[assignment, method-assign]
    for step in range(2):
        trainer.step(step, trainer.epoch_order(0)[8 * step : 8 * step + 8])
        rate = trainer.learning_rate(step)
        for name, gradient in captured[step].items():
            gradient = gradient + 5e-4 * expected[name]  # noqa: PLW2901
            velocity[name] = 0.9 * velocity[name] + gradient
            expected[name] = expected[name] - rate * (gradient + 0.9 * velocity[name])
    for name, p in trainer.model.named_parameters():
        assert relative(p.detach(), expected[name]) < 1e-9, name


#: So small an α that the look-ahead stays where it is, with the β that makes β·α 0.1.
IN_PLACE = {"alpha": 1e-9, "beta": 1e8}


def one_iteration(
    images: Tensor,
    labels: Tensor,
    lambdas: Tensor,
    model: MultiTaskNetwork | None = None,
    **variants: object,
) -> Tensor:
    """λ after one iteration of Algorithm 1, of the four tasks unless a model is given."""
    model = model or make_model(FOUR, "per-task")
    updated = lambdas.clone()
    automl_gradients(
        model.losses(images, labels, BatchRandom(torch.Generator().manual_seed(11))),
        model.psi(),
        model.head_parameters(),
        updated,
        model.validation_loss(*validation(images)),
        **({"alpha": ALPHA, "beta": BETA} | variants),  # type: ignore[arg-type]
    )
    return updated


def test_the_variant_with_a_constant_sum_rescales(images: Tensor, labels: Tensor) -> None:
    lambdas = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    plain = one_iteration(images, labels, lambdas)
    kept = one_iteration(images, labels, lambdas, keep_sum=True)
    assert float(plain.sum()) != pytest.approx(2.0)
    torch.testing.assert_close(kept, plain * 2.0 / plain.sum())
    # A value that is no number stays one, or a run that diverged would go on.
    spoiled = one_iteration(images, labels, lambdas, keep_sum=True, beta=float("nan"))
    assert spoiled.isnan().all()
    # Where all would be clamped to 0, the sum is kept by keeping them.
    tiny = torch.full((4,), 1e-12, dtype=torch.float64)
    for sign in (1.0, -1.0):
        moved = one_iteration(images, labels, tiny.clone(), keep_sum=True, beta=sign * 1e3)
        assert float(moved.sum()) == pytest.approx(4e-12)


def test_the_variant_with_the_cosine_moves_by_the_cosine(images: Tensor, labels: Tensor) -> None:
    model = make_model(FOUR, "per-task").train()
    psi = list(model.psi().values())

    def flat(loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss, psi, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    v = flat(model.validation_loss(*validation(images))(model.psi()))
    random = BatchRandom(torch.Generator().manual_seed(11))
    losses = {name: loss for group in model.losses(images, labels, random) for name, loss in group.items()}
    expected = torch.stack([torch.nn.functional.cosine_similarity(flat(losses[task]), v, 0) for task in FOUR])
    ones = torch.ones(4, dtype=torch.float64)
    updated = one_iteration(images, labels, ones, model, cosine=True, **IN_PLACE)
    torch.testing.assert_close(updated - 1, 0.1 * expected, rtol=1e-5, atol=1e-9)


def test_the_variant_with_the_cosine_does_not_see_the_size_of_a_loss(images: Tensor, labels: Tensor) -> None:
    """A loss 10 times as large moves its λ no more."""
    lambdas = torch.ones(4, dtype=torch.float64)
    moves = {}
    for scale in (30.0, 300.0):
        model = MultiTaskNetwork(WideResNet(10, 1), build_tasks(FOUR, {"ir": {"scale": scale}})).double()
        model.load_state_dict(make_model(FOUR, "per-task").state_dict())
        for cosine in (False, True):
            updated = one_iteration(images, labels, lambdas, model.train(), cosine=cosine, **IN_PLACE)
            moves[scale, cosine] = float(updated[FOUR.index("ir")]) - 1
    assert abs(moves[30.0, True]) > 1e-6
    assert moves[300.0, False] == pytest.approx(10 * moves[30.0, False], rel=1e-3)
    assert moves[300.0, True] == pytest.approx(moves[30.0, True], rel=1e-3)


def test_the_relative_variant_keeps_the_length_of_the_look_ahead(images: Tensor, labels: Tensor) -> None:
    """It equals double backward through a step whose length does not grow with λ."""
    lambdas = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    val = validation(images)
    _, expected, _ = textbook(make_model(FOUR, "per-task"), images, labels, val, lambdas, kept=True)
    updated = one_iteration(images, labels, lambdas, relative=True)
    assert relative(updated - lambdas, expected - lambdas) < 1e-9
    assert relative(updated - lambdas, one_iteration(images, labels, lambdas) - lambdas) > 0.01


@pytest.mark.parametrize(("nesterov", "trunk_lr_factor"), [(True, 1.0), (False, 1.0), (True, 0.2)])
def test_the_variant_that_looks_ahead_as_sgd_takes_its_very_step(
    nesterov: bool, trunk_lr_factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With β = 0 the look-ahead weights of a step are the weights after it, momentum and decay included."""
    trainer = make_trainer(
        "cpu", tasks=("ir",), warmup_epochs=1, meta_lr=1e-12, automl_variants=("sgd-lookahead",),
        nesterov=nesterov, trunk_lr_factor=trunk_lr_factor, weight_decay=0.01, depth=10,
    )  # fmt: skip
    trainer.model.train()
    seen: list[dict[str, Tensor]] = []
    original = trainer.model.validation_loss

    def spying(images: Tensor, labels: Tensor) -> object:
        loss = original(images, labels)

        def spy(psi: dict[str, Tensor]) -> Tensor:
            seen.append({name: p.detach().clone() for name, p in psi.items()})
            return loss(psi)

        return spy

    monkeypatch.setattr(trainer.model, "validation_loss", spying)
    for step in range(3, 6):
        trainer.step(step, trainer.epoch_order(1)[:8])
        for name, p in trainer.psi.items():
            torch.testing.assert_close(seen[-1][name], p.detach(), rtol=1e-5, atol=1e-6, msg=name)
    assert len(seen) == 3


def is_a_crop(image: Tensor, source: Tensor) -> bool:
    """Whether a uint8 image (32, 32, 3) is a place in a padded one, perhaps flipped."""
    places = F.pad(source, (0, 0, 4, 4, 4, 4)).unfold(0, 32, 1).unfold(1, 32, 1)  # (9, 9, 3, 32, 32)
    return any(
        bool((places == each.permute(2, 0, 1)).flatten(2).all(2).any()) for each in (image, image.flip(1))
    )


def test_a_step_trains_on_crops_of_its_batch_and_tunes_on_whole_validation_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each with its own label; and each step draws its crops and its validation batch anew."""
    trainer = make_trainer("cpu", tasks=("ir",))
    trainer.model.train()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"losses": [], "validation_loss": []}

    def spying(name: str, call: Any, images: Tensor, labels: Tensor, *more: Any, **options: Any) -> object:
        seen[name].append(((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1), labels))
        return call(images, labels, *more, **options)

    for name in seen:
        monkeypatch.setattr(trainer.model, name, partial(spying, name, getattr(trainer.model, name)))
    data = trainer.data
    chosen = trainer.epoch_order(1)[:8]
    for step in (3, 4):
        trainer.step(step, chosen)
    for images, labels in seen["losses"]:
        assert torch.equal(labels, data.labels[chosen])
        sources = data.images.gather(chosen)
        assert all(is_a_crop(image, source) for image, source in zip(images, sources, strict=True))
        assert not torch.equal(images, sources)
    known = data.validation_images.gather(torch.arange(12))
    for images, labels in seen["validation_loss"]:
        found = [next(i for i in range(12) if torch.equal(image, known[i])) for image in images]
        assert torch.equal(labels, data.validation_labels[found])
    for (first, _), (second, _) in seen.values():
        assert not torch.equal(first, second)


def test_each_epoch_and_seed_has_an_order_of_its_own() -> None:
    trainer = make_trainer("cpu")
    orders = [trainer.epoch_order(0), trainer.epoch_order(1), make_trainer("cpu", seed=1).epoch_order(0)]
    assert all(order.sort().values.tolist() == list(range(24)) for order in orders)
    assert len({tuple(order.tolist()) for order in [*orders, torch.arange(24)]}) == 4
    assert torch.equal(trainer.epoch_order(1), orders[1])


@pytest.mark.parametrize("variant", [None, "relative", "cosine", "constant-sum"])
def test_a_step_takes_its_rates_and_its_variant_from_the_configuration(
    variant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def spying(*arguments: Any, **options: Any) -> dict[str, Tensor]:
        given.append(options | {"alpha": float(options["alpha"])})
        return automl_gradients(*arguments, **options)

    monkeypatch.setattr("rsslcli.core.training.step.automl_gradients", spying)
    variants = (variant,) if variant else ()
    options = {"meta_lr": 0.3, "lookahead_scale": 2.0, "automl_variants": variants, "lr": 0.1, "min_lr": 0.0}
    make_trainer("cpu", tasks=("ir",), **options).step(3, torch.arange(8))
    (found,) = given
    # A third of the way along a cosine: cos 60° = 1/2.
    assert (found["alpha"], found["beta"]) == (pytest.approx(2.0 * 0.1 * 0.75), 0.3)
    switches = {"relative": "relative", "cosine": "cosine", "constant-sum": "keep_sum"}
    assert {name for name, switch in switches.items() if found[switch]} == set(variants)
    assert (found["drift"], found["factors"]) == (0.0, 1.0)


def test_a_step_of_adamw_decouples_the_decay_and_has_the_trunk_s_own_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first step written out, in float64: both moments, corrected for their start, are the gradient's."""
    monkeypatch.setattr("rsslcli.core.training.step.to_float", partial(to_float, dtype=torch.float64))
    trainer = make_trainer(
        "cpu", tasks=("ir",), weighting="fixed", optimizer="adamw", lr=0.01, weight_decay=0.3,
        trunk_lr_factor=0.5,
    )  # fmt: skip
    trainer.model.double().train()
    trainer.lambdas = trainer.lambdas.double()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.step(0, trainer.epoch_order(0)[:8])
    for name, p in trainer.model.named_parameters():
        assert p.grad is not None
        rate = 0.01 if name.startswith(("heads.", "network.fc.")) else 0.005
        expected = before[name] * (1 - 0.3 * rate) - rate * p.grad / (p.grad.abs() + 1e-8)
        assert relative(p.detach(), expected) < 1e-9, name
