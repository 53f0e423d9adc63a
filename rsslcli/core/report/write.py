"""Write the report on studies, ours beside the paper's, as a web page, Markdown and PNGs."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rsslcli.core.corruptions.names import SEVERITIES, coverage
from rsslcli.core.errors import UserError, counted, sanitize
from rsslcli.core.files import replacing
from rsslcli.core.report.answer import answer, other_rows
from rsslcli.core.report.comparison import Study, make_studies
from rsslcli.core.report.diagnosis import diagnosis
from rsslcli.core.report.methods import FOUR
from rsslcli.core.report.page import (
    Answer,
    Block,
    Figure,
    Gallery,
    Heading,
    Notes,
    Table,
    Text,
    to_html,
    to_markdown,
)
from rsslcli.core.report.provenance import cost, departures, provenance
from rsslcli.core.report.runs import LeftOut, read_runs
from rsslcli.core.report.tables import WORDS, adapted, other_comparisons, table_1
from rsslcli.core.tasks.registry import BEST_TASKS
from rsslcli.core.version import __version__


@dataclass(frozen=True)
class Report:
    """A written report."""

    page: Path  #: the path of report.html
    markdown: Path  #: the path of report.md
    figures: tuple[Path, ...]  #: the paths of the PNGs, and of the JPEG with the most confident mistakes
    studies: tuple[Study, ...]  #: the studies that it shows, the largest first
    left_out: tuple[LeftOut, ...]  #: the folders that it could not use, with the reasons


def write_report(runs: Sequence[Path], output: Path) -> Report:
    """Write report.html, report.md and the figures as PNGs into a folder.

    Args:
        runs: run directories, or folders that contain them.
        output: the folder, created if missing; an earlier report in it is replaced, with its pictures.

    Raises:
        UserError: a folder does not exist, no run is finished and evaluated, or `output` is a file.
        RsslError: a file cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # or it reports caches and fonts
    from rsslcli.core.report.figures import FIGURES, draw

    if output.exists() and not output.is_dir():
        raise UserError(f"output {output}: expected a folder, but it is a file")
    read, left_out = read_runs(runs)
    studies, repeated = make_studies(read)
    left_out += repeated
    if not studies:
        reasons = "; ".join(f"{entry.directory}: {entry.reason}" for entry in left_out[:1])
        raise UserError(f"nothing to report: no run is finished and evaluated ({reasons})")
    count = len(read) - len(repeated)
    more = f"; {len(left_out)} left out, with the reasons at the end" if left_out else ""
    about = f"{counted(count, 'finished and evaluated run')}{more}. Written by rssl {__version__}."
    several = len(studies) > 1
    titles = [f"Study {number}: " if several else "" for number in range(1, len(studies) + 1)]
    blocks: list[Block] = [Heading("Robustness report", 1)]
    blocks += [Answer(title + answer(study)) for title, study in zip(titles, studies, strict=True)]
    blocks.append(Text(about))
    for number, (title, study) in enumerate(zip(titles, studies, strict=True), 1):
        prefix = f"study-{number}-" if several else ""
        blocks += _study(study, draw(study, prefix), title, prefix)
    blocks += [
        Heading("How the comparison is made"),
        *map(Text, _METHOD.split("\n\n")),
        *_runs(studies, left_out),
    ]
    pictures = {output / block.name: block.png for block in blocks if isinstance(block, Figure)}
    galleries = [block for block in blocks if isinstance(block, Gallery)]
    pictures |= {output / each.name: each.jpeg for each in galleries if each.jpeg is not None}
    markdown = output / "report.md"
    _check_ours(markdown)
    page = output / "report.html"
    texts = {markdown: to_markdown(blocks).encode(), page: to_html(blocks).encode()}
    earlier = _pictures_of(markdown, FIGURES)
    for path, content in (pictures | texts).items():
        with replacing(path) as file:
            file.write(content)
    for path in earlier - pictures.keys():
        path.unlink(missing_ok=True)
    return Report(page, markdown, tuple(pictures), tuple(studies), tuple(left_out))


def _check_ours(report: Path) -> None:
    """Raise UserError if a report.md was not written by rssl: writing the report would destroy it."""
    if report.is_file() and "Written by rssl" not in report.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{report} is not a report by rssl: move it away, or choose another `output`")


def _pictures_of(report: Path, names: Iterable[str]) -> set[Path]:
    """The pictures in a report.md that have a name of the report's; others belong to the user."""
    text = report.read_text(encoding="utf-8", errors="replace") if report.is_file() else ""
    ours = rf"\]\(((?:study-\d+-)?(?:(?:{'|'.join(names)})\.png|mistakes\.jpg))\)"
    return {report.with_name(name) for name in re.findall(ours, text)}


