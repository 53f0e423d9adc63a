"""Public WideResNet checkpoints as their authors' programs write them, each rebuilt by hand here."""

from __future__ import annotations

import copy
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsslcli.core.errors import UserError
from rsslcli.core.networks.normalization import NORMALIZATIONS
from rsslcli.core.networks.wide_resnet import BasicBlock, WideResNet
from rsslcli.core.weights.checkpoint import load_classifier
from rsslcli.core.weights.public import find_weights

#: Means and deviations as buffers of public files hold them.
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def network() -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(10, 1, 7)
    network.train()(torch.rand(16, 3, 32, 32))
    return network.eval()


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def buffers(
    mean: str, std: str, values: Any = CIFAR, shape: tuple[int, ...] = (1, 3, 1, 1)
) -> dict[str, Any]:
    return {
        name: torch.tensor(numbers).view(shape) for name, numbers in zip((mean, std), values, strict=True)
    }


STATE = dict(network().state_dict())
SGD = torch.optim.SGD(network().parameters(), lr=0.1).state_dict()
OLD = {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")}
HEAD = {"weight": torch.ones(4, 64), "bias": torch.ones(4)}
SUB_BLOCK = {f"sub_{name}": value for name, value in STATE.items() if name.startswith("block1.")}
LOST = "not part of the WideResNet, so not used: "

#: What a file holds; the note on what is not used; whether it says how its input is normalized.
FILES: dict[str, tuple[Any, str, bool]] = {
    # WideResNet-pytorch, and the hub of models trained by it
    "plain": (STATE, "", False),
    "WideResNet-pytorch": (
        {"epoch": 200, "state_dict": STATE, "best_prec1": torch.tensor(94.0)},
        LOST + "'epoch', 'best_prec1'", False,
    ),
    # AugMix: a DataParallel network
    "AugMix": (
        {"epoch": 99, "dataset": "cifar10", "model": "wrn", "state_dict": prefixed(STATE, "module."),
         "best_acc": 0.95, "optimizer": SGD},
        LOST + "'epoch', 'dataset', 'model', 'best_acc', 'optimizer'", False,
    ),
    # Hendrycks et al. 2019, ss-ood: heads beside the classifier, of an old torch
    "rotation": (OLD | prefixed(HEAD, "rot_pred."), LOST + "'rot_pred'", False),
    "auxiliary": (
        prefixed(OLD | prefixed(HEAD, "x_trans_head.") | prefixed(HEAD, "rot_head."), "module."),
        LOST + "'x_trans_head', 'rot_head'", False,
    ),
    # RobustBench: the normalization in buffers, an unused block
    "RobustBench": (STATE | buffers("mu", "sigma"), "", True),
    "TRADES": ({"state_dict": prefixed(STATE | SUB_BLOCK, "module.")}, LOST + "'sub_block1'", False),
    "normalize layer": (
        {"model": prefixed(STATE, "1.") | buffers("0.mean", "0.std", shape=(3,))}, "", True,
    ),
    # The robustness library
    "robustness": (
        {"model": prefixed(prefixed(STATE, "model.") | buffers("normalizer.new_mean", "normalizer.new_std",
                                                              shape=(3, 1, 1)), "module."), "epoch": 5},
        LOST + "'epoch'", True,
    ),
    # torch.compile, wrapped twice
    "compiled": ({"net": prefixed(STATE, "_orig_mod.module.module.")}, "", False),
    "nested": (
        {"model": {"state_dict": OrderedDict(STATE), "args": {"lr": 0.1}}, 5: "five", "acc": 0.9},
        LOST + "5, 'acc', 'args'", False,
    ),
    # PyTorch Lightning; torch.optim.swa_utils.AveragedModel
    "Lightning": (
        {"epoch": 3, "state_dict": prefixed(STATE, "model.") | {"criterion.weight": torch.ones(7)},
         "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": [SGD]},
        LOST + "'criterion', 'epoch', 'loops', 'optimizer_states'", False,
    ),
    "Lightning net, compiled": ({"state_dict": prefixed(STATE, "net._orig_mod.")}, "", False),
    "averaged": (prefixed(STATE, "module.") | {"n_averaged": torch.tensor(9)}, LOST + "'n_averaged'", False),
    "half precision": ({k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}, "", False),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_public_files(kind: str, tmp_path: Path) -> None:
    content, unused, tells = FILES[kind]
    path, notes, images = tmp_path / "w.pt", list[str](), torch.rand(5, 3, 32, 32)
    torch.save(content, path)
    loaded, checkpoint = load_classifier(path, note=notes.append)
    assert checkpoint is None
    reference = network()
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in CIFAR if tells) if tells else (0.5, 0.5)
    # Ours takes x·2 − 1 of what it is given, so this is (x − mean) / std.
    expected = reference(((images - mean) / std + 1) / 2)
    tolerance = 2e-2 if kind == "half precision" else 1e-5
    torch.testing.assert_close(loaded(images), expected, rtol=tolerance, atol=tolerance)
    says = (
        "as the file says, with mean / standard deviation" if tells else "does not say how its input is norm"
    )
    assert says in notes[-1]
    assert [note.removeprefix(f"{path}: ") for note in notes[:-1]] == ([unused] if unused else [])


def test_several_networks_in_a_file(tmp_path: Path) -> None:
    other = {name: torch.zeros_like(value) for name, value in STATE.items()}
    for content, place, places in (
        ({"last": STATE, "best": other, "epoch": 3}, "'last'", "'last', 'best'"),
        ({"ema": other, "state_dict": STATE}, "'state_dict'", "'ema', 'state_dict'"),
        ({"ema_state_dict": other, "state_dict": STATE}, "'state_dict'", "'ema_state_dict', 'state_dict'"),
        ({"state_dict": STATE, "state_dict_ema": other}, "'state_dict'", "'state_dict', 'state_dict_ema'"),
        ({"model": STATE, "ema": {"module": other}}, "'model'", "'model', 'ema' 'module'"),
        (prefixed(STATE, "student.") | prefixed(other, "teacher."), "'student.'", "'student.', 'teacher.'"),
    ):
        notes: list[str] = []
        torch.save(content, tmp_path / "w.pt")
        loaded, _ = load_classifier(tmp_path / "w.pt", note=notes.append)
        assert torch.equal(loaded.fc.weight, STATE["fc.weight"])
        assert (
            f"it holds several networks, at {places}: the one at {place} is used; to use another" in notes[0]
        )
        assert "not used: " in notes[1]


class OtherBlock(BasicBlock):
    """As in FixMatch's PyTorch code: only the first stage's widening block activates its input."""

    activates = False

    def forward(self, x: Tensor) -> Tensor:
        activated = F.leaky_relu(self.bn1(x), 0.1)
        if self.convShortcut is not None:
            x = activated if self.activates else x
            activated = x
        out = self.conv2(F.leaky_relu(self.bn2(self.conv1(activated)), 0.1))
        return out + (x if self.convShortcut is None else self.convShortcut(x))


def trained(block: type[BasicBlock], width: int) -> WideResNet:
    """A WideResNet of such blocks after a few steps."""
    torch.manual_seed(0)
    network = WideResNet(10, width, 7).train()
    for module in network.modules():
        if isinstance(module, BasicBlock):
            module.__class__ = block
    network.block1.layer[0].activates = True
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(network(torch.rand(8, 3, 32, 32)), torch.arange(8) % 7).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("decay", [1.0, 0.9])
@pytest.mark.parametrize("width", [1, 2])
def test_weights_of_another_architecture_with_the_same_names_are_noted(
    width: int, decay: float, tmp_path: Path
) -> None:
    """Its widening blocks leave their first normalization untrained; MixMatch's code decays even that one."""
    for block, is_noted in ((OtherBlock, True), (BasicBlock, False)):
        notes: list[str] = []
        network = trained(block, width)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(decay)
        torch.save(network.state_dict(), tmp_path / "w.pt")
        images = torch.rand(2, 3, 32, 32)
        loaded = load_classifier(tmp_path / "w.pt", normalization="half", note=notes.append)[0]
        assert torch.equal(loaded(images), network(images)) == (not is_noted)
        assert len(notes) == is_noted
        if is_noted:
            assert "'block2.layer.0.bn1' and 'block3.layer.0.bn1' did not take part in training" in notes[0]
            assert "FixMatch" in notes[0]
    torch.save(WideResNet(10, width).state_dict(), tmp_path / "new.pt")  # nothing in it is trained
    load_classifier(tmp_path / "new.pt", normalization="half", note=pytest.fail)


def test_what_would_change_the_network_is_refused(tmp_path: Path) -> None:
    """A layer, mask or bias inside the trunk is no head: the network without it would be another one."""
    for name in ("block1.layer.0.attention.weight", "conv1.scores", "conv1.bias", "fc.bias.mask"):
        torch.save({"state_dict": STATE | {name: torch.ones(3)}}, tmp_path / "w.pt")
        with pytest.raises(UserError, match=f'Unexpected key.*"{re.escape(name)}"'):
            load_classifier(tmp_path / "w.pt")
    for changes in ({"mu": (0.5, 0.5, 3.0)}, {"sigma": (0.5, 0.0, 0.5)}, {"mu": (0.5, 0.5, float("nan"))}):
        content = STATE | buffers("mu", "sigma") | {n: torch.tensor(v) for n, v in changes.items()}
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError, match="'mu' and 'sigma': expected three means and three"):
            load_classifier(tmp_path / "w.pt")


