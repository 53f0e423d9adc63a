"""The cells of an evaluation: which are finished, on disk and over ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rsslcli.core.errors import DivergedError
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.files import replacing
from rsslcli.core.progress import Progress

if TYPE_CHECKING:
    from rsslcli.core.ranks import World


class Cell(NamedTuple):
    """A corruption at a severity, or the clean test set; `adapted` if the classifier adapts to its images."""

    name: str
    severity: int
    adapted: bool = False

    @property
    def key(self) -> str:
        """Its key in the file of finished cells."""
        return f"{'adapted/' * self.adapted}{self.name}/{self.severity}"

    @property
    def is_clean(self) -> bool:
        """True for the clean test set."""
        return self.name == CLEAN

    def __str__(self) -> str:
        place = "the clean test set" if self.is_clean else f"{self.name} at severity {self.severity}"
        return f"{place}, adapted" if self.adapted else place


#: The name of the cells that stand for the clean test set.
CLEAN = "clean"

#: Cells that are evaluated together.
Group = Sequence[Cell]


def adapted_groups(groups: Sequence[Group], *, mixed: bool) -> list[Group]:
    """The cells of `groups`, adapted: each by itself or, `mixed`, all corruptions of a severity together."""
    cells = [cell._replace(adapted=True) for group in groups for cell in group]
    if not mixed:
        return [[cell] for cell in cells]
    return [[cell for cell in cells if cell.severity == s] for s in sorted({cell.severity for cell in cells})]


def measure_groups(
    groups: Sequence[Group],
    known: Mapping[str, Outcome],
    measure: Callable[[Group], list[Outcome]],
    world: World,
    progress: Progress,
) -> Iterator[dict[Cell, Outcome]]:
    """Evaluate the groups whose cells are not all known; yield the outcomes of their cells."""
    remaining = [group for group in groups if not all(cell.key in known for cell in group)]
    total = sum(map(len, groups))
    done = total - sum(map(len, remaining))
    # Each rank evaluates one group at a time, then all ranks exchange the outcomes.
    for start in range(0, len(remaining), world.size):
        first = remaining[start][0]
        progress(f"{first.name}, adapted" if first.adapted else first.name, done, total)
        at_once = remaining[start : start + world.size]
        cells = [cell for group in at_once for cell in group]
        local = at_once[world.rank : world.rank + 1]  # empty if fewer groups than ranks remain
        texts = world.gather(json.dumps([outcome.to_dict() for group in local for outcome in measure(group)]))
        outcomes = [Outcome.from_dict(content) for text in texts for content in json.loads(text)]
        yield dict(zip(cells, outcomes, strict=True))
        done += len(cells)
    progress("done", total, total)


def check_decided(found: Mapping[Cell, Outcome], precision: str) -> None:
    """Raise DivergedError if some images of a cell have no predicted class."""
    for cell, outcome in found.items():
        if not outcome.undecided:
            continue
        is_half = precision in ("bfloat16", "float16")
        advice = "evaluate in float32" if is_half else "check the weights, and how the input is normalized"
        if cell.adapted:
            advice = "the adaptation diverges: raise `prior`, or adapt by bn"
        raise DivergedError(
            f"{cell}: the highest score of {outcome.undecided} of {outcome.images} images is NaN or "
            f"infinite, so they have no class: {advice}"
        )


class FinishedCells:
    """The outcome of each finished cell, stored on disk until the evaluation is complete."""

    def __init__(self, path: Path | None, fingerprint: str, sizes: Mapping[str, int]) -> None:
        """Read the cells of this evaluation from `path`; `sizes` gives the images of each cell."""
        self.path = path
        self.fingerprint = fingerprint
        self.known: dict[str, Outcome] = {}
        if path is None or not path.is_file():
            return
        try:
            content = json.loads(path.read_bytes())
            cells = content["cells"] if content["fingerprint"] == fingerprint else {}
            self.known = {
                key: Outcome.from_dict(cells[key], size) for key, size in sizes.items() if key in cells
            }
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # damaged, or of an older version: evaluate all cells again

    def share(self, world: World) -> None:
        """Give every rank the cells that rank 0 knows."""
        text = world.broadcast(json.dumps({key: outcome.to_dict() for key, outcome in self.known.items()}))
        self.known = {key: Outcome.from_dict(content) for key, content in json.loads(text).items()}

    def add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Store further outcomes."""
        self.known |= outcomes
        if self.path is not None:
            cells = {key: outcome.to_dict() for key, outcome in self.known.items()}
            with replacing(self.path) as file:
                file.write(json.dumps({"fingerprint": self.fingerprint, "cells": cells}).encode())
