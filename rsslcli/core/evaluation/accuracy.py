"""Accuracy on the clean and corrupted test sets (section 3), excluding the images that tuned λ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial as partial_function
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.gathering import moved
from rsslcli.core.data.matching import note_on_cells
from rsslcli.core.data.published import corrupted_origin
from rsslcli.core.data.store import DEFAULT_SIZE, Images, Split, check_image_size
from rsslcli.core.errors import RsslError, UserError, counted, sanitize
from rsslcli.core.evaluation.adaptation import AdaptiveClassifier, make_adaptive
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.cells import (
    CLEAN,
    Cell,
    FinishedCells,
    Group,
    adapted_groups,
    check_decided,
    measure_groups,
)
from rsslcli.core.evaluation.class_names import networks_in
from rsslcli.core.evaluation.confidence import scaled_means
from rsslcli.core.evaluation.files import outcomes_in
from rsslcli.core.evaluation.fingerprint import fingerprint, setting_of
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.relative import Reference
from rsslcli.core.evaluation.result import Evaluation, note_on_chance
from rsslcli.core.evaluation.score_file import Sink, score_file
from rsslcli.core.evaluation.selection import Selection
from rsslcli.core.progress import Progress, silent
from rsslcli.core.ranks import World
from rsslcli.core.runtime import autocast, derive_seed, multiplies_in_tf32

if TYPE_CHECKING:
    from rsslcli.core.weights.heads import TrainedTasks

#: Images of 32x32 pixels per forward pass by device type. Small batches on the CPU keep the activations in
#: its caches (docs/performance.md).
BATCH_SIZE = {"cpu": 100, "cuda": 500}
#: Images per forward pass on other devices.
_OTHER_BATCH_SIZE = 500


def batch_size(device: torch.device, size: int = DEFAULT_SIZE) -> int:
    """Images of `size`x`size` pixels per forward pass on this device."""
    return BATCH_SIZE.get(device.type, _OTHER_BATCH_SIZE) * DEFAULT_SIZE // size


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
    raise UserError(
        f"the model must give scores (N, classes); for {counted(images, 'image')} it gave {sanitize(found)}: "
        "wrap it so that it returns only the float tensor of scores"
    )


def model_dtype(classifier: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter or buffer; float32 if there is none."""
    tensors = chain(classifier.parameters(), classifier.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def image_values(scores: Tensor, labels: Tensor, temperature: float | None = None) -> Tensor:
    """What `Outcome.of` needs to know of each image, on the device of the scores.

    Args:
        scores: floats (N, classes), taken for the logarithms of probabilities up to a constant.
        labels: int64 (N,), the index of the right score.
        temperature: also give the last three columns for the scores divided by it.

    Returns:
        At least float32 (N, 6): 1 if the right class has the highest score; 1 if that score is NaN or
        infinite; the index of the highest score; the negative log-likelihood in nats; the Brier score, from 0
        to 2; the highest probability.
    """
    highest, predicted = scores.max(1)
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    columns = [predicted == labels, ~highest.isfinite(), predicted, *_sureness(logits, labels)]
    if temperature is not None:
        columns += _sureness(logits / temperature, labels)
    return torch.stack([column.to(logits.dtype) for column in columns], 1)


def _sureness(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """For each image, the negative log-likelihood, the Brier score and the highest probability."""
    log_p = logits.log_softmax(1)
    log_right = log_p.gather(1, labels[:, None])[:, 0]
    p = log_p.exp()
    brier = p.square().sum(1) - 2 * log_right.exp() + 1  # Σ (p − y)²
    return [-log_right, brier, p.amax(1)]


@torch.inference_mode()
def scores_of(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    device: torch.device,
    chosen: npt.NDArray[np.int64],
    precision: str = "float32",
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Yield the indices and the scores of one batch after the other; the arguments are those of `measure`."""
    size = batch_size(device, images.shape[1])
    dtype = model_dtype(classifier)
    with autocast(device, precision == "bfloat16"):
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            x = to_float(moved(torch.from_numpy(images[batch]), device), dtype)
            yield batch, check_scores(classifier(x), len(batch)).to(device)


@torch.inference_mode()
def measure(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64] | None = None,
    precision: str = "float32",
    temperature: float | None = None,
    sink: Sink | None = None,
) -> Outcome:
    """Classify images, and compare the scores with the labels.

    Args:
        classifier: maps floats (N, 3, H, W) in [0, 1], of its dtype, to scores (N, classes); on `device`.
        images: uint8 (N, H, W, 3); may be a memory map, which is read batch by batch.
        labels: int64 (N,).
        device: where to compute.
        chosen: indices of the images to evaluate; all by default.
        precision: "bfloat16" computes under autocast. TF32 on CUDA is a setting of the process, see
            `rsslcli.core.runtime.set_precision`.
        temperature: also say how sure the classifier is with its scores divided by this.
        sink: called with the scores of each batch.

    Raises:
        UserError: the classifier does not return scores.
    """
    chosen = np.arange(len(labels)) if chosen is None else chosen
    # The values stay on the device until the last batch, so that without a sink the host waits only once.
    values = []
    for batch, scores in scores_of(classifier, images, device, chosen, precision):
        values.append(image_values(scores, moved(torch.from_numpy(labels[batch]), device), temperature))
        if sink is not None:
            sink(scores)
    return Outcome.of(torch.cat(values).numpy(force=True).astype(np.float64))


def count_correct(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64] | None = None,
    precision: str = "float32",
) -> tuple[int, int]:
    """As `measure`: count the images that are right, and those whose highest score is NaN or infinite.

    The latter have no predicted class: the first count is meaningless unless the second is 0.
    """
    if chosen is not None and not len(chosen):  # the share of a rank where there are few images
        return 0, 0
    outcome = measure(classifier, images, labels, device, chosen, precision)
    return outcome.right, outcome.undecided


@torch.no_grad()
def measure_adapted(
    adaptive: AdaptiveClassifier,
    cells: Sequence[Images],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64],
    precision: str = "float32",
    sink: Sink | None = None,
) -> list[Outcome]:
    """As `measure`, for a classifier that adapts to the images of some cells as they come.

    The classifier is reset first. The images of all cells are one stream, in the order that its settings say.
    They are divided into as few batches as their size allows, which differ by at most one image: no stream
    ends with a small batch, whose statistics would be poor.

    Args:
        adaptive: the classifier.
        cells: the images of each cell.
        labels: of the images of every cell.
        device, chosen, precision: as above.
        sink: called with all scores at once, in the order of the cells.

    Returns:
        The outcome of each cell.
    """
    settings = adaptive.settings
    adaptive.reset()
    dtype = model_dtype(adaptive)
    # Position i of the stream is image i % len(chosen) of cell i // len(chosen).
    order = np.random.default_rng(derive_seed(settings.seed, "stream")).permutation(len(cells) * len(chosen))
    if settings.stream == "sorted":
        order = order[np.argsort(labels[chosen[order % len(chosen)]], kind="stable")]
    batches = [np.sort(batch) for batch in np.array_split(order, -(-len(order) // settings.batch_size))]
    values = []
    kept = []
    with autocast(device, precision == "bfloat16"):
        for batch in batches:
            cell, image = np.divmod(batch, len(chosen))
            image = chosen[image]
            images = np.concatenate([cells[i][image[cell == i]] for i in np.unique(cell)])
            x = to_float(moved(torch.from_numpy(images), device), dtype)
            y = moved(torch.from_numpy(labels[image]), device)
            scores = check_scores(adaptive(x), len(batch)).to(device)
            values.append(image_values(scores, y))
            if sink is not None:
                kept.append(scores)
    in_order = np.argsort(np.concatenate(batches))
    if sink is not None:
        sink(torch.cat(kept)[moved(torch.from_numpy(in_order), device)])
    found = torch.cat(values).numpy(force=True).astype(np.float64)
    return [Outcome.of(cell) for cell in found[in_order].reshape(len(cells), len(chosen), -1)]


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
    reference: Reference | None = None,
    temperature: float | None = None,
    partial: Path | None = None,
    predictions: Path | None = None,
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
        adaptation: also measure the accuracy of a classifier that adapts to the images of each cell.
        tasks: the tasks of the classifier's run, for an adaptation by tasks.
        earlier: a file of an evaluation. If it is of the same weights, images and precision, its unadapted
            numbers are not measured again. It needs the entry "weights" in `about`.
        reference: an evaluation on the same images; the result's entry `relative_to` has the errors relative
            to it, see `Reference.compare`.
        temperature: also say how sure the classifier is with its scores divided by this; see the result's
            entry `calibrated`.
        partial: a file for the outcomes of finished cells. If an interrupted run of the same evaluation wrote
            it, its cells are not evaluated again. Remove it once the result is saved.
        predictions: a .npz file for the scores of all images, adapted ones if there is an `adaptation`; its
            cells are all evaluated, also if `partial` has some.
        precision: as for `count_correct`.
        about: entries that describe the origin of the result, such as the checkpoint's name.
        notes: earlier notes on the classifier, with which the result's notes begin.
        foreign: the classifier was trained elsewhere: add a note if the clean accuracy is near chance.
        progress: called at every cell.
        world: the ranks that evaluate together, one cell each at a time. Each gets the result; rank 0 writes
            `partial`.

    Raises:
        UserError: no image is left to evaluate, `reference` is of other ones, a corruption is not in the set,
            the classifier returns no scores or cannot adapt, `precision` is "bfloat16" and it is not a
            float32 model, or several ranks were to write `predictions`.
        DivergedError: scores are NaN or infinite.
    """
    world = world or World()
    _check_possible(classifier, test, about or {}, predictions, world)
    images = Selection(test, corrupted, score_of, excluded, limit, corruptions)
    computed_in = _computed_in(classifier, precision, device)
    with suppress(NotImplementedError):  # an exported program has no modes
        classifier.eval()
    classifier = classifier.to(device).to(memory_format=torch.channels_last)
    adaptive = None if adaptation is None else make_adaptive(classifier, adaptation, tasks)
    about = {**(about or {}), **_about_data(test, corrupted), "precision": computed_in}
    groups: list[Group] = [[Cell(CLEAN, 0)]]
    groups += [[Cell(name, s)] for name in images.names for s in SEVERITIES if s in severities]
    if adaptation is not None:
        groups += adapted_groups(groups, mixed=adaptation.stream == "mixed")
    cells = [cell for group in groups for cell in group]
    sizes = {cell.key: len(images.chosen(cell)) for cell in cells}
    recorded = [cell for cell in cells if predictions and cell.adapted == (adaptation is not None)]

    def measure_group(group: Group, sink: Sink | None) -> list[Outcome]:
        first = group[0]
        arrays = [images.of(cell) for cell in group]
        where = (images.right_scores(first), device, images.chosen(first), precision)
        sink = sink if first in recorded else None
        if adaptive is not None and first.adapted:
            return measure_adapted(adaptive, arrays, *where, sink)
        return [measure(classifier, arrays[0], *where, temperature, sink)]

    if reference is not None:
        reference.check(about | images.conditions, images.names, severities)
    partial = partial if world.is_main else None
    data = test.checksum + corrupted.identity + computed_in
    setting = setting_of(data, adaptation, tasks, temperature, sizes)
    identity = fingerprint(classifier, setting, images.identity) if partial else ""
    finished = FinishedCells(partial, identity, {c.key: sizes[c.key] for c in cells if c not in recorded})
    if earlier is not None:
        finished.known |= outcomes_in(earlier, about, images.left_out.tolist(), sizes)
    finished.share(world)
    about_scores = about | ({} if adaptation is None else {"adapted": adaptation.to_dict()})
    with score_file(predictions, recorded, images, about_scores) if predictions else nullcontext() as sink:
        measure_cells = partial_function(measure_group, sink=sink)
        for found in measure_groups(groups, finished.known, measure_cells, world, progress):
            check_decided(found, computed_in)
            finished.add({cell.key: outcome for cell, outcome in found.items()})
    _check_unchanged(corrupted)
    noted = (*notes, *note_on_cells(corrupted, test, corrupted.folder))
    if temperature is not None:
        about["calibrated"] = {"temperature": temperature, **scaled_means(finished.known)}
    result = images.result(finished.known, about, notes=noted)
    if adaptation is not None:
        adapted = images.result(finished.known, adaptation.to_dict(), adapted=True)
        adapted = adapted if reference is None else reference.add_to(adapted)
        result = dataclasses.replace(result, adapted=adapted)
    result = result if reference is None else reference.add_to(result)
    suspicion = note_on_chance(result, test) if foreign else None
    return dataclasses.replace(result, notes=(*result.notes, suspicion)) if suspicion else result


def _check_possible(
    classifier: nn.Module, test: Split, about: Mapping[str, Any], predictions: Path | None, world: World
) -> None:
    """Raise UserError if the images have another size than the network's, or several ranks were to write."""
    for network in networks_in(classifier):
        check_image_size(network.image_size, test.size, str(about.get("dataset", "the data set")))
    if predictions is not None and world.size > 1:
        raise UserError("`predictions` are written by a single process: evaluate without torchrun")


def _check_unchanged(corrupted: CorruptedSet) -> None:
    """Raise RsslError if another set has taken the place of a corrupted set since it was opened."""
    if open_corrupted(corrupted.folder, corrupted.folder.name).identity != corrupted.identity:
        raise RsslError(f"{corrupted.folder} was replaced during the evaluation: evaluate again")


def _about_data(test: Split, corrupted: CorruptedSet) -> dict[str, Any]:
    """What a result says of its images."""
    return {
        "test_data": test.checksum,
        "corrupted_data": corrupted.identity,
        "corrupted_origin": corrupted_origin(corrupted),
    }


def _computed_in(classifier: nn.Module, precision: str, device: torch.device) -> str:
    """The precision of an evaluation of a float32 model, or the dtype of another model.

    A caller that leaves PyTorch's settings as they are gets TF32 from convolutions on CUDA; a CPU has none.
    """
    dtype = _dtype_name(model_dtype(classifier))
    if dtype != "float32" and precision == "bfloat16":
        raise UserError(
            f"precision bfloat16 is for float32 models, but this one is {dtype}: "
            "without `precision`, the model is evaluated in its dtype"
        )
    if dtype != "float32":
        return dtype
    if precision == "bfloat16":
        return precision
    return "tf32" if multiplies_in_tf32(device) else "float32"


def fingerprint_weights(classifier: nn.Module) -> str:
    """A fingerprint (sha256, hexadecimal) of the parameters and buffers."""
    return fingerprint(classifier, "", ())
