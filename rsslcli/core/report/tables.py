"""The tables of a report that compare the rows of a study. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rsslcli.core.corruptions.names import STANDARD
from rsslcli.core.errors import signed
from rsslcli.core.report.answer import interval
from rsslcli.core.report.comparison import Row, Study
from rsslcli.core.report.page import Table
from rsslcli.core.report.runs import adapted_runs

_VERDICT = "exceeds the noise?"
#: The columns that hold words, not numbers.
WORDS = frozenset({_VERDICT, "trained with", "why", "rows"})


def table_1(study: Study) -> Table:
    """Accuracy on the corrupted test set in percent, the paper's beside the study's.

    The caption says which images were used, so the table can stand alone.
    """
    base = study.baseline
    in_paper = any(row.paper for row in study.rows)
    rows = []
    for row, difference, verdict in _against_baseline(study):
        cells = {"trained with": row.label}
        if in_paper:
            published = f"{row.paper:.2f}" if row.paper else "–"
            if row.paper and base and base.paper and row is not base:
                published += f" ({signed(row.paper - base.paper)})"
            cells["paper (− baseline)"] = published
        cells |= {
            "seeds": str(len(row.runs)),
            "ours, mean ± sd": _spread(row.means),
            "− baseline [95 % interval]": difference,
            _VERDICT: verdict,
            "the usual 15": _spread([run.mean(STANDARD) for run in row.runs.values()]),
            "clean": _spread([run.clean_accuracy for run in row.runs.values()]),
        }
        rows.append(cells)
    caption = f"Table 1. Accuracy in %, mean over {study.over} at 5 severities."
    caption += f" Our runs were evaluated on {study.conditions}."
    if base and any(row.runs.keys() != base.runs.keys() for row in study.rows):
        caption += " Differences are means over the seeds that a row shares with the baseline."
    return Table(caption, [*rows[0]], [[*row.values()] for row in rows], WORDS, stacked=True)


def other_comparisons(study: Study) -> Iterator[Table]:
    """What AutoML or another setting adds to the same tasks, tasks to AugMix, and several to rotation."""
    rows = [
        [f"{row.label} − {other.label}", str(len(found.differences)), interval(found), found.verdict]
        for row, other, found in study.what_is_added
    ]
    if rows:
        columns = ["difference", "common seeds", "points [95 % interval]", _VERDICT]
        caption = f"Other comparisons, in percentage points of accuracy, mean over {study.over}"
        yield Table(caption, columns, rows, WORDS, stacked=True)


def adapted_studies(study: Study) -> dict[str, Study]:
    """The study after adaptation at test time, by how its runs adapted: the rows and seeds that have it."""
    found = {run.directory: adapted_runs(run) for run in study.runs}
    studies = {}
    for words in dict.fromkeys(words for after in found.values() for words in after):
        rows = []
        for row in study.rows:
            having = {seed: found[run.directory] for seed, run in row.runs.items()}
            rows.append(
                replace(row, runs={seed: after[words] for seed, after in having.items() if words in after})
            )
        studies[words] = replace(study, rows=tuple(row for row in rows if row.runs))
    return studies


def adapted(study: Study) -> Iterator[Table]:
    """A table for each way in which runs adapted at test time: the accuracy after it, and what it gains."""
    before = {run.directory: run.mean() for run in study.runs}
    for words, after in adapted_studies(study).items():
        rows = []
        for row, difference, verdict in _against_baseline(after):
            gains = [run.mean() - before[run.directory] for run in row.runs.values()]
            cells = {
                "trained with": row.label,
                "seeds": str(len(row.runs)),
                "adapted, mean ± sd": _spread(row.means),
                "gain": signed(100 * float(np.mean(gains))),
                "− baseline, adapted too [95 % interval]": difference,
                _VERDICT: verdict,
                "clean": _spread([run.clean_accuracy for run in row.runs.values()]),
            }
            rows.append(cells)
        caption = f"With adaptation at test time: accuracy in %, mean over {study.over} at 5 severities"
        columns = [*rows[0]]
        yield Table(f"{caption} ({words})", columns, [[*row.values()] for row in rows], WORDS, stacked=True)


def _against_baseline(study: Study) -> list[tuple[Row, str, str]]:
    """The rows, each with its difference to the baseline and the verdict on it, as tables show them."""
    base = study.baseline
    if base is None:
        return [(row, "–", "no baseline") for row in study.rows]
    compared = [(row, interval(found), found.verdict) for row, found in study.against_baseline]
    return [(base, "–", "–"), *compared]


def _spread(values: Sequence[float] | np.typing.NDArray[np.float64]) -> str:
    """Mean ± standard deviation over seeds, in percent."""
    deviation = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return "–" if np.isnan(values).any() else f"{100 * np.mean(values):.2f}{deviation}"
