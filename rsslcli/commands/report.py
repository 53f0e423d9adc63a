"""`rssl report`: the paper's table and figures beside yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands import completion
from rsslcli.commands.console import err, out, waiting
from rsslcli.commands.study_table import print_study
from rsslcli.core.errors import sanitize


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, or folders that contain them.", autocompletion=completion.runs),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The folder to write.  [default: report, in RUNS if that is one folder]"),
    ] = None,
) -> None:
    """Write a report on runs: the paper's table and figures beside yours, as a web page, Markdown and PNGs.

    # all runs in a folder
    rssl report runs
    # two of them side by side
    rssl report runs/first runs/second --output comparison
    """
    from rsslcli.core.report.write import write_report

    folder = output or (runs[0] if len(runs) == 1 else Path()) / "report"
    with waiting("drawing the report"):
        result = write_report(runs, folder)
    for study in result.studies:
        print_study(study)
    for entry in result.left_out:
        err.print(f"left out: {sanitize(entry.directory)}: {entry.reason}")
    out.print(f"open {result.page}")
