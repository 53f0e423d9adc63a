"""Which images an evaluation leaves out, so that no run is tested on what it was tuned on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rsslcli.core.data.corrupted import CorruptedSet
from rsslcli.core.data.validation import validation_source
from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.files import read_evaluation

if TYPE_CHECKING:
    from rsslcli.core.data.store import Dataset
    from rsslcli.core.weights.checkpoint import Checkpoint


def images_to_leave_out(
    trained: Checkpoint | None,
    corrupted: CorruptedSet,
    *,
    rival: Checkpoint | None = None,
    of_rival: Path | None = None,
    leave_out_validation: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> list[int]:
    """The source images on which a classifier may not be tested, or that a fair comparison leaves out.

    Args:
        trained: the classifier's checkpoint; None for weights from elsewhere.
        corrupted: the set that it is evaluated on.
        rival: a run to compare with: what tuned its λ is left out too.
        of_rival: the evaluation of that run. If it tuned nothing, what it was evaluated without is left out.
        leave_out_validation: leave out what an AutoML run of the same seed and settings tunes λ on.
        note: called with one line if λ was tuned on another corrupted set, whose indices mean other images.

    Returns:
        Their indices, sorted.

    Raises:
        UserError: weights from elsewhere have no seed, by which `leave_out_validation` draws images; the run
            to compare with tuned nothing and was evaluated on all images.
    """
    if leave_out_validation and trained is None:
        raise UserError(
            "weights from elsewhere have no seed to draw the images of `leave_out_validation` by: "
            "use `same_images_as`"
        )
    excluded: set[int] = set()
    for run, whose in ((trained, "λ"), (rival, "λ of the run to compare with")):
        if run is None or not run.excluded:
            continue
        excluded |= set(run.excluded)
        if run.validation_data != corrupted.identity:
            note(note_on_tuning(corrupted, whose))
    if leave_out_validation and trained and not trained.config.automl:
        excluded |= set(validation_source(trained.config, corrupted.images_per_cell))
    if rival and not rival.excluded and of_rival:
        excluded |= _left_out_of(of_rival, corrupted, note)
    return sorted(excluded)


def note_on_tuning(corrupted: CorruptedSet, whose: str = "λ") -> str:
    """The note on a run whose λ was tuned on other corrupted images."""
    return (
        f"{whose} was tuned on another corrupted set than {corrupted.folder}; "
        "the images with the same numbers are left out all the same"
    )


def notes_on_data(run: Checkpoint, data: Dataset) -> list[str]:
    """A note if the data set's training images changed since the run: some may be test images now."""
    if run.config.dataset != data.name or run.train_data in ("", data.train.checksum):
        return []
    return [
        f"{data.name} has other training images than those that this run saw, which may be among its test "
        "images now: train again, or prepare the earlier images again"
    ]


def _left_out_of(path: Path, corrupted: CorruptedSet, note: Callable[[str], None]) -> set[int]:
    """The source images that an evaluation left out; a note if it was of another corrupted set."""
    evaluated = read_evaluation(path)
    if evaluated is None:
        raise UserError(
            f"`same_images_as` {path.parent}: it tuned no λ and is not evaluated, so nothing says which "
            "images to leave out"
        )
    if not evaluated["excluded"]:
        raise UserError(f"`same_images_as` {path.parent}: it tuned no λ and was evaluated on all images")
    if evaluated.get("corrupted_data", corrupted.identity) != corrupted.identity:
        note(
            f"{path} is of another corrupted set than {corrupted.folder}; "
            "the images with the same numbers are left out all the same"
        )
    return {*evaluated["excluded"]}
