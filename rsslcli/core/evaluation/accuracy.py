"""Accuracy on the clean and corrupted test sets (section 3), excluding the images that tuned λ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.corrupted import CorruptedSet, aligned
from rsslcli.core.data.matching import note_on_cells
from rsslcli.core.data.published import corrupted_origin
from rsslcli.core.data.store import Images, Split
from rsslcli.core.errors import UserError, sanitize, unknown
from rsslcli.core.evaluation.adaptation import AdaptiveClassifier, make_adaptive
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.counts import CLEAN, Cell, Counts, Found, Group, adapted_groups, count_groups
from rsslcli.core.evaluation.files import counts_in
from rsslcli.core.evaluation.result import Evaluation, note_on_chance
from rsslcli.core.progress import Progress, silent
from rsslcli.core.ranks import World
from rsslcli.core.runtime import autocast, derive_seed

if TYPE_CHECKING:
    from rsslcli.core.weights.heads import TrainedTasks

#: Images per forward pass by device type. Small batches on the CPU keep the activations in its caches
#: (docs/performance.md).
BATCH_SIZE = {"cpu": 100, "cuda": 500}
#: Receives a cell, and which of its images are right: bool (images,), in the order of their indices.
OnCell = Callable[[Cell, npt.NDArray[np.bool_]], object]
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
    on_batch: Callable[[Tensor], object] | None = None,
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
        on_batch: called for each batch with which of its images are right, bool (N,), on the device.

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
            right = predicted == y
            correct += right.sum()
            if on_batch is not None:
                on_batch(right)
            undecided += (~highest.isfinite()).sum()
    found = torch.stack([correct, undecided]).tolist()
    return found[0], found[1]


@torch.no_grad()
def count_adapted(
    adaptive: AdaptiveClassifier,
    cells: Sequence[Images],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64],
    precision: str = "float32",
) -> list[tuple[int, int]]:
    """As `count_correct`, for a classifier that adapts to the images of some cells as they come.

    The classifier is reset first. The images of all cells are one stream, in the order that its settings say.
    They are divided into as few batches as their size allows, which differ by at most one image: no stream
    ends with a small batch, whose statistics would be poor.

    Args:
        adaptive: the classifier.
        cells: the images of each cell.
        labels: of the images of every cell.
        device, chosen, precision: as above.

    Returns:
        For each cell, how many images are right, and how many undecided.
    """
    settings = adaptive.settings
    adaptive.reset()
    dtype = model_dtype(adaptive)
    # Position i of the stream is image i % len(chosen) of cell i // len(chosen).
    order = np.random.default_rng(derive_seed(settings.seed, "stream")).permutation(len(cells) * len(chosen))
    if settings.stream == "sorted":
        order = order[np.argsort(labels[chosen[order % len(chosen)]], kind="stable")]
    counts = torch.zeros(len(cells), 2, dtype=torch.int64, device=device)
    with autocast(device, precision == "bfloat16"):
        for batch in np.array_split(order, -(-len(order) // settings.batch_size)):
            cell, image = np.divmod(np.sort(batch), len(chosen))
            image = chosen[image]
            images = np.concatenate([cells[i][image[cell == i]] for i in np.unique(cell)])
            x = to_float(torch.from_numpy(images).to(device), dtype)
            y = torch.from_numpy(labels[image]).to(device)
            highest, predicted = check_scores(adaptive(x), len(batch)).to(device).max(1)
            found = torch.stack([predicted == y, ~highest.isfinite()], 1).long()
            counts.index_add_(0, torch.from_numpy(cell).to(device), found)
    return [(right, undecided) for right, undecided in counts.tolist()]


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
    adaptation: Adaptation | None = None,
    tasks: TrainedTasks | None = None,
    earlier: Path | None = None,
    partial: Path | None = None,
    precision: str = "float32",
    about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    foreign: bool = False,
    progress: Progress = silent,
    on_cell: OnCell | None = None,
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
        adaptation: also measure the accuracy of a classifier that adapts to the images of each cell.
        tasks: the tasks of the classifier's run, for an adaptation by tasks.
        earlier: a file of an evaluation. If it is of the same weights, images and precision, its unadapted
            accuracies are not measured again. It needs the entry "weights" in `about`.
        partial: a file for the counts of finished cells. If an interrupted run of the same evaluation wrote
            it, its cells are not evaluated again. It is removed in the end.
        precision: as for `count_correct`.
        about: entries that describe the origin of the result, such as the checkpoint's name.
        notes: earlier notes on the classifier, with which the result's notes begin.
        foreign: the classifier was trained elsewhere: add a note if the clean accuracy is near chance.
        progress: called at every cell.
        on_cell: called with every cell that this process evaluates without adaptation, not with those that
            `earlier` or `partial` knows.
        world: the ranks that evaluate together, one cell each at a time. Each gets the result; rank 0 writes
            `partial`.

    Raises:
        UserError: no image is left to evaluate, a corruption is not in the set, the classifier returns no
            scores or cannot adapt, or `precision` is "bfloat16" and it is not a float32 model.
        DivergedError: scores are NaN or infinite.
    """
    images = _Selection(test, corrupted, score_of, excluded, limit, corruptions)
    computed_in = _computed_in(classifier, precision)
    classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)
    adaptive = None if adaptation is None else make_adaptive(classifier, adaptation, tasks)
    about = {**(about or {}), **_about_data(test, corrupted), "precision": computed_in}
    groups: list[Group] = [[Cell(CLEAN, 0)]]
    groups += [[Cell(name, s)] for name in images.names for s in SEVERITIES if s in severities]
    if adaptation is not None:
        groups += adapted_groups(groups, mixed=adaptation.stream == "mixed")
    sizes = {cell.key: len(images.chosen(cell)) for group in groups for cell in group}

    def count(group: Group) -> Found:
        first = group[0]
        arrays = [images.of(cell) for cell in group]
        where = (images.labels(first), device, images.chosen(first), precision)
        if adaptive is not None and first.adapted:
            return count_adapted(adaptive, arrays, *where)
        if on_cell is None:
            return [count_correct(classifier, arrays[0], *where)]
        batches: list[Tensor] = []
        found = count_correct(classifier, arrays[0], *where, batches.append)
        on_cell(first, torch.cat(batches).cpu().numpy())
        return [found]

    world = world or World()
    partial = partial if world.is_main else None
    setting = test.checksum + corrupted.identity + computed_in
    if adaptation is not None:
        setting += json.dumps([adaptation.to_dict(), tasks.fingerprint() if tasks else ""])
    fingerprint = _fingerprint(classifier, setting, images.indices) if partial else ""
    counts = Counts(partial, fingerprint, sizes)
    if earlier is not None:
        counts.known |= counts_in(earlier, about, images.left_out.tolist(), sizes)
    counts.known = json.loads(world.broadcast(json.dumps(counts.known)))
    for found in count_groups(groups, counts.known, count, world, progress):
        for cell, (_, undecided) in found.items():
            if undecided:
                raise cell.undecided_error(undecided, sizes[cell.key], computed_in)
        counts.add({cell.key: right for cell, (right, _) in found.items()})
    counts.remove()
    accuracies = {key: right / sizes[key] for key, right in counts.known.items()}
    result = images.result(
        accuracies, about, notes=(*notes, *note_on_cells(corrupted, test, corrupted.folder))
    )
    if adaptation is not None:
        adapted = images.result(accuracies, adaptation.to_dict(), adapted=True)
        result = dataclasses.replace(result, adapted=adapted)
    suspicion = note_on_chance(result, test) if foreign else None
    return dataclasses.replace(result, notes=(*result.notes, suspicion)) if suspicion else result


