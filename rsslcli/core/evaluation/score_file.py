"""The scores of every image, in a NumPy file for further analysis. Imports no torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsslcli.core.errors import UserError
from rsslcli.core.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from rsslcli.core.evaluation.cells import Cell
    from rsslcli.core.evaluation.selection import Selection

#: Takes the scores of one batch after the other, floats (n, outputs), in the order of the cells' images.
Sink = Callable[["Tensor"], None]

#: Lower log-probabilities, whose probability is 0 even in float64, become this one: the lowest float16.
LOWEST = float(np.finfo(np.float16).min)


def check_score_file(path: Path) -> None:
    """Check, before anything is evaluated, that scores can be written to `path`.

    Raises:
        UserError: its name does not end in .npz, or it is a folder.
    """
    if path.suffix != ".npz":
        raise UserError(f"`predictions` {path}: the name must end in .npz")
    if path.is_dir():
        raise UserError(f"`predictions` {path} is a folder: name a file")


@contextmanager
def score_file(
    path: Path, cells: Sequence[Cell], images: Selection, about: Mapping[str, Any]
) -> Iterator[Sink]:
    """Write an uncompressed .npz file, batch by batch; docs/evaluation.md describes its arrays.

    Args:
        path: the file, which appears when it is complete.
        cells: the cells, in the order in which they are evaluated.
        images: which images the cells have.
        about: describes the evaluation; becomes the array `about`, as JSON.

    Yields:
        What takes the scores of all images of these cells.

    Raises:
        RsslError: the file cannot be written.
    """
    order = images.score_of
    rows = sum(len(images.chosen(cell)) for cell in cells)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        arrays = {
            "corruption": np.array([cell.name for cell in cells]),
            "severity": np.array([cell.severity for cell in cells], np.int32),
            "classes": np.array(images.classes),
            "about": np.array(json.dumps(about)),
        }
        for name, array in arrays.items():
            with _member(archive, name, array.dtype, array.shape) as member:
                member.write(array.tobytes())
        columns: dict[str, Callable[[int, Cell], npt.NDArray[Any]]] = {
            "cell": lambda index, cell: np.full(len(images.chosen(cell)), index),
            "image": lambda _, cell: images.chosen(cell),
            "label": lambda _, cell: images.evaluated_labels(cell),
        }
        for name, column in columns.items():
            with _member(archive, name, np.dtype("<i4"), (rows,)) as member:
                for index, cell in enumerate(cells):
                    member.write(column(index, cell).astype("<i4").tobytes())
        with _member(archive, "scores", np.dtype("<f2"), (rows, len(order))) as member:
            yield lambda scores: _write(member, log_probabilities(scores, order))


def _write(member: IO[bytes], array: npt.NDArray[np.float16]) -> None:
    member.write(array.astype("<f2", copy=False).tobytes())


@contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Iterator[IO[bytes]]:
    """Open an array of the archive, whose content is to be written."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        yield member


def log_probabilities(scores: Tensor, order: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    """The logarithms of softmax(scores) in half precision, in which the predicted class stays the highest.

    Where rounding would make another class as probable as the predicted one, that class gets the next lower
    number.

    Args:
        scores: floats (n, outputs).
        order: (classes,), the index of the score of each class.

    Returns:
        float16 (n, classes) from `LOWEST` to 0.
    """
    import torch

    predicted = scores.max(1).indices.numpy(force=True)
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    log_p = logits.log_softmax(1).numpy(force=True)[:, order]
    rounded: npt.NDArray[np.float16] = np.maximum(log_p, LOWEST).astype(np.float16)
    highest = rounded.max(1, keepdims=True)
    tied = (rounded == highest) & (order != predicted[:, None])
    np.copyto(rounded, np.nextafter(highest, np.float16(-np.inf)), where=tied)
    return rounded