def _study(study: Study, figures: Mapping[str, Figure], title: str, prefix: str) -> Iterator[Block]:
    """The blocks of a study; `title` and the `prefix` of its files are empty if it is the only one."""
    yield Heading(f"{title}{study.title}")
    notes = list(study.warnings)
    if title:
        notes.append(
            "The runs of this report differ in settings or in the corruptions they were evaluated on: only "
            "runs within one study are compared."
        )
    if study.baseline is None:
        notes.append(
            "None of these runs is a baseline (a run without tasks and AugMix), so nothing is judged."
        )
    if notes:
        yield Notes("Before you compare", notes)
    if rest := other_rows(study):
        yield Text(rest)
    yield Text(f"Evaluated on {study.conditions}. {_against_the_paper(study)}")
    yield table_1(study)
    if any({*row.config.tasks} == FOUR for row in study.rows):
        yield Text(
            f"“Four tasks” are {', '.join(BEST_TASKS[:-1])} and {BEST_TASKS[-1]}, trained beside the "
            "classifier. Each has a weight λ in the loss, fixed or tuned by AutoML, the paper's algorithm."
        )
    yield from (figures[name] for name in ("accuracy", "difference") if name in figures)
    yield from other_comparisons(study)
    yield from adapted(study)
    for name, heading in (("figure-2a", "Test error"), ("figure-2b", "The weights λ")):
        if name in figures:
            yield from (Heading(heading, 3), figures[name])
    labels = [row.label for row in study.rows]
    cells = np.array([[row.cells(name) for row in study.rows] for name in study.corruptions])
    for kind, key, names, means, over in (
        ("corruption", "corruptions", study.corruptions, cells.mean(2), "severities"),
        ("severity", "severities", SEVERITIES, cells.mean(0).T, study.over),
    ):
        yield Heading(f"By {kind}", 3)
        if key in figures:
            yield figures[key]
        rows = [[str(n), *(f"{100 * v:.2f}" for v in of)] for n, of in zip(names, means, strict=True)]
        yield Table(f"Accuracy in % by {kind}, mean over {over} and seeds", [kind, *labels], rows)
    yield from diagnosis(study, figures, prefix)
    yield from (Heading("Training", 3), figures["training"])
    yield from (Heading("Where the numbers come from", 3), provenance(study))
    if rows := departures(study):
        caption = "Settings that differ from the preset paper's or between rows"
        yield Table(caption, ["setting", "here", "preset paper", "rows"], rows, WORDS, stacked=True)
    else:
        yield Text("All settings are those of the preset paper.")
    yield from (Heading("What it costs", 3), *cost(study))


def _against_the_paper(study: Study) -> str:
    """How far the study's numbers can be compared with the paper's."""
    if not any(row.paper for row in study.rows):
        return "The paper has no numbers for these images and corruptions."
    text = "The paper gives a single number per row, without a spread."
    if not departures(study) and {run.origin for run in study.runs} == {"published"}:
        return text
    return (
        f"{text} Its setup is a WRN-40-2, 100 epochs, all 50,000 images of CIFAR-10 and the published "
        "CIFAR-10-C: with other settings or images, compare the differences to the baseline rather than the "
        "accuracies."
    )


_METHOD = """\
Accuracy is the fraction of the test images that are classified correctly, averaged over corruptions and
severities; Table 1 says which corruptions and images these are. “Mean ± sd” is the mean over seeds and their
sample standard deviation (n − 1); one seed has no spread.

Runs with the same seed are compared in pairs: they share training images and random choices. A pair is
judged only if both runs were evaluated on the same images in the same precision. The difference is the mean,
over the seeds that both rows have, of one accuracy minus the other; the interval is the 95 % confidence
interval of that mean by Student's t with n − 1 degrees of freedom, which assumes that the differences are
independent and normally distributed. A difference exceeds the noise if the interval excludes zero.

All of this is for these test images and their corrupted versions, which the runs share: what other images
would change is in no interval.

With few seeds the interval is necessarily wide: the standard error is multiplied by 12.71 for two seeds,
4.30 for three, 2.78 for five. So “no” means “not shown”, not “no difference”. A single seed is not judged:
the number of test images says nothing about the result of another seed.

The verdicts are corrected for the number of comparisons, those of each table for each other, by Holm's
method: if no row of a table truly differed, the chance that any is called better or worse would be at most
5 %. The intervals are not corrected. So an interval may exclude zero while the verdict is “not after
correction”: alone, the difference would exceed the noise; among so many, chance may have produced it."""


def _runs(studies: Sequence[Study], left_out: Sequence[LeftOut]) -> Iterator[Block]:
    yield Heading("The runs")
    columns = ["run", "trained with", "seed", "accuracy, %", "mean of", "images per cell", "images left out"]
    columns += ["corrupted set"]
    rows = [
        [
            *(run.name, row.label, str(seed), f"{100 * run.mean():.2f}", coverage(run.accuracy)),
            *(f"{run.images:,}", str(len(run.excluded))),
            f"{run.origin or 'not recorded'}, {run.corrupted_data[:8]}",
        ]
        for study in studies
        for row in study.rows
        for seed, run in row.runs.items()
    ]
    yield Table("Compared", columns, rows, WORDS)
    if left_out:
        rows = [[sanitize(entry.directory), entry.reason] for entry in left_out]
        yield Table("Left out", ["folder", "why"], rows, WORDS)
