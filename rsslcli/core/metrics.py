"""The metrics of a run: one JSON object per step or epoch, in metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from rsslcli.core.errors import RsslError
from rsslcli.core.files import replacing

#: Metrics are read back from the device about once a second, so that steps do not wait for each other.
FLUSH_SECONDS = 1.0


class Metrics:
    """The run's metrics.jsonl: one JSON object per step or epoch, each exactly once, also over resumes."""

    def __init__(self, path: Path, step: int) -> None:
        """Open `path` for a run that goes on after `step` steps; what it says of later ones is dropped."""
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self._since = time.perf_counter()
        self.clean_accuracy = float("nan")
        kept = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
                if record["step"] > step:
                    break
                self.clean_accuracy = record.get("clean_accuracy", self.clean_accuracy)
            except (ValueError, KeyError, TypeError):  # a line that was cut short
                break
            kept.append(line + b"\n")
        with replacing(path) as file:
            file.writelines(kept)
        self._file: IO[str] = path.open("a")

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
                    raise RsslError(
                        f"training diverged at step {record['step']}: {key} is {value}; lower --lr"
                    )
            self.write(record)
        self._pending.clear()
        self._since = time.perf_counter()
        return record

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write one record now."""
        self.clean_accuracy = record.get("clean_accuracy", self.clean_accuracy)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._since = time.perf_counter()
        return record

    def sync(self) -> None:
        """Make what is written survive a power cut, ahead of a checkpoint that counts on it."""
        os.fsync(self._file.fileno())
