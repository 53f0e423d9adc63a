"""Corrupt images in memory, or write a set of files in the layout of CIFAR-10-C.

Images are processed in chunks, each with its own random generator, seeded by the corruption, the severity
and the chunk's index; the length of a chunk depends only on the size of the images. So any part can be
regenerated alone with the same bytes, whatever the number of workers and the images that follow.
"""

import hashlib
import io
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
from rsslcli.core.corruptions.parameters import check_size
from rsslcli.core.corruptions.record import GENERATED as RECORD
from rsslcli.core.corruptions.record import is_entry, source_checksum
from rsslcli.core.corruptions.registry import FUNCTIONS, apply
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.files import quietly, read_json, replacing, write_json
from rsslcli.core.progress import Progress, silent
from rsslcli.core.runtime import using_threads

#: Increased whenever the same call would give other bytes, so that older files are regenerated.
GENERATOR_VERSION = 2
#: Images per chunk by their side: about as many pixels as the processor's cache holds.
CHUNK = {32: 250, 64: 16, 224: 1}

Images = NDArray[np.uint8]


def corrupt(images: Images, name: str, severity: int, *, seed: int = 0) -> Images:
    """Corrupt images (N, H, W, 3) uint8; the result has the same shape and dtype.

    Raises:
        UserError: the corruption is unknown, the severity is not 1 to 5, or the images have another shape or
            dtype.
    """
    _check_images(images)
    _check_corruption(name, severity)
    result = np.empty_like(images)
    with using_threads(1):  # so that sums have a fixed order
        for index in range(_chunks(images)):
            result[_chunk(images, index)] = _corrupt_chunk(images, name, severity, seed, index)
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

    `images` are the clean ones, uint8 (N, H, W, 3), and `labels` their labels, integers (N,).

    A file holds five blocks of N images, severity 1 to 5. Until all five are done its name is
    `<corruption>.npy.partial`; a later call with the same images, labels and seed generates only the missing
    blocks. `corruptions.json` records what each file was made from and which of its blocks are finished.
    Files made from other images are removed, also those of corruptions that are not asked for; files of
    another seed or version are regenerated, and files that the record does not list are replaced.

    `workers` threads share the work, by default as many as torch would use.

    Raises:
        UserError: as for `corrupt`, or the labels do not match the images, or there are no images.
        OSError: a file cannot be written, for example because the disk is full; finished blocks are kept.
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
    with using_threads(1), pool:  # the workers share the cores
        try:
            for future in as_completed([pool.submit(work, *block) for block in todo]):
                future.result()
                done += 1
                progress("corrupting", done, total)
        finally:  # after an error or an interruption, abandon unfinished blocks
            stop.set()
            pool.shutdown(cancel_futures=True)


def _chunks(images: Images) -> int:
    return -(-len(images) // CHUNK[images.shape[1]])


def _chunk(images: Images, index: int) -> slice:
    size = CHUNK[images.shape[1]]
    return slice(index * size, (index + 1) * size)


def _corrupt_chunk(images: Images, name: str, severity: int, seed: int, index: int) -> Images:
    chunk = images[_chunk(images, index)]
    # Pad a short last chunk, so that its images get the same random numbers as in a full one.
    padded = np.zeros((CHUNK[chunk.shape[1]], *chunk.shape[1:]), np.uint8)
    padded[: len(chunk)] = chunk
    digest = hashlib.sha256(f"{seed}/{name}/{severity}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    with torch.no_grad():
        pixels = torch.from_numpy(padded).permute(0, 3, 1, 2).float().contiguous() / 255
        pixels = apply(name, pixels, severity, generator).clamp(0, 1)
        # Truncate, as the original does. The small addend keeps integer gray levels from being rounded down.
        levels = (pixels * 255 + 1e-3).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).numpy()[: len(chunk)]


class _CorruptionFiles:
    """The files of a folder, and the record of their finished blocks."""

    def __init__(self, folder: Path, images: Images, labels: NDArray[Any], seed: int) -> None:
        self.identity = {
            "generator": GENERATOR_VERSION,
            "images": len(images),
            "seed": seed,
            "size": images.shape[1],
            "source": source_checksum(images, labels),
        }
        self.shape = (len(SEVERITIES) * len(images), *images.shape[1:])
        self.folder = folder
        self.lock = threading.Lock()
        self.record: dict[str, Any] = {}
        for name, entry in read_json(folder / RECORD).items():
            if name in CORRUPTIONS and is_entry(entry):
                if entry["identity"].get("source") == self.identity["source"]:
                    self.record[name] = entry
                else:  # made from other images: `labels.npy`, and so the folder, is of these now
                    for path in self._paths(name):
                        path.unlink(missing_ok=True)

    def missing(self, name: str, severities: Sequence[int]) -> list[int]:
        """Prepare the file of a corruption for writing; return the severities that it lacks."""
        complete, partial = self._paths(name)
        entry = self.record.get(name)
        # Records from before other sizes than 32 do not state it.
        if entry and {"size": 32} | entry["identity"] == self.identity:
            finished = entry["severities"]
            all_finished = len(finished) == len(SEVERITIES)
            if all_finished and self._is_ours(partial):
                partial.replace(complete)  # an earlier call was interrupted just before this
            if self._is_ours(complete if all_finished else partial):
                return [severity for severity in severities if severity not in finished]
        if entry:
            complete.unlink(missing_ok=True)
        self.record[name] = {"identity": self.identity, "severities": []}
        write_json(self.folder / RECORD, self.record)
        partial.unlink(missing_ok=True)  # which may be a link to elsewhere
        np.lib.format.open_memmap(partial, "w+", np.uint8, self.shape)
        return list(severities)

    @contextmanager
    def open_block(self, name: str, severity: int) -> Iterator[BinaryIO]:
        """Open the unfinished file of a corruption at the start of the block of a severity, for writing."""
        _, partial = self._paths(name)
        start = np.load(partial, mmap_mode="r").offset
        # Plain writes: on a full disk they raise OSError, while writing to a memory map kills the process.
        with partial.open("r+b") as file:
            file.seek(start + (severity - 1) * math.prod(self.shape) // len(SEVERITIES))
            yield file
            file.flush()
            os.fsync(file.fileno())

    def finish_block(self, name: str, severity: int) -> None:
        """Record a finished block; once all five are finished, give the file its final name."""
        complete, partial = self._paths(name)
        with self.lock:
            finished = sorted({*self.record[name]["severities"], severity})
            self.record[name]["severities"] = finished
            write_json(self.folder / RECORD, self.record)
            if len(finished) == len(SEVERITIES):
                partial.replace(complete)

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.npy", self.folder / f"{name}.npy.partial"

    def _is_ours(self, path: Path) -> bool:
        """Whether the file exists, complete and with the right shape."""
        try:
            with quietly():
                stored = np.lib.format.open_memmap(path, mode="r")
        except Exception:  # NumPy raises almost anything on damaged files
            return False
        return bool(stored.shape == self.shape and stored.dtype == np.uint8)


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
    check_size(*images.shape[1:3])


def _check_corruption(name: str, severity: int) -> None:
    if name not in FUNCTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UserError(f"severity must be one of 1, 2, 3, 4, 5, not {severity!r}")
