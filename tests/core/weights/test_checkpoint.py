"""Checkpoints: what is written is read back, nothing in a file is run, and damage never passes."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import io
import os
import pickle
import re
import subprocess
import sys
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_pickles import Called, Filled, Poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from rsslcli.core.config import Config
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import checkpoint_path
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.weights.checkpoint import (
    FORMAT,
    VERSION,
    Checkpoint,
    load_checkpoint,
    load_classifier,
    save_checkpoint,
)


def refusal(call: Callable[[], object], kind: type[RsslError] = UserError) -> str:
    """The message with which `call` is refused: one short line."""
    with pytest.raises(RsslError) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


def make_checkpoint(**changes: Any) -> Checkpoint:
    torch.manual_seed(4)
    tasks = ("rotation", "inpaint")
    model = MultiTaskNetwork(WideResNet(10, 1, 3), build_tasks(tasks))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum((p**2).sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    checkpoint = Checkpoint(
        config=Config(
            tasks=tasks, weighting="automl", depth=10, width=1, task_options={"inpaint": {"scale": 2.0}}
        ),
        classes=("cat", "dog", "Ölpfütze"),
        step=12,
        classifier=model.network.state_dict(),
        heads=model.heads.state_dict(),
        optimizer=optimizer.state_dict(),
        lambdas=torch.tensor([0.25, 0.75]),
        excluded=(3, 5, 99),
        train_data="a" * 64,
        validation_data="b" * 64,
    )
    return dataclasses.replace(checkpoint, **changes)


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second) or (isinstance(first, dict) and isinstance(second, dict))
    if isinstance(first, Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


def assert_same_checkpoint(first: Checkpoint, second: Checkpoint) -> None:
    for field in dataclasses.fields(Checkpoint):
        assert_same(getattr(first, field.name), getattr(second, field.name))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that tests must leave as it is."""
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    heads = {"rotation.bias": torch.ones(4)}
    last = len(list(make_checkpoint().network().parameters()))
    optimizer = {
        "state": {last: {"momentum_buffer": torch.ones(4)}},
        "param_groups": [{"lr": 0.1, "nesterov": True, "params": list(range(last + 1))}],
    }
    save_checkpoint(path, make_checkpoint(heads=heads, optimizer=optimizer))
    return path


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


# --- Round trips ----------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    save_checkpoint(tmp_path / "new" / "run" / "checkpoint.pt", checkpoint)
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["checkpoint.pt"]
    for path in (tmp_path / "new" / "run" / "checkpoint.pt", tmp_path / "new" / "run"):
        assert_same_checkpoint(load_checkpoint(path), checkpoint)
        network, found = load_classifier(path)
        assert found is not None
        assert_same_checkpoint(found, checkpoint)
        assert not network.training
        assert_same(dict(network.state_dict()), checkpoint.classifier)
    network = checkpoint.network()
    assert not network.training
    assert network.fc.out_features == 3


