"""How ranks share the cells of an evaluation."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rsslcli.core.evaluation.cells import CLEAN, Cell, Group, adapted_groups, measure_groups
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.progress import silent
from rsslcli.core.ranks import World

CELLS = [Cell(CLEAN, 0), *(Cell(name, severity) for name in ("fog", "snow", "frost") for severity in (1, 4))]


@dataclasses.dataclass(frozen=True)
class Thread(World):
    """A rank that is a thread of this process."""

    texts: list[str] = dataclasses.field(default_factory=list)
    barrier: threading.Barrier = dataclasses.field(default_factory=lambda: threading.Barrier(1))

    def gather(self, text: str) -> list[str]:
        self.texts[self.rank] = text
        self.barrier.wait(20)
        texts = list(self.texts)
        self.barrier.wait(20)
        return texts


def measure(group: Group) -> list[Outcome]:
    """Outcomes that tell cells apart."""
    return [
        Outcome(999, 100 * len(cell.name) + cell.severity, 7 * cell.severity, nll=cell.severity / 3)
        for cell in group
    ]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_find_together_what_one_process_finds(mixed: bool, size: int) -> None:
    plain: list[Group] = [[cell] for cell in CELLS]
    groups = [*plain, *adapted_groups(plain, mixed=mixed)]
    assert len(groups) == len(CELLS) + (3 if mixed else len(CELLS))
    known = {"fog/1": Outcome(9, 1), "adapted/clean/0": Outcome(9, 1)}

    def find(world: World) -> dict[Cell, Outcome]:
        found: dict[Cell, Outcome] = {}
        for outcomes in measure_groups(groups, known, measure, world, silent):
            found |= outcomes
        return found

    one = find(World())
    assert {cell.key for cell in one} == {cell.key for group in groups for cell in group} - known.keys()
    (expected,) = measure([Cell("snow", 4)])
    assert one[Cell("snow", 4, adapted=True)] == expected
    texts = [""] * size
    barrier = threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        assert (
            list(pool.map(find, [Thread(rank, size, texts, barrier) for rank in range(size)])) == [one] * size
        )
