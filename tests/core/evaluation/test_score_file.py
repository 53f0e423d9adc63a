"""The file of scores against the network's own scores in float64, image by image."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rsslcli
from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.store import Split
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.accuracy import evaluate
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.cells import Cell
from rsslcli.core.evaluation.score_file import LOWEST, log_probabilities, score_file
from rsslcli.core.evaluation.selection import Selection
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.ranks import World

CPU = torch.device("cpu")
COUNT = 30
GUIDE = Path(__file__).parents[3] / "docs" / "evaluation.md"


@pytest.fixture
def corrupted(test_split: Split, tmp_path: Path) -> CorruptedSet:
    folder = tmp_path / "c"
    folder.mkdir()
    for seed, name in enumerate(("snow", "fog")):
        images = np.random.default_rng(seed).integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(test_split.labels[:COUNT], 5))
    return open_corrupted(folder, "toy")


@pytest.fixture
def network() -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(10, 1, classes=3)
    network.train()(torch.rand(16, 3, 32, 32))
    return network.eval()


def read(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_every_score_is_in_the_file_with_its_image_label_and_cell(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    """Also where the classifier has its classes in another order, and images are left out."""
    path = tmp_path / "scores.npz"
    options: dict[str, Any] = {"device": CPU, "score_of": [2, 0, 1], "excluded": [0, 4], "severities": [2, 5]}
    result = evaluate(network, test_split, corrupted, predictions=path, about={"weights": "w"}, **options)
    assert result == evaluate(network, test_split, corrupted, about={"weights": "w"}, **options)
    found = read(path)
    cells = list(zip(found["corruption"].tolist(), found["severity"].tolist(), strict=True))
    assert cells == [("clean", 0), ("snow", 2), ("snow", 5), ("fog", 2), ("fog", 5)]
    assert found["classes"].tolist() == ["ant", "bee", "cow"]
    assert json.loads(str(found["about"]))["weights"] == "w"
    assert {name: array.dtype.str for name, array in found.items() if array.ndim and len(array) > 5} == {
        "cell": "<i4", "image": "<i4", "label": "<i4", "scores": "<f2",
    }  # fmt: skip
    double = WideResNet.from_state_dict(network.state_dict()).double().eval()
    for index, (name, severity) in enumerate(cells):
        rows = found["cell"] == index
        images = test_split.images if name == "clean" else corrupted.cell(name, severity)
        chosen = [i for i in range(len(images)) if i not in (0, 4)]
        assert found["image"][rows].tolist() == chosen
        assert found["label"][rows].tolist() == test_split.labels[chosen].tolist()
        x = torch.tensor(np.array(images[chosen]).transpose(0, 3, 1, 2) / 255.0)
        with torch.no_grad():
            expected = double(x).log_softmax(1)[:, [2, 0, 1]].numpy()
        np.testing.assert_allclose(found["scores"][rows], expected, rtol=2**-10, atol=1e-5)
        right = (found["scores"][rows].argmax(1) == found["label"][rows]).mean()
        assert right == (result.accuracy[name][severity - 1] if severity else result.clean_accuracy)


def test_no_score_becomes_infinite_and_no_rounding_changes_the_prediction() -> None:
    scores = torch.tensor(
        [[1e30, -1e30, 0.0], [70000.0, 0.0, -float("inf")], [1.0, 1.0001, 1.0], [0.0, 0.0, 0.0]]
    )
    order = np.array([1, 2, 0])
    found = log_probabilities(scores, order)
    assert found[0].tolist() == [LOWEST, LOWEST, 0]
    assert found[1].tolist() == [LOWEST, LOWEST, 0]
    assert np.isfinite(found).all()
    assert order[found.argmax(1)].tolist() == scores.argmax(1).tolist()
    assert np.abs(found[2:].astype(float) + np.log(3)).max() < 2e-3
    big = torch.tensor([[1e300, 1e300 * (1 - 1e-15)]], dtype=torch.float64)
    assert log_probabilities(big, np.array([0, 1])).tolist() == [[0, LOWEST]]
    torch.manual_seed(0)
    close = 1e-4 * torch.randn(5000, 3)  # most rows tie in half precision
    assert (log_probabilities(close, np.arange(3)).argmax(1) == close.argmax(1).numpy()).all()


@pytest.mark.parametrize("stream", ["shuffled", "mixed"])
def test_with_an_adaptation_the_file_has_the_adapted_scores(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path, stream: str
) -> None:
    """In the order of the images, whatever the order of the stream."""
    path = tmp_path / "scores.npz"
    settings = Adaptation("bn", batch_size=20, stream=stream)
    result = evaluate(
        network, test_split, corrupted, device=CPU, adaptation=settings, severities=[3], predictions=path
    )
    assert result.adapted is not None
    found = read(path)
    assert json.loads(str(found["about"]))["adapted"] == settings.to_dict()
    for index, (name, chosen) in enumerate([("clean", 37), ("snow", COUNT), ("fog", COUNT)]):
        rows = found["cell"] == index
        assert found["image"][rows].tolist() == list(range(chosen))
        right = (found["scores"][rows].argmax(1) == found["label"][rows]).mean()
        assert right == (result.adapted.accuracy[name][2] if index else result.adapted.clean_accuracy)


def test_an_interruption_leaves_no_file_and_no_gap(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path
) -> None:
    """Cells that an interrupted evaluation finished are evaluated again, since their scores are lost."""
    path, partial = tmp_path / "scores.npz", tmp_path / "r.json.partial"

    def stop(description: str, done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"device": CPU, "partial": partial, "predictions": path}
    with pytest.raises(KeyboardInterrupt):
        evaluate(network, test_split, corrupted, progress=stop, **options)
    assert len(json.loads(partial.read_text())["cells"]) == 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "r.json.partial"]
    evaluate(network, test_split, corrupted, **options)
    assert np.bincount(read(path)["cell"]).tolist() == [37, *[COUNT] * 10]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    class Many(Selection):
        """200,000 images in 20 cells."""

        def __init__(self) -> None:
            self.score_of = np.arange(10)
            self.classes = tuple("abcdefghij")

        def chosen(self, cell: Cell) -> np.ndarray:
            return np.arange(10_000)

        evaluated_labels = chosen

    cells = [Cell("fog", severity) for severity in SEVERITIES] * 4
    batch = torch.zeros(100, 10)
    tracemalloc.start()
    try:
        with score_file(tmp_path / "scores.npz", cells, Many(), {}) as sink:
            for _ in range(2_000):
                sink(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read(tmp_path / "scores.npz")["scores"].shape == (200_000, 10)
    assert (tmp_path / "scores.npz").stat().st_size > 6_000_000
    assert peak < 1_000_000


def test_refuses(network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.npz"):
        rsslcli.evaluate(network, "shapes", predictions=tmp_path / "scores.npy")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UserError, match="is a folder: name a file"):
        rsslcli.evaluate(network, "shapes", predictions=tmp_path / "folder.npz")
    world = World(rank=0, size=2)
    with pytest.raises(UserError, match="written by a single process: evaluate without torchrun"):
        evaluate(network, test_split, corrupted, device=CPU, world=world, predictions=tmp_path / "scores.npz")


def test_the_example_of_the_guide(
    network: WideResNet, test_split: Split, corrupted: CorruptedSet, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = evaluate(network, test_split, corrupted, device=CPU, predictions=Path("scores.npz"))
    section = GUIDE.read_text(encoding="utf-8").split("### The scores of every image\n")[1]
    (example,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    exec(compile(example, "docs/evaluation.md", "exec"), {})
    assert capsys.readouterr().out == f"{result.accuracy['fog'][2]:.2%}\n"
