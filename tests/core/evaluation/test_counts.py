"""How ranks share the cells of an evaluation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from rsslcli.core.evaluation.counts import CLEAN, Cell, Found, Group, adapted_groups, count_groups
from rsslcli.core.progress import silent
from rsslcli.core.ranks import World

CELLS = [Cell(CLEAN, 0), *(Cell(name, severity) for name in ("fog", "snow", "frost") for severity in (1, 4))]


@dataclasses.dataclass(frozen=True)
class Alone(World):
    """A rank without the others: it keeps what it would send."""

    sent: list[Tensor] = dataclasses.field(default_factory=list)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.clone())
        return tensor


def count(group: Group) -> Found:
    """Numbers that tell cells apart."""
    return [(100 * len(cell.name) + cell.severity, 7 * cell.severity) for cell in group]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_find_together_what_one_process_finds(mixed: bool, size: int) -> None:
    plain: list[Group] = [[cell] for cell in CELLS]
    groups = [*plain, *adapted_groups(plain, mixed=mixed)]
    assert len(groups) == len(CELLS) + (3 if mixed else len(CELLS))
    known = {"fog/1": 1, "adapted/clean/0": 1}
    one = {}
    for found in count_groups(groups, known, count, World(), silent):
        one |= found
    assert {cell.key for cell in one} == {cell.key for group in groups for cell in group} - known.keys()
    assert one[Cell("snow", 4, adapted=True)] == (404, 28)
    ranks = [Alone(rank, size) for rank in range(size)]
    order = [list(count_groups(groups, known, count, rank, silent)) for rank in ranks]
    together = {}
    for step, parts in enumerate(zip(*(rank.sent for rank in ranks), strict=True)):
        pairs = torch.stack(parts).sum(0).tolist()
        together |= {cell: tuple(pair) for cell, pair in zip(order[0][step], pairs, strict=True)}
    assert together == one
