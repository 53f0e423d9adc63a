"""Devices, precision and seeds."""

from __future__ import annotations

import ctypes
import platform
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rsslcli.core.errors import UserError, sanitize

#: Where Linux names the processors.
_PROCESSORS = Path("/proc/cpuinfo")


def resolve_device(name: str) -> torch.device:
    """The device called `name`. "auto" is CUDA if a GPU is available, else the CPU.

    Raises:
        UserError: `name` is "cuda", and PyTorch finds no GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: PyTorch finds no CUDA GPU here; set `device` to cpu or auto")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Describe the device in one line, for logs and tables."""
    if device.type == "cuda":
        return f"CUDA, {torch.cuda.get_device_name(device)}"
    count = torch.get_num_threads()
    return f"CPU ({_processor()}), {count} thread{'s' * (count != 1)}"


def _processor() -> str:
    """The name of the processor without trademarks and clock speed; if it is unknown, its architecture."""
    name = platform.processor()
    with suppress(OSError), _PROCESSORS.open(encoding="utf-8", errors="replace") as file:
        name = next((line.partition(":")[2] for line in file if line.startswith("model name")), name)
    words = re.sub(r"\((?:R|TM)\)|@.*|:|\b(?:CPU|Processor)\b", " ", name)
    return sanitize(words, 60) or platform.machine()


def set_precision(precision: str, device: torch.device, note: Callable[[str], object]) -> None:
    """Set how this process multiplies float32 on CUDA: in TF32, unless `precision` is "float32".

    "bfloat16" also needs `autocast` around the computation; `note` is called if this device emulates it, or
    has no TF32.
    """
    for settings, name in _tf32_settings():
        setattr(settings, name, _TF32_VALUES[name][precision != "float32"])
    if precision == "bfloat16" and _emulates_bfloat16(device):
        note("this device only emulates bfloat16: with `precision` float32 it is faster")
    if precision == "tf32" and device.type != "cuda":
        note("`precision` tf32 is for CUDA: this device computes in float32")


def multiplies_in_tf32(device: torch.device) -> bool:
    """Whether PyTorch's present settings let some products of float32 on `device` be rounded to TF32."""
    settings = _tf32_settings()
    return device.type == "cuda" and any(getattr(of, name) in (True, "tf32") for of, name in settings)


@contextmanager
def keeping_precision() -> Iterator[None]:
    """After this context, float32 is multiplied on CUDA as before it, whatever `set_precision` said in it."""
    before = [(settings, name, getattr(settings, name)) for settings, name in _tf32_settings()]
    try:
        yield
    finally:
        for settings, name, value in before:
            setattr(settings, name, value)


#: What says that float32 is exact, and that it may be TF32, in torch's older settings and those since 2.9.
_TF32_VALUES = {"allow_tf32": (False, True), "fp32_precision": ("ieee", "tf32")}


def _tf32_settings() -> list[tuple[Any, str]]:
    """Torch's settings for TF32: the newer ones if this process uses those, since torch allows no mixture."""
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    older = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    try:
        for settings, name in older:
            getattr(settings, name)
    except RuntimeError:
        return [(settings, "fp32_precision") for settings in (matmul, cudnn.conv, cudnn.rnn)]
    return older


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """`torch.autocast` in bfloat16 on `device` if `enabled`, else `without_autocast`.

    It has no effect on the meta device, for which torch has no autocast.
    """
    if not enabled or device.type == "meta":
        return without_autocast(device)
    return torch.autocast(device.type, torch.bfloat16)


def _emulates_bfloat16(device: torch.device) -> bool:
    """True if `device` emulates bfloat16 with float32.

    That holds for x86 processors without AVX-512 BF16, if torch can tell, and NVIDIA GPUs before Ampere.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    # Older versions of torch lack this function.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities.get("avx512_bf16", True)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for new ones instead of returning it to the system.

    By default, Linux's C library maps every large block anew, and each page of it then costs a page fault:
    23 % of a training pass over 256 images (docs/performance.md). The setting holds for the whole process.
    It has no effect on other systems, nor on CUDA, for which torch has a caching allocator.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    set_option(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
    set_option(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def set_up_evaluation(device: str | None, precision: str, note: Callable[[str], object]) -> torch.device:
    """Prepare this process for evaluating a classifier; return the device, by default that of "auto"."""
    keep_freed_memory()
    target = resolve_device(device or "auto")
    set_precision(precision, target, note)
    return target


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Derive a 63-bit seed from the run's seed, a purpose such as "step", and a counter.

    Every random choice of a step draws from such a seed. So no choice depends on how often another one drew,
    and a run that stops after step t resumes exactly as if it had not stopped. Only the choice of a subset of
    the images draws from the run's seed itself.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def seeded_generator(device: torch.device, seed: int, purpose: str, index: int = 0) -> torch.Generator | None:
    """A generator on `device` for one purpose; None on the meta device, which has no values to draw."""
    if device.type == "meta":
        return None
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, index))


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context that computes in the dtypes of the tensors, even where a caller uses autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Within this context, PyTorch splits operations over this many threads; then over as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