def test_a_baseline_without_tasks(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(config=Config(depth=10, width=1), heads={}, lambdas=torch.empty(0))
    network = checkpoint.network()
    optimizer = torch.optim.SGD(network.parameters()).state_dict()
    checkpoint = dataclasses.replace(checkpoint, optimizer=optimizer, excluded=(), validation_data="")
    save_checkpoint(tmp_path / "c.pt", checkpoint)
    assert_same_checkpoint(load_checkpoint(tmp_path / "c.pt"), checkpoint)


def test_the_classifier_of_a_run_is_its_moving_average(tmp_path: Path) -> None:
    """A run has one if its configuration says so, and it is checked like the weights that train."""
    plain = make_checkpoint()
    average = {
        name: value + 1 if value.is_floating_point() else value for name, value in plain.classifier.items()
    }
    run = dataclasses.replace(plain, config=dataclasses.replace(plain.config, ema=0.9), average=average)
    path = tmp_path / "c.pt"
    save_checkpoint(path, run)
    assert_same_checkpoint(load_checkpoint(path), run)
    for network in (load_classifier(path)[0], run.network()):
        assert_same(dict(network.state_dict()), average)
    without = {name: value for name, value in average.items() if name != "fc.weight"}
    for damaged, message in (
        (dataclasses.replace(run, average={}), "its moving average does not fit `ema`"),
        (dataclasses.replace(plain, average=average), "its moving average does not fit `ema`"),
        (dataclasses.replace(run, average=without), "these weights are not of a WideResNet"),
        (
            dataclasses.replace(run, average=average | {"fc.bias": torch.full((3,), float("nan"))}),
            "NaN or infinity in 'fc.bias'",
        ),
    ):
        save_checkpoint(path, damaged)
        assert message in both_refuse(path)


@pytest.mark.parametrize("under", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_state_dicts(under: str, prefix: str, legacy: bool, tmp_path: Path, images: Tensor) -> None:
    network = WideResNet(10, 2, 7).eval()
    state = {prefix + name: value for name, value in network.state_dict().items()}
    content = {under: state, "epoch": 3, "best_acc": 0.9} if under else state
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    loaded, checkpoint = load_classifier(tmp_path / "w.pt")
    assert checkpoint is None
    assert not loaded.training
    assert torch.equal(loaded(images.float()), network(images.float()))
    assert "not a checkpoint of rssl" in refusal(lambda: load_checkpoint(tmp_path / "w.pt"))


BESIDE: dict[str, Any] = {
    "size": torch.Size([3, 32, 32]), "dtype": torch.bfloat16, "device": torch.device("cuda", 1),
    "cpu": torch.device("cpu"), "layout": torch.strided, "set": {"a", 2, (1, 2)}, "counter": Counter("abca"),
    "ordered": OrderedDict(a=1), "complex": 1 - 2j, "bytes": b"\xff\x00abc",
    "bytearray": bytearray(b"\xffab"),
    "empty": bytearray(), "none": [None, True, False, (), {}, 2**70, -(2**40), 1e300],
    "dtypes": {torch.float32: 1, (torch.int8, "x"): 2}, "wide": torch.tensor([1, 2], dtype=torch.uint16),
    "parameter": torch.nn.Parameter(torch.ones(2)), "bool": torch.tensor([True]), "text": "x" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_what_torch_reads_without_running_code_may_stand_beside_the_weights(
    name: str, legacy: bool, tmp_path: Path
) -> None:
    if (name, legacy) == ("wide", True):
        pytest.skip("torch does not read its own file")
    state, path, notes = WideResNet(10, 1, 3).state_dict(), tmp_path / "w.pt", list[str]()
    content = {"state_dict": state, name: BESIDE[name], "again": [BESIDE[name]] * 2}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=True)  # as torch itself does
    network, _ = load_classifier(path, note=notes.append)
    assert_same(dict(network.state_dict()), dict(state))
    assert f"not used: '{name}', 'again'" in notes[0]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (np.float64(0.5), r"numpy\._?core\.multiarray\.scalar"),
        (np.ones(2), r"numpy\._?core\.multiarray\._reconstruct"),
        (defaultdict(int), "collections.defaultdict"),
        (frozenset([1]), "builtins.frozenset"),
        (Path("x"), r"pathlib\.\w+"),
        (WideResNet(10, 1), "rsslcli.core.*WideResNet"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_refused_is_named_with_a_way_out(value: Any, name: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    content = {"state_dict": WideResNet(10, 1, 3).state_dict(), "beside": value}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refusal(lambda: load_classifier(path))
    assert re.search(
        f"it holds objects other than tensors and plain values: {name}. If you have the model", message
    )
    line = 'torch.save({"state_dict": model.state_dict()}, "weights.pt")'
    assert message.endswith(line)
    names = {"torch": torch, "model": WideResNet(10, 1, 3)}
    exec(line.replace("weights.pt", str(path)), names)
    assert load_classifier(path)[0].fc.out_features == 3


def test_archives_without_checksums(tmp_path: Path) -> None:
    """torch can be told to write none; where there are some, they still count."""
    state, path = WideResNet(10, 1, 3).state_dict(), tmp_path / "w.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is not None
    assert_same(dict(load_classifier(path)[0].state_dict()), dict(state))
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": state, "x": Malicious(tmp_path / "pwned")}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert "mkdir" in refusal(lambda: load_classifier(path))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_in_another_precision_and_averaged_counts(dtype: torch.dtype, tmp_path: Path) -> None:
    """An average of state dicts, as of EMA weights, has fractions of batches too; nothing uses them."""
    state = WideResNet(10, 1, 3).state_dict()
    torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "w.pt")
    loaded = load_classifier(tmp_path / "w.pt")[0].state_dict()
    for name, value in state.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value.to(dtype).to(value.dtype))


# --- safetensors ----------------------------------------------------------------------------------------


def test_safetensors(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in WideResNet(10, 1, 3).state_dict().items()}
    for name in ("w.safetensors", "w.pt"):  # whatever it is called
        save_file(state, tmp_path / name, metadata={"format": "pt"})
        loaded = load_classifier(tmp_path / name)[0].state_dict()
        assert_same({f"module.{name}": value for name, value in loaded.items()}, state)
    assert "not a checkpoint of rssl" in refusal(lambda: load_checkpoint(tmp_path / "w.pt"))


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(dict(WideResNet(10, 1, 3).state_dict()), path)
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    for spoiled in (
        data[:-1],
        data + b"x",
        data[: 8 + header],
        data[:8] + b"{" * header + data[8 + header :],
        data[:8] + data[8:].replace(b'"F32"', b'"F31"', 1),
        data[:8] + data[8:].replace(b'"shape":[3]', b'"shape":[9]', 1),
        (2**62).to_bytes(8, "little") + data[8:],
    ):
        assert spoiled != data
        path.write_bytes(spoiled)
        assert "cannot be read as a checkpoint" in both_refuse(path)


def test_safetensors_where_the_package_is_not_installed(tmp_path: Path) -> None:
    save_file(dict(WideResNet(10, 1, 3).state_dict()), tmp_path / "w.safetensors")
    code = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from pathlib import Path; from rsslcli.core.weights.checkpoint import load_classifier\n"
        "load_classifier(Path('w.safetensors'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr.splitlines()[-1].endswith(
        "w.safetensors is a safetensors file, which needs the package safetensors: "
        "pip install 'rsslcli[safetensors]'"
    )


def test_saving_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", make_checkpoint(step=1))
    save_checkpoint(tmp_path / "c.pt", make_checkpoint(step=2))
    assert load_checkpoint(tmp_path / "c.pt").step == 2


# --- Writing fails --------------------------------------------------------------------------------------


def half_written(*arguments: Any, **_: Any) -> None:
    arguments[1].write(b"half of it")
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nmore of it")


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("target", "name", "failure"),
    [
        (torch, "save", half_written),
        (torch, "save", no_space),
        (torch, "save", interrupted),
        (os, "fsync", no_space),
        (Path, "replace", no_space),
        (Path, "replace", interrupted),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_failing_write_leaves_the_old_file(
    target: Any,
    name: str,
    failure: Callable[..., None],
    exists: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "checkpoint.pt"
    if exists:
        save_checkpoint(path, make_checkpoint())
    before = path.read_bytes() if exists else b""
    with monkeypatch.context() as patched:
        patched.setattr(target, name, failure)
        if failure is interrupted:
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(path, make_checkpoint(step=99))
        else:
            assert str(path) in refusal(lambda: save_checkpoint(path, make_checkpoint(step=99)), RsslError)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"] * exists
    assert not exists or path.read_bytes() == before
    save_checkpoint(path, make_checkpoint(step=99))
    assert load_checkpoint(path).step == 99


def test_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(lambda: save_checkpoint(tmp_path / "file" / "c.pt", make_checkpoint()), RsslError)
    (tmp_path / "folder").mkdir()
    refusal(lambda: save_checkpoint(tmp_path / "folder", make_checkpoint()), RsslError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# --- Files that are no checkpoint -----------------------------------------------------------------------


def both_refuse(path: Path) -> str:
    """Neither reader takes the file; the message of one."""
    refusal(lambda: load_classifier(path))
    return refusal(lambda: load_checkpoint(path))


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle", "nested"])
def test_a_malicious_file_is_not_run(way: str, tmp_path: Path) -> None:
    target, path = tmp_path / "pwned", tmp_path / "checkpoint.pt"
    content: Any = Malicious(target)
    if way == "nested":
        save_checkpoint(path, make_checkpoint())
        content = content_of(path) | {"optimizer": {"state": Malicious(target)}}
    if way == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way != "legacy")
    message = both_refuse(path)
    assert "cannot be read as a checkpoint: it holds objects other than tensors" in message
    assert not target.exists()
    # The file is as harmful as it should be; torch finds no weights after it has run the code.
    with path.open("rb") as file, suppress(RuntimeError):
        torch.load(file, weights_only=False)
    assert target.is_dir()


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_itself_is_told_to_run_nothing(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before it is ours; its own restricted unpickler is the second wall."""
    path = tmp_path / "w.pt"
    torch.save(WideResNet(10, 1, 3).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    options: list[dict[str, Any]] = []
    original = torch.load

    def load(*arguments: Any, **given: Any) -> Any:
        options.append(given)
        return original(*arguments, **given)

    monkeypatch.setattr(torch, "load", load)
    load_classifier(path)
    (given,) = options
    assert (given["weights_only"], given["map_location"], given["mmap"]) == (True, "cpu", not legacy)


def archive_of_text() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "no weights in here")
    return stream.getvalue()


def stored(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x02.",
        b"hello\n",
        bytes(range(256)) * 50,
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(3000),
        b"PK\x05\x06" + bytes(18),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        archive_of_text(),
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({"format": FORMAT}, protocol=2),
        stored([torch.ones(2)]),
        stored(torch.ones(2)),
        stored(5),
        stored({}),
        stored({"state_dict": 5}),
        stored({"state_dict": {}}),
        stored({"state_dict": {"fc.weight": [1.0]}}),
        stored({"weight": torch.ones(3, 3)}),
        stored({1: torch.ones(3, 3)}),
        stored({"format": torch.ones(2)}),
        stored({"format": "other", "version": 1}),
        stored({"format": FORMAT}),
        stored({"format": FORMAT, "version": VERSION}),
    ],
)
def test_foreign_files(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(data)
    assert str(path) in both_refuse(path)


def test_a_name_that_torch_cannot_open(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.pt")
    try:
        path.write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    with pytest.raises(UserError, match="PyTorch takes only names in UTF-8: rename it"):
        load_checkpoint(path)


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path in (tmp_path / "none.pt", tmp_path / "run"):
        assert "no checkpoint at" in both_refuse(path)
        assert "rssl train-automl" in refusal(lambda path=path: checkpoint_path(path))  # type: ignore[misc]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    save_checkpoint(tmp_path / "c.pt", make_checkpoint())
    monkeypatch.setattr(torch, "load", denied)
    assert "Permission denied" in both_refuse(tmp_path / "c.pt")


def test_truncated_files(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "c.pt"
    lengths = {
        *range(0, 70, 10),
        *np.linspace(70, len(data) - 1, 24).astype(int),
        *range(len(data) - 3, len(data)),
    }
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        assert "cannot be read as a checkpoint" in both_refuse(path), length


def test_flipped_bits(saved: Path, tmp_path: Path) -> None:
    """A flipped bit is noticed, or it is in a place that means nothing: never do other weights come back."""
    data, path, original = saved.read_bytes(), tmp_path / "c.pt", load_checkpoint(saved)
    random = np.random.default_rng(0)
    places = np.concatenate([random.integers(0, len(data), 90), np.arange(len(data) - 40, len(data))])
    noticed = 0
    for place in places:
        spoiled = bytearray(data)
        spoiled[place] ^= 1 << random.integers(8)
        path.write_bytes(spoiled)
        try:
            loaded = load_checkpoint(path)
        except UserError:
            noticed += 1
        else:
            assert_same_checkpoint(loaded, original)
    assert 60 < noticed <= len(places)


# --- Well-formed containers with wrong contents ---------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "shown"),
    [(2, "version 2"), (0, "version 0"), (None, "version None"), ("1", "version '1'"), (1.5, "version 1.5"),
     (torch.ones(2), "version tensor"), ("x\ny" * 999, "version"), ([1], "version a list")],
    ids=range(8),
)  # fmt: skip
def test_foreign_versions(version: Any, shown: str, saved: Path, tmp_path: Path) -> None:
    torch.save(content_of(saved) | {"version": version}, tmp_path / "c.pt")
    message = both_refuse(tmp_path / "c.pt")
    assert shown in message
    assert message.endswith("this rssl reads version 1: use the rssl that wrote it")


WRONG: tuple[Any, ...] = (
    None, -1, 5, True, "word", b"bytes", [], [None], ["a", 1], [-1], {}, {"a": 1}, {1: "b"},
    {"a": torch.ones(2)}, torch.ones(2, 2), torch.ones(3), torch.tensor(1), torch.ones(2).int(),
)  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Checkpoint)])
def test_missing_and_wrong_parts(name: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    content = content_of(saved)
    del content[name]
    torch.save(content, path)
    if name not in ("average", "image_size"):  # which runs of version 0.1 lack
        message = both_refuse(path)
        assert f"'{name}'" in message
        assert "damaged checkpoint" in message
    harmless: dict[str, Any] = {"excluded": [], "step": 5, "average": {}}
    for value in WRONG:
        torch.save(content | {name: value}, path)
        try:
            load_checkpoint(path)
        except UserError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017
        else:
            words = name in ("train_data", "validation_data") and value == "word"
            assert words or value == harmless.get(name, path), (name, value)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 3},
        {"epochs": "x\ny"},
        {"depth": 11},
        {"tasks": ["rotaton"]},
        {"tasks": []},
        {"lr": float("nan")},
    ],
    ids=str,
)
def test_wrong_configurations_inside(change: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    content = content_of(saved)
    torch.save(content | {"config": content["config"] | change}, tmp_path / "c.pt")
    assert "c.pt is a damaged checkpoint" in both_refuse(tmp_path / "c.pt")


def test_weights_of_a_torch_that_counted_no_batches(saved: Path, tmp_path: Path) -> None:
    content = content_of(saved)
    for name in [name for name in content["classifier"] if name.endswith("num_batches_tracked")]:
        del content["classifier"][name]
    torch.save(content, tmp_path / "c.pt")
    assert torch.equal(load_classifier(tmp_path / "c.pt")[0].fc.weight, content["classifier"]["fc.weight"])


@pytest.mark.parametrize("spoil", ["missing", "surplus", "shape", "renamed"])
def test_wrong_weights_inside(spoil: str, saved: Path, tmp_path: Path) -> None:
    content = content_of(saved)
    state = dict(content["classifier"])
    if spoil == "surplus":
        state["more"] = torch.ones(1)
    elif spoil == "shape":
        state["fc.weight"] = torch.ones(3, 65)
    else:
        weights = state.pop("fc.weight")
        if spoil == "renamed":
            state["head.weight"] = weights
    torch.save(content | {"classifier": state}, tmp_path / "c.pt")
    message = both_refuse(tmp_path / "c.pt")
    assert message.startswith(f"{tmp_path / 'c.pt'}: these weights are not of a WideResNet")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "place",
    [
        ("classifier", "fc.weight"),
        ("classifier", "bn1.running_var"),
        ("heads", "rotation.bias"),
        ("optimizer", "state", -1, "momentum_buffer"),
        ("optimizer", "param_groups", 0, "lr"),
        ("lambdas",),
    ],
    ids=str,
)
def test_nan_and_infinity(place: tuple[Any, ...], value: float, saved: Path, tmp_path: Path) -> None:
    content = content_of(saved)
    part: Any = content
    for step in place[:-1]:
        part = part[max(part) if step == -1 else step]
    if isinstance(part[place[-1]], Tensor):
        part[place[-1]].view(-1)[-1] = value
    else:
        part[place[-1]] = value
    torch.save(content, tmp_path / "c.pt")
    message = both_refuse(tmp_path / "c.pt")
    assert "c.pt is a damaged checkpoint: NaN or infinity in " in message
    assert place[0] in message


def test_nan_in_a_plain_state_dict(tmp_path: Path) -> None:
    state = WideResNet(10, 1, 3).state_dict()
    for spoiled in (torch.full((3,), float("nan")), torch.full((3,), 1e300, dtype=torch.float64)):
        torch.save({"state_dict": state | {"fc.bias": spoiled}}, tmp_path / "w.pt")
        assert "NaN or infinity in 'fc.bias'" in refusal(lambda: load_classifier(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("lambdas", torch.tensor([0.5, -0.1]), "a λ is negative"),
        ("lambdas", torch.tensor([0.5]), "the number of λ is not that of the tasks"),
        ("classes", ["cat", "dog"], "do not fit the network in its configuration"),
        ("config", {"depth": 16}, "do not fit the network in its configuration"),
        ("config", {"width": 2}, "do not fit the network in its configuration"),
        ("config", {"x\ny\x1b" * 9: 1}, "its configuration: "),
        ("classifier", {"fc.weight": torch.ones(3, 64).long()}, "have the wrong dtype"),
        ("classifier", {"fc.weight": torch.ones(3, 64).cfloat()}, "'classifier' is missing or has the wrong"),
        ("classifier", {"fc.weight": torch.ones(3, 64).bool()}, "'classifier' is missing or has the wrong"),
        ("classifier", {"block2.layer.0.conv2.weight": torch.ones(32, 31, 3, 3)}, "has another shape"),
        ("classifier", {"\x1b[31m": torch.ones(1)}, "Unexpected key"),
        ("heads", {"rotation.bias": torch.ones(5)}, "the optimizer's state does not fit its weights"),
        ("heads", {"rotation.weight": torch.ones(5)}, "the optimizer's state does not fit its weights"),
        ("optimizer", {"state": {10**6: {}}}, "the optimizer's state does not fit its weights"),
        (
            "optimizer",
            {"state": {0: {"momentum_buffer": torch.ones(2)}}},
            "the optimizer's state does not fit",
        ),
        ("optimizer", {"state": {0: {"momentum_buffer": "x"}}}, "the optimizer's state does not fit"),
        ("optimizer", {"state": [1]}, "the optimizer's state does not fit its weights"),
        ("optimizer", {"param_groups": []}, "the optimizer's state does not fit its weights"),
        ("optimizer", {"param_groups": [{"params": [0]}]}, "the optimizer's state does not fit its weights"),
        ("excluded", [2**63], "'excluded' is missing or has the wrong type"),
        ("step", 10**400, "'step' is missing or has the wrong type"),
        ("version", torch.ones(40, 40), "has checkpoint version"),
    ],
    ids=range(22),
)
def test_parts_that_do_not_fit_together(
    part: str, change: Any, message: str, saved: Path, tmp_path: Path
) -> None:
    content = content_of(saved)
    content[part] = content[part] | change if isinstance(change, dict) else change
    torch.save(content, tmp_path / "c.pt")
    assert message in both_refuse(tmp_path / "c.pt")


def doubling(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("part", ["classifier", "heads", "optimizer", "lambdas", "state_dict"])
@pytest.mark.parametrize(
    "value",
    [torch.ones(1).expand(10**12), torch.ones(2, 1).expand(2, 10**9), doubling(50), nested(300)],
    ids=["expanded", "expanded in part", "doubling", "nested"],
)
def test_small_files_that_claim_much(part: str, value: Any, saved: Path, tmp_path: Path) -> None:
    path, began = tmp_path / "c.pt", time.perf_counter()
    if part == "state_dict":
        torch.save({"state_dict": {"fc.weight": value}}, path)
        message = refusal(lambda: load_classifier(path))
    else:
        torch.save(content_of(saved) | {part: {"a": value} if part != "lambdas" else value}, path)
        message = both_refuse(path)
    assert "it claims more than it can hold" in message
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("opcode", [b"\x8d", b"\x96", b"\x8e"], ids=["text", "bytearray", "bytes"])
def test_a_length_that_a_pickle_claims_takes_no_memory(opcode: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(opcode + (2**50).to_bytes(8, "little"))
    with pytest.raises(UserError, match="damaged") as refused:
        load_classifier(tmp_path / "c.pt")
    assert not isinstance(refused.value.__context__, MemoryError)


@pytest.mark.parametrize("blocks", [1, 400])
def test_weights_that_promise_a_larger_network(blocks: int, tmp_path: Path) -> None:
    """Building what the names and shapes promise would take gigabytes, or minutes."""
    state = {f"block1.layer.{block}.conv1.weight": torch.zeros(16 * 500, 0, 3, 3) for block in range(blocks)}
    torch.save(state | {"fc.weight": torch.zeros(10**9, 0)}, tmp_path / "w.pt")
    began = time.perf_counter()
    assert "is missing or has another shape" in refusal(lambda: load_classifier(tmp_path / "w.pt"))
    assert time.perf_counter() - began < 5


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


MEGABYTES = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R."  # a gigabyte, if it is called


@pytest.mark.parametrize(
    "data",
    [
        MEGABYTES,
        archive_of({"data.pkl": MEGABYTES, "version": b"3\n"}),
        archive_of({"DATA.PKL": MEGABYTES, "version": b"3\n"}),
        archive_of({"data.pkl": b"\x80\x02}.", "x": bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
        b"PK\x03\x04" + archive_of({"data.pkl": b"\x80\x02}.", "version": b"3\n"}),
    ],
    ids=["pickle", "archive", "upper case", "compressed", "something ahead"],
)
def test_harmless_code_that_fills_the_memory(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's restricted unpickler would make the gigabyte: such a file must not reach it."""
    path = tmp_path / "c.pt"
    path.write_bytes(data)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert "cannot be read as a checkpoint" in both_refuse(path)


def tuples(levels: int) -> tuple[Any, ...]:
    """Tuples that take 2 ** levels steps to hash."""
    value: tuple[Any, ...] = ()
    for _ in range(levels):
        value = (value, value)
    return value


EXPANDED = torch.ones(1).expand(10**9)
SHARED = list(range(4000))
KEYS = {f"key{number}": 0 for number in SHARED}
ONES, TEXT = (1,) * 4000, "x" * 100_000


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        Called(OrderedDict, EXPANDED),
        Called(Counter, EXPANDED),
        Called(set, EXPANDED),
        Called(torch.Size, EXPANDED),
        Called(bytearray, 10**9),
        Called(bytearray, EXPANDED),
        Called(torch.Tensor, 10**5, 10**5),
        Called(torch.FloatStorage, 10**9),
        Called(torch.UntypedStorage, 10**9),
        Called(codecs.encode, "a" * 9, "punycode"),
        Called(OrderedDict, [[tuples(60), 1]]),
        Called(set, [tuples(60)]),
        Filled(None, tuples(60)),
        Filled(EXPANDED),
        Filled([EXPANDED]),
        [Called(set, SHARED) for _ in range(3000)],
        [Called(Counter, KEYS) for _ in range(3000)],
        [Called(torch.Size, ONES) for _ in range(3000)],
        [Called(bytearray, TEXT, "latin-1") for _ in range(3000)],
        [Filled(KEYS) for _ in range(3000)],
        [Filled(None, ONES) for _ in range(3000)],
    ],
    ids=range(21),
)
def test_calls_that_make_much_of_little_never_reach_torch(
    value: Any, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's restricted unpickler would fill the memory, or hash for years."""
    path = tmp_path / "w.pt"
    torch.save({"a": value}, path, _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    assert "cannot be read as a checkpoint" in both_refuse(path)


@pytest.mark.parametrize("method", ["get", "items", "keys", "values", "__getitem__"])
@pytest.mark.parametrize("part", ["", "state_dict", "config", "classifier", "optimizer"])
def test_dictionaries_whose_methods_are_replaced(part: str, method: str, saved: Path, tmp_path: Path) -> None:
    content: Any = content_of(saved) | {part: Poisoned(method)} if part else Poisoned(method)
    torch.save(content if part != "state_dict" else {part: Poisoned(method)}, tmp_path / "c.pt")
    both_refuse(tmp_path / "c.pt")


def test_an_older_protocol_prints_no_warning(tmp_path: Path) -> None:
    """Warnings are errors in these tests."""
    (tmp_path / "c.pt").write_bytes(archive_of({"data.pkl": b"\x80\x03}.", "version": b"3\n"}))
    both_refuse(tmp_path / "c.pt")


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=4)
    | st.just(torch.ones(2)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Checkpoint)]), anything, max_size=4
    )
)
def test_fuzz_with_parts_of_any_kind(saved: Path, parts: dict[str, Any]) -> None:
    path = saved.with_name("fuzzed.pt")
    torch.save(content_of(saved) | parts, path)
    for read in (
        lambda: load_checkpoint(path),
        lambda: load_checkpoint(path).network(),
        lambda: load_classifier(path),
    ):
        refused = ""
        try:
            read()
        except UserError as error:
            refused = str(error)
        assert len(refused.splitlines()) == bool(refused)


def test_a_run_folder_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "checkpoint.pt"
    message = refusal(lambda: save_checkpoint(path, make_checkpoint(), make_folder=False), RsslError)
    assert f"{path.parent} was deleted during the run" in message
    assert not path.parent.exists()
