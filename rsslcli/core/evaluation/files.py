"""Where evaluations lie beside their checkpoint, so that none replaces a better one. Imports no torch."""

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
    """Where an evaluation of a checkpoint goes: eval-c.json beside it, or a name that says what differs.

    Args:
        checkpoint: the file; its name counts unless it is that of a run, checkpoint.pt.
        dataset: on what, unless it is what the checkpoint was trained on.
        part: what is evaluated, unless it is every cell and image: "partial" or "robustbench".
    """
    other = None if checkpoint.name == CHECKPOINT else checkpoint.stem
    words = [word for word in (Path(EVALUATION).stem, other, dataset, part) if word]
    return checkpoint.with_name("-".join(words) + ".json")


def other_evaluations(directory: Path) -> list[str]:
    """The names of the evaluations in a run directory that are not its whole one, sorted."""
    return sorted(path.name for path in directory.glob(f"{Path(EVALUATION).stem}-*.json"))


def save_whole(result: Evaluation, path: Path) -> tuple[Path, list[str]]:
    """Write a whole evaluation without losing one of the same weights on the same data.

    One in higher precision keeps its place, and `result` goes beside it, named by its precision. One that
    left out other images moves aside, named by the number of its images. Any other file at `path` is
    replaced: it is of other weights or data, covers no more than `result`, or is damaged.

    Returns:
        Where `result` is, and notes on the evaluation that was at `path`, one line each.

    Raises:
        RsslError: a file cannot be written.
    """
    earlier = _read(path)
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
            notes.append(f"{kept.name} keeps the evaluation that left out other images")
    result.save(path)
    return path, notes


def _read(path: Path) -> dict[str, Any] | None:
    """An evaluation; None where there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
        usable = type(content["images"]) is int and 0 < content["images"] < 1 << 40
        return content if usable and isinstance(content["excluded"], list) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _same_subject(earlier: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether an earlier evaluation is of the same weights on the same data."""
    # Older files lack the fingerprint of the weights.
    keys = ["test_data", "corrupted_data", "weights" if "weights" in earlier else "step"]
    return all(earlier.get(key) == about.get(key) for key in keys)


def _rank(precision: object) -> int:
    """Where a precision stands, the highest first."""
    return PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
