"""Refresh what docs/results.md has from the study `small`, tables and pictures, from results/small.

    python tests/study_section.py [STUDY]

With a study's folder, first copy the small files of its finished cells into results/small.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.report import figures
from rsslcli.core.report.answer import answer, interval, other_rows
from rsslcli.core.report.comparison import Comparison, Row, Study, make_studies
from rsslcli.core.report.page import Answer, Block, Table, Text, to_markdown
from rsslcli.core.report.provenance import cost
from rsslcli.core.report.runs import Run, read_runs
from rsslcli.core.report.tables import adapted, adapted_studies, other_comparisons, table_1
from rsslcli.core.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "results" / "small"
AMX = ROOT / "results" / "amx"
DOCUMENT = ROOT / "docs" / "results.md"
#: The pictures of the report that documents show, by their names there.
PICTURES = {
    name: ROOT / "docs" / "images" / f"study-{ours}.png"
    for name, ours in (("accuracy", "accuracy"), ("figure-2b", "lambda"))
}
#: The comparisons that docs/results.md discusses, by the names of the rows' folders, and their seeds.
#: Seeds 5 to 9 were run to confirm what earlier ones had shown.
DISCUSSED = (
    ("automl-relative", "baseline", range(5, 10)),
    ("automl-relative", "fixed-share25", range(5, 10)),
    ("automl", "fixed", range(5)),
    ("automl", "rotation", range(5)),
    ("fixed-share25", "fixed", range(5)),
    ("rotation-share25", "rotation", range(5)),
    ("automl-share25", "automl", range(5)),
    ("automl-share25", "fixed-share25", range(5)),
    ("automl-relative", "automl-share25", range(5)),
    ("automl-share25", "uncertainty", range(2)),
    ("automl-share25", "random", range(2)),
    ("automl-share25", "upgrad", range(2)),
    ("automl-strict", "automl-share25", range(2)),
    ("fixed-share25", "uncertainty", range(2)),
    ("fixed-share25", "random", range(2)),
    ("automl-relative", "rotation-views1", range(10)),
    ("automl-relative", "rotation-views1-all", range(10)),
    ("augmix-automl-relative", "augmix-rotation", range(5)),
    ("automl-relative", "fixed-lambda005", range(5)),
    ("fixed-lambda005", "fixed-share25", range(5)),
    ("rotation-views1-all", "baseline", range(5, 10)),
    ("rotation-views1-all", "rotation-views1", range(5)),
    ("rotation-views1-all", "rotation-views1", range(5, 10)),
)
#: The seeds of each row that a processor with AMX trained, by the names of the rows' folders; one without it
#: trained the others. results/amx has baselines of the former.
TRAINED_WITH_AMX = {
    "automl": range(1, 5),
    "fixed": range(1, 5),
    "augmix-automl-relative": range(1, 5),
    **dict.fromkeys(("automl-share25", "rotation-share25"), range(5)),
    **dict.fromkeys(("color", "bir", "inpaint", "rgb", "jigsaw"), range(2)),
    **dict.fromkeys(("uncertainty", "random", "upgrad", "automl-strict"), range(2)),
}
#: The comparisons between rows of the two processors that docs/results.md discusses.
BETWEEN_PROCESSORS = (
    ("automl", "rotation"),
    ("automl", "baseline"),
    ("fixed", "baseline"),
    ("automl-share25", "fixed-share25"),
    ("automl-share25", "baseline"),
    ("automl-relative", "automl-share25"),
    ("rotation-share25", "rotation"),
    ("rotation-share25", "baseline"),
    ("fixed-share25", "fixed"),
    ("automl-share25", "automl"),
    ("fixed-share25", "uncertainty"),
    ("fixed-share25", "random"),
    ("fixed-share25", "upgrad"),
    ("upgrad", "baseline"),
    *((task, "baseline") for task in ("color", "bir", "inpaint", "rgb", "jigsaw")),
)
END = "<!-- end -->"


def read_study() -> Study:
    """The study that results/small keeps."""
    (study,), _ = make_studies(read_runs([SMALL])[0])
    return study


def section(study: Study) -> str:
    """What docs/results.md says between the markers: answer, tables and picture, as the report has them."""
    text: list[Block] = [Answer(answer(study))]
    if rest := other_rows(study):
        text.append(Text(rest))
    tables: list[Block] = [*other_comparisons(study), *adapted(study), discussed(study), *cost(study)]
    picture = (
        f"![Accuracy under corruption by method](images/{PICTURES['accuracy'].name})\n\n"
        "*Rows with three seeds or more: the interval of two is as wide as the picture. Beside each row,\n"
        "the baseline over its seeds.*\n\n"
    )
    return f"{to_markdown([*text, table_1(study)])}\n{picture}{to_markdown(tables)}"


def discussed(study: Study) -> Table:
    """The comparisons of `DISCUSSED`."""
    (after,) = adapted_studies(study).values()
    before, with_it = by_folder(study), by_folder(after)
    lines = []
    for one, other, seeds in DISCUSSED:
        row, row_after = (of_seeds(by_name[one], seeds) for by_name in (before, with_it))
        found, found_after = row.minus(before[other]), row_after.minus(with_it[other])
        lines.append([*difference(row, before[other]), interval(found), found.verdict, interval(found_after)])
    columns = ["difference", "seeds", "points [95 % interval]", "exceeds the noise by itself?"]
    return Table(
        "Comparisons that the text discusses, each by itself: not corrected",
        [*columns, "the same, both with --adapt bn"],
        lines,
    )


def between_processors(study: Study) -> Table:
    """The comparisons of `BETWEEN_PROCESSORS`: accuracies, and gains over each processor's baselines."""
    rows = by_folder(study)
    of_amx = {run.config.seed: run.mean() for run in read_runs([AMX])[0]}
    of_amd = {seed: run.mean() for seed, run in rows["baseline"].runs.items()}

    def gain(run: Run) -> float:
        seed = run.config.seed
        return run.mean() - (of_amx if seed in TRAINED_WITH_AMX.get(folder(run), ()) else of_amd)[seed]

    lines = []
    for one, other in BETWEEN_PROCESSORS:
        row = of_seeds(rows[one], of_amx)
        by_gain = Comparison(tuple(gain(mine) - gain(theirs) for mine, theirs in row.pairs(rows[other])))
        as_it_is = row.minus(rows[other])
        lines.append([*difference(row, rows[other]), interval(as_it_is), interval(by_gain)])
    columns = ["difference, in points", "seeds", "in the tables", "by way of the baselines"]
    return Table("Differences between rows of the two processors, each by itself", columns, lines)


