"""Devices, precision and seeds."""

from __future__ import annotations

import ctypes
import platform
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from rsslcli.core.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called `name`: "auto" is CUDA where there is a GPU, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: PyTorch sees no CUDA GPU here; use --device cpu or --device auto")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """One line about the device, for logs and tables."""
    if device.type == "cuda":
        return f"CUDA, {torch.cuda.get_device_name(device)}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def set_precision(precision: str, device: torch.device, note: Callable[[str], object]) -> None:
    """Let this process multiply float32 in TF32 on CUDA, unless `precision` is "float32".

    "bfloat16" takes `autocast` around what is computed besides; `note` is told where that is slow.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    if precision == "bfloat16" and _emulates_bfloat16(device):
        note("this device has no bfloat16 of its own: --precision float32 is faster here")


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """`torch.autocast` in bfloat16 on `device`, where `enabled`; else all stays as it is around it.

    So it does on the meta device, where nothing is computed and torch has no autocast.
    """
    if not enabled or device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _emulates_bfloat16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16 by way of float32.

    True of x86 processors without AVX-512 BF16, where torch tells, and of NVIDIA's GPUs before Ampere.
    """
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    # Older versions of torch have no such function.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not capabilities.get("avx512_bf16", True)


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones, instead of giving it back to the system.

    Linux's C library maps every large block anew, and each of its pages then costs a fault when first
    touched: 23 % of a training pass over 256 images (docs/performance.md). It holds for the whole process.
    No effect on other systems, nor on CUDA, where torch keeps freed memory by itself.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    set_option(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
    set_option(-1, -1)  # M_TRIM_THRESHOLD: the heap never shrinks


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed that is a function of the run's seed, a purpose such as "batch", and a counter.

    Every random choice of a run takes its numbers from such a seed, so none depends on how often another
    one drew, and a run that stops at step t goes on from t exactly as if it had not stopped.
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def seeded_generator(device: torch.device, seed: int, purpose: str, index: int = 0) -> torch.Generator | None:
    """A generator on `device` for one purpose; None on the meta device, where nothing is drawn."""
    if device.type == "meta":
        return None
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, index))
