"""Temperature scaling (Guo et al. 2017): one number divides all scores, fitted on images that are not tested.

It changes no prediction, only how probable each is said to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rsslcli.core.data.corrupted import CorruptedSet, aligned
from rsslcli.core.data.store import Split
from rsslcli.core.errors import DivergedError, UserError
from rsslcli.core.evaluation.measuring import scores_of
from rsslcli.core.files import read_json, write_json
from rsslcli.core.run_folder import CALIBRATION, CHECKPOINT

if TYPE_CHECKING:
    from rsslcli.core.evaluation.result import Evaluation

Floats = npt.NDArray[np.float64]

#: Fitted temperatures lie between this and its inverse. A classifier that is always right has no best one.
LOWEST = 0.01
#: Without images that tuned λ: the share of the source images to fit on, at most so many, drawn by this seed.
SHARE = 0.2
_MOST = 1000
_SEED = 0


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature.

    Attributes:
        temperature: divides the scores.
        images: the number of clean images that it was fitted on.
        chosen: which those are, in words.
        weights: the fingerprint of the weights that it belongs to.
    """

    temperature: float
    images: int
    chosen: str
    weights: str

    def save(self, checkpoint: Path) -> Path:
        """Write it beside the checkpoint and return its path.

        Raises:
            RsslError: the file cannot be written.
        """
        path = calibration_path(checkpoint)
        write_json(path, vars(self))
        return path


def calibration_path(checkpoint: Path) -> Path:
    """Where the calibration of a checkpoint is: calibration.json, or a name that has the checkpoint's."""
    if checkpoint.name == CHECKPOINT:
        return checkpoint.with_name(CALIBRATION)
    return checkpoint.with_name(f"{Path(CALIBRATION).stem}-{checkpoint.stem}.json")


def read_temperature(checkpoint: Path, weights: str, carried: object = None) -> float | None:
    """The temperature to divide the scores by; None if no usable one is known.

    It is the one beside the checkpoint if that was fitted for these `weights`, or else `carried`, the one in
    the metadata of the file itself.
    """
    found = read_json(calibration_path(checkpoint))
    temperature = found.get("temperature") if found.get("weights") == weights else carried
    return temperature if isinstance(temperature, float) and _is_fitted(temperature) else None


def _is_fitted(temperature: float) -> bool:
    """False at the ends of the range, where the fit stops if a classifier is always right or only guesses."""
    return 1.01 * LOWEST < temperature < 1 / (1.01 * LOWEST)


def draw_images(source_images: int) -> list[int]:
    """The sorted indices of source images to fit on, for a run without images that tuned λ."""
    count = min(math.ceil(SHARE * source_images), _MOST)
    return sorted(np.random.default_rng(_SEED).permutation(source_images)[:count].tolist())


def calibrate(
    classifier: nn.Module,
    test: Split,
    corrupted: CorruptedSet,
    excluded: Sequence[int],
    *,
    device: torch.device,
    score_of: Sequence[int],
    weights: str,
    precision: str = "float32",
) -> tuple[Calibration, list[int]]:
    """Fit the temperature on clean test images that the evaluation leaves out.

    These are the `excluded` ones if there are any: λ was tuned on their corrupted versions, or would be in a
    run to compare with, and no weight was trained on them. Otherwise a fifth of the source images is drawn,
    at most 1,000, always the same.

    Args:
        classifier, device, score_of, precision: as for `evaluate`.
        test: the clean test set.
        corrupted: its corrupted versions.
        excluded: the indices of the source images that the evaluation leaves out anyway.
        weights: the fingerprint of the weights.

    Returns:
        The calibration, and the indices of the source images that the evaluation must leave out.

    Raises:
        UserError: the corrupted set has too few images, or other source images than the first ones of the
            test set, or no temperature is best, since the classifier is right on all of the images or no
            better than guessing.
        DivergedError: a score is NaN or infinite.
    """
    if not aligned(corrupted, test):
        raise UserError(
            f"{corrupted.folder} has its source images in another order than the test set: the images to "
            "calibrate on could not be left out of both"
        )
    tuned = [index for index in excluded if index < corrupted.images_per_cell]
    chosen = tuned or draw_images(corrupted.images_per_cell)
    if len(chosen) >= corrupted.images_per_cell:
        raise UserError(f"{corrupted.folder} has too few images to calibrate on some and test on others")
    classifier = classifier.eval().to(device).to(memory_format=torch.channels_last)
    batches = scores_of(classifier, test.images, device, np.array(chosen), precision)
    scores = torch.cat([found.float() for _, found in batches]).numpy(force=True).astype(np.float64)
    if not np.isfinite(scores).all():
        raise DivergedError("a score of the images to calibrate on is NaN or infinite: check the weights")
    temperature = fit_temperature(scores, np.asarray(score_of)[test.labels[chosen]])
    if not _is_fitted(temperature):
        raise UserError(
            f"no temperature is best for the {len(chosen)} images to calibrate on, since the classifier is "
            "right on all of them, or no better than guessing: leave out `calibrate`"
        )
    words = "left out anyway" if tuned else f"drawn by seed {_SEED}, left out of the evaluation"
    return Calibration(temperature, len(chosen), words, weights), sorted({*excluded, *chosen})


def what_it_harms(result: Evaluation) -> str:
    """Say that a temperature worsens the loss on the clean images that were tested; empty if it does not.

    Args:
        result: an evaluation that has an entry `calibrated`.
    """
    assert result.confidence is not None
    before, _ = result.confidence.means()["nll"]
    after = result.about["calibrated"]["clean"]["nll"]
    if before is None or after is None or after <= before:
        return ""
    return f"on the clean images that were tested, it raises the NLL from {before:.4f} to {after:.4f}"


def fit_temperature(scores: Floats, labels: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """The temperature T that minimizes the mean negative log-likelihood of softmax(scores / T).

    The loss is convex in 1 / T, so its derivative, the mean of E[s] − s_right, changes its sign once.

    Args:
        scores: finite floats (N, classes).
        labels: (N,), the index of the right score.
    """
    right = scores[np.arange(len(scores)), labels]
    low = math.log(LOWEST)
    high = -low  # of log 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        logits = math.exp(middle) * scores
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        if ((p * scores).sum(1) - right).mean() > 0:
            high = middle
        else:
            low = middle
    return math.exp(-(low + high) / 2)
