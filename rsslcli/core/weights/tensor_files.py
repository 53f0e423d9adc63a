"""Files of tensors from anywhere, of torch.save or safetensors, read without running anything in them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rsslcli.core.errors import UserError
from rsslcli.core.files import quietly
from rsslcli.core.weights.pickles import ForeignObjectError, check_pickle

#: What messages say of a file that is not as torch or safetensors write it.
DAMAGED = "is damaged or of another program"
_MAX_DEPTH = 20  # of what a file nests; our checkpoints have four levels


def read_tensors(path: Path) -> dict[Any, Any]:
    """The dictionary in a file of torch.save or safetensors.

    Its parts may be shared, expanded and nested in any way: take what you use through `copied`.

    Raises:
        UserError: the file is damaged, of another kind, or holds other objects than tensors and plain values.
    """
    try:
        with path.open("rb") as file, quietly():
            if _is_safetensors(file, path.stat().st_size):
                return _read_safetensors(path)
            # An archive is mapped, so that a tensor cannot reach beyond the file, nor be larger.
            is_archive = _check(file, path.stat().st_size)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ForeignObjectError as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it holds objects other than tensors and plain values: "
            f"{error}. Where the model is at hand, save its weights alone: "
            'torch.save({"state_dict": model.state_dict()}, "weights.pt")'
        ) from None
    except Exception:  # torch raises almost anything on damaged and foreign files
        raise UserError(f"{path} cannot be read as a checkpoint: it {DAMAGED}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    return dict(dict.items(content))  # as in copied


def copied(path: Path, content: Any) -> Any:
    """A copy of what a file holds, in plain dictionaries and tensors that share nothing.

    A pickle can share and nest its parts, and repeat one number over a tensor of any shape, so that a small
    file stands for a content of any size. Written out, it may not be larger than the file.

    Raises:
        UserError: it is larger, or nested too deeply.
    """
    room = path.stat().st_size

    def copy(value: Any, depth: int) -> Any:
        nonlocal room
        room -= value.numel() * value.element_size() if isinstance(value, Tensor) else 1
        if room < 0 or depth > _MAX_DEPTH:
            raise UserError(f"{path} {DAMAGED}: it claims more than it can hold")
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):  # an OrderedDict's own methods may be replaced by the file
            return {key: copy(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, list | tuple):
            items = [copy(item, depth + 1) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    return copy(content, 0)


def _check(file: IO[bytes], size: int) -> bool:
    """Check a file of torch.save before torch reads it; whether it is of the newer format, an archive.

    torch trusts an archive's claims and looks at no checksum.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        for _ in range(5):  # the format's mark, its version, the system, the content, the storages' names
            check_pickle(file)
        return False
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename.lower() for member in members]
        # torch.save writes zeros where it was told to compute no checksums: then there is nothing to compare.
        if not any(member.CRC for member in members):
            for member in members:
                del member.CRC
        # As torch.save writes it: nothing compressed, nothing twice, nothing ahead of the archive.
        if (
            any(member.compress_type != zipfile.ZIP_STORED for member in members)
            or sum(member.file_size for member in members) > size
            or min(member.header_offset for member in members) > 0
            or len(set(names)) < len(names)
            or archive.testzip() is not None
        ):
            raise zipfile.BadZipFile
        for member, name in zip(members, names, strict=True):
            if name.endswith(".pkl"):
                check_pickle(io.BytesIO(archive.read(member)))
    return True


def _is_safetensors(file: IO[bytes], size: int) -> bool:
    """Whether a file begins as safetensors do: with the length of a header, which is JSON."""
    start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _read_safetensors(path: Path) -> dict[Any, Any]:
    """The tensors in a file of safetensors, by name. The library checks that they fill it, each once."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"{path} is a safetensors file, and reading it needs the package safetensors: "
            "pip install 'rsslcli[safetensors]'"
        ) from None
    return dict(load_file(path, device="cpu"))
