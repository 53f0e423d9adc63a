"""The metrics of a run: one JSON object per step or epoch, in metrics.jsonl."""

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

#: Metrics are read back from the device about once a second, so that steps do not wait for each other.
FLUSH_SECONDS = 1.0


class Metrics:
    """The run's metrics.jsonl: one JSON object per step or epoch, each exactly once, also over resumes."""

    def __init__(self, path: Path | None, step: int) -> None:
        """Open `path` for a run that goes on after `step` steps; what it says of later ones is dropped.

        None is for a rank that checks its metrics and leaves the writing to another one.
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
            except (ValueError, KeyError, TypeError, RecursionError):  # a line that was cut short
                break
            kept.append(line + b"\n")
        if path:
            with replacing(path) as file:
                file.writelines(kept)
        # Unbuffered: a line is on its way to the disk, or its failure is known, when `write` returns.
        self._file: IO[bytes] = (path or Path(os.devnull)).open("ab", buffering=0)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, fixed: dict[str, Any], values: dict[str, Tensor], images: int) -> dict[str, Any] | None:
        """Keep a step's values, which may still be being computed; about once a second, write them out."""
        self._pending.append((fixed | {"images": images}, values))
        if time.perf_counter() - self._since < FLUSH_SECONDS:
            return None
        return self.flush()

    def flush(self) -> dict[str, Any] | None:
        """Write the pending steps and return the last one's record."""
        if not self._pending:
            return None
        # One copy to the host for all values of all pending steps.
        flat = torch.stack([value for _, values in self._pending for value in values.values()]).tolist()
        elapsed = time.perf_counter() - self._since
        speed = round(sum(fixed["images"] for fixed, _ in self._pending) / elapsed, 2)
        record: dict[str, Any] = {}
        for fixed, values in self._pending:
            own, flat = flat[: len(values)], flat[len(values) :]
            record = {key: value for key, value in fixed.items() if key != "images"}
            record |= dict(zip(values, own, strict=True)) | {"images_per_second": speed}
            for key, value in record.items():
                if not math.isfinite(value):
                    raise DivergedError(
                        f"training diverged at step {record['step']}: {key} is {value}; lower --lr"
                    )
            self.write(record)
        self._pending.clear()
        self._since = time.perf_counter()
        return record

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write one record now."""
        self.clean_accuracy = record.get("clean_accuracy", self.clean_accuracy)
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # it took the beginning
        except OSError as error:
            raise RsslError(f"cannot write {self._path}: {error.strerror}") from None
        self._since = time.perf_counter()
        return record

    def sync(self) -> None:
        """Make what is written survive a power cut, ahead of a checkpoint that counts on it.

        Raises:
            RsslError: it cannot be, or the file was deleted.
        """
        if self._path is None:
            return
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise RsslError(f"{self._path} was deleted while the run was going on")
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RsslError(f"cannot write {self._path}: {error.strerror}") from None
