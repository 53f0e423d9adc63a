"""Adaptation at test time, against implementations by the definitions."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_accuracy import COUNT, CPU, corrupted_set
from torch import Tensor, nn

import rsslcli
from rsslcli.core.config import Config
from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.store import Split
from rsslcli.core.errors import DivergedError, UserError
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.adaptation import AdaptiveClassifier, make_adaptive
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.fingerprint import setting_of
from rsslcli.core.evaluation.result import Evaluation
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.weights.checkpoint import Checkpoint, save_checkpoint
from rsslcli.core.weights.trained_tasks import TrainedTasks, trained_tasks

Batches = list[Tensor]


@pytest.fixture
def network() -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(10, 1, classes=3)
    network.train()(torch.rand(16, 3, 32, 32))  # running statistics that are not the initial ones
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bn" in name:  # scales and shifts that are not the initial ones
                parameter.add_(torch.rand_like(parameter) / 2)
    return network.eval()


@pytest.fixture
def batches() -> Batches:
    torch.manual_seed(1)
    return [torch.rand(n, 3, 32, 32) ** 2 for n in (13, 12, 12)]


def run_of(network: WideResNet, tasks: tuple[str, ...], lambdas: tuple[float, ...]) -> Checkpoint:
    """The checkpoint of a run with heads of random weights."""
    torch.manual_seed(2)
    config = Config(tasks=tasks, depth=10, width=1)
    model = MultiTaskNetwork(network, build_tasks(tasks))
    optimizer = torch.optim.SGD(model.parameters()).state_dict()
    return Checkpoint(
        config=config, classes=("ant", "bee", "cow"), step=1, classifier=network.state_dict(),
        heads=model.heads.state_dict(), optimizer=optimizer, lambdas=torch.tensor(lambdas), excluded=(),
        train_data="", validation_data="",
    )  # fmt: skip


class ByDefinition(nn.Module):
    """Batch normalization by (x − mean) / sqrt(variance + ε), with mixed statistics."""

    def __init__(self, layer: nn.BatchNorm2d, prior: float) -> None:
        super().__init__()
        self.layer, self.prior = layer, prior

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        assert layer.running_mean is not None
        assert layer.running_var is not None
        alpha = self.prior / (self.prior + x.shape[0])
        columns = []
        for channel in range(x.shape[1]):
            values = x[:, channel]
            mean = alpha * layer.running_mean[channel] + (1 - alpha) * values.mean()
            spread = ((values - values.mean()) ** 2).mean()
            var = alpha * layer.running_var[channel] + (1 - alpha) * spread
            normal = (values - mean) / torch.sqrt(var + layer.eps)
            columns.append(normal * layer.weight[channel] + layer.bias[channel])
        return torch.stack(columns, 1)


def by_definition(network: nn.Module, prior: float) -> nn.Module:
    """A copy in float64, with every layer replaced."""
    model = copy.deepcopy(network).double()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, ByDefinition(layer, prior))
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prior", [0, 5, 64])
def test_bn_is_its_definition(network: WideResNet, batches: Batches, prior: float) -> None:
    adaptive = rsslcli.adapt(network, prior=prior)
    expected = by_definition(network, prior)
    for images in batches:
        with torch.no_grad():
            scores = expected(images.double())
        torch.testing.assert_close(adaptive(images).double(), scores, atol=1e-5, rtol=1e-5)
        assert (scores - network(images)).abs().max() > 1e-3


def test_a_prior_of_infinity_is_no_adaptation_and_0_the_batch_alone(
    network: WideResNet, batches: Batches
) -> None:
    images = batches[0]
    with torch.no_grad():
        assert torch.equal(rsslcli.adapt(network, prior=math.inf)(images), network(images))
        torch.testing.assert_close(rsslcli.adapt(network, prior=1e9)(images), network(images))
        trained = copy.deepcopy(network).train()
        torch.testing.assert_close(rsslcli.adapt(network, prior=0)(images), trained(images))


def test_a_batch_of_one_image_works_and_leans_on_the_training(network: WideResNet, batches: Batches) -> None:
    one = batches[0][:1]
    scores = rsslcli.adapt(network, prior=1000)(one)
    assert (scores - network(one)).abs().max() < (
        rsslcli.adapt(network, prior=1)(one) - network(one)
    ).abs().max()


def test_gradients_pass_through_the_statistics(network: WideResNet, batches: Batches) -> None:
    images = batches[0].double()
    model = rsslcli.adapt(network.double(), "tent", prior=7).model
    expected = by_definition(network, 7)
    for each in (model, expected):
        each(images).square().sum().backward()
    weights = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            naive = weights[name.replace(".weight", ".layer.weight").replace(".bias", ".layer.bias")]
            torch.testing.assert_close(parameter.grad, naive.grad)


def test_tent_is_its_definition(network: WideResNet, batches: Batches) -> None:
    """A loop with the batch normalization of PyTorch in training mode, as in the authors' code."""
    adaptive = rsslcli.adapt(network, "tent")
    model = copy.deepcopy(network).train().requires_grad_(False)
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    parameters = [p for layer in layers for p in (layer.weight.requires_grad_(), layer.bias.requires_grad_())]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.999))
    for images in batches:
        scores = model(images)
        entropy = -(scores.softmax(1) * scores.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        entropy.backward()
        optimizer.step()
        torch.testing.assert_close(adaptive(images), scores.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["bn", "tent", "tasks"])
def test_the_classifier_stays_as_it_is(network: WideResNet, batches: Batches, method: str) -> None:
    network.train()
    before = state_of(network)
    adaptive = make_adaptive(
        network, Adaptation(method), trained_tasks(run_of(network, ("rotation",), (0.5,)))
    )
    for images in batches:
        assert not adaptive(images).requires_grad
    assert same(state_of(network), before)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(("method", "moves"), [("tent", ".bn"), ("tasks", "")])
def test_what_moves_and_that_it_returns(
    network: WideResNet, batches: Batches, method: str, moves: str
) -> None:
    tasks = trained_tasks(run_of(network, ("rotation",), (0.5,)))
    adaptive = make_adaptive(network, Adaptation(method, episodic=False), tasks)
    before = state_of(adaptive)
    first = [adaptive(images) for images in batches]
    after = state_of(adaptive)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("model.") and not name.startswith("model.fc.") for name in moved)
    assert not [name for name in moved if "running" in name]
    if method == "tent":
        assert moved == {name for name in before if ".bn" in name and name.endswith((".weight", ".bias"))}
    adaptive.reset()
    assert same(state_of(adaptive), before)
    assert all(torch.equal(adaptive(images), scores) for images, scores in zip(batches, first, strict=True))


