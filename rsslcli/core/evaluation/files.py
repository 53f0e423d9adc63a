"""File names of evaluations beside their checkpoint; none replaces a better one. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsslcli.core.config import PRECISIONS
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


def other_evaluations(directory: Path) -> list[str]:
    """The sorted file names of the evaluations in a run directory besides its complete one."""
    return sorted(path.name for path in directory.glob(f"{Path(EVALUATION).stem}-*.json"))


def save_whole(result: Evaluation, path: Path) -> tuple[Path, list[str]]:
    """Write a complete evaluation without losing an earlier one of the same weights on the same data.

    An earlier one in higher precision stays at `path`, and `result` goes beside it, named after its
    precision. An earlier one that excluded other images moves aside, named after its number of images. Any
    other file at `path` is replaced: it has other weights or data, covers no more than `result`, or is
    damaged.

    Returns:
        The path of `result`, and notes on the evaluation that was at `path`, one line each.

    Raises:
        RsslError: a file cannot be written.
    """
    earlier = read_evaluation(path)
    notes = []
    if earlier and _same_subject(earlier, result.about):
        precision = result.about["precision"]
        if _rank(earlier.get("precision", "float32")) < _rank(precision):
            better = path.name
            path = path.with_name(f"{path.stem}-{precision}.json")
            notes.append(f"{better} keeps the evaluation of these weights in higher precision")
        elif earlier["excluded"] != list(result.excluded):
            kept = path.with_name(f"{path.stem}-{earlier['images']}-images.json")
            with replacing(kept) as file:
                file.write(path.read_bytes())
            notes.append(f"{kept.name} keeps the evaluation that excluded other images")
    result.save(path)
    return path, notes


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """The JSON object of an evaluation; None if there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
        usable = type(content["images"]) is int and 0 < content["images"] < 1 << 40
        return content if usable and isinstance(content["excluded"], list) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _same_subject(earlier: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """True if an earlier evaluation has the same weights and data."""
    # Older files lack the fingerprint of the weights.
    keys = ["test_data", "corrupted_data", "weights" if "weights" in earlier else "step"]
    return all(earlier.get(key) == about.get(key) for key in keys)


def _rank(precision: object) -> int:
    """The rank of a precision; 0 is the highest."""
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
