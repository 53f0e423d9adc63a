"""What goes wrong in the best run of a study: confusions, reliability, and the most confident mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rsslcli.core.errors import sanitize
from rsslcli.core.evaluation.diagnostics import Diagnostics, ShownMistake, cut_sheet
from rsslcli.core.report.comparison import Row, Study
from rsslcli.core.report.page import Block, Figure, Gallery, Heading, Table, Text, Tile
from rsslcli.core.report.runs import Run


def diagnosed(study: Study) -> tuple[Row, Run, Diagnostics] | None:
    """The run to examine: the first seed with records of its mistakes in the most accurate row that has any.

    None if no evaluation recorded them; those of old versions did not.
    """
    found = [
        (row, run, run.diagnostics)
        for row in sorted(study.rows, key=lambda row: -float(row.means.mean()))
        for _, run in sorted(row.runs.items())
        if run.diagnostics is not None
    ]
    return found[0] if found else None


def diagnosis(study: Study, figures: Mapping[str, Figure], prefix: str) -> Iterator[Block]:
    """The blocks on what goes wrong; none without records of it. The names of files begin with `prefix`."""
    found = diagnosed(study)
    if found is None:
        return
    row, run, diagnostics = found
    yield Heading("What goes wrong", 3)
    yield Text(
        f"In the run {run.name}, seed {run.config.seed} of “{row.label}”, the most accurate row whose "
        "evaluations recorded it."
    )
    if "confusion" in figures:
        yield figures["confusion"]
    if pairs := diagnostics.confused.get("corrupted"):
        rows = [[sanitize(label), sanitize(said), f"{count:,}"] for label, said, count in pairs]
        caption = f"The most frequent confusions, of {_images(diagnostics)} corrupted images"
        yield Table(caption, ["class", "taken for", "images"], rows, frozenset({"class", "taken for"}))
    if "reliability" in figures:
        yield figures["reliability"]
    if any(diagnostics.mistakes.values()):
        yield _gallery(diagnostics, prefix)


def _images(diagnostics: Diagnostics) -> str:
    return f"{sum(diagnostics.reliability['corrupted'].images):,}"


def _gallery(diagnostics: Diagnostics, prefix: str) -> Gallery:
    mistakes = diagnostics.mistakes
    images: list[list[bytes]] | None = None
    if diagnostics.sheet is not None:
        try:
            images = cut_sheet(diagnostics.sheet, len(mistakes))
        except (ValueError, OSError):
            images = None
    rows = [
        (name, [Tile(_lines(each), None if images is None else images[y][x]) for x, each in enumerate(row)])
        for y, (name, row) in enumerate(mistakes.items())
        if row
    ]
    caption = (
        "The most confident mistakes: the wrongly classified images whose predicted class has the highest "
        "probability, at whichever severity that is."
    )
    return Gallery(f"{prefix}mistakes.jpg", caption, rows, None if images is None else diagnostics.sheet)


def _lines(mistake: ShownMistake) -> list[str]:
    severity = f", severity {mistake.severity}" if mistake.severity else ""
    percent = ">99.9" if mistake.probability > 0.9995 else f"{100 * mistake.probability:.1f}"  # not 100.0
    said = f"{sanitize(mistake.label)} → {sanitize(mistake.predicted)}"
    return [said, f"{percent} %{severity}"]
