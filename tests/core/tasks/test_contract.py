"""What a task owes is checked: thoroughly by `check_task`, and in passing while it trains."""

from __future__ import annotations

import random as python_random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.errors import TaskError
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.check import check_task
from rsslcli.core.tasks.registry import TASKS, build_tasks
from rsslcli.core.training.multitask import MultiTaskNetwork

HERE = Path(__file__).name


@pytest.mark.parametrize("name", TASKS)
def test_ours_keep_to_all_of_it(name: str) -> None:
    check_task(build_tasks([name])[name])
    if "hidden" in build_tasks([name])[name].options():
        check_task(build_tasks([name], {name: {"hidden": True, "scale": 3}})[name], size=32, features=64)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", TASKS)
def test_ours_keep_to_it_at_other_sizes(name: str, size: int) -> None:
    """The heads are those of 32×32 images."""
    check_task(build_tasks([name])[name], size=size)


@pytest.mark.parametrize("views", [1, 2])
def test_rotation_keeps_to_it_with_fewer_views(views: int) -> None:
    check_task(build_tasks(["rotation"], {"rotation": {"views": views}})["rotation"])


class Good(Task):
    """Twice the image, one of the two upside down by chance: to tell which."""

    answers = ("up", "down")

    def head(self, features: int) -> nn.Module:
        return nn.Linear(features, 2)

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        first = random.integers(images, 2)
        targets = torch.cat([first, 1 - first])
        views = torch.cat([images, images])
        return torch.where(targets.bool()[:, None, None, None], views.flip(2), views), targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(outputs, targets)


class Unbiased(Good):
    """A head without a bias."""

    def head(self, features: int) -> nn.Module:
        return nn.Linear(features, 2, bias=False)


def test_a_head_may_lack_a_bias() -> None:
    check_task(Unbiased())
    MultiTaskNetwork(WideResNet(10, 1), {"unbiased": Unbiased()})


class Pixels(Good):
    """A loss over pixels, which can stand in two layouts."""

    answers = ()

    def head(self, features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(features, 3 * 16), nn.Unflatten(1, (3, 4, 4)))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * outputs.square().mean()


def head(module: Any) -> dict[str, Any]:
    return {"head": lambda self, features: module(features)}


def transform(change: Any) -> dict[str, Any]:
    """`Good.transform` with its results changed by `change(inputs, targets, images)`."""
    return {"transform": lambda self, images, random: change(*Good.transform(self, images, random), images)}


def loss(value: Any) -> dict[str, Any]:
    return {"loss": value}


