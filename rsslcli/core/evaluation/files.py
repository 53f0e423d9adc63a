"""File names of evaluations beside their checkpoint; none replaces a better one. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsslcli.core.config import PRECISIONS
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.evaluation.outcome import METRICS, Outcome
from rsslcli.core.files import replacing
from rsslcli.core.run_folder import CHECKPOINT, EVALUATION

if TYPE_CHECKING:
    from rsslcli.core.evaluation.result import Evaluation

_MAX_BYTES = 16 << 20


def evaluation_path(checkpoint: Path, *, dataset: str | None = None, part: str | None = None) -> Path:
    """The path of an evaluation: eval-c.json beside the checkpoint, or a name that says what differs.

    Args:
        checkpoint: the file. Its name becomes part of the path unless it is checkpoint.pt, as in a run.
        dataset: the data set, unless the checkpoint was trained on it.
        part: what is evaluated, unless it is every cell and image.
    """
    other = None if checkpoint.name == CHECKPOINT else checkpoint.stem
    words = [word for word in (Path(EVALUATION).stem, other, dataset, part) if word]
    return checkpoint.with_name("-".join(words) + ".json")


def mistakes_path(evaluation: Path) -> Path:
    """Where the images of an evaluation's most confident mistakes are: beside it, as eval-c.jpg."""
    return evaluation.with_suffix(".jpg")


def other_evaluations(directory: Path) -> list[str]:
    """The sorted file names of the evaluations in a run directory besides its complete one."""
    return sorted(path.name for path in directory.glob(f"{Path(EVALUATION).stem}-*.json"))


def save_whole(result: Evaluation, path: Path) -> tuple[Path, list[str]]:
    """Write a complete evaluation without losing an earlier one of the same weights on the same data.

    An earlier one in higher precision stays at `path`, and `result` goes beside it, named after its
    precision. An earlier one that excluded other images moves aside, named after its number of images, and
    one that says more, since its probabilities are calibrated, to the name of a calibrated one. Any other
    file at `path` is replaced: it has other weights or data, covers no more than `result`, or is damaged. The
    images of the most confident mistakes go beside `result`.

    Returns:
        The path of `result`, and notes on the evaluation that was at `path`, one line each.

    Raises:
        RsslError: a file cannot be written.
    """
    earlier = read_evaluation(path)
    notes: list[str] = []
    if earlier and _same_subject(earlier, result.about):
        precision = result.about["precision"]
        if _rank(earlier.get("precision", "float32")) < _rank(precision):
            beside, notes = save_whole(result, path.with_name(f"{path.stem}-{precision}.json"))
            return beside, [f"{path.name} keeps the evaluation of these weights in higher precision", *notes]
        if earlier["excluded"] != list(result.excluded):
            kept = _place_aside(path, earlier)
            notes.append(_keep(path, kept, "the evaluation that excluded other images"))
        elif "calibrated" in earlier and "calibrated" not in result.about:
            kept = path.with_name(f"{path.stem}-calibrated.json")
            if kept.exists() and _excluded(kept) != earlier["excluded"]:
                kept = _place_aside(kept, earlier)
            notes.append(_keep(path, kept, "the calibrated evaluation"))
    if result.diagnostics is not None and result.diagnostics.sheet is not None:
        with replacing(mistakes_path(path)) as file:
            file.write(result.diagnostics.sheet)
    result.save(path)
    return path, notes


def _keep(path: Path, kept: Path, what: str) -> str:
    """Copy an evaluation that is about to be replaced to `kept`; return a note on it."""
    with replacing(kept) as file:
        file.write(path.read_bytes())
    return f"{kept.name} keeps {what}"


def _place_aside(path: Path, earlier: Mapping[str, Any]) -> Path:
    """Where an evaluation that excluded other images goes: named after its number of images, and free."""
    stem = f"{path.stem}-{earlier['images']}-images"
    places = (path.with_name(f"{stem}{f'-{number}' * (number > 1)}.json") for number in count(1))

    def may_go(there: Mapping[str, Any] | None) -> bool:
        """Whether the evaluation in a place is a lesser one of the same images."""
        if there is None or there["excluded"] != earlier["excluded"]:
            return False
        return "calibrated" not in there or "calibrated" in earlier

    return next(each for each in places if not each.exists() or may_go(read_evaluation(each)))