class _Selection:
    """The images that an evaluation takes from each cell.

    Attributes:
        names: the corruptions.
        left_out: indices of the source images that are left out.
        indices: those of the clean images, those of the source images, and the score of each label.
    """

    def __init__(
        self,
        test: Split,
        corrupted: CorruptedSet,
        score_of: Sequence[int] | None,
        excluded: Sequence[int],
        limit: int | None,
        corruptions: Sequence[str] | None,
    ) -> None:
        self._test = test
        self._corrupted = corrupted
        self.names = _checked_names(corrupted, corruptions)
        self.left_out, chosen, clean = _choose_images(test, corrupted, excluded, limit)
        self._scores = np.arange(len(test.classes)) if score_of is None else np.asarray(score_of, np.int64)
        self.indices = (clean, chosen, self._scores)

    def of(self, cell: Cell) -> Images:
        """All images of a cell."""
        return self._test.images if cell.is_clean else self._corrupted.cell(cell.name, cell.severity)

    def chosen(self, cell: Cell) -> npt.NDArray[np.int64]:
        """The indices of those that are evaluated."""
        return self.indices[0 if cell.is_clean else 1]

    def labels(self, cell: Cell) -> npt.NDArray[np.int64]:
        """The index of the right score for each image of a cell."""
        labels = self._test.labels if cell.is_clean else self._corrupted.labels
        return self._scores[labels]

    def result(
        self,
        accuracies: Mapping[str, float],
        about: Mapping[str, Any],
        *,
        adapted: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Evaluation:
        """The result for the accuracies by the keys of cells."""
        clean, chosen, _ = self.indices
        return Evaluation(
            clean_accuracy=accuracies[Cell(CLEAN, 0, adapted).key],
            clean_images=len(clean),
            accuracy={
                name: [accuracies.get(Cell(name, severity, adapted).key) for severity in SEVERITIES]
                for name in self.names
            },
            images=len(chosen),
            excluded=tuple(self.left_out.tolist()),
            about=about,
            notes=notes,
        )


def _about_data(test: Split, corrupted: CorruptedSet) -> dict[str, Any]:
    """What a result says of its images."""
    return {
        "test_data": test.checksum,
        "corrupted_data": corrupted.identity,
        "corrupted_origin": corrupted_origin(corrupted),
    }


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
