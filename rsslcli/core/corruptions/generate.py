"""Our own CIFAR-10-C: corrupt images in memory, or write the benchmark's files into a folder.

Images are worked through in chunks of fixed size, each with a random generator of its own, seeded by the
corruption, the severity and the chunk's place. So any part can be made again alone and has the same bytes,
whatever the number of workers and of images that follow.
"""

import difflib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.registry import FUNCTIONS
from rsslcli.core.errors import UserError
from rsslcli.core.progress import Progress, silent

#: Raised whenever the same call would give other bytes, so that files of an older version are made anew.
GENERATOR_VERSION = 1
CHUNK = 250
RECORD = "corruptions.json"

Images = NDArray[np.uint8]


def corrupt(images: Images, name: str, severity: int, *, seed: int = 0) -> Images:
    """Corrupt images (N, H, W, 3) uint8; the result has the same shape and dtype.

    Raises UserError for an unknown corruption, a severity outside 1…5, or images of another shape or dtype.
    """
    _check_images(images)
    _check_corruption(name, severity)
    with _one_thread_per_worker():
        return _corrupt_block(images, name, severity, seed, threading.Event())


def generate_corrupted(
    images: Images,
    labels: NDArray[Any],
    folder: Path,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> None:
    """Write `<corruption>.npy` (5·N, H, W, 3) uint8 and `labels.npy` (5·N,), the layout of CIFAR-10-C.

    A file holds five blocks of N images, severity 1 to 5. Until all five are there it is called
    `<corruption>.npy.partial`; a later call with the same images, labels and seed makes only the blocks
    that are missing. `corruptions.json` records what each file was made from and which of its blocks are
    finished; files that it records as made from something else are removed and made anew.

    `workers` threads share the work, by default one per processor core. Raises UserError as `corrupt`
    does, and for labels that do not fit the images; an OSError (such as a full disk) passes through, and
    what was finished before it stays.
    """
    _check_images(images)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"labels must be {len(images)} integers, one per image, not {labels.dtype} {labels.shape}"
        )
    for name in corruptions:
        for severity in severities:
            _check_corruption(name, severity)

    folder.mkdir(parents=True, exist_ok=True)
    _write_labels(folder, labels)
    files = _CorruptionFiles(folder, images, labels, seed)
    todo = [
        (name, severity)
        for name in dict.fromkeys(corruptions)
        for severity in files.missing(name, sorted(set(severities)))
    ]
    total = len(set(corruptions)) * len(set(severities))
    done = total - len(todo)
    progress("corrupting", done, total)

    stop = threading.Event()

    def work(name: str, severity: int) -> str:
        block = _corrupt_block(images, name, severity, seed, stop)
        if not stop.is_set():
            files.write(name, severity, block)
        return name

    with _one_thread_per_worker(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            for future in as_completed([pool.submit(work, *block) for block in todo]):
                future.result()
                done += 1
                progress("corrupting", done, total)
        finally:  # after an error or an interruption let no block start, and none be written half-made
            stop.set()
            pool.shutdown(cancel_futures=True)


def _corrupt_block(images: Images, name: str, severity: int, seed: int, stop: threading.Event) -> Images:
    result = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        if stop.is_set():
            break
        chunk = images[start : start + CHUNK]
        result[start : start + CHUNK] = _corrupt_chunk(chunk, name, severity, seed, start // CHUNK)
    return result


def _corrupt_chunk(chunk: Images, name: str, severity: int, seed: int, index: int) -> Images:
    # A short last chunk is filled up, so that its images draw the same random numbers as in a full one.
    padded = np.zeros((CHUNK, *chunk.shape[1:]), np.uint8)
    padded[: len(chunk)] = chunk
    digest = hashlib.sha256(f"{seed}/{name}/{severity}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    with torch.inference_mode():
        pixels = torch.from_numpy(padded).permute(0, 3, 1, 2).float().contiguous() / 255
        pixels = FUNCTIONS[name](pixels, severity, generator).clamp(0, 1)
        # Cut off, not rounded, as the original does. The little that is added keeps whole grey levels whole.
        levels = (pixels * 255 + 1e-3).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).numpy()[: len(chunk)]


@contextmanager
def _one_thread_per_worker() -> Iterator[None]:
    """Let every operation run on one thread: workers then share the cores, and the order of sums is fixed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _CorruptionFiles:
    """The files of a folder and the record of which of their blocks are finished."""

    def __init__(self, folder: Path, images: Images, labels: NDArray[Any], seed: int) -> None:
        source = hashlib.sha256(np.ascontiguousarray(images).data)
        source.update(np.ascontiguousarray(labels, dtype=np.int64).data)
        self.identity = {
            "generator": GENERATOR_VERSION,
            "images": len(images),
            "seed": seed,
            "source": source.hexdigest(),
        }
        self.shape = (len(SEVERITIES) * len(images), *images.shape[1:])
        self.folder = folder
        self.lock = threading.Lock()
        self.record = self._read_record()

    def missing(self, name: str, severities: Sequence[int]) -> list[int]:
        """Get the file of a corruption ready to be written; return the severities that it still lacks."""
        complete, partial = self._paths(name)
        entry = self.record.get(name)
        if entry is not None and entry["identity"] == self.identity:
            finished = entry["severities"]
            if len(finished) == len(SEVERITIES) and partial.exists():
                partial.replace(complete)  # the last run ended just before this
            if (complete if len(finished) == len(SEVERITIES) else partial).exists():
                return [severity for severity in severities if severity not in finished]
        if entry is not None:
            complete.unlink(missing_ok=True)
        np.lib.format.open_memmap(partial, "w+", np.uint8, self.shape)
        self.record[name] = {"identity": self.identity, "severities": []}
        self._write_record()
        return list(severities)

    def write(self, name: str, severity: int, block: Images) -> None:
        """Write a finished block, then record it, and give the file its name once all five are there."""
        complete, partial = self._paths(name)
        offset = np.lib.format.open_memmap(partial, "r").offset
        # A plain write: on a full disk it raises OSError, where writing to a memory map kills the process.
        with partial.open("r+b") as file:
            file.seek(offset + (severity - 1) * block.nbytes)
            file.write(block.data)
            file.flush()
            os.fsync(file.fileno())
        with self.lock:
            finished = sorted({*self.record[name]["severities"], severity})
            self.record[name]["severities"] = finished
            self._write_record()
            if len(finished) == len(SEVERITIES):
                partial.replace(complete)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.npy", self.folder / f"{name}.npy.partial"

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return record if isinstance(record, dict) else {}

    def _write_record(self) -> None:
        partial = self.folder / f"{RECORD}.partial"
        partial.write_text(json.dumps(self.record, indent=1), encoding="utf-8")
        partial.replace(self.folder / RECORD)


def _write_labels(folder: Path, labels: NDArray[Any]) -> None:
    fits = len(labels) == 0 or (labels.min() >= 0 and labels.max() <= 255)
    partial = folder / "labels.npy.partial"
    with partial.open("wb") as file:
        np.save(file, np.tile(labels, len(SEVERITIES)).astype(np.uint8 if fits else np.int64))
    partial.replace(folder / "labels.npy")


def _check_images(images: Images) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")


def _check_corruption(name: str, severity: int) -> None:
    if name not in FUNCTIONS:
        near = difflib.get_close_matches(name, CORRUPTIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(CORRUPTIONS)}"
        raise UserError(f"unknown corruption {name!r}: {hint}")
    if severity not in SEVERITIES:
        raise UserError(f"severity must be one of 1, 2, 3, 4, 5, not {severity!r}")
