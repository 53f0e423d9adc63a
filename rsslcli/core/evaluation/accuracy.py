"""Accuracy on the clean and corrupted test sets (section 3), excluding the images that tuned λ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.corrupted import CorruptedSet, aligned
from rsslcli.core.data.matching import note_on_cells
from rsslcli.core.data.published import corrupted_origin
from rsslcli.core.data.store import Split
from rsslcli.core.errors import DivergedError, UserError, sanitize, unknown
from rsslcli.core.evaluation.result import Evaluation, note_on_chance
from rsslcli.core.files import replacing
from rsslcli.core.progress import Progress, silent
from rsslcli.core.ranks import World
from rsslcli.core.runtime import autocast

#: Images per forward pass by device type. Small batches on the CPU keep the activations in its caches
#: (docs/performance.md).
BATCH_SIZE = {"cpu": 100, "cuda": 500}
#: Images per forward pass on other devices.
_OTHER_BATCH_SIZE = 500


def batch_size(device: torch.device) -> int:
    """Images per forward pass on this device."""
    return BATCH_SIZE.get(device.type, _OTHER_BATCH_SIZE)


def check_scores(scores: object, images: int) -> Tensor:
    """Return the output of a classifier for `images` images if it is a float tensor (images, classes).

    Raises:
        UserError: it is not.
    """
    if isinstance(scores, Tensor):
        if scores.dim() == 2 and len(scores) == images and scores.is_floating_point():
            return scores
        found = f"{tuple(scores.shape)}, {_dtype_name(scores.dtype)}"
    else:
        found = f"a {type(scores).__name__}"
    count = "one image" if images == 1 else f"{images} images"
    raise UserError(
        f"the model must give scores (N, classes); for {count} it gave {sanitize(found)}: "
        "wrap it so that it returns only the float tensor of scores"
    )


def model_dtype(classifier: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter or buffer; float32 if there is none."""
    tensors = chain(classifier.parameters(), classifier.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def count_correct(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64] | None = None,
    precision: str = "float32",
) -> tuple[int, int]:
    """Count the images that the classifier gets right, and those whose highest score is NaN or infinite.

    The latter have no predicted class: the first count is meaningless unless the second is 0.

    Args:
        classifier: maps floats (N, 3, H, W) in [0, 1], of its dtype, to scores (N, classes); on `device`.
        images: uint8 (N, H, W, 3); may be a memory map, which is read batch by batch.
        labels: int64 (N,).
        device: where to compute.
        chosen: indices of the images to evaluate; all by default.
        precision: "bfloat16" computes under autocast. TF32 on CUDA is a setting of the process, see
            `rsslcli.core.runtime.set_precision`.

    Raises:
        UserError: the classifier does not return scores.
    """
    chosen = np.arange(len(labels)) if chosen is None else chosen
    size = batch_size(device)
    dtype = model_dtype(classifier)
    # Both counts stay on the device until the last batch, so that the host waits only once.
    correct = torch.zeros((), dtype=torch.int64, device=device)
    undecided = torch.zeros_like(correct)
    with autocast(device, precision == "bfloat16"):
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            x = to_float(torch.from_numpy(images[batch]).to(device), dtype)
            y = torch.from_numpy(labels[batch]).to(device)
            highest, predicted = check_scores(classifier(x), len(batch)).to(device).max(1)
            correct += (predicted == y).sum()
            undecided += (~highest.isfinite()).sum()
    found = torch.stack([correct, undecided]).tolist()
    return found[0], found[1]


