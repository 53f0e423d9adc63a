"""The losses of one batch: what shares a pass, what touches the running statistics, in which precision."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.errors import TaskError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.registry import TASKS, build_tasks
from rsslcli.core.training.automl import MAIN
from rsslcli.core.training.multitask import MultiTaskNetwork

MODES = ("per-task", "joint", "all")
ALL = tuple(TASKS)
DETERMINED = ("rotation", "color", "ir", "bir", "inpaint")  # those that draw nothing


def make_model(tasks: tuple[str, ...], mode: str = "per-task", *, autocast: bool = False) -> MultiTaskNetwork:
    torch.manual_seed(3)
    model = MultiTaskNetwork(WideResNet(10, 1), build_tasks(tasks), batch_norm=mode, autocast=autocast)
    return model.train() if autocast else model.double().train()


def collect(
    model: MultiTaskNetwork, images: Tensor, labels: Tensor, seed: int = 11
) -> tuple[list[list[str]], dict[str, Tensor]]:
    """The groups by name, and all losses."""
    groups, losses = [], {}
    for group in model.losses(images, labels, BatchRandom(torch.Generator().manual_seed(seed))):
        groups.append(list(group))
        losses.update(group)
    return groups, losses


def statistics(model: MultiTaskNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.network.named_buffers()}


def assert_equal(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 0.0
) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)


class Eraser(Task):
    """A task that breaks its contract: it changes its images in place."""

    def head(self, features: int) -> nn.Module:
        return nn.Linear(features, 2)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        erased = random.integers(images, 2)
        images.mul_(1 - erased.reshape(-1, 1, 1, 1))
        return images, erased

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_task_may_not_change_the_images_of_the_main_task(device: str) -> None:
    model = MultiTaskNetwork(WideResNet(10, 1), {"eraser": Eraser()}).to(device)
    random = BatchRandom(torch.Generator().manual_seed(0))
    with pytest.raises(TaskError, match="changes the images that it is given, which the main task sees too"):
        [*model.losses(torch.rand(4, 3, 32, 32, device=device), torch.arange(4, device=device), random)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tasks", [ALL, ("ir",), ("jigsaw", "rotation"), ()])
def test_groups_share_what_they_can(
    mode: str, tasks: tuple[str, ...], images: Tensor, labels: Tensor
) -> None:
    groups, losses = collect(make_model(tasks, mode), images, labels)
    assert sorted(losses) == sorted([MAIN, *tasks])
    assert all(loss.shape == () and loss.requires_grad for loss in losses.values())
    shared = [MAIN, *(name for name in tasks if name == "ir")]
    others = [name for name in tasks if name != "ir"]
    expected = [shared, *([name] for name in others)] if mode != "joint" else [[*shared, *others]]
    assert groups == expected


def separately(model: MultiTaskNetwork, images: Tensor, labels: Tensor, mode: str) -> dict[str, Tensor]:
    """The losses written out: views, features of one pass or of several, heads."""
    random = BatchRandom(torch.Generator().manual_seed(11))
    views = {name: task.transform(images, random) for name, task in model.tasks.items()}
    network = model.network
    if mode == "joint":
        apart = [name for name in views if name != "ir"]
        together = network.features(torch.cat([images, *(views[name][0] for name in apart)]))
        features, start = {}, 0
        for name, count in [(MAIN, len(images)), *((name, len(views[name][0])) for name in apart)]:
            features[name] = together[start : start + count]
            start += count
        assert start == len(together)
        features["ir"] = features[MAIN]
    else:
        features = {name: network.features(x) for name, (x, _) in views.items()}
        features[MAIN] = network.features(images)
    scores = F.linear(features[MAIN], network.fc.weight, network.fc.bias)
    losses = {MAIN: F.cross_entropy(scores, labels)}
    for name, task in model.tasks.items():
        losses[name] = task.loss(model.heads[name](features[name]), views[name][1])
    return losses


@pytest.mark.parametrize("mode", MODES)
def test_losses_are_those_of_passes_written_out(mode: str, images: Tensor, labels: Tensor) -> None:
    model = make_model(ALL, mode)
    expected = separately(copy.deepcopy(model), images, labels, mode)
    _, losses = collect(model, images, labels)
    assert_equal(losses, expected, 1e-12)
    assert len({round(float(loss.detach()), 6) for loss in losses.values()}) == len(losses)


def test_modes_differ_only_by_the_statistics_they_normalize_with(images: Tensor, labels: Tensor) -> None:
    apart, together = make_model(ALL, "per-task"), make_model(ALL, "joint")
    for model in (apart, together):
        model.network.eval()
    assert_equal(collect(apart, images, labels)[1], collect(together, images, labels)[1], 1e-12)
    for model in (apart, together):
        model.train()
    first, second = (float(collect(model, images, labels)[1][MAIN].detach()) for model in (apart, together))
    assert abs(first - second) > 1e-4


def test_in_mode_all_each_pass_updates_the_running_statistics(images: Tensor, labels: Tensor) -> None:
    """Those of the first layer by hand: its inputs depend on no other normalization. Then those of all."""
    model, reference = make_model(ALL, "all"), make_model(ALL)
    random = BatchRandom(torch.Generator().manual_seed(11))
    views = {name: task.transform(images, random)[0] for name, task in model.tasks.items()}
    del views["ir"]
    mean = torch.zeros(16, dtype=torch.float64)
    var = torch.ones(16, dtype=torch.float64)
    for x in (images, *views.values()):
        seen = F.conv2d(2 * x - 1, model.network.conv1.weight, padding=1).transpose(0, 1).flatten(1)
        mean = 0.9 * mean + 0.1 * seen.mean(1)
        var = 0.9 * var + 0.1 * seen.var(1)
        reference.network.features(x)
    collect(model, images, labels)
    first = model.network.block1.layer[0].bn1
    torch.testing.assert_close(first.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.running_var, var, rtol=1e-12, atol=1e-12)
    assert_equal(statistics(model), statistics(reference), 1e-12)
    before = statistics(model)
    model.validation_loss(images, labels)(model.psi())
    assert_equal(statistics(model), before)


def test_mode_all_changes_no_loss(images: Tensor, labels: Tensor) -> None:
    _, expected = collect(make_model(ALL), images, labels)
    assert_equal(collect(make_model(ALL, "all"), images, labels)[1], expected)


@pytest.mark.parametrize("mode", MODES)
def test_tasks_may_see_some_of_the_images(mode: str, images: Tensor, labels: Tensor) -> None:
    """The main task sees all of them; a task on clean images uses the features of its images among all."""
    tasks = ("rotation", "ir", "jigsaw")
    model = make_model(tasks, mode)
    seen = torch.tensor([0, 2])
    random = BatchRandom(torch.Generator().manual_seed(11))
    losses: dict[str, Tensor] = {}
    for group in copy.deepcopy(model).losses(images, labels, random, task_images=seen):
        losses |= group

    random = BatchRandom(torch.Generator().manual_seed(11))
    views = {name: task.transform(images[seen], random) for name, task in model.tasks.items()}
    inputs = [images, views["rotation"][0], views["jigsaw"][0]]
    if mode == "joint":
        parts = model.network.features(torch.cat(inputs)).split([4, 8, 2])
    else:
        parts = [model.network.features(x) for x in inputs]
    features = dict(zip((MAIN, "rotation", "jigsaw"), parts, strict=True))
    features["ir"] = features[MAIN][seen]
    expected = {MAIN: F.cross_entropy(model.network.fc(features[MAIN]), labels)}
    for name, task in model.tasks.items():
        expected[name] = task.loss(model.heads[name](features[name]), views[name][1])
    assert_equal(losses, expected, 1e-12)


@pytest.mark.parametrize("mode", ["per-task", "joint"])
def test_running_statistics_are_updated_once(mode: str, images: Tensor, labels: Tensor) -> None:
    """By the main pass alone, or by the joint one."""
    model, reference = make_model(ALL, mode), make_model(ALL, mode)
    before = statistics(model)
    collect(model, images, labels)
    if mode == "per-task":
        reference.network.features(images)
    else:
        random = BatchRandom(torch.Generator().manual_seed(11))
        views = {name: task.transform(images, random)[0] for name, task in reference.tasks.items()}
        del views["ir"]
        reference.network.features(torch.cat([images, *views.values()]))
    assert_equal(statistics(model), statistics(reference), 1e-12)
    assert int(model.network.bn1.num_batches_tracked) == int(before["bn1.num_batches_tracked"]) + 1
    assert not torch.equal(model.network.bn1.running_mean, before["bn1.running_mean"])


def test_a_pass_is_made_when_its_losses_are_asked_for(images: Tensor, labels: Tensor) -> None:
    """One graph at a time is in memory, and between two passes the statistics are not left switched off."""
    model = make_model(("rotation", "bir"))
    sizes: list[int] = []
    features = model._features

    def counted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return features(x)

    model._features = counted
    groups = iter(model.losses(images, labels, BatchRandom()))
    assert sizes == []
    for done in ([4], [4, 16], [4, 16, 4]):
        next(groups)
        assert sizes == done
        before = statistics(model)
        features(images)
        assert not torch.equal(statistics(model)["bn1.running_mean"], before["bn1.running_mean"])
    assert next(groups, None) is None


def test_the_order_of_tasks_does_not_change_their_losses(images: Tensor, labels: Tensor) -> None:
    """In per-task mode no task can see another, as long as it draws nothing."""
    model, turned = make_model(DETERMINED), make_model(DETERMINED[::-1])
    assert list(turned.heads) == list(reversed(list(model.heads)))
    turned.load_state_dict(model.state_dict())
    _, losses = collect(model, images, labels)
    _, same = collect(turned, images, labels)
    assert_equal(same, losses)
    alone = make_model(("bir",))
    alone.network.load_state_dict(make_model(DETERMINED).network.state_dict())
    alone.heads["bir"].load_state_dict(make_model(DETERMINED).heads["bir"].state_dict())
    _, single = collect(alone, images, labels)
    assert_equal(single, {name: losses[name] for name in (MAIN, "bir")})


@pytest.mark.parametrize("mode", MODES)
def test_gradients_go_where_they_belong(mode: str, images: Tensor, labels: Tensor) -> None:
    """A task moves the trunk and its own head, not the classifier and not another head."""
    model = make_model(("rotation", "ir", "jigsaw"), mode)
    _, losses = collect(model, images, labels)
    for name, loss in losses.items():
        model.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        moved = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
        trunk = {key for key in moved if key.startswith("network.") and not key.startswith("network.fc.")}
        own = moved - trunk
        assert len(trunk) == len(list(model.network.parameters())) - 2
        prefix = "network.fc." if name == MAIN else f"heads.{name}."
        assert own == {key for key, _ in model.named_parameters() if key.startswith(prefix)}


def test_parameters_are_shared_out_completely() -> None:
    model = make_model(ALL)
    psi, heads = model.psi(), model.head_parameters()
    assert list(psi) == [f"network.{name}" for name, _ in model.network.named_parameters()]
    assert list(heads) == list(ALL)
    everything = [*psi.values(), *(p for parameters in heads.values() for p in parameters)]
    assert {id(p) for p in everything} == {id(p) for p in model.parameters()}
    assert len(everything) == len({id(p) for p in everything})


def test_validation_loss_is_the_main_loss_at_other_parameters(images: Tensor, labels: Tensor) -> None:
    model = make_model(("rotation",))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.network.parameters():
            p.add_(0.01)
    psi = {name: p.detach().requires_grad_() for name, p in other.psi().items()}
    before = statistics(model)
    loss = model.validation_loss(images, labels)(psi)
    assert_equal(statistics(model), before)
    expected = F.cross_entropy(other.network(images), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(loss, list(psi.values()))
    wanted = torch.autograd.grad(expected, list(other.network.parameters()))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_gives_losses_in_float32_near_the_exact_ones(
    mode: str, images: Tensor, labels: Tensor
) -> None:
    tasks = ("rotation", "color", "ir", "jigsaw")
    exact, rounded = make_model(tasks, mode), make_model(tasks, mode, autocast=True)
    _, expected = collect(exact, images, labels)
    _, losses = collect(rounded, images.float(), labels)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert float(loss.detach()) == pytest.approx(float(expected[name].detach()), rel=0.05), name
    assert any(abs(float(losses[n].detach() - expected[n].detach())) > 1e-5 for n in losses), "it did round"
    validation = rounded.validation_loss(images.float(), labels)(rounded.psi())
    assert validation.dtype == torch.float32
    reference = exact.validation_loss(images, labels)(exact.psi())
    assert float(validation.detach()) == pytest.approx(float(reference.detach()), rel=0.05)
    flat = []
    for model, values in ((rounded, losses), (exact, expected)):
        gradients = torch.autograd.grad(sum(values.values()), list(model.parameters()))  # type: ignore[arg-type]
        assert all(g.dtype == p.dtype for g, p in zip(gradients, model.parameters(), strict=True))
        flat.append(torch.cat([gradient.flatten().double() for gradient in gradients]))
    assert float(F.cosine_similarity(flat[0], flat[1], dim=0)) > 0.95


def test_bfloat16_takes_effect_in_trunk_and_heads(images: Tensor, labels: Tensor) -> None:
    model = make_model(("color",), autocast=True)
    seen: dict[str, torch.dtype] = {}
    for name in ("network.block2.layer.0.conv1", "heads.color.1", "network.fc"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out.dtype})
        )
    collect(model, images.float(), labels)
    assert len(seen) == 3
    assert set(seen.values()) == {torch.bfloat16}
