"""`rssl report`: the paper's table and figures beside yours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rsslcli.commands import completion
from rsslcli.commands.console import err, note, out, waiting

if TYPE_CHECKING:
    from rsslcli.core.report.page import Table as Content


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, or folders that contain them.", autocompletion=completion.runs),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The folder to write. Default: report, in RUNS if that is one folder."),
    ] = None,
) -> None:
    """Write a report on runs: the paper's table and figures beside yours, as a web page, Markdown and PNGs.

    # all runs in a folder
    rssl report runs
    # two of them side by side
    rssl report runs/first runs/second --output comparison
    """
    from rsslcli.core.report.write import table_1, write_report

    folder = output or (runs[0] if len(runs) == 1 else Path()) / "report"
    with waiting("drawing the report"):
        result = write_report(runs, folder)
    for study in result.studies:
        for warning in study.warnings:
            note(warning)
        out.print(_table(table_1(study), study.title))
    for entry in result.left_out:
        err.print(f"left out: {entry.directory.name}: {entry.reason}")
    out.print(f"open {result.page}")


def _table(content: Content, title: str) -> Table:
    table = Table(title=Text(f"{title}\n{content.caption}"), title_justify="left")
    for name in content.columns:
        table.add_column(Text(name), justify="left" if name in content.words else "right")
    for row in content.rows:
        table.add_row(*map(Text, row))
    return table