def test_tasks_are_gradient_descent_on_the_run_s_own_loss(network: WideResNet, batches: Batches) -> None:
    checkpoint = run_of(network, ("rotation", "ir"), (0.5, 0.25))
    tasks = trained_tasks(checkpoint)
    assert not any(module.training for module in tasks.heads.modules())
    adaptive = make_adaptive(network, Adaptation("tasks", prior=math.inf, steps=2, learning_rate=0.01), tasks)
    for images in batches[:2]:
        model = copy.deepcopy(network)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
            angles = torch.arange(4).repeat_interleave(len(images))
            rotation = nn.functional.cross_entropy(tasks.heads["rotation"](model.features(turned)), angles)
            built = build_tasks(["ir"])["ir"]
            again = built.loss(tasks.heads["ir"](model.features(images)), images)
            optimizer.zero_grad()
            (0.5 * rotation + 0.25 * again).backward()
            optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(adaptive(images), model(images), atol=1e-4, rtol=1e-4)


def test_episodic_adaptation_forgets_each_batch(network: WideResNet, batches: Batches) -> None:
    tasks = trained_tasks(run_of(network, ("ir",), (0.5,)))
    for method in ("tent", "tasks"):
        settings = Adaptation(method, episodic=True, steps=2, learning_rate=0.01)
        adaptive = make_adaptive(network, settings, tasks)
        first = adaptive(batches[0])
        adaptive(batches[1])
        assert torch.equal(adaptive(batches[0]), first)
        lasting = make_adaptive(network, dataclasses.replace(settings, episodic=False), tasks)
        lasting(batches[1])
        assert not torch.equal(lasting(batches[0]), first)