def own_numbers(self: Task, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
    """Draws a number for each image at hand, not for each of the batch."""
    targets = torch.randint(2, (len(images),), generator=random.generator, device=images.device)
    return torch.where(targets.bool()[:, None, None, None], images.flip(2), images), targets


def spoils(inputs: Tensor, targets: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    images.mul_(0.5)
    return inputs, targets


def shared(features: int) -> nn.Module:
    layer = nn.Linear(features, features)
    return nn.Sequential(layer, layer, nn.Linear(features, 2))


def with_buffer(features: int) -> nn.Module:
    layer = nn.Linear(features, 2)
    layer.register_buffer("mask", torch.ones(2))
    return layer


class Tiles(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:5]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "spoils": (transform(spoils), "changes the images"),
    "one": (transform(lambda x, y, i: x), "must give two tensors"),
    "smaller": (transform(lambda x, y, i: (x[..., :16], y)), "gives inputs float32 (16, 3, 32, 16)"),
    "kind": (transform(lambda x, y, i: (x.double(), y)), "gives inputs float64"),
    "too few": (transform(lambda x, y, i: (x[:9], y[:9])), "gives inputs float32 (9, 3, 32, 32)"),
    "none": (transform(lambda x, y, i: (x[:0], y[:0])), "gives inputs float32 (0, 3, 32, 32)"),
    "targets": (transform(lambda x, y, i: (x, y[:8])), "gives targets int64 (8,)"),
    "range": (transform(lambda x, y, i: (x * 2 - 1, y)), "gives inputs from -1 to 1, not 0 to 1"),
    "clean": ({"clean_input": True}, "changes the images although clean_input is set"),
    "torch": (transform(lambda x, y, i: (x * torch.rand(1), y)), "from elsewhere than `random`"),
    "python": (transform(lambda x, y, i: (x * python_random.random(), y)), "different results each time"),
    "own numbers": ({"transform": own_numbers}, "in a part of the batch"),
    "order": (
        transform(lambda x, y, i: (i.repeat_interleave(2, 0), (y * 0 + 1))),
        "in a part of the batch than in the whole: the views of image i are i, i + N",
    ),
    "layout": (
        transform(lambda x, y, i: (x * i.is_contiguous(), y)),
        "different results for images in channels-last layout",
    ),
    "precision": (
        transform(lambda x, y, i: (x if x.dtype == torch.float32 else 1 - x, y)),
        "images of float64",
    ),
    "waits": (transform(lambda x, y, i: (x * float(x.max() > -1), y)), "and read no values"),
    "elsewhere": (
        transform(lambda x, y, i: (x, torch.ones(len(y), dtype=torch.int64))),
        "must stay on the images' device",
    ),
    "no network": (head(lambda f: 3), "gives a int, not a torch.nn.Module"),
    "buffer": (head(with_buffer), "persistent=False"),
    "shared": (head(shared), "each once"),
    "double": (head(lambda f: nn.Linear(f, 2).double()), "may hold only trainable float32 parameters"),
    "frozen": (head(lambda f: nn.Linear(f, 2).requires_grad_(False)), "may hold only trainable"),
    "lazy": (head(lambda f: nn.LazyLinear(2)), "head fails: ValueError: Attempted to use an uninit"),
    "rows": (head(lambda f: Tiles(f, 2)), "one row per row of features, 16"),
    "dropout": (
        head(lambda f: nn.Sequential(nn.Linear(f, 2), nn.Dropout())),
        "head gives different results each",
    ),
    "not used": (head(lambda f: nn.ModuleDict({"a": nn.Linear(f, 2)})), "head fails: NotImplementedError"),
    "does not fit": (head(lambda f: nn.Linear(f + 1, 2)), "head fails: RuntimeError: mat1 and mat2"),
    "a number": (loss(lambda s, o, t: 0.5), "loss must give a scalar tensor"),
    "each": (loss(lambda s, o, t: F.cross_entropy(o, t, reduction="none")), "must give a scalar tensor"),
    "detached": (loss(lambda s, o, t: F.cross_entropy(o.detach(), t)), "does not depend on the outputs"),
    "sum": (loss(lambda s, o, t: s.scale * F.cross_entropy(o, t, reduction="sum")), "is not a mean"),
    "no scale": (loss(lambda s, o, t: F.cross_entropy(o, t)), "is not multiplied by `scale`"),
    "infinite": (loss(lambda s, o, t: s.scale * F.cross_entropy(o, t) / 0), "loss is inf"),
    "one output": (loss(lambda s, o, t: s.scale * o[:8].square().mean()), "is not a mean over the batch"),
    "no gradient": (loss(lambda s, o, t: s.scale * (o * 0).sum()), "has no gradient that reaches the trunk"),
    "picture": ({"picture": lambda s, i, o: i[:, :1]}, "picture must give one float image per input"),
    "bytes": ({"picture": lambda s, i, o: (i * 255).byte()}, "picture must give one float image per input"),
    "changed targets": (
        loss(lambda s, o, t: s.scale * F.cross_entropy(o, t.mul_(1))),
        "changes the targets in place, which may be the images",
    ),
    "answers": ({"answers": ("a", "b", "c")}, "cannot name 3 answers where there are 2 scores"),
}


class Noisy(Good):
    """Draws floats of both kinds, which are the same in float64."""

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        noise = random.normal(images, 3, 1, 1) * random.uniform(images, 1, 1, 1)
        inputs, targets = super().transform((images + 0.1 * noise).clamp(0, 1), random)
        return inputs, targets


class InPlace(Good):
    """A head that begins in place, on features that the main task has too."""

    clean_input = True
    answers = ()

    def head(self, features: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(features, 2))

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        return images, images.flatten(1)[:, :2]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.mse_loss(outputs, targets)


def test_a_head_may_not_change_what_it_shares(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(TaskError, match="head changes the features in place, which the main task uses too"):
        losses(InPlace(), images, labels)
    InPlace.clean_input = False
    try:
        assert losses(InPlace(), images, labels)["mine"].isfinite()
    finally:
        InPlace.clean_input = True


def test_a_good_task_passes() -> None:
    check_task(Good())
    check_task(Noisy())
    check_task(Good(scale=4.0), size=16, features=8)
    check_task(Pixels())


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_promise_is_found(name: str) -> None:
    change, message = BROKEN[name]
    kind = type("Broken", (Good,), change | {"__module__": __name__})
    with pytest.raises(TaskError) as caught:
        check_task(kind())
    text = str(caught.value)
    assert text.startswith("task 'Broken': ")
    assert message in text, text
    assert len(text.splitlines()) == 1
    assert name == "answers" or re.search(rf"{HERE}, line \d+\)", text), text


def test_a_loss_that_needs_one_layout_is_found() -> None:
    change = loss(lambda s, o, t: s.scale * o.view(len(o), -1).square().mean())
    with pytest.raises(TaskError, match="loss fails: RuntimeError: view size is not compatible"):
        check_task(type("Broken", (Pixels,), change)())


# --- While it trains ------------------------------------------------------------------------------------


def losses(task: Task, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model = MultiTaskNetwork(WideResNet(10, 1), {"mine": task})
    return {k: v for group in model.losses(images.float(), labels, BatchRandom()) for k, v in group.items()}


def fails_below(x: Tensor) -> Tensor:
    raise ValueError("nothing\nto see\x1b[31m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            transform(lambda x, y, i: (fails_below(x), y)),
            r"transform fails: ValueError: nothing to see\\x1b\[31m",
        ),
        (loss(lambda s, o, t: fails_below(o)), "loss fails: ValueError"),
        (loss(lambda s, o, t: F.cross_entropy(o, t[:3])), "loss fails: "),
        (BROKEN["does not fit"][0], "head fails: RuntimeError: mat1 and mat2"),
        (BROKEN["buffer"][0], "head may hold"),
        (BROKEN["lazy"][0], "head fails: ValueError: Attempted"),
        (BROKEN["smaller"][0], "transform gives inputs float32"),
        (BROKEN["each"][0], "loss must give a scalar"),
        (BROKEN["detached"][0], "loss does not depend on the outputs"),
    ],
)
def test_an_error_names_the_task_and_the_line(
    change: dict[str, Any], message: str, images: Tensor, labels: Tensor
) -> None:
    kind = type("Broken", (Good,), change | {"__module__": __name__})
    with pytest.raises(TaskError, match=message) as caught:
        losses(kind(), images, labels)
    text = str(caught.value)
    assert text.startswith("task 'mine': ")
    assert text.isprintable()
    place = re.search(rf"{HERE}, line (\d+)\)$", text)
    assert place
    if "fails: ValueError: nothing" in text:
        line = Path(__file__).read_text(encoding="utf-8").splitlines()[int(place[1]) - 1]
        assert line.strip().startswith("raise ValueError"), "the innermost line of the file"


def test_bugs_of_ours_and_interruptions_pass(
    images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation = build_tasks(["rotation"])["rotation"]
    for error in (ValueError, KeyboardInterrupt):
        kind: type[Task] = type("Broken", (Good,), {"loss": lambda *_, e=error: (_ for _ in ()).throw(e)})
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else TaskError):
            losses(kind(), images, labels)
    monkeypatch.setattr(type(rotation), "loss", lambda *_: fails_below(images))
    with pytest.raises(ValueError, match="nothing"):
        losses(rotation, images, labels)


def test_good_tasks_train(images: Tensor, labels: Tensor) -> None:
    found = losses(Good(), images, labels)
    assert list(found) == ["main", "mine"]
    assert all(value.isfinite() for value in found.values())
    with torch.no_grad():
        assert losses(Good(), images, labels)["mine"].isfinite()


class Host(Good):
    """Twice the image, and something that stays on the CPU, where `meta` takes it."""

    what = "nothing"

    def transform(self, images: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        inputs, targets = super().transform(images, random)
        if self.what == "kernel":
            inputs = F.conv2d(inputs, torch.eye(3, dtype=images.dtype)[:, :, None, None])
        order = torch.tensor([2, 1, 0])
        if self.what == "select":
            inputs = inputs.index_select(1, order)
        if self.what == "index":
            inputs = inputs[:, order]
        if self.what == "gather":
            inputs = inputs.gather(1, order[None, :, None, None].expand(len(inputs), 3, *images.shape[2:]))
        return inputs, targets


@pytest.mark.parametrize("what", ["kernel", "select", "index", "gather"])
def test_a_tensor_that_stays_on_the_cpu_is_found(what: str) -> None:
    with pytest.raises(TaskError, match=r"tensors of cpu and meta.*must stay on the images' device"):
        check_task(type("Host", (Host,), {"what": what})())
    check_task(Host())


def test_a_check_leaves_the_random_numbers_of_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` seeds every device, of which `fork_rng` here restores the CPU alone."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    check_task(Good())
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeded
