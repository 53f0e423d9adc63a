"""The tables and lines that `rssl eval-c` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from rsslcli.commands.console import out, percent
from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.errors import signed
from rsslcli.core.evaluation.confidence import describe_means
from rsslcli.core.evaluation.relative import describe_relative

if TYPE_CHECKING:
    from rsslcli.core.evaluation.result import Evaluation


def print_result(result: Evaluation, title: str, saved: Path | None) -> None:
    """Print the table, the means, and where the result is saved."""
    if result.adapted is None:
        out.print(_table(result, title))
        out.print(_summary(result), soft_wrap=False)
    else:
        out.print(_adapted_table(result, title))
        out.print(f"unadapted: {_summary(result)}", soft_wrap=False)
        out.print(f"adapted: {_adapted_summary(result.adapted)}", soft_wrap=False)
    measured = result.adapted or result
    if measured.confidence and (words := measured.confidence.describe()):
        out.print(f"{'adapted: ' if result.adapted else ''}{words}", soft_wrap=False)
    if "calibrated" in result.about:
        found = result.about["calibrated"]
        words = describe_means(found["clean"], found.get("mean", {}))
        out.print(f"calibrated by temperature {found['temperature']:.4g}: {words}", soft_wrap=False)
    for each in (result, result.adapted):
        if each is not None and "relative_to" in each.about:
            of = "" if result.adapted is None else "unadapted: " if each is result else "adapted: "
            out.print(f"{of}{describe_relative(each.about['relative_to'])}", soft_wrap=False)
    if "robustbench" in result.about:
        out.print(_robustbench_summary(result), soft_wrap=False)
    if saved is not None:
        out.print(f"written to {saved}", soft_wrap=True)


def _table(result: Evaluation, title: str) -> Table:
    """The table: clean and a row per corruption, a column per severity, means and drops from clean."""
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    for severity in SEVERITIES:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right", style="bold")
    table.add_column("drop", justify="right")
    (clean, *rows, mean) = result.rows()
    for group in ([clean], rows, [mean]):
        for name, values in group:
            table.add_row(name, *map(percent, values))
        if group[0] is not mean:
            table.add_section()
    ends = result.confidence and result.confidence.intervals.get("mean_accuracy_evaluated")
    if ends:
        table.add_row("± (95 %)", *[""] * len(SEVERITIES), percent((ends[1] - ends[0]) / 2), "")
    return table


def _adapted_table(result: Evaluation, title: str) -> Table:
    """The table of an adapted evaluation: the accuracies without and with it, and the gains in points.

    The gains at severities 1, 3 and 5, or at those that were evaluated if some were not, show whether mild
    corruptions lose where severe ones gain.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    evaluated = [s for s in SEVERITIES if any(cells[s - 1] is not None for cells in result.accuracy.values())]
    chosen = evaluated if len(evaluated) < len(SEVERITIES) else SEVERITIES[::2]
    for heading in ("unadapted", "adapted", "gain", *(f"at {severity}" for severity in chosen)):
        style = "bold" if heading == "gain" else None
        table.add_column(heading, justify="right", style=style)
    (clean, *rows, mean) = result.rows_adapted()
    for group in ([clean], rows, [mean]):
        for name, (before, after, gain, *gains) in group:
            shown = [_signed(value) for value in (gain, *(gains[severity - 1] for severity in chosen))]
            table.add_row(name, percent(before), percent(after), *shown)
        table.add_section()
    return table


def _signed(gain: float | None) -> str:
    """A gain for a table, in points."""
    return "–" if gain is None else signed(100 * gain)


def _adapted_summary(adapted: Evaluation) -> str:
    from rsslcli.core.evaluation.adaptation_settings import describe_adaptation

    means = adapted.means().items()
    intervals = _intervals(adapted)
    parts = [f"{name} {percent(mean)}%{intervals.get(name, '')}" for name, mean in means if mean is not None]
    return f"{' · '.join(parts)}  ({describe_adaptation(adapted.about)})"


def _intervals(result: Evaluation) -> dict[str, str]:
    """The 95 % intervals to print behind the means."""
    return {name: " ({}–{})".format(*map(percent, ends)) for name, ends in result.intervals().items()}


def _summary(result: Evaluation) -> str:
    intervals = _intervals(result)
    parts = [
        f"no {name}: not every severity was evaluated"
        if mean is None
        else f"{name} {percent(mean)}%{intervals.get(name, '')}"
        for name, mean in result.means().items()
    ]
    precision = result.about["precision"]
    computed = "" if precision == "float32" else f", computed in {precision}"
    return f"{' · '.join(parts)}  ({result.images_in_words}{computed})"


def _robustbench_summary(result: Evaluation) -> str:
    """What RobustBench's corruption leaderboard would say, and what would be different there."""
    from rsslcli.core.evaluation.result import ROBUSTBENCH_IMAGES

    terms = result.about["robustbench"]
    differs = ""
    if result.images != ROBUSTBENCH_IMAGES:
        left_out = f": {len(result.excluded)} are left out because they tune λ" if result.excluded else ""
        differs = f", not RobustBench's {ROBUSTBENCH_IMAGES:,}{left_out}"
    return (
        f"RobustBench's terms: clean accuracy {terms['clean_acc']:.2f}%, robust accuracy (corruptions) "
        f"{terms['corruptions_acc']:.2f}%, unnormalized mCE {terms['corruptions_mce']:.2f}%  "
        f"(n = {result.images:,}{differs})"
    )