def test_names_reach_the_notes_escaped(tmp_path: Path) -> None:
    notes: list[str] = []
    heads = {f"\x1b[31m{'x' * 900}\n{i}": torch.ones(1) for i in range(30)}
    torch.save(STATE | heads | {"[red]": 1, ("a", "b"): 2}, tmp_path / "w.pt")
    load_classifier(tmp_path / "w.pt", note=notes.append)
    assert all(note.isprintable() and len(note) < 2000 for note in notes)


def test_normalization_by_name_and_by_numbers(tmp_path: Path) -> None:
    images, reference = torch.rand(4, 3, 32, 32), network()
    torch.save(STATE, tmp_path / "w.pt")

    def scores(normalization: str) -> Tensor:
        notes: list[str] = []
        loaded, _ = load_classifier(tmp_path / "w.pt", normalization=normalization, note=notes.append)
        assert not notes  # nothing is left to say
        with torch.no_grad():
            other = copy.deepcopy(loaded)  # as it is saved and read again
            torch.save(other.state_dict(), tmp_path / "again.pt")
            again = load_classifier(tmp_path / "again.pt", normalization=normalization)[0]
            assert torch.equal(again(images), loaded(images))
        return loaded(images)

    assert torch.equal(scores("half"), reference(images))
    torch.testing.assert_close(scores("none"), reference((images + 1) / 2))
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in NORMALIZATIONS["cifar10"])
    torch.testing.assert_close(
        scores("cifar10"), reference(((images - mean) / std + 1) / 2), rtol=1e-4, atol=1e-5
    )
    shown = "/".join(",".join(map(str, part)) for part in NORMALIZATIONS["cifar10"])
    torch.testing.assert_close(scores(shown), scores("cifar10"))
    for wrong in (
        "cifar",
        "1,2/3",
        "0.5,0.5,0.5/0,0,0",
        "a,b,c/d,e,f",
        "0,0,0/1,1,nan",
        "/",
        "125,123,113/63,62,66",
    ):
        with pytest.raises(UserError, match="normalization"):
            load_classifier(tmp_path / "w.pt", normalization=wrong)
    torch.save(STATE | buffers("mu", "sigma"), tmp_path / "w.pt")
    with pytest.raises(UserError, match="contains another normalization of its input"):
        load_classifier(tmp_path / "w.pt", normalization="half")


def test_a_file_of_many_dictionaries_takes_no_minutes() -> None:
    """Each is looked at once: one that stands everywhere, or many, take no square of their number."""
    shared = dict.fromkeys(range(50_000), 0)
    for content in (dict.fromkeys(range(50_000), shared), {i: {i: i} for i in range(50_000)}):
        began = time.perf_counter()
        assert find_weights(content) is None
        assert time.perf_counter() - began < 10


def test_the_normalization_moves_with_the_network() -> None:
    network = WideResNet(10, 1)
    assert not {"mu", "sigma"} & set(network.state_dict())
    network.set_normalization(*CIFAR)
    moved = network.to("meta", torch.float64)
    assert isinstance(moved, nn.Module)
    assert moved(torch.rand(2, 3, 32, 32, dtype=torch.float64, device="meta")).shape == (2, 10)
