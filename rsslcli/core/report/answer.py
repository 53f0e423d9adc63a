"""What a study shows, in sentences computed from its runs: the first thing that a report says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rsslcli.core.config import Config, read_config_file
from rsslcli.core.errors import RsslError, UserError, counted, signed
from rsslcli.core.report.comparison import Comparison, Row, Study, make_studies
from rsslcli.core.report.runs import read_run, run_directories
from rsslcli.core.run_folder import RunFolder, folder_of

#: How many neighboring runs are considered.
_BESIDE = 50
#: How many rows a sentence lists.
_LISTED = 12


#: Rows with their differences to the baseline.
_Found = Sequence[tuple[Row, Comparison]]


def answer(study: Study) -> str:
    """Which method is better than the baseline and by how much, or why that cannot be said."""
    if study.baseline is None:
        return (
            "Nothing can be compared: none of these runs is a baseline. Train one with the same settings but "
            "without tasks and AugMix, and evaluate it on the same images."
        )
    found = study.against_baseline
    if not found:
        seeds = counted(len(study.baseline.runs), "seed")
        return (
            f"Only the baseline is here: its accuracy, mean over {study.over}, is "
            f"{100 * study.baseline.means.mean():.2f} % ({seeds}). Nothing is compared with it yet."
        )
    judged = _judged(study)
    if not judged:
        return _cannot_be_judged(study, found)
    best, difference = _best(study, judged)
    if difference.verdict != "yes, better":
        which = "the best one" if len(judged) == len(found) else "the best one with two seeds or more"
        alone = ", which counts only if it is compared alone" * (difference.verdict == "not after correction")
        return (
            f"No method is better than the baseline beyond the noise: {which}, {best.label}, differs from it "
            f"by {_by(study, difference)}{alone}."
        )
    return " ".join(
        [
            f"{best.label} is better than the baseline by {_by(study, difference)}.",
            *_beside_augmix(study, best),
        ]
    )


def other_rows(study: Study) -> str:
    """What the answer leaves out: the verdicts on the other rows; empty if there are none."""
    judged = _judged(study)
    best = _best(study, judged)[0] if judged else None
    sentences = []
    for verdict, words in _VERDICTS.items():
        rows = [pair for pair in judged if pair[1].verdict == verdict and pair[0] is not best]
        if rows:
            named = [f"{row.label} ({signed(100 * each.mean)})" for row, each in rows]
            sentences.append(f"{words[0].upper()}{words[1:]}: {_names(named)}.")
    few = [(row, each) for row, each in study.against_baseline if not each.is_judged]
    if few and judged:
        sentences.append(f"Not judged: {_names([_why_not(row, each) for row, each in few])}.")
    return " ".join(sentences)


#: What a sentence says of a verdict.
_VERDICTS = {
    "yes, better": "also better than the baseline",
    "yes, worse": "worse than the baseline",
    "not after correction": "beyond the noise only if compared alone",
    "no": "within the noise",
}


def _judged(study: Study) -> list[tuple[Row, Comparison]]:
    """The rows that are judged: those better than the baseline first, then by difference."""
    judged = [pair for pair in study.against_baseline if pair[1].is_judged]
    return sorted(judged, key=lambda pair: (pair[1].verdict != "yes, better", -pair[1].mean))


def _best(study: Study, judged: _Found) -> tuple[Row, Comparison]:
    """The first of the judged rows, unless one with more seeds is ahead of it in the common ones.

    AugMix alone is preferred to AugMix with tasks that add nothing beyond the noise.
    """
    best = judged[0]
    for row, found in judged[1:]:
        more = found.verdict == best[1].verdict and len(found.differences) > len(best[1].differences)
        if more and row.minus(best[0]).mean >= 0:
            best = row, found
    for row, augmix, added in _beyond_augmix(study):
        if row is best[0] and added.verdict != "yes, better":
            alone = next((pair for pair in judged if pair[0] is augmix), best)
            return alone if alone[1].verdict == best[1].verdict else best
    return best


def beside_baseline(directory: Path) -> str:
    """How a run compares with the baseline beside it that shares its seed and settings, as a sentence.

    Empty without such a baseline, or if a file cannot be read.
    """
    try:
        run = read_run(directory)
    except (RsslError, OSError):
        return ""
    baselines = []
    for path in _baselines_beside(directory, run.config.seed):
        with suppress(RsslError, OSError):
            baselines.append(read_run(path))
    for study in make_studies([run, *baselines])[0]:
        base = study.baseline
        if base is None or run not in study.runs or run.config.seed not in base.runs:
            continue
        if run in base.runs.values():
            continue
        (row,) = (row for row in study.rows if run in row.runs.values())
        found = row.minus(base)
        other = base.runs[run.config.seed]
        if found.unlike:
            return f"not compared with {other.directory}: it has different {found.unlike}"
        return (
            f"{signed(100 * found.mean)} points over the baseline {other.directory}, mean over {study.over}; "
            "one seed cannot show whether that exceeds the noise"
        )
    return ""


def _baselines_beside(directory: Path, seed: int) -> list[Path]:
    """The run directories beside this one whose settings are those of a baseline with this seed."""
    found = []
    folder = folder_of(directory)
    for path in [*run_directories(folder)][:_BESIDE]:
        try:
            config = Config(**read_config_file(RunFolder(path).config))
        except (UserError, OSError):
            continue
        wanted = config.is_baseline and config.seed == seed
        if wanted and path.resolve() != directory.resolve() and RunFolder(path).evaluation.is_file():
            found.append(path)
    return found


def _cannot_be_judged(study: Study, found: _Found) -> str:
    if all(each.unlike for _, each in found):
        unlike = " and ".join(dict.fromkeys(each.unlike for _, each in found))
        return f"Nothing can be judged: the rows have different {unlike} than the baseline."
    shared = [pair for pair in found if pair[1].differences and not pair[1].unlike]
    if not shared:
        return "Nothing can be judged: no row has a seed in common with the baseline."
    best, difference = max(shared, key=lambda pair: pair[1].mean)
    few = "Seeds that all have the same difference" if difference.is_even else "One seed"
    return (
        f"{few} cannot show whether a method is better than the baseline. The best here, {best.label}, "
        f"differs by {signed(100 * difference.mean)} points in mean accuracy over {study.over}; with another "
        "seed the difference may have another sign."
    )


def _beyond_augmix(study: Study) -> list[tuple[Row, Row, Comparison]]:
    """The rows with AugMix and tasks, each with AugMix alone and its difference to that; the best first."""
    found = [
        (row, other, added)
        for row, other, added in study.what_is_added
        if row.config.tasks and other.config.uses_augmix and not other.config.tasks
    ]
    return sorted(found, key=lambda each: (not each[2].is_judged, -each[2].mean))


def _beside_augmix(study: Study, best: Row) -> list[str]:
    """What tasks add to AugMix, in a sentence, if the best row has it."""
    for row, augmix, added in _beyond_augmix(study):
        verdict = _VERDICTS.get(added.verdict, "not judged")
        verdict = "beyond the noise" if added.verdict.startswith("yes") else verdict
        if row is best:
            return [f"Its difference to AugMix alone is {interval(added)}: {verdict}."]
        if augmix is best:
            return [f"{row.label} differs from it by {interval(added)}: {verdict}."]
    return []


def _why_not(row: Row, found: Comparison) -> str:
    """A row that is not judged, and why."""
    if found.unlike:
        return f"{row.label} (different {found.unlike})"
    if not found.differences:
        return f"{row.label} (no common seed)"
    seeds = counted(len(found.differences), "seed")
    few = f"{seeds} with the same difference" if found.is_even else "one seed"
    return f"{row.label} ({signed(100 * found.mean)}, {few})"


def _by(study: Study, found: Comparison) -> str:
    seeds = counted(len(found.differences), "seed")
    return f"{interval(found)} points in mean accuracy over {study.over} ({seeds}, 95 % interval)"


def _names(names: Sequence[str]) -> str:
    more = f"; and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return "; ".join(names[:_LISTED]) + more


def interval(found: Comparison) -> str:
    """The mean difference in percentage points, with its confidence interval if it has one."""
    if math.isnan(found.mean):
        return "–"
    ends = [signed(100 * (found.mean + side * found.margin)) for side in (-1, 1)]
    return signed(100 * found.mean) + ("" if math.isnan(found.margin) else f" [{', '.join(ends)}]")
