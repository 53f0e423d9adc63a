"""Accuracy on the clean and the corrupted test set (section 3), without the images that tuned λ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES, STANDARD, coverage
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.corrupted import CorruptedSet, aligned
from rsslcli.core.data.download import corrupted_origin
from rsslcli.core.data.store import Split
from rsslcli.core.errors import DivergedError, UserError, one_line, unknown
from rsslcli.core.files import replacing
from rsslcli.core.progress import Progress, silent
from rsslcli.core.ranks import Ranks
from rsslcli.core.runtime import autocast

#: Images per forward pass, and on any other device. On the CPU few, whose activations stay in its caches
#: (docs/performance.md).
BATCH_SIZE = {"cpu": 100, "cuda": 500}
_OTHER_BATCH_SIZE = 500

#: A row of the table: its name, and fractions of 1.
_Row = tuple[str, list[float | None]]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Accuracies are fractions of 1.

    Attributes:
        clean_accuracy: on the clean test set.
        clean_images: how many clean images that is.
        accuracy: by corruption, at severity 1 to 5; None where a severity was not evaluated.
        images: source images evaluated in each cell of `accuracy`.
        excluded: indices of the source images left out: those that tuned λ, here or in a run to compare with.
        about: what was evaluated on what: names and fingerprints.
        notes: what a person should know beside the numbers, a line each.
    """

    clean_accuracy: float
    clean_images: int
    accuracy: dict[str, list[float | None]]
    images: int
    excluded: tuple[int, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def mean_accuracy(self) -> float | None:
        """The paper's number: the mean over all 19 corruptions; None where some were not evaluated."""
        return self.mean(CORRUPTIONS)

    @property
    def mean_accuracy_15(self) -> float | None:
        """The benchmark's usual number: the mean over its 15 test corruptions; None where one is missing."""
        return self.mean(STANDARD)

    def mean(self, names: Sequence[str]) -> float | None:
        """The mean over these corruptions and all severities; None where one was not evaluated."""
        return _mean([cell for name in names for cell in self.accuracy.get(name, [None])])

    def mean_at(self, severity: int, names: Sequence[str] = CORRUPTIONS) -> float | None:
        """The mean over these corruptions at one severity; None where one was not evaluated there."""
        return _mean([self.accuracy[name][severity - 1] if name in self.accuracy else None for name in names])

    @property
    def coverage(self) -> str:
        """What the mean over the evaluated corruptions covers: "19", or "17 of 19 (missing: snow, fog)"."""
        return coverage(self.accuracy)

    def means(self) -> dict[str, float | None]:
        """By its name: the clean accuracy, the mean over what was evaluated, that of the usual 15 if known.

        The mean over what was evaluated is None where a severity was not.
        """
        means = {"clean": self.clean_accuracy, f"mean of {self.coverage}": self.mean(tuple(self.accuracy))}
        return (
            means
            if self.mean_accuracy_15 is None
            else means | {"mean of the usual 15": self.mean_accuracy_15}
        )

    def rows(self) -> list[_Row]:
        """The rows of a table: clean, each corruption, the mean over those that were evaluated.

        Each is a name and seven fractions of 1: the accuracy at severity 1 to 5, their mean, and the drop,
        which is the clean accuracy minus that mean. None stands for what was not evaluated.
        """
        names = tuple(self.accuracy)

        def row(name: str, cells: Sequence[float | None], mean: float | None) -> _Row:
            return name, [*cells, mean, None if mean is None else self.clean_accuracy - mean]

        return [
            ("clean", [*[None] * len(SEVERITIES), self.clean_accuracy, None]),
            *(row(name, self.accuracy[name], self.mean([name])) for name in names),
            row(f"mean of {len(names)}", [self.mean_at(s, names) for s in SEVERITIES], self.mean(names)),
        ]

    def to_json(self) -> str:
        """The evaluation as a JSON object, as `eval-c` writes it."""
        content = {
            "clean_accuracy": self.clean_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_accuracy_15": self.mean_accuracy_15,
            "mean_accuracy_evaluated": self.mean(tuple(self.accuracy)),
            "mean_accuracy_evaluated_of": self.coverage,
            "accuracy": self.accuracy,
            "images": self.images,
            "clean_images": self.clean_images,
            "excluded": list(self.excluded),
            **self.about,
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=2) + "\n"

    def to_csv(self) -> str:
        """A line per corruption and severity: corruption,severity,accuracy,images; clean is severity 0."""
        lines = ["corruption,severity,accuracy,images", f"clean,0,{self.clean_accuracy},{self.clean_images}"]
        for name, values in self.accuracy.items():
            cells = zip(SEVERITIES, values, strict=True)
            lines += [f"{name},{s},{value},{self.images}" for s, value in cells if value is not None]
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """A table in per cent: clean and a row per corruption, a column per severity, means and drops."""
        lines = ["| corruption | 1 | 2 | 3 | 4 | 5 | mean | drop |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
        for name, values in self.rows():
            cells = ["–" if cell is None else f"{100 * cell:.2f}" for cell in values]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        named = self.means().items()
        lines += [
            "",
            *(f"- {name}: {'–' if mean is None else f'{100 * mean:.2f} %'}" for name, mean in named),
        ]
        clean = f", {self.clean_images} clean ones" if self.clean_images != self.images else ""
        lines.append(
            f"- {self.images} images per cell{clean}, {len(self.excluded)} left out, kept for tuning λ"
        )
        if self.about.get("precision", "float32") != "float32":
            lines.append(f"- computed in {self.about['precision']}")
        lines += [f"- note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def save(self, path: Path | str) -> None:
        """Write to `path`, whole or not at all: CSV or Markdown if it ends in .csv or .md, else JSON."""
        path = Path(path)
        text = {".csv": self.to_csv, ".md": self.to_markdown}.get(path.suffix, self.to_json)()
        with replacing(path) as file:
            file.write(text.encode())


#: Test images that RobustBench evaluates in each cell.
ROBUSTBENCH_IMAGES = 10_000


def with_robustbench(result: Evaluation) -> Evaluation:
    """`result` with an entry `robustbench` that says it in RobustBench's terms (Croce et al. 2021).

    Its protocol: the 15 corruptions at all 5 severities, the whole test set, the mean of the 75 accuracies.
    `clean_acc` and `corruptions_acc` are in per cent, as in its model cards; `corruptions_mce` is the mean
    corruption error, not normalised by another network, which for CIFAR is 100 minus the latter.
    """
    mean = result.mean_accuracy_15
    terms = {
        "clean_acc": round(100 * result.clean_accuracy, 2),
        "corruptions_acc": None if mean is None else round(100 * mean, 2),
        "corruptions_mce": None if mean is None else round(100 * (1 - mean), 2),
        "n_examples": result.images,
    }
    return dataclasses.replace(result, about={**result.about, "robustbench": terms})


def check_scores(scores: object, images: int) -> Tensor:
    """Return what a classifier gave for so many images, if it is a float tensor (images, classes).

    Raises:
        UserError: it is something else.
    """
    if isinstance(scores, Tensor):
        if scores.dim() == 2 and len(scores) == images and scores.is_floating_point():
            return scores
        found = f"{tuple(scores.shape)}, {_dtype_name(scores.dtype)}"
    else:
        found = f"a {type(scores).__name__}"
    count = "one image" if images == 1 else f"{images} images"
    raise UserError(
        f"the model must give scores (N, classes); for {count} it gave {one_line(found)}: "
        "wrap it so that it returns the float tensor of scores alone"
    )


def model_dtype(classifier: nn.Module) -> torch.dtype:
    """The dtype to compute in: that of the first floating-point parameter or buffer; float32 without any."""
    tensors = chain(classifier.parameters(), classifier.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


#: An accuracy within this share of the way from guessing to 1 is near chance, and so is one that so many
#: standard errors do not tell from guessing (one-sided, 99.5 %).
_NEAR_CHANCE = 0.1
_STANDARD_ERRORS = 2.576


def note_on_chance(result: Evaluation, test: Split) -> str | None:
    """A note where the clean accuracy is near chance, which says what is usually wrong; None elsewhere.

    Chance is the share of the most frequent class of `test`. An accuracy is near it if it is at most a tenth
    of the way from there to 1, or, of few images, not significantly higher. It is also significantly below
    half of the way: a handful of images says nothing.
    """
    chance = float(np.bincount(test.labels).max()) / len(test.labels)
    halfway = (1 + chance) / 2

    def margin(accuracy: float) -> float:
        return _STANDARD_ERRORS * math.sqrt(accuracy * (1 - accuracy) / result.clean_images)

    near = min(chance + max(_NEAR_CHANCE * (1 - chance), margin(chance)), halfway - margin(halfway))
    if result.clean_accuracy > near:
        return None
    return (
        f"the clean accuracy, {result.clean_accuracy:.2%}, is near that of guessing, {chance:.2%}. If the "
        "weights are good, they do not fit this evaluation: check how the input is normalized, the order of "
        "the classes, and the architecture, since some variants have the names and shapes of this WideResNet "
        "but compute something else (FixMatch's PyTorch code: LeakyReLU, shortcuts without activation)"
    )


@torch.inference_mode()
def count_correct(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64] | None = None,
    precision: str = "float32",
) -> tuple[int, int]:
    """How many images the classifier gets right, and of how many the highest score is NaN or infinite.

    The latter have no class: unless there are none, the former is no result.

    Args:
        classifier: maps floats (N, 3, H, W) in [0, 1], of its own dtype, to scores (N, classes); on `device`.
        images: uint8 (N, H, W, 3); a memory map is read batch by batch.
        labels: int64 (N,).
        device: where to compute.
        chosen: indices of the images to take; all by default.
        precision: "bfloat16" computes under autocast; whether CUDA multiplies in TF32 otherwise is a setting
            of the process, `rsslcli.core.runtime.set_precision`.

    Raises:
        UserError: the classifier gives something else than scores.
    """
    chosen = np.arange(len(labels)) if chosen is None else chosen
    size = BATCH_SIZE.get(device.type, _OTHER_BATCH_SIZE)
    dtype = model_dtype(classifier)
    # Both counts stay on the device until the last batch, so that the host waits once.
    correct = torch.zeros((), dtype=torch.int64, device=device)
    undecided = torch.zeros_like(correct)
    with autocast(device, precision == "bfloat16"):
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            x = to_float(torch.from_numpy(images[batch]).to(device), dtype)
            y = torch.from_numpy(labels[batch]).to(device)
            highest, predicted = check_scores(classifier(x), len(batch)).to(device).max(1)
            correct += (predicted == y).sum()
            undecided += (~highest.isfinite()).sum()
    found = torch.stack([correct, undecided]).tolist()
    return found[0], found[1]


def clean_images(
    test: Split, corrupted: CorruptedSet | None, excluded: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Indices of the clean test images to evaluate, sorted.

    `excluded` speaks of them only if they are the source images of `corrupted` in the same order.
    """
    every = np.arange(len(test.labels))
    if corrupted is None or not aligned(corrupted, test):
        return every
    return np.setdiff1d(every, np.asarray(excluded, np.int64))


def evaluate(
    classifier: nn.Module,
    test: Split,
    corrupted: CorruptedSet,
    *,
    device: torch.device,
    score_of: Sequence[int] | None = None,
    excluded: Sequence[int] = (),
    limit: int | None = None,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    partial: Path | None = None,
    precision: str = "float32",
    about: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    foreign: bool = False,
    progress: Progress = silent,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate a classifier on a test set and its corrupted versions.

    Args:
        classifier: maps floats (N, 3, H, W) in [0, 1], of the dtype of its parameters, to scores.
        test: the clean test set.
        corrupted: its corrupted versions.
        device: where to compute.
        score_of: for each label, the index of its score, see `match_classes`; label i has score i by default.
        excluded: indices into `corrupted` of the source images to leave out, and into `test` where both
            hold the same images in the same order.
        limit: evaluate only the first `limit` source images that are not excluded.
        corruptions: which ones; all that there are by default.
        severities: which ones.
        partial: a file for the counts of finished cells. If it is of the same evaluation, interrupted, its
            cells are not evaluated again; it is removed in the end.
        precision: as for `count_correct`.
        about: what the result shall say of its origin, such as the checkpoint's name.
        notes: what was noted on the classifier before; the result's notes begin with them.
        foreign: whether it was trained elsewhere: then a clean accuracy near chance is noted too.
        progress: told after every cell.
        ranks: the processes that evaluate together, a cell each at a time. Each gets the result; the first
            one writes `partial`.

    Raises:
        UserError: nothing is left to evaluate, a corruption is not in the set, the classifier gives something
            else than scores, or `precision` is "bfloat16" and it does not compute in float32.
        DivergedError: scores are NaN or infinite.
    """
    names = list(dict.fromkeys(corrupted.names if corruptions is None else corruptions))
    for name in names:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, corrupted.names)
        if name not in corrupted.names:
            raise UserError(f"{corrupted.folder} has no '{name}': it has {', '.join(corrupted.names)}")
    every = np.arange(corrupted.images_per_cell)
    left_out = np.intersect1d(every, np.asarray(excluded, np.int64))  # each once
    chosen = np.setdiff1d(every, left_out)[:limit]
    if not len(chosen):
        raise UserError(
            f"{corrupted.folder}: no image is left to evaluate once those that tuned λ are left out"
        )
    clean = clean_images(test, corrupted, left_out.tolist())[:limit]
    if limit is not None and aligned(corrupted, test):
        clean = chosen
    scores = np.arange(len(test.classes)) if score_of is None else np.asarray(score_of, np.int64)
    dtype = _dtype_name(model_dtype(classifier))
    if dtype != "float32" and precision == "bfloat16":
        raise UserError(
            f"precision bfloat16 is for float32 models, and this one is {dtype}: "
            "leave it out, and the model is evaluated in its own precision"
        )
    computed_in = precision if dtype == "float32" else dtype
    classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)
    cells = [
        _CLEAN,
        *((name, severity) for name in names for severity in SEVERITIES if severity in severities),
    ]

    def count(name: str, severity: int) -> tuple[int, int]:
        if (name, severity) == _CLEAN:
            return count_correct(classifier, test.images, scores[test.labels], device, clean, precision)
        images = corrupted.cell(name, severity)
        return count_correct(classifier, images, scores[corrupted.labels], device, chosen, precision)

    ranks = ranks or Ranks()
    setting = test.checksum + corrupted.identity + computed_in
    if not ranks.first:
        partial = None
    fingerprint = _fingerprint(classifier, setting, [clean, chosen, scores]) if partial else ""
    sizes = {_key(*cell): len(clean if cell == _CLEAN else chosen) for cell in cells}
    counts = _Counts(partial, fingerprint, sizes)
    counts.known = json.loads(ranks.agree(json.dumps(counts.known)))
    remaining = [cell for cell in cells if _key(*cell) not in counts.known]
    for start in range(0, len(remaining), ranks.count):
        progress(remaining[start][0], len(cells) - len(remaining) + start, len(cells))
        at_once = remaining[start : start + ranks.count]
        found = torch.zeros(len(at_once), 2, dtype=torch.int64)
        if ranks.rank < len(at_once):
            found[ranks.rank] = torch.tensor(count(*at_once[ranks.rank]))
        correct, undecided = ranks.sum(found).T.tolist()
        for cell, n in zip(at_once, undecided, strict=True):
            if n:
                raise _undecided(cell, n, sizes[_key(*cell)], computed_in)
        counts.add({_key(*cell): n for cell, n in zip(at_once, correct, strict=True)})
    progress("done", len(cells), len(cells))
    counts.remove()
    accuracy: dict[str, list[float | None]] = {
        name: [
            counts.known[_key(name, severity)] / len(chosen) if severity in severities else None
            for severity in SEVERITIES
        ]
        for name in names
    }
    result = Evaluation(
        clean_accuracy=counts.known[_key(*_CLEAN)] / len(clean),
        clean_images=len(clean),
        accuracy=accuracy,
        images=len(chosen),
        excluded=tuple(left_out.tolist()),
        about={
            **(about or {}),
            "precision": computed_in,
            "test_data": test.checksum,
            "corrupted_data": corrupted.identity,
            "corrupted_origin": corrupted_origin(corrupted),
        },
        notes=tuple(notes),
    )
    suspicion = note_on_chance(result, test) if foreign else None
    return dataclasses.replace(result, notes=(*notes, suspicion)) if suspicion else result


class _Counts:
    """How many images of each finished cell were right, kept on disk until the evaluation is whole."""

    def __init__(self, path: Path | None, fingerprint: str, sizes: Mapping[str, int]) -> None:
        """Read what `path` has of this evaluation, whose cells have `sizes` images."""
        self.path, self.fingerprint = path, fingerprint
        self.known: dict[str, int] = {}
        if path is None or not path.is_file():
            return
        try:
            content = json.loads(path.read_bytes())
            known = content["correct"] if content["fingerprint"] == fingerprint else {}
            if all(
                type(known[cell]) is int and 0 <= known[cell] <= size
                for cell, size in sizes.items()
                if cell in known
            ):
                self.known = {cell: known[cell] for cell in sizes if cell in known}
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # damaged: evaluate anew

    def add(self, correct: Mapping[str, int]) -> None:
        self.known |= correct
        if self.path is not None:
            with replacing(self.path) as file:
                file.write(json.dumps({"fingerprint": self.fingerprint, "correct": self.known}).encode())

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


#: The clean test set, among the cells.
_CLEAN = ("clean", 0)


def _key(name: str, severity: int) -> str:
    """What a cell is called in the file of counts."""
    return f"{name}/{severity}"


def _undecided(cell: tuple[str, int], count: int, images: int, precision: str) -> DivergedError:
    """The error for a cell in which so many of the images have no class."""
    place = "the clean test set" if cell == _CLEAN else f"{cell[0]} at severity {cell[1]}"
    narrow = precision in ("bfloat16", "float16")
    advice = "evaluate in float32" if narrow else "check the weights, and how the input is normalized"
    return DivergedError(
        f"{place}: the highest score of {count} of {images} images is NaN or infinite, so they have no "
        f"class: {advice}"
    )


def fingerprint_weights(classifier: nn.Module) -> str:
    """A fingerprint (sha256, hexadecimal) of the parameters and buffers."""
    return _fingerprint(classifier, "", ())


def _fingerprint(classifier: nn.Module, setting: str, chosen: Sequence[npt.NDArray[np.int64]]) -> str:
    """What tells one evaluation from another: the weights, the images and precision, which of the images."""
    digest = hashlib.sha256(setting.encode())
    for indices in chosen:
        digest.update(len(indices).to_bytes(8, "little") + indices.astype("<i8").tobytes())
    for name, value in classifier.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _mean(cells: Sequence[float | None]) -> float | None:
    known = [cell for cell in cells if cell is not None]
    return float(np.mean(known)) if known and len(known) == len(cells) else None