@pytest.mark.parametrize("method", ["bn", "tent", "tasks"])
def test_adaptation_copies_nothing_to_the_host(network: WideResNet, method: str) -> None:
    """It also runs on the meta device, which has no values."""
    tasks = trained_tasks(run_of(network, ("rotation",), (0.5,)))
    adaptive = make_adaptive(network.to("meta"), Adaptation(method), tasks)
    adaptive.reset()
    assert adaptive(torch.rand(4, 3, 32, 32, device="meta")).shape == (4, 3)


def test_other_models_with_batch_normalization_adapt_too(batches: Batches) -> None:
    layer = nn.BatchNorm2d(4)
    shared = nn.Sequential(
        nn.Conv2d(3, 4, 3), layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(3600, 3)
    ).eval()
    scores = rsslcli.adapt(shared, prior=5)(batches[0])
    with torch.no_grad():
        expected = by_definition(shared, 5)
        second = nn.Sequential(*expected[:3], expected[1], *expected[4:])
        torch.testing.assert_close(scores.double(), second(batches[0].double()), atol=1e-5, rtol=1e-5)
        half = rsslcli.adapt(copy.deepcopy(shared).bfloat16(), prior=5)(batches[0].bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), scores, atol=0.1, rtol=0.1)
    assert torch.isfinite(rsslcli.adapt(nn.BatchNorm1d(3).eval(), prior=0)(torch.rand(1, 3))).all()


