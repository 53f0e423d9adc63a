"""Our own CIFAR-10-C: corrupt images in memory, or write the benchmark's files into a folder.

Images are worked through in chunks of fixed size, each with a random generator of its own, seeded by the
corruption, the severity and the chunk's place. So any part can be made again alone and has the same bytes,
whatever the number of workers and of images that follow.
"""

import hashlib
import io
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.corruptions.record import GENERATED, source_checksum
from rsslcli.core.corruptions.registry import FUNCTIONS
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.files import quietly, replacing
from rsslcli.core.progress import Progress, silent

#: Raised whenever the same call would give other bytes, so that files of an older version are made anew.
GENERATOR_VERSION = 1
CHUNK = 250
RECORD = GENERATED

Images = NDArray[np.uint8]


def corrupt(images: Images, name: str, severity: int, *, seed: int = 0) -> Images:
    """Corrupt images (N, H, W, 3) uint8; the result has the same shape and dtype.

    Raises UserError for an unknown corruption, a severity outside 1…5, or images of another shape or dtype.
    """
    _check_images(images)
    _check_corruption(name, severity)
    result = np.empty_like(images)
    with _one_thread_per_operation():
        for index in range(_chunks(images)):
            result[index * CHUNK : (index + 1) * CHUNK] = _corrupt_chunk(images, name, severity, seed, index)
    return result


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
    finished; files that it records as made from something else are removed and made anew, files that it
    does not know are replaced.

    `workers` threads share the work, by default as many as torch would use. Raises UserError as `corrupt`
    does, for labels that do not fit the images, and for no images at all; an OSError (such as a full disk)
    passes through, and what was finished before it stays.
    """
    _check_images(images)
    if len(images) == 0:
        raise UserError("there are no images to corrupt")
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

    def work(name: str, severity: int) -> None:
        with files.open_block(name, severity) as file:
            for index in range(_chunks(images)):
                if stop.is_set():
                    return
                file.write(_corrupt_chunk(images, name, severity, seed, index).tobytes())
        files.finish_block(name, severity)

    pool = ThreadPoolExecutor(workers or torch.get_num_threads())
    with _one_thread_per_operation(), pool:
        try:
            for future in as_completed([pool.submit(work, *block) for block in todo]):
                future.result()
                done += 1
                progress("corrupting", done, total)
        finally:  # after an error or an interruption, leave what is half made
            stop.set()
            pool.shutdown(cancel_futures=True)


def _chunks(images: Images) -> int:
    return -(-len(images) // CHUNK)


def _corrupt_chunk(images: Images, name: str, severity: int, seed: int, index: int) -> Images:
    chunk = images[index * CHUNK : (index + 1) * CHUNK]
    # A short last chunk is filled up, so that its images draw the same random numbers as in a full one.
    padded = np.zeros((CHUNK, *chunk.shape[1:]), np.uint8)
    padded[: len(chunk)] = chunk
    digest = hashlib.sha256(f"{seed}/{name}/{severity}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    with torch.no_grad():
        pixels = torch.from_numpy(padded).permute(0, 3, 1, 2).float().contiguous() / 255
        pixels = FUNCTIONS[name](pixels, severity, generator).clamp(0, 1)
        # Cut off, not rounded, as the original does. The little that is added keeps whole grey levels whole.
        levels = (pixels * 255 + 1e-3).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).numpy()[: len(chunk)]


@contextmanager
def _one_thread_per_operation() -> Iterator[None]:
    """Keep torch from splitting operations: workers share the cores, and the order of sums is fixed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _CorruptionFiles:
    """The files of a folder and the record of which of their blocks are finished."""

    def __init__(self, folder: Path, images: Images, labels: NDArray[Any], seed: int) -> None:
        self.identity = {
            "generator": GENERATOR_VERSION,
            "images": len(images),
            "seed": seed,
            "source": source_checksum(images, labels),
        }
        self.shape = (len(SEVERITIES) * len(images), *images.shape[1:])
        self.folder = folder
        self.lock = threading.Lock()
        self.record = self._read_record()

    def missing(self, name: str, severities: Sequence[int]) -> list[int]:
        """Get the file of a corruption ready to be written; return the severities that it still lacks."""
        complete, partial = self._paths(name)
        entry = self.record.get(name)
        if entry and entry["identity"] == self.identity:
            finished = entry["severities"]
            all_finished = len(finished) == len(SEVERITIES)
            if all_finished and self._is_ours(partial):
                partial.replace(complete)  # the last run ended just before this
            if self._is_ours(complete if all_finished else partial):
                return [severity for severity in severities if severity not in finished]
        if entry:
            complete.unlink(missing_ok=True)
        self.record[name] = {"identity": self.identity, "severities": []}
        self._write_record()
        partial.unlink(missing_ok=True)  # which may be a link to elsewhere
        np.lib.format.open_memmap(partial, "w+", np.uint8, self.shape)
        return list(severities)

    @contextmanager
    def open_block(self, name: str, severity: int) -> Iterator[BinaryIO]:
        """Open the unfinished file of a corruption where the block of a severity begins, to write it."""
        _, partial = self._paths(name)
        start = np.load(partial, mmap_mode="r").offset
        # Plain writes: on a full disk they raise OSError, where writing to a memory map kills the process.
        with partial.open("r+b") as file:
            file.seek(start + (severity - 1) * math.prod(self.shape) // len(SEVERITIES))
            yield file
            file.flush()
            os.fsync(file.fileno())

    def finish_block(self, name: str, severity: int) -> None:
        """Record a block as finished, and give the file its name once all five are."""
        complete, partial = self._paths(name)
        with self.lock:
            finished = sorted({*self.record[name]["severities"], severity})
            self.record[name]["severities"] = finished
            self._write_record()
            if len(finished) == len(SEVERITIES):
                partial.replace(complete)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.npy", self.folder / f"{name}.npy.partial"

    def _is_ours(self, path: Path) -> bool:
        """Whether the file is there, with the right shape and nothing cut off."""
        try:
            with quietly():
                stored = np.lib.format.open_memmap(path, mode="r")
        except Exception:  # NumPy raises almost anything on damaged files
            return False
        return bool(stored.shape == self.shape and stored.dtype == np.uint8)

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        entries = record.items() if isinstance(record, dict) else ()
        return {name: entry for name, entry in entries if name in CORRUPTIONS and _is_entry(entry)}

    def _write_record(self) -> None:
        with replacing(self.folder / RECORD) as file:
            file.write(json.dumps(self.record, indent=1).encode())


def _is_entry(value: object) -> bool:
    """Whether a value of the record can be what `missing` wrote there."""
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict):
        return False
    finished = value.get("severities")
    return (
        isinstance(finished, list)
        and all(type(severity) is int for severity in finished)
        and finished == sorted({*finished} & {*SEVERITIES})
    )


def _write_labels(folder: Path, labels: NDArray[Any]) -> None:
    fits = labels.min() >= 0 and labels.max() <= 255
    content = io.BytesIO()
    np.save(content, np.tile(labels, len(SEVERITIES)).astype(np.uint8 if fits else np.int64))
    path = folder / "labels.npy"
    if path.exists() and path.read_bytes() == content.getvalue():
        return
    with replacing(path) as file:
        file.write(content.getvalue())


def _check_images(images: Images) -> None:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(f"images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}")


def _check_corruption(name: str, severity: int) -> None:
    if name not in FUNCTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UserError(f"severity must be one of 1, 2, 3, 4, 5, not {severity!r}")