def _excluded(evaluation: Path) -> object:
    """The source images that an evaluation excluded; None if it is damaged."""
    content = read_evaluation(evaluation)
    return content and content["excluded"]


def outcomes_in(
    path: Path, about: Mapping[str, Any], excluded: Sequence[int], sizes: Mapping[str, int]
) -> dict[str, Outcome]:
    """The outcomes of cells in an earlier evaluation of the same weights, images and precision.

    Args:
        path: its file, which need not exist.
        about: the entries of the present evaluation on its weights, data and precision.
        excluded: the source images that it excludes.
        sizes: the number of images by the key of each cell, "fog/3" or "clean/0".

    Returns:
        The outcomes by key, which do not say which images are right; empty if the evaluation is another one,
        or damaged.
    """
    earlier = read_evaluation(path)
    same = ("weights", "test_data", "corrupted_data", "precision", "classes_by_position")
    if not earlier or "weights" not in earlier or any(earlier.get(key) != about.get(key) for key in same):
        return {}
    if earlier["excluded"] != list(excluded):
        return {}
    try:
        clean = {"clean": [earlier["clean_accuracy"]]}
        tables = [clean | earlier["accuracy"], *(earlier.get(name, {}) for name in METRICS)]
        images = {"clean": earlier["clean_images"]}
        found = {}
        for name, fractions in tables[0].items():
            rows = [table.get(name, [None] * len(fractions)) for table in tables]
            for severity, numbers in enumerate(zip(*rows, strict=True), start=name != "clean"):
                outcome = _outcome(images.get(name, earlier["images"]), *numbers)
                if outcome and outcome.images == sizes.get(key := f"{name}/{severity}"):
                    found[key] = outcome
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
    return found


def _outcome(images: int, fraction: object, *numbers: object) -> Outcome | None:
    """The outcome of a cell by its accuracy and `METRICS`; None if they cannot be that."""
    if not isinstance(fraction, float) or not 0 <= fraction <= 1:
        return None
    if not all(number is None or isinstance(number, float) for number in numbers):
        return None
    return Outcome(images, round(fraction * images), **dict(zip(METRICS, numbers, strict=True)))  # type: ignore[arg-type]


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """The entries of an evaluation's file, see `load_evaluation`; None if it is missing or damaged."""
    try:
        return load_evaluation(path)
    except (OSError, ValueError):
        return None


def load_evaluation(path: Path) -> dict[str, Any]:
    """The entries of an evaluation's JSON file, see `Evaluation.to_json`; those of every version are checked.

    Older versions record no "precision", which was float32, and no "clean_images", which were "images".

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an evaluation, or it is damaged.
    """
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES)
    try:
        content = json.loads(text)
        found: dict[str, Any] = {"precision": "float32", "clean_images": content["images"], **content}
        usable = (
            all(map(_has_accuracies, [found, *([found["adapted"]] if "adapted" in found else [])]))
            and all(_is_number(index) for index in found["excluded"])
            and all(_is_number(found[name]) and found[name] for name in ("images", "clean_images"))
        )
    except (KeyError, TypeError, AttributeError, RecursionError):
        usable = False
    if not usable:
        raise ValueError(f"{path} is not an evaluation, or it is damaged")
    return found


def _has_accuracies(content: Mapping[str, Any]) -> bool:
    """Whether an object holds the accuracies of an evaluation, by corruption and on clean images."""
    accuracy = content["accuracy"]
    cells = [value for row in accuracy.values() for value in row if value is not None]
    return (
        bool(accuracy)
        and {*accuracy} <= {*CORRUPTIONS}
        and all(len(row) == len(SEVERITIES) for row in accuracy.values())
        and all(_is_fraction(value) for value in (content["clean_accuracy"], *cells))
    )


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


def _is_fraction(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _same_subject(earlier: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """True if an earlier evaluation has the same weights and data."""
    # Older files lack the fingerprint of the weights.
    keys = ["test_data", "corrupted_data", "weights" if "weights" in earlier else "step"]
    return all(earlier.get(key) == about.get(key) for key in keys)


def _rank(precision: object) -> int:
    """The rank of a precision; 0 is the highest."""
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