class NormalizationWithActivation(nn.BatchNorm2d):
    """As networks outside torchvision have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("method", ["bn", "tent"])
def test_normalization_that_does_more_is_not_replaced(method: str) -> None:
    """Its statistics cannot be mixed without losing what else it does."""
    model = nn.Sequential(NormalizationWithActivation(3), nn.Flatten()).eval()
    with pytest.raises(UserError, match="NormalizationWithActivation does more than normalize"):
        rsslcli.adapt(model, method, prior=5)
    images = torch.rand(4, 3, 2, 2) - 0.5
    torch.testing.assert_close(rsslcli.adapt(model, "bn", prior=math.inf)(images), model(images))
    rsslcli.adapt(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3))), method)


def test_refuses(network: WideResNet) -> None:
    def refused(match: str, function: Callable[..., object], *arguments: Any, **keywords: Any) -> None:
        with pytest.raises(UserError, match=match):
            function(*arguments, **keywords)

    refused("has no batch normalization", rsslcli.adapt, nn.Linear(3, 2))
    refused("has no scales and shifts", rsslcli.adapt, nn.BatchNorm2d(3, affine=False), "tent")
    refused("needs the heads of a run", rsslcli.adapt, network, "tasks")
    refused("weights from elsewhere", trained_tasks, None)
    refused("this is a baseline", trained_tasks, run_of(network, (), ()))
    averaged = run_of(network, ("ir",), (0.5,))
    averaged = dataclasses.replace(averaged, config=dataclasses.replace(averaged.config, ema=0.9))
    refused("`ema` averages the network alone", trained_tasks, averaged)
    refused("λ of ir, rgb is 0", trained_tasks, run_of(network, ("ir", "rgb"), (0.0, 0.0)))
    refused("tent moves weights by steps that half precision", rsslcli.adapt, network.bfloat16(), "tent")
    refused("unknown adaptation 'tents': did you mean 'tent'", Adaptation, "tents")
    refused("unknown stream 'sort'", Adaptation, "bn", stream="sort")
    refused("`prior`: expected a number from 0, got -1", Adaptation, "bn", prior=-1)
    refused("`prior`: expected a number from 0, got nan", Adaptation, "bn", prior=math.nan)
    refused("`learning_rate`: expected a finite number", Adaptation, "tent", learning_rate=math.inf)
    refused("`steps`: expected a whole number from 1, got 1.5", Adaptation, "tent", steps=1.5)
    refused("`seed`: expected a whole number from 0, got True", Adaptation, "tent", seed=True)
    refused("`batch_size`: expected a whole number from 1, got 0", Adaptation, "bn", batch_size=0)
    refused("steps: bn takes no gradient steps", Adaptation, "bn", steps=2)


def test_only_tasks_with_a_weight_act(network: WideResNet) -> None:
    tasks = trained_tasks(run_of(network, ("rotation", "ir", "rgb"), (0.5, 0.0, 0.25)))
    assert (tasks.lambdas, list(tasks.heads)) == ({"rotation": 0.5, "rgb": 0.25}, ["rotation", "rgb"])


def test_a_loaded_classifier_adapts_by_its_tasks(
    network: WideResNet, batches: Batches, tmp_path: Path
) -> None:
    checkpoint = run_of(network, ("rotation",), (0.5,))
    save_checkpoint(tmp_path / "checkpoint.pt", checkpoint)
    classifier = rsslcli.load_classifier(tmp_path)
    wrapped = nn.Sequential(nn.Identity(), classifier)
    expected = make_adaptive(network, Adaptation("tasks"), trained_tasks(checkpoint))(batches[0])
    torch.testing.assert_close(rsslcli.adapt(wrapped, "tasks")(batches[0]), expected)


# Evaluation


@pytest.fixture
def corrupted(tmp_path: Path, test_split: Split) -> CorruptedSet:
    return corrupted_set(tmp_path / "c", ("fog", "snow"), test_split.labels[:COUNT])


class Watched(AdaptiveClassifier):
    """Keeps the batches that each stream gives."""

    streams: list[list[Tensor]]

    def reset(self) -> None:
        self.streams.append([])

    def forward(self, images: Tensor) -> Tensor:
        self.streams[-1].append(images.clone())
        scores: Tensor = super().forward(images)
        return scores


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """The batches of each stream of an evaluation."""
    kept: list[list[Tensor]] = []

    def make(network: nn.Module, settings: Adaptation, tasks: TrainedTasks | None) -> AdaptiveClassifier:
        watched = Watched(network, settings)
        watched.streams = kept
        return watched

    monkeypatch.setattr("rsslcli.core.evaluation.accuracy.make_adaptive", make)
    return kept


def labels_of(images: Tensor, cell: np.ndarray, labels: np.ndarray) -> list[int]:
    """The labels of those images of a batch that are in a cell."""
    known = {image.tobytes(): int(label) for image, label in zip(cell, labels, strict=False)}
    found = [(image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy() for image in images]
    return [known[image.tobytes()] for image in found if image.tobytes() in known]


def test_the_stream_of_a_cell(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, streams: list[list[Tensor]]
) -> None:
    """Every image once, in batches of nearly equal size; the seed decides the batches."""
    labels = corrupted.labels[np.setdiff1d(np.arange(COUNT), [3])]
    for seed in (0, 0, 1):
        settings = Adaptation("bn", batch_size=12, seed=seed)
        evaluate(
            network, test_split, corrupted, device=CPU, corruptions=["fog"], severities=[2], excluded=[3],
            adaptation=settings,
        )  # fmt: skip
    assert [[len(batch) for batch in stream] for stream in streams[:2]] == [[12, 12, 12], [10, 10, 9]]
    found = [
        label
        for batch in streams[1]
        for label in labels_of(batch, corrupted.cell("fog", 2), corrupted.labels)
    ]
    assert sorted(found) == sorted(labels.tolist())
    assert all(map(torch.equal, streams[1], streams[3]))
    assert not all(map(torch.equal, streams[1], streams[5]))


def test_a_sorted_stream_gives_class_after_class(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, streams: list[list[Tensor]]
) -> None:
    settings = Adaptation("bn", batch_size=10, stream="sorted")
    evaluate(network, test_split, corrupted, device=CPU, severities=[1], adaptation=settings)
    shown = [sorted(labels_of(batch, corrupted.cell("snow", 1), corrupted.labels)) for batch in streams[1]]
    assert [label for batch in shown for label in batch] == sorted(corrupted.labels.tolist())


def test_a_mixed_stream_gives_all_corruptions_of_a_severity_together(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, streams: list[list[Tensor]]
) -> None:
    settings = Adaptation("bn", batch_size=20, stream="mixed")
    result = evaluate(network, test_split, corrupted, device=CPU, severities=[1, 4], adaptation=settings)
    assert [len(stream) for stream in streams] == [2, 3, 3]
    for batch in streams[2]:
        for name in ("fog", "snow"):
            assert 3 < len(labels_of(batch, corrupted.cell(name, 4), corrupted.labels)) < 17
    adaptive = rsslcli.adapt(network)
    right = {"fog": 0, "snow": 0}
    for batch in streams[2]:
        for image, predicted in zip(batch, adaptive(batch).argmax(1).tolist(), strict=True):
            for name in right:
                right[name] += labels_of(image[None], corrupted.cell(name, 4), corrupted.labels) == [
                    predicted
                ]
    assert result.adapted is not None
    for name, count in right.items():
        assert result.adapted.accuracy[name] == [
            result.adapted.accuracy[name][0],
            None,
            None,
            count / COUNT,
            None,
        ]


@pytest.mark.parametrize("method", ["bn", "tent", "tasks"])
def test_a_cell_does_not_depend_on_the_cells_before_it(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path, method: str
) -> None:
    """Nor on an interruption; and the unadapted accuracies are those of an evaluation without adaptation."""
    settings = Adaptation(method, batch_size=10)
    if method != "bn":
        settings = dataclasses.replace(settings, learning_rate=0.05)
    tasks = trained_tasks(run_of(network, ("rotation",), (0.5,))) if method == "tasks" else None
    partial = tmp_path / "r.json.partial"

    def run(*names: str, stop_at: int = 99, severities: tuple[int, ...] = (1, 5)) -> Evaluation:
        def stop(description: str, done: int, total: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        return evaluate(
            network, test_split, corrupted, device=CPU, corruptions=names, severities=severities,
            adaptation=settings, tasks=tasks, partial=partial, progress=stop,
        )  # fmt: skip

    whole = run("snow", "fog")
    partial.unlink()
    with pytest.raises(KeyboardInterrupt):
        run("snow", "fog", stop_at=8)
    assert sum(key.startswith("adapted/") for key in json.loads(partial.read_text())["cells"]) == 3
    assert run("snow", "fog") == whole
    assert whole.adapted is not None
    alone = run("fog", severities=(5,))
    assert alone.adapted is not None
    assert alone.adapted.accuracy["fog"][4] == whole.adapted.accuracy["fog"][4]
    plain = evaluate(
        network, test_split, corrupted, device=CPU, corruptions=["snow", "fog"], severities=(1, 5)
    )
    assert dataclasses.replace(whole, adapted=None) == plain


def test_unadapted_accuracies_of_an_earlier_evaluation_are_reused(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """If it is of the same weights, images and precision; only which images are right is not in it."""
    file = tmp_path / "eval-c.json"

    def run(**changes: Any) -> Evaluation:
        options: dict[str, Any] = {"about": {"weights": "w"}, "excluded": [4], "earlier": file}
        return evaluate(
            network, test_split, corrupted, device=CPU, adaptation=Adaptation(), **options | changes
        )

    first = run()
    first.save(file)
    counted: list[int] = []
    original = evaluate.__globals__["measure"]
    monkeypatch.setitem(evaluate.__globals__, "measure", lambda *a: counted.append(1) or original(*a))
    again = run()
    assert dataclasses.replace(again, confidence=None) == dataclasses.replace(first, confidence=None)
    assert not counted
    assert first.confidence
    assert again.confidence
    assert not again.confidence.intervals
    assert again.confidence.nll["fog"] == pytest.approx(first.confidence.nll["fog"], rel=1e-5)
    changes: list[dict[str, Any]] = [
        {"about": {"weights": "v"}}, {"about": {}}, {"excluded": []}, {"limit": 9}, {"precision": "bfloat16"},
    ]  # fmt: skip
    for change in changes:
        counted.clear()
        run(**change)
        assert len(counted) == 11, change
    content = json.loads(file.read_text())
    content["accuracy"]["fog"][2] = "high"
    file.write_text(json.dumps(content))
    counted.clear()
    assert run().accuracy == first.accuracy
    assert len(counted) == 11, "a damaged file says nothing"


def test_an_adaptation_that_diverges_is_an_error(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet
) -> None:
    settings = Adaptation("tent", learning_rate=1e18, batch_size=10)
    match = "the clean test set, adapted: the highest score of .* NaN .* adaptation diverges: raise `prior`"
    with pytest.raises(DivergedError, match=match):
        evaluate(network, test_split, corrupted, device=CPU, corruptions=["fog"], adaptation=settings)


def test_the_result_holds_both_accuracies_and_the_settings(tmp_path: Path) -> None:
    cells: dict[str, list[float | None]] = {"fog": [0.5, 0.4, None, None, None], "snow": [0.5] * 5}
    settings = Adaptation("tent", prior=math.inf).to_dict()
    better: dict[str, list[float | None]] = {"fog": [0.75, 0.25, None, None, None], "snow": [0.5625] * 5}
    result = Evaluation(0.9, 30, cells, 10, (), adapted=Evaluation(0.8, 30, better, 10, (), settings))
    content = json.loads(result.to_json())
    assert content["accuracy"] == cells
    assert content["adapted"]["accuracy"] == better
    used = {"method": "tent", "prior": "inf", "batch_size": 200, "stream": "shuffled", "seed": 0}
    steps = {"steps": 1, "learning_rate": 1e-3, "episodic": False}
    assert {name: content["adapted"][name] for name in settings} == used | steps
    lines = result.to_csv().splitlines()
    assert lines[:3] == [
        "corruption,severity,accuracy,images,adapted_accuracy", "clean,0,0.9,30,0.8", "fog,1,0.5,10,0.75",
    ]  # fmt: skip
    assert lines[-1] == "snow,5,0.5,10,0.5625"
    text = result.to_markdown()
    assert "| clean | 90.00 | 80.00 | -10.00 | – | – | – | – | – |" in text
    assert "| fog | – | – | – | 25.00 | -15.00 | – | – | – |" in text
    assert "| snow | 50.00 | 56.25 | 6.25 | 6.25 |" in text
    assert "(tent: prior inf, batches of at most 200 images, shuffled by seed 0, 1 step at" in text


def test_tasks_adapt_under_autocast(network: WideResNet, batches: Batches) -> None:
    """As `eval-c --precision bfloat16` computes: the losses are still those of float32."""
    tasks = trained_tasks(run_of(network, ("rotation", "ir", "bir", "color"), (0.5, 0.5, 0.5, 0.5)))
    adaptive = make_adaptive(network, Adaptation("tasks"), tasks)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = adaptive(batches[0])
    assert scores.isfinite().all()


def test_autocast_sees_the_weights_that_a_step_changed(network: WideResNet, batches: Batches) -> None:
    """Autocast keeps copies of weights in bfloat16; those of before a step must not serve after it."""
    tasks = trained_tasks(run_of(network, ("rotation",), (0.5,)))
    scores = []
    for cached in (True, False):
        adaptive = make_adaptive(network, Adaptation("tasks", steps=3), tasks)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            scores.append(torch.cat([adaptive(batch) for batch in batches]))
    assert torch.equal(*scores)


def test_an_interrupted_mixed_stream_serves_no_other_mixture() -> None:
    shuffled, mixed = Adaptation("bn"), Adaptation("bn", stream="mixed")
    one, both = (["fog/1"], ["fog/1", "snow/1"])
    assert setting_of("", shuffled, None, None, one) == setting_of("", shuffled, None, None, both)
    assert setting_of("", mixed, None, None, one) != setting_of("", mixed, None, None, both)
    assert setting_of("a", mixed, None, None, one) != setting_of("b", mixed, None, None, one)


def test_the_name_of_an_adaptation_tells_it_from_others() -> None:
    assert Adaptation("bn").name == Adaptation("bn", prior=512).name == "bn"
    assert Adaptation("bn", prior=0, stream="sorted").name == "bn-prior0-sorted"
    assert Adaptation("tent", prior=math.inf, batch_size=64, seed=2).name == "tent-priorinf-batch64-seed2"


def test_what_is_not_given_is_what_the_guide_says() -> None:
    """docs/evaluation.md, and docs/results.md for the learning rates."""
    common = {"batch_size": 200, "stream": "shuffled", "seed": 0}
    steps = {"steps": 1, "learning_rate": 1e-3, "episodic": False}
    assert Adaptation().to_dict() == {"method": "bn", "prior": 512, **common}
    assert Adaptation("tent").to_dict() == {"method": "tent", "prior": 0, **common, **steps}
    steps = {"steps": 1, "learning_rate": 0.1, "episodic": True}
    assert Adaptation("tasks").to_dict() == {"method": "tasks", "prior": 512, **common, **steps}


def test_adaptation_in_bfloat16_computes_in_it(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet
) -> None:
    seen: list[torch.dtype] = []
    network.fc.register_forward_hook(lambda *given: seen.append(given[2].dtype))  # also of its copy
    options: dict[str, Any] = {"device": CPU, "corruptions": ["fog"], "severities": [1]}
    evaluate(network, test_split, corrupted, precision="bfloat16", adaptation=Adaptation("bn"), **options)
    assert len(seen) == 4
    assert set(seen) == {torch.bfloat16}


def test_random_weights_adapt_by_their_mean(network: WideResNet) -> None:
    """The last draw, which the checkpoint holds, says nothing."""
    checkpoint = run_of(network, ("rotation", "ir"), (0.1, 0.7, 0.2))
    config = dataclasses.replace(checkpoint.config, weighting="random")
    found = trained_tasks(dataclasses.replace(checkpoint, config=config))
    assert found.lambdas == {"rotation": pytest.approx(1 / 3), "ir": pytest.approx(1 / 3)}


@pytest.mark.parametrize("method", ["tent", "tasks"])
def test_what_is_frozen_stays(method: str, network: WideResNet, batches: Batches) -> None:
    network = copy.deepcopy(network)
    tasks = trained_tasks(run_of(network, ("rotation",), (0.5,)))
    settings = Adaptation(method, episodic=False)  # type: ignore[arg-type]

    def moved() -> set[str]:
        adaptive = make_adaptive(network, settings, tasks)
        before = state_of(adaptive)
        adaptive(batches[0])
        return {name for name, value in state_of(adaptive).items() if not torch.equal(value, before[name])}

    everything = moved()
    network.bn1.weight.requires_grad_(False)
    assert everything - moved() == {"model.bn1.weight"}
    network.requires_grad_(False)  # to be used, not to be kept
    assert moved() == everything


def test_a_parameter_that_no_pass_uses_stays(batches: Batches) -> None:
    class Spare(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self[2](self[1](self[0](images)).mean((2, 3)))
            return found

    model = Spare(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10), nn.BatchNorm2d(4))
    adaptive = make_adaptive(model.eval(), Adaptation("tent"))
    assert adaptive(batches[0]).isfinite().all()
    model[1].requires_grad_(False)
    model[3].requires_grad_(False)
    with pytest.raises(UserError, match="tent has nothing to move: the parameters that it adapts are frozen"):
        make_adaptive(model, Adaptation("tent"))
