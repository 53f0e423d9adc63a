"""Several ranks train as one: the same λ's and weights, to rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from rsslcli.core.config import Config
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.gathering import ImageSource
from rsslcli.core.errors import InterruptedTrainingError, LostRankError, RsslError, UserError
from rsslcli.core.networks.names import allow_network
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.ranks import World, join_world
from rsslcli.core.tasks.registry import TASKS
from rsslcli.core.training.step import Trainer, TrainingData

CPU = torch.device("cpu")
STEPS = 10
#: What the ranks train.
MODES: dict[str, dict[str, Any]] = {
    "per-task": {"batch_norm": "per-task"},
    "joint": {"tasks": ("rotation", "inpaint", "jigsaw"), "batch_norm": "joint"},
    "share": {"batch_norm": "all", "task_share": 0.5},
    "augmix": {"tasks": ("rotation", "ir"), "augment": "augmix", "tune_jsd": True, "ema": 0.9},
    "augmix-untuned": {"tasks": ("ir",), "augment": "augmix", "jsd_weight": 2.0},
    "upgrad": {"tasks": ("rotation", "ir"), "weighting": "upgrad"},
    "uncertainty": {"tasks": ("ir",), "weighting": "uncertainty"},
    "random": {"tasks": ("rotation", "ir"), "weighting": "random"},
    "variants": {
        "tasks": ("rotation", "ir"), "meta_lr": 0.3,
        "automl_variants": ("cosine", "constant-sum", "relative", "sgd-lookahead"),
    },
    "batch-norm": {"tasks": ("rotation", "ir"), "batch_norm": "all", "ema": 0.9},
    "layer-norm": {
        "tasks": ("rotation", "ir"), "network": "test_ranks:layer_norms", "batch_norm": "all",
        "optimizer": "adamw", "trunk_lr_factor": 0.5, "ema": 0.9, "lr": 0.002, "lookahead_scale": 10.0,
    },
}  # fmt: skip


def layer_norms() -> nn.Module:
    """A network without batch normalization."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 8, 8), nn.GELU(), nn.Flatten(), nn.LayerNorm(96), nn.Linear(96, 12), nn.GELU(),
        nn.LayerNorm(12), nn.Linear(12, 3),
    )  # fmt: skip


class PerImageNorm(nn.GroupNorm):
    """A normalization that does not couple the images of a batch."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


def train_steps(world: World, mode: str) -> dict[str, Tensor]:
    """10 steps in float64, half of them after the warm-up; batches do not divide evenly."""
    settings = {"tasks": tuple(TASKS), "weighting": "automl"} | MODES[mode]
    usual = {"epochs": 2, "warmup_epochs": 1, "batch_size": 9, "meta_batch_size": 5, "meta_lr": 3.0}
    usual |= {"depth": 10, "width": 1, "lr": 0.02}
    config = Config(**usual | settings)  # type: ignore[arg-type]
    allow_network(config.network)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (45, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (45,), generator=generator)
    data = TrainingData(ImageSource(images), labels, ImageSource(images[:12].flip(2)), labels[:12])
    norm = nn.BatchNorm2d if mode == "batch-norm" else PerImageNorm
    with (
        mock.patch("torch.nn.BatchNorm2d", norm),
        mock.patch("rsslcli.core.training.step.to_float", partial(to_float, dtype=torch.float64)),
    ):
        trainer = Trainer(config, data, classes=10, world=world)
        trainer.model.double().train()
        trainer.lambdas = trainer.lambdas.double()
        if trainer.averaged:
            trainer.averaged.double()
        values: dict[str, Tensor] = {}
        for step in range(STEPS):
            position = step % 5 * 9
            order = trainer.epoch_order(step // 5)
            values = trainer.step(step, order[position : position + 9])
    average = trainer.averaged.state_dict() if trainer.averaged else {}
    return dict(trainer.model.state_dict()) | values | {f"average.{name}": v for name, v in average.items()}


def run_ranks(count: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start `count` ranks of a script or module."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), *arguments]
    return subprocess.run(
        [sys.executable, *launch],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks trained in all modes, one after the other: to start them takes seconds."""
    folder = tmp_path_factory.mktemp("ranks")
    result = run_ranks(2, __file__, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_ranks_train_as_one_process(mode: str, trained: Path) -> None:
    first, second = (torch.load(trained / f"{mode}-{rank}.pt") for rank in range(2))
    whole = train_steps(World(), mode)
    if mode == "batch-norm":  # which couples the images of a rank alone: only the statistics come near
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        statistics = [name for name in whole if name.endswith(("running_mean", "running_var"))]
        assert len(statistics) > 20
        assert all((first[name] - whole[name]).norm() < 0.2 * whole[name].norm() for name in statistics)
        return
    moved = [float(value) for name, value in whole.items() if name.startswith("lambda/")]
    assert mode in ("upgrad", "augmix-untuned") or not {0.5, 12.0} & {*moved}, "every λ has moved"
    assert mode not in ("per-task", "joint", "share") or len({*moved}) == len(moved) > 2
    assert first.keys() == second.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [7, 25, 64])
