"""The metrics of a run, in metrics.jsonl."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rsslcli.core.errors import DivergedError, RsslError
from rsslcli.core.files import replacing

#: Metrics are copied from the device about this often, so that steps do not wait for each other.
FLUSH_SECONDS = 1.0


class Metrics:
    """Writes metrics.jsonl: one JSON object per step or epoch, each exactly once even if the run resumes."""

    def __init__(self, path: Path | None, step: int) -> None:
        """Open `path` for a run that resumes after `step` steps, and drop the records of later steps.

        With None, nothing is written or checked: rank 0 does both, and all ranks have the same values.
        """
        self._path = path
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self._since = time.perf_counter()
        self.clean_accuracy = float("nan")
        kept = []
        for line in path.read_bytes().splitlines() if path and path.exists() else ():
            try:
                record = json.loads(line)
                if record["step"] > step:
                    break
                self.clean_accuracy = record.get("clean_accuracy", self.clean_accuracy)
            except (ValueError, KeyError, TypeError, RecursionError):  # a truncated or damaged line
                continue
            kept.append(line + b"\n")
        if path:
            with replacing(path) as file:
                file.writelines(kept)
        # Unbuffered: when `write` returns, the system has the line, or the error was raised.
        self._file: IO[bytes] = (path or Path(os.devnull)).open("ab", buffering=0)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, fixed: dict[str, Any], values: dict[str, Tensor], images: int) -> dict[str, Any] | None:
        """Add a step's values, which the device may still be computing; about once a second, write all.

        Returns:
            The record of the last step if they were written, else None.
        """
        if self._path is None:
            return None
        self._pending.append((fixed | {"images": images}, values))
        if time.perf_counter() - self._since < FLUSH_SECONDS:
            return None
        return self.flush()

    def flush(self) -> dict[str, Any] | None:
        """Write the pending steps and return the record of the last one; None if none is pending.

        Raises:
            DivergedError: a value is NaN or infinite.
        """
        if not self._pending:
            return None
        # One copy to the host for all values of all pending steps.
        flat = torch.stack([value for _, values in self._pending for value in values.values()]).tolist()
        elapsed = time.perf_counter() - self._since
        speed = round(sum(fixed["images"] for fixed, _ in self._pending) / elapsed, 2)
        record: dict[str, Any] = {}
        for fixed, values in self._pending:
            numbers = flat[: len(values)]
            flat = flat[len(values) :]
            record = {key: value for key, value in fixed.items() if key != "images"}
            record |= dict(zip(values, numbers, strict=True)) | {"images_per_second": speed}
            for key, value in record.items():
                if not math.isfinite(value):
                    raise DivergedError(
                        f"training diverged at step {record['step']}: {key} is {value}; lower `lr`"
                    )
            self.write(record)
        self._pending.clear()
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Write one record immediately."""
        self.clean_accuracy = record.get("clean_accuracy", self.clean_accuracy)
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a partial write
        except OSError as error:
            raise RsslError(f"cannot write {self._path}: {error.strerror}") from None
        self._since = time.perf_counter()

    def sync(self) -> None:
        """Flush the file to the disk, before a checkpoint that relies on it is written.

        Raises:
            RsslError: the file cannot be written, or was deleted.
        """
        if self._path is None:
            return
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise RsslError(f"{self._path} was deleted during the run")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RsslError(f"cannot write {self._path}: {error.strerror}") from None
