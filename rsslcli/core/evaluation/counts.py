"""Counting the correct images of cells: which are finished, on disk and over ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rsslcli.core.errors import DivergedError
from rsslcli.core.files import replacing
from rsslcli.core.progress import Progress
from rsslcli.core.ranks import World


class Cell(NamedTuple):
    """A corruption at a severity, or the clean test set; `adapted` if the classifier adapts to its images."""

    name: str
    severity: int
    adapted: bool = False

    @property
    def key(self) -> str:
        """Its key in the file of counts."""
        return f"{'adapted/' * self.adapted}{self.name}/{self.severity}"

    @property
    def is_clean(self) -> bool:
        """True for the clean test set."""
        return self.name == CLEAN

    def __str__(self) -> str:
        place = "the clean test set" if self.is_clean else f"{self.name} at severity {self.severity}"
        return f"{place}, adapted" if self.adapted else place

    def undecided_error(self, count: int, images: int, precision: str) -> DivergedError:
        """The error for this cell if `count` of its images have no predicted class."""
        is_half = precision in ("bfloat16", "float16")
        advice = "evaluate in float32" if is_half else "check the weights, and how the input is normalized"
        if self.adapted:
            advice = "the adaptation diverges: raise `prior`, or adapt by bn"
        return DivergedError(
            f"{self}: the highest score of {count} of {images} images is NaN or infinite, so they have no "
            f"class: {advice}"
        )


#: The name of the cells that stand for the clean test set.
CLEAN = "clean"

#: Cells that are evaluated together, and how many images of each are right and undecided.
Group = Sequence[Cell]
Found = list[tuple[int, int]]


def adapted_groups(groups: Sequence[Group], *, mixed: bool) -> list[Group]:
    """The cells of `groups`, adapted: each by itself or, `mixed`, all corruptions of a severity together."""
    cells = [cell._replace(adapted=True) for group in groups for cell in group]
    if not mixed:
        return [[cell] for cell in cells]
    return [[cell for cell in cells if cell.severity == s] for s in sorted({cell.severity for cell in cells})]


def count_groups(
    groups: Sequence[Group],
    known: Mapping[str, int],
    count: Callable[[Group], Found],
    world: World,
    progress: Progress,
) -> Iterator[dict[Cell, tuple[int, int]]]:
    """Evaluate the groups whose cells are not all known; yield how many images are right, and undecided."""
    remaining = [group for group in groups if not all(cell.key in known for cell in group)]
    total = sum(map(len, groups))
    done = total - sum(map(len, remaining))
    # Each rank evaluates one group at a time; the sum over ranks collects their counts.
    for start in range(0, len(remaining), world.size):
        first = remaining[start][0]
        progress(f"{first.name}, adapted" if first.adapted else first.name, done, total)
        at_once = remaining[start : start + world.size]
        cells = [cell for group in at_once for cell in group]
        found = torch.zeros(len(cells), 2, dtype=torch.int64)
        if world.rank < len(at_once):
            before = sum(map(len, at_once[: world.rank]))
            local = at_once[world.rank]
            found[before : before + len(local)] = torch.tensor(count(local))
        pairs = world.all_reduce(found).tolist()
        yield {cell: (right, undecided) for cell, (right, undecided) in zip(cells, pairs, strict=True)}
        done += len(cells)
    progress("done", total, total)


class Counts:
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
        """Store further counts."""
        self.known |= correct
        if self.path is not None:
            with replacing(self.path) as file:
                file.write(json.dumps({"fingerprint": self.fingerprint, "correct": self.known}).encode())

    def remove(self) -> None:
        """Remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
