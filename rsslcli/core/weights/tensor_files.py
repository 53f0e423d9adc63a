"""Reading untrusted files of torch.save or safetensors without running any code in them."""

from __future__ import annotations

import io
import json
import mmap
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from rsslcli.core.errors import UserError
from rsslcli.core.files import quietly
from rsslcli.core.weights.pickles import ForeignObjectError, check_pickle

#: What messages say about a file that torch or safetensors would not write.
DAMAGED = "is damaged or of another program"
_MAX_DEPTH = 20  # nesting in a file; our checkpoints have four levels


def read_tensors(path: Path) -> dict[Any, Any]:
    """Read the dictionary in a file of torch.save or safetensors.

    Its parts may be shared, expanded and nested in any way: copy the parts you use with `copied`.

    Raises:
        UserError: the file is damaged, of another kind, or holds objects other than tensors and plain values.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"cannot read {path}: PyTorch takes only names in UTF-8: rename it") from None
    try:
        with path.open("rb") as file, quietly():
            if _is_safetensors(file, path.stat().st_size):
                return _read_safetensors(path)
            # Archives are memory-mapped, so that no tensor can extend beyond the file.
            is_archive = _check(file, path.stat().st_size)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ForeignObjectError as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it holds objects other than tensors and plain values: "
            f"{error}. If you have the model, save only its weights: "
            'torch.save({"state_dict": model.state_dict()}, "weights.pt")'
        ) from None
    except Exception:  # torch may raise anything on damaged and foreign files
        raise UserError(f"{path} cannot be read as a checkpoint: it {DAMAGED}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is neither a checkpoint of rssl nor a state dict of a WideResNet")
    return dict(dict.items(content))  # see `copied`


def read_description(path: Path) -> dict[str, Any]:
    """The JSON values in the metadata of a safetensors file, by name; empty for any other file.

    The export of a classifier writes "classes", "preprocessing" and, if it is calibrated, "temperature". The
    values may be anything: check them.
    """
    with path.open("rb") as file:
        if not _is_safetensors(file, path.stat().st_size):
            return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        texts = opened.metadata() or {}
    found = {}
    for name in texts.keys() & {"classes", "preprocessing", "temperature"}:
        with suppress(ValueError, RecursionError):
            found[name] = json.loads(texts[name])
    return found


def copied(path: Path, content: Any) -> Any:
    """Copy the content of a file into plain dictionaries and tensors that share nothing.

    A pickle can share and nest its parts, and expand one number to a tensor of any shape, so that a small
    file can stand for content of any size. The copy may not be larger than the file.

    Raises:
        UserError: the copy would be larger, or is nested too deeply.
    """
    room = path.stat().st_size

    def copy(value: Any, depth: int) -> Any:
        nonlocal room
        room -= value.numel() * value.element_size() if isinstance(value, Tensor) else 1
        if room < 0 or depth > _MAX_DEPTH:
            raise UserError(f"{path} {DAMAGED}: it claims more than it can hold")
        if isinstance(value, Tensor):
            return value.detach().clone()
        if isinstance(value, dict):  # bypasses methods of an OrderedDict that the file may replace
            return {key: copy(item, depth + 1) for key, item in dict.items(value)}
        if isinstance(value, list | tuple):
            items = [copy(item, depth + 1) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    return copy(content, 0)


def _check(file: IO[bytes], size: int) -> bool:
    """Check a file of torch.save before torch reads it; return true for the newer format, an archive.

    torch itself trusts an archive's headers and verifies no checksum.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        # A map never makes room for more than the file has, whatever length a pickle claims.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for _ in range(5):  # magic number, version, system information, content, storage keys
                check_pickle(cast(IO[bytes], content))
        return False
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename.lower() for member in members]
        # torch.save can be told to compute no checksums and then writes zeros: nothing to verify.
        if not any(member.CRC for member in members):
            for member in members:
                del member.CRC
        # torch.save writes no compressed members, no duplicates, and nothing ahead of the archive.
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
    """True if a file begins like safetensors: with the length of a JSON header, and the header."""
    start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _read_safetensors(path: Path) -> dict[Any, Any]:
    """Read the tensors in a safetensors file, by name. The library checks that they exactly fill it."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"{path} is a safetensors file, which needs the package safetensors: "
            "pip install 'rsslcli[safetensors]'"
        ) from None
    return dict(load_file(path, device="cpu"))
