"""Accuracy on the clean and corrupted test sets (section 3), excluding the images that tuned λ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial as partial_function
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet, open_corrupted
from rsslcli.core.data.matching import note_on_cells
from rsslcli.core.data.published import corrupted_origin
from rsslcli.core.data.store import Split, check_image_size
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.evaluation.adaptation import make_adaptive
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
from rsslcli.core.evaluation.measuring import dtype_name, measure, measure_adapted, model_dtype
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.relative import Reference
from rsslcli.core.evaluation.result import Evaluation, note_on_chance
from rsslcli.core.evaluation.score_file import Sink, score_file
from rsslcli.core.evaluation.selection import Selection
from rsslcli.core.progress import Progress, silent
from rsslcli.core.ranks import World
from rsslcli.core.runtime import multiplies_in_tf32

if TYPE_CHECKING:
    from rsslcli.core.weights.trained_tasks import TrainedTasks


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
        precision: as for `measuring.measure`.
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
    dtype = dtype_name(model_dtype(classifier))
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
