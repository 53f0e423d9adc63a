"""Devices, precision and seeds."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsslcli.core import runtime
from rsslcli.core.errors import UserError
from rsslcli.core.runtime import (
    autocast,
    derive_seed,
    describe_device,
    keeping_precision,
    multiplies_in_tf32,
    resolve_device,
    seeded_generator,
    set_precision,
    using_threads,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("present", [True, False])
def test_devices(present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto").type == ("cuda" if present else "cpu")
    assert resolve_device("cpu").type == "cpu"
    if present:
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(UserError, match=r"no CUDA GPU here; set `device` to cpu") as caught:
            resolve_device("cuda")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor: 0\nmodel name\t: Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz\n", "Intel Xeon Gold 6230"),
        ("model name\t: AMD EPYC 9R14\nmodel name\t: other\n", "AMD EPYC 9R14"),
        ("model name\t: \x1b[31m:" + 99 * "x", r"\x1b[31m " + 50 * "x"),
        ("BogoMIPS: 50\n", "arm"), (None, "arm"),
    ],
)  # fmt: skip
def test_processors(content: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a log's first line, which a report reads back up to a colon."""
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(runtime, "_PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    with using_threads(1):
        found = describe_device(CPU)
    assert found.startswith(f"CPU ({name}")
    assert found.endswith("), 1 thread")
    assert ":" not in found


def test_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    with using_threads(2):
        assert describe_device(CPU).endswith("), 2 threads")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert describe_device(torch.device("cuda")) == "CUDA, NVIDIA H100"


@pytest.fixture
def tf32_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_as_before")
def test_tf32_is_switched_for_matrices_and_convolutions() -> None:
    for precision in ("tf32", "float32", "bfloat16"):
        set_precision(precision, CPU, lambda text: None)
        assert torch.backends.cuda.matmul.allow_tf32 is (precision != "float32")
        assert torch.backends.cudnn.allow_tf32 is (precision != "float32")


@pytest.mark.usefixtures("tf32_as_before")
def test_products_are_rounded_to_tf32_on_cuda_alone_and_if_allowed() -> None:
    """A result that a user computes with PyTorch's defaults must not pass for float32."""
    for precision, rounded in (("tf32", True), ("float32", False)):
        set_precision(precision, CPU, lambda text: None)
        assert multiplies_in_tf32(torch.device("cuda")) is rounded
        assert not multiplies_in_tf32(CPU)
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default, of convolutions alone
    assert multiplies_in_tf32(torch.device("cuda"))


@pytest.mark.usefixtures("tf32_as_before")
def test_precision_is_as_before_after_its_context() -> None:
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        with keeping_precision():
            set_precision("float32" if allowed else "tf32", torch.device("cuda"), pytest.fail)
            assert torch.backends.cudnn.allow_tf32 != allowed
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no newer settings")
def test_precision_where_the_process_uses_the_newer_settings() -> None:
    """In a process of its own, since torch refuses to go back."""
    code = """
import torch
from rsslcli.core.runtime import keeping_precision, set_precision
torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
with keeping_precision():
    set_precision("float32", torch.device("cuda"), print)
    print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
print(torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "ieee ieee\ntf32 tf32\n"


@pytest.mark.usefixtures("tf32_as_before")
@pytest.mark.parametrize(
    ("device", "machine", "knows", "emulates"),
    [
        ("cpu", "x86_64", True, False),
        ("cpu", "x86_64", False, True),
        ("cpu", "AMD64", False, True),
        ("cpu", "x86_64", None, False),  # a torch that does not tell
        ("cpu", "aarch64", False, False),
        ("cuda", "x86_64", True, False),
        ("cuda", "x86_64", False, True),
    ],
)
def test_bfloat16_that_is_emulated_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, machine: str, knows: bool | None, emulates: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: knows)
    if knows is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        capabilities = {"avx512_bf16": knows}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    for precision in ("float32", "tf32", "bfloat16"):
        notes: list[str] = []
        set_precision(precision, torch.device(device), notes.append)
        expected = []
        if precision == "bfloat16" and emulates:
            expected = ["this device only emulates bfloat16: with `precision` float32 it is faster"]
        elif precision == "tf32" and device == "cpu":
            expected = ["`precision` tf32 is for CUDA: this device computes in float32"]
        assert notes == expected


def test_autocast_is_on_if_it_is_asked_for_whatever_a_caller_uses() -> None:
    one = torch.ones(1, 1)
    with autocast(CPU, False):
        assert (one @ one).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), autocast(CPU, False):
        assert (one @ one).dtype == torch.float32
    with autocast(CPU, True):
        assert (one @ one).dtype == torch.bfloat16
    with autocast(torch.device("meta"), True):
        assert (one.to("meta") @ one.to("meta")).dtype == torch.float32


def test_seeds_differ_by_run_purpose_and_counter() -> None:
    seeds = {
        derive_seed(seed, purpose, index)
        for seed in (0, 1, 2, 2**31, 2**32, 2**62)
        for purpose in ("weights", "epoch", "step", "validation", "figure", "")
        for index in (*range(50), 2**33)
    }
    assert len(seeds) == 6 * 6 * 51
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Each bit is set about half of the time.
    for bit in range(63):
        share = sum(seed >> bit & 1 for seed in seeds) / len(seeds)
        assert abs(share - 0.5) < 5 * 0.5 / len(seeds) ** 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.text(max_size=10), st.integers(0, 2**40))
def test_any_seed_that_the_configuration_takes(seed: int, purpose: str, index: int) -> None:
    value = derive_seed(seed, purpose, index)
    assert value == derive_seed(seed, purpose, index)
    torch.Generator().manual_seed(value)


def test_seeds_are_the_same_in_every_version() -> None:
    """A run that is resumed elsewhere goes on with the same numbers."""
    assert derive_seed(7, "step", 3) == 5_265_013_708_165_187_928


def test_generators() -> None:
    first, again, other = (seeded_generator(CPU, 5, purpose) for purpose in ("batch", "batch", "step"))
    assert first is not None
    assert again is not None
    assert other is not None
    drawn = torch.rand(4, generator=first)
    assert torch.equal(drawn, torch.rand(4, generator=again))
    assert not torch.equal(drawn, torch.rand(4, generator=other))
    assert first.initial_seed() == derive_seed(5, "batch")
    assert seeded_generator(torch.device("meta"), 5, "batch") is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it sets options of the GNU C library")
def test_kept_memory_is_not_faulted_in_again() -> None:
    code = """
import resource, torch
from rsslcli.core.runtime import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12_000_000)  # 46 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    mapped, kept = map(int, out.split())
    assert kept < mapped / 10


def test_the_number_of_threads_is_that_of_before_whatever_happens() -> None:
    before = torch.get_num_threads()
    within = []

    def fail() -> None:
        with using_threads(before + 1):
            within.append(torch.get_num_threads())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (within, torch.get_num_threads()) == ([before + 1], before)
