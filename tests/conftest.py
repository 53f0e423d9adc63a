"""Shared fixtures; `--slow` runs the slow tests too."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Tests run at once (pytest -n) share out the cores; torch reads this when it is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // workers, 1)))

import torch

from rsslcli.core.corruptions import generate
from rsslcli.core.data.store import Images
from rsslcli.core.networks import names
from rsslcli.core.randomness import BatchRandom
from rsslcli.core.tasks import registry

# A shell ignores Ctrl-C in what it starts in the background, and so would every command of these tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def _no_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in the cache of whoever runs the tests, nor by the commands that they start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def only_our_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without tasks and networks of one's own, and leaves none."""
    monkeypatch.setattr(names, "_allowed", set())
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_files", {})


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when corruptions of severity 3 are generated."""
    original = generate._corrupt_chunk

    def fail(images: Images, name: str, severity: int, seed: int, index: int) -> Images:
        if severity == 3:
            raise OSError(28, "No space left on device")
        return original(images, name, severity, seed, index)

    monkeypatch.setattr(generate, "_corrupt_chunk", fail)


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth random color images, float64 (4, 3, 32, 32) in [0, 1]."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([3, 0, 7, 7])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


@pytest.fixture
def random(generator: torch.Generator) -> BatchRandom:
    """A source of random numbers for batches."""
    return BatchRandom(generator)