def clean_images(
    test: Split, corrupted: CorruptedSet | None, excluded: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The sorted indices of the clean test images to evaluate.

    `excluded` applies to them only if they are the source images of `corrupted` in the same order.
    """
    every = np.arange(len(test.labels))
    if corrupted is None or not aligned(corrupted, test):
        return every
    return np.setdiff1d(every, np.asarray(excluded, np.int64))


def evaluate(
    classifier: nn.Module,
    test: Split,
    corrupted: CorruptedSet,
    *,
    device: torch.device,
    score_of: Sequence[int] | None = None,
    excluded: Sequence[int] = (),
    limit: int | None = None,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    partial: Path | None = None,
    precision: str = "float32",
    about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    foreign: bool = False,
    progress: Progress = silent,
    world: World | None = None,
) -> Evaluation:
    """Evaluate a classifier on a test set and its corrupted versions.

    Args:
        classifier: maps floats (N, 3, H, W) in [0, 1], of the dtype of its parameters, to scores.
        test: the clean test set.
        corrupted: its corrupted versions.
        device: where to compute.
        score_of: the index of the score of each label, see `match_classes`; by default score i for label i.
        excluded: indices of the source images in `corrupted` to exclude; they also apply to `test` if both
            hold the same images in the same order.
        limit: evaluate only the first `limit` source images that are not excluded.
        corruptions: names of the corruptions; all those in `corrupted` by default.
        severities: numbers from 1 to 5.
        partial: a file for the counts of finished cells. If an interrupted run of the same evaluation wrote
            it, its cells are not evaluated again. It is removed in the end.
        precision: as for `count_correct`.
        about: entries that describe the origin of the result, such as the checkpoint's name.
        notes: earlier notes on the classifier, with which the result's notes begin.
        foreign: the classifier was trained elsewhere: add a note if the clean accuracy is near chance.
        progress: called at every cell.
        world: the ranks that evaluate together, one cell each at a time. Each gets the result; rank 0 writes
            `partial`.

    Raises:
        UserError: no image is left to evaluate, a corruption is not in the set, the classifier returns no
            scores, or `precision` is "bfloat16" and it is not a float32 model.
        DivergedError: scores are NaN or infinite.
    """
    names = _checked_names(corrupted, corruptions)
    left_out, chosen, clean = _choose_images(test, corrupted, excluded, limit)
    scores = np.arange(len(test.classes)) if score_of is None else np.asarray(score_of, np.int64)
    computed_in = _computed_in(classifier, precision)
    classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)
    cells = [
        _CLEAN,
        *((name, severity) for name in names for severity in SEVERITIES if severity in severities),
    ]

    def count(name: str, severity: int) -> tuple[int, int]:
        if (name, severity) == _CLEAN:
            return count_correct(classifier, test.images, scores[test.labels], device, clean, precision)
        images = corrupted.cell(name, severity)
        return count_correct(classifier, images, scores[corrupted.labels], device, chosen, precision)

    world = world or World()
    setting = test.checksum + corrupted.identity + computed_in
    if not world.is_main:
        partial = None
    fingerprint = _fingerprint(classifier, setting, [clean, chosen, scores]) if partial else ""
    sizes = {_key(*cell): len(clean if cell == _CLEAN else chosen) for cell in cells}
    counts = _Counts(partial, fingerprint, sizes)
    counts.known = json.loads(world.broadcast(json.dumps(counts.known)))
    for found, undecided in _count_cells(cells, counts.known, count, world, progress):
        for cell, images in undecided.items():
            if images:
                raise _undecided(cell, images, sizes[_key(*cell)], computed_in)
        counts.add(found)
    counts.remove()
    accuracy: dict[str, list[float | None]] = {
        name: [
            counts.known[_key(name, severity)] / len(chosen) if severity in severities else None
            for severity in SEVERITIES
        ]
        for name in names
    }
    result = Evaluation(
        clean_accuracy=counts.known[_key(*_CLEAN)] / len(clean),
        clean_images=len(clean),
        accuracy=accuracy,
        images=len(chosen),
        excluded=tuple(left_out.tolist()),
        about={
            **(about or {}),
            "precision": computed_in,
            "test_data": test.checksum,
            "corrupted_data": corrupted.identity,
            "corrupted_origin": corrupted_origin(corrupted),
        },
        notes=(*notes, *note_on_cells(corrupted, test, corrupted.folder)),
    )
    suspicion = note_on_chance(result, test) if foreign else None
    return dataclasses.replace(result, notes=(*result.notes, suspicion)) if suspicion else result


def _checked_names(corrupted: CorruptedSet, corruptions: Sequence[str] | None) -> list[str]:
    """The corruptions to evaluate, each once; UserError for one that `corrupted` does not have."""
    names = list(dict.fromkeys(corrupted.names if corruptions is None else corruptions))
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, corrupted.names)
        if name not in corrupted.names:
            raise UserError(f"{corrupted.folder} has no '{name}': it has {', '.join(corrupted.names)}")
    return names


def _choose_images(
    test: Split, corrupted: CorruptedSet, excluded: Sequence[int], limit: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The indices of the source images left out and evaluated, and of the clean images; UserError if none."""
    every = np.arange(corrupted.images_per_cell)
    left_out = np.intersect1d(every, np.asarray(excluded, np.int64))  # valid ones, without duplicates
    chosen = np.setdiff1d(every, left_out)[:limit]
    if not len(chosen):
        raise UserError(
            f"{corrupted.folder}: no image is left to evaluate after excluding those that tuned λ"
        )
    clean = clean_images(test, corrupted, left_out.tolist())[:limit]
    if limit is not None and aligned(corrupted, test):
        clean = chosen
    return left_out, chosen, clean


def _computed_in(classifier: nn.Module, precision: str) -> str:
    """The precision of an evaluation: `precision` for a float32 model, else the model's own dtype."""
    dtype = _dtype_name(model_dtype(classifier))
    if dtype != "float32" and precision == "bfloat16":
        raise UserError(
            f"precision bfloat16 is for float32 models, but this one is {dtype}: "
            "without `precision`, the model is evaluated in its dtype"
        )
    return precision if dtype == "float32" else dtype


def _count_cells(
    cells: Sequence[tuple[str, int]],
    known: Mapping[str, int],
    count: Callable[[str, int], tuple[int, int]],
    world: World,
    progress: Progress,
) -> Iterator[tuple[dict[str, int], dict[tuple[str, int], int]]]:
    """Evaluate the cells that are not known; yield how many images are right, and how many undecided."""
    remaining = [cell for cell in cells if _key(*cell) not in known]
    # Each rank evaluates one cell at a time; the sum over ranks collects their counts.
    for start in range(0, len(remaining), world.size):
        progress(remaining[start][0], len(cells) - len(remaining) + start, len(cells))
        at_once = remaining[start : start + world.size]
        found = torch.zeros(len(at_once), 2, dtype=torch.int64)
        if world.rank < len(at_once):
            found[world.rank] = torch.tensor(count(*at_once[world.rank]))
        correct, undecided = world.all_reduce(found).T.tolist()
        right = {_key(*cell): n for cell, n in zip(at_once, correct, strict=True)}
        yield right, dict(zip(at_once, undecided, strict=True))
    progress("done", len(cells), len(cells))


class _Counts:
    """The number of correct images of each finished cell, stored on disk until the evaluation is complete."""

    def __init__(self, path: Path | None, fingerprint: str, sizes: Mapping[str, int]) -> None:
        """Read the counts of this evaluation from `path`; `sizes` gives the images of each cell."""
        self.path = path
        self.fingerprint = fingerprint
        self.known: dict[str, int] = {}
        if path is None or not path.is_file():
            return
        try:
            content = json.loads(path.read_bytes())
            known = content["correct"] if content["fingerprint"] == fingerprint else {}
            if all(
                type(known[cell]) is int and 0 <= known[cell] <= size
                for cell, size in sizes.items()
                if cell in known
            ):
                self.known = {cell: known[cell] for cell in sizes if cell in known}
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # damaged: evaluate all cells again

    def add(self, correct: Mapping[str, int]) -> None:
        self.known |= correct
        if self.path is not None:
            with replacing(self.path) as file:
                file.write(json.dumps({"fingerprint": self.fingerprint, "correct": self.known}).encode())

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


#: The cell that stands for the clean test set.
_CLEAN = ("clean", 0)


def _key(name: str, severity: int) -> str:
    """The key of a cell in the file of counts."""
    return f"{name}/{severity}"


def _undecided(cell: tuple[str, int], count: int, images: int, precision: str) -> DivergedError:
    """The error for a cell in which `count` of the images have no predicted class."""
    place = "the clean test set" if cell == _CLEAN else f"{cell[0]} at severity {cell[1]}"
    is_half = precision in ("bfloat16", "float16")
    advice = "evaluate in float32" if is_half else "check the weights, and how the input is normalized"
    return DivergedError(
        f"{place}: the highest score of {count} of {images} images is NaN or infinite, so they have no "
        f"class: {advice}"
    )


def fingerprint_weights(classifier: nn.Module) -> str:
    """A fingerprint (sha256, hexadecimal) of the parameters and buffers."""
    return _fingerprint(classifier, "", ())


def _fingerprint(classifier: nn.Module, setting: str, chosen: Sequence[npt.NDArray[np.int64]]) -> str:
    """A fingerprint of an evaluation: the weights, the data and precision, and the indices of the images."""
    digest = hashlib.sha256(setting.encode())
    for indices in chosen:
        digest.update(len(indices).to_bytes(8, "little") + indices.astype("<i8").tobytes())
    for name, value in classifier.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