def by_folder(study: Study) -> dict[str, Row]:
    """The rows by the names of their folders, without the seed."""
    return {folder(run): row for row in study.rows for run in row.runs.values()}


def folder(run: Run) -> str:
    """The name of a run's row: that of its folder, without the seed."""
    return run.directory.name.rpartition("-s")[0]


def difference(row: Row, other: Row) -> tuple[str, str]:
    """A difference of two rows in words, and the seeds that both have."""
    return f"{row.label} − {other.label}", ", ".join(str(mine.config.seed) for mine, _ in row.pairs(other))


def of_seeds(row: Row, seeds: Container[int]) -> Row:
    """A row with only those of its runs that have one of these seeds."""
    return replace(row, runs={seed: run for seed, run in row.runs.items() if seed in seeds})


#: What docs/results.md has from the study, by the names in its markers.
PARTS: dict[str, Callable[[Study], str]] = {
    "tables": section,
    "processors": lambda study: to_markdown([between_processors(study)]),
}


def around(text: str, name: str) -> tuple[str, str, str]:
    """What a document has up to the marker of this part, within the part, and from its end on."""
    begin = f"<!-- made by tests/study_section.py: {name} -->\n\n"
    before, found, rest = text.partition(begin)
    within, end, after = rest.partition(f"\n{END}\n")
    if not (found and end):
        sys.exit(f"{DOCUMENT}: the marker {begin.strip()} or {END} is not there")
    return before + begin, within, f"\n{END}\n{after}"


def shown(name: str) -> str:
    """What docs/results.md has as this part now."""
    return around(DOCUMENT.read_text(encoding="utf-8"), name)[1]


def collect(study: Path) -> None:
    """Copy settings, evaluations, machine and records per epoch of finished cells."""
    for directory in sorted(path for path in study.iterdir() if path.is_dir()):
        run = RunFolder(directory)
        if run.is_run() and run.state() == "done":
            kept = RunFolder(SMALL / directory.name)
            kept.path.mkdir(exist_ok=True)
            with run.log.open() as log:
                kept.log.write_text(log.readline())
            for evaluation in run.path.glob("eval-c*.json"):
                content = json.loads(evaluation.read_text())
                content.pop("diagnostics", None)
                (kept.path / evaluation.name).write_text(json.dumps(content) + "\n")
            kept.config.write_bytes(run.config.read_bytes())
            tuned = Config(**read_config_file(run.config)).automl
            lines = per_epoch(run.metrics.read_text().splitlines(), tuned)
            kept.metrics.write_text("".join(f"{line}\n" for line in lines))


def per_epoch(lines: list[str], tuned: bool) -> list[str]:
    """The records of epochs and, if it is tuned, λ at the last step of each."""
    kept = []
    weights: dict[str, float] = {}
    for line in lines:
        record = json.loads(line)
        if "clean_accuracy" in record:
            kept += [json.dumps(weights), line] if tuned else [line]
        else:
            weights = {
                key: value
                for key, value in record.items()
                if key in ("step", "epoch") or key.startswith("lambda/")
            }
    return kept


def main() -> None:
    """Do all of it."""
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    study = read_study()
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        before, _, after = around(text, name)
        text = f"{before}{make(study)}{after}"
    DOCUMENT.write_text(text, encoding="utf-8")
    figures._PLOTS = {name: figures._PLOTS[name] for name in PICTURES}
    repeated = replace(study, rows=drawn_rows(study))
    about = PngInfo()
    about.add_text("numbers", digest(study))
    for name, drawn in figures.draw(repeated).items():
        with Image.open(io.BytesIO(drawn.png)) as picture:
            picture.convert("RGB").quantize(256).save(PICTURES[name], pnginfo=about, optimize=True)


def drawn_rows(study: Study) -> tuple[Row, ...]:
    """The rows that the pictures show."""
    return tuple(row for row in study.rows if len(row.runs) > 2)


def digest(study: Study) -> str:
    """What the pictures must be drawn again for, if it changes."""
    numbers = {row.label: row.means.round(6).tolist() for row in drawn_rows(study)}
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
