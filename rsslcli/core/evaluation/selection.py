"""Which images of which cells an evaluation takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.data.corrupted import CorruptedSet, aligned
from rsslcli.core.data.store import Images, Split
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.evaluation.cells import CLEAN, Cell
from rsslcli.core.evaluation.confidence import Confidence
from rsslcli.core.evaluation.diagnostics import Diagnostics, diagnose
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.result import Evaluation


def clean_images(
    test: Split, corrupted: CorruptedSet | None, excluded: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The sorted indices of the clean test images to evaluate.

    `excluded` applies to them only if they are the source images of `corrupted` in the same order, or if
    `corrupted` is None, so that this is unknown.

    Raises:
        UserError: no image is left.
    """
    every = np.arange(len(test.labels))
    if corrupted is not None and not aligned(corrupted, test):
        return every
    left = np.setdiff1d(every, np.asarray(excluded, np.int64))
    if not len(left):
        raise UserError(
            f"no clean test image is left: all {len(every)} have tuned λ, here or in the run whose `weights` "
            "this one starts from; prepare more test images"
        )
    return left


class Selection:
    """The images that an evaluation takes from each cell.

    Attributes:
        names: the corruptions.
        left_out: indices of the source images that are left out.
        score_of: (classes,), the index of the score of each label.
        classes: the names of the labels.
        clean: the indices of the clean images that are evaluated, int64.
        source: the indices of the source images that are evaluated, int64.
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
        self.left_out, self.source, self.clean = _choose_images(test, corrupted, excluded, limit)
        self.score_of = np.arange(len(test.classes)) if score_of is None else np.asarray(score_of, np.int64)
        self.classes = test.classes

    @property
    def conditions(self) -> dict[str, Any]:
        """How many images are evaluated, and which are left out, as entries of a result."""
        counts = {"images": len(self.source), "clean_images": len(self.clean)}
        return counts | {"excluded": self.left_out.tolist()}

    @property
    def identity(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The arrays that distinguish this selection from others of the same images."""
        return self.clean, self.source, self.score_of

    def of(self, cell: Cell) -> Images:
        """All images of a cell."""
        return self._test.images if cell.is_clean else self._corrupted.cell(cell.name, cell.severity)

    def chosen(self, cell: Cell) -> npt.NDArray[np.int64]:
        """The indices of those that are evaluated."""
        return self.clean if cell.is_clean else self.source

    def right_scores(self, cell: Cell) -> npt.NDArray[np.int64]:
        """The index of the right score for each image of a cell."""
        labels = self._test.labels if cell.is_clean else self._corrupted.labels
        return self.score_of[labels]

    def evaluated_labels(self, cell: Cell) -> npt.NDArray[np.int64]:
        """The label of each evaluated image of a cell."""
        labels = self._test.labels if cell.is_clean else self._corrupted.labels
        return labels[self.chosen(cell)]

    def result(
        self,
        outcomes: Mapping[str, Outcome],
        about: Mapping[str, Any],
        *,
        adapted: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Evaluation:
        """Make the result from `outcomes`, which are by the keys of the cells."""
        rows = {
            name: [outcomes.get(Cell(name, severity, adapted).key) for severity in SEVERITIES]
            for name in self.names
        }
        first = outcomes[Cell(CLEAN, 0, adapted).key]
        diagnostics = None if adapted else self._diagnose({CLEAN: [first], **rows})
        return Evaluation(
            clean_accuracy=first.accuracy,
            clean_images=len(self.clean),
            accuracy={
                name: [None if cell is None else cell.accuracy for cell in cells]
                for name, cells in rows.items()
            },
            images=len(self.source),
            excluded=tuple(self.left_out.tolist()),
            about=about,
            notes=notes,
            confidence=Confidence.of(
                first,
                rows,
                self._test.labels[self.clean],
                self._corrupted.labels[self.source],
                self._test.classes,
            ),
            diagnostics=diagnostics,
        )

    def _diagnose(self, rows: Mapping[str, Sequence[Outcome | None]]) -> Diagnostics | None:
        """What goes wrong in the cells, by "clean" and by corruption."""
        cells = {name: Cell(name, 0 if name == CLEAN else 1) for name in rows}
        return diagnose(
            rows,
            lambda name: self.evaluated_labels(cells[name]),
            lambda name: self.chosen(cells[name]),
            lambda name, severity, index: self.of(Cell(name, severity))[index],
            self._test.classes,
            self.score_of,
        )


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
    limit = None if limit is None or limit >= len(every) else limit
    chosen = np.setdiff1d(every, left_out)[:limit]
    if not len(chosen):
        raise UserError(
            f"{corrupted.folder}: no image is left to evaluate after excluding those that tuned λ"
        )
    clean = clean_images(test, corrupted, excluded)[:limit]  # also without those beyond the corrupted ones
    if limit is not None and aligned(corrupted, test):
        clean = chosen
    return left_out, chosen, clean