def test_parts_cover_everything_once(count: int, size: int) -> None:
    world = [World(rank, count) for rank in range(count)]
    covered = [index for each in world for index in range(size)[each.shard(size)]]
    assert covered == list(range(size))
    sizes = [len(range(size)[each.shard(size)]) for each in world]
    assert max(sizes) - min(sizes) <= 1
    assert sum(each.share(size) for each in world) == pytest.approx(1)


def test_random_numbers_do_not_depend_on_the_ranks() -> None:
    def draw(part: slice) -> list[Tensor]:
        random = BatchRandom(torch.Generator().manual_seed(3), 10, part)
        images = torch.zeros(10, 3, 4, 4, dtype=torch.float64)[part]
        return [random.integers(images, 24), random.uniform(images, 3), random.normal(images, 2, 2)]

    whole, parts = draw(slice(0, 10)), [draw(slice(0, 4)), draw(slice(4, 10))]
    for index, expected in enumerate(whole):
        assert torch.equal(torch.cat([part[index] for part in parts]), expected)
    assert whole[1].dtype == torch.float64
    assert 0 <= float(whole[1].min()) < float(whole[1].max()) < 1


def test_alone_nothing_is_exchanged() -> None:
    with join_world(CPU) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        value = torch.ones(3)
        assert world.all_reduce(value) is value
        assert world.any(True)
        assert not world.any(False)
        assert world.broadcast("x") == "x"
        with world.main_first():
            pass


@pytest.mark.parametrize(
    ("error", "kind", "match"),
    [
        (RuntimeError("[pair.cc] Connection closed by peer [::1]"), LostRankError, "another rank .* closed"),
        (RuntimeError("NCCL error in: x.cpp\nremote process exiting prematurely"), LostRankError, "another"),
        (RuntimeError("NCCL error\nLast error: no interface"), RsslError, "cannot exchange.*no interface$"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "memory"),
        (RuntimeError("CUDA error: the launch timed out\nCompile with …"), RuntimeError, "^CUDA error"),
    ],
)
def test_a_failed_exchange_blames_another_rank_only_if_that_ended(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, kind: type[Exception], match: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(kind, match=match) as caught:
        World(0, 2).all_reduce(torch.ones(3))
    assert type(caught.value) is kind


@pytest.mark.parametrize("error", [None, InterruptedTrainingError("stopped"), RsslError("diverged")])
def test_a_rank_leaves_the_others_only_where_all_leave(
    monkeypatch: pytest.MonkeyPatch, error: RsslError | None
) -> None:
    """NCCL's way of leaving waits for all ranks, so that a rank that fails alone would hang in it."""
    called: list[object] = []
    fakes = {
        "init_process_group": called.append,
        "destroy_process_group": lambda: called.append("left"),
        "get_rank": lambda: 1,
        "get_world_size": lambda: 2,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.distributed, name, fake)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", called.append)
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RsslError) if error else nullcontext(), join_world(torch.device("cuda")) as world:
        assert (world.rank, world.size) == (1, 2)
        if error:
            raise error
    fails_alone = type(error) is RsslError
    # Each rank has a GPU of its own; counts and flags are exchanged on the host.
    assert called == [1, "cpu:gloo,cuda:nccl", *([] if fails_alone else ["left"])]


_FAILS = """
import atexit, sys
import torch.distributed as dist
from rsslcli import app
from rsslcli.core.errors import UserError

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
atexit.register(print, "an orderly end")

def fail(*_, **__):
    raise {"mistake": UserError("a mistake"), "bug": KeyError("a bug")}[sys.argv[2]]

app.app = fail
app.main()
"""


@pytest.mark.parametrize(
    ("what", "code", "said"), [("mistake", 2, "error: a mistake"), ("bug", 1, "KeyError")]
)
def test_a_failed_rank_ends_at_once_with_its_message(tmp_path: Path, what: str, code: int, said: str) -> None:
    command = [sys.executable, "-c", _FAILS, str(tmp_path / "store"), what]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert said in ended.stderr


def _rank_main() -> None:
    with join_world(CPU) as world:
        assert world.size == 2
        assert world.any(world.rank == 1)
        assert not world.any(False)
        assert world.broadcast(f"rank {world.rank}") == "rank 0"
        order = Path("order.txt")
        with world.main_first():  # the second rank comes in when the first one is out
            assert order.exists() == (not world.is_main)
            order.write_text("first")
        for mode in MODES:
            torch.save(train_steps(world, mode), f"{mode}-{world.rank}.pt")


if __name__ == "__main__":
    _rank_main()


@pytest.mark.parametrize("local_rank", [0, 1])
def test_every_rank_refuses_too_few_gpus(monkeypatch: pytest.MonkeyPatch, local_rank: int) -> None:
    """Also the first, which alone prints what a user did wrong."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="this machine has 1"), join_world(torch.device("cuda")):
        pass
