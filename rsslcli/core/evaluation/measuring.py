"""Classify images and compare the scores with the labels, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsslcli.core.data.augment import to_float
from rsslcli.core.data.gathering import moved
from rsslcli.core.data.store import DEFAULT_SIZE, Images
from rsslcli.core.errors import UserError, counted, sanitize
from rsslcli.core.evaluation.adaptation import AdaptiveClassifier
from rsslcli.core.evaluation.outcome import Outcome
from rsslcli.core.evaluation.score_file import Sink
from rsslcli.core.runtime import autocast, derive_seed

#: Images of 32x32 pixels per forward pass by device type. Small batches on the CPU keep the activations in
#: its caches (docs/performance.md).
BATCH_SIZE = {"cpu": 100, "cuda": 500}
#: Images per forward pass on other devices.
_OTHER_BATCH_SIZE = 500


def batch_size(device: torch.device, size: int = DEFAULT_SIZE) -> int:
    """Images of `size`x`size` pixels per forward pass on this device."""
    return BATCH_SIZE.get(device.type, _OTHER_BATCH_SIZE) * DEFAULT_SIZE // size


def check_scores(scores: object, images: int) -> Tensor:
    """Return the output of a classifier for `images` images if it is a float tensor (images, classes).

    Raises:
        UserError: it is not.
    """
    if isinstance(scores, Tensor):
        if scores.dim() == 2 and len(scores) == images and scores.is_floating_point():
            return scores
        found = f"{tuple(scores.shape)}, {dtype_name(scores.dtype)}"
    else:
        found = f"a {type(scores).__name__}"
    raise UserError(
        f"the model must give scores (N, classes); for {counted(images, 'image')} it gave {sanitize(found)}: "
        "wrap it so that it returns only the float tensor of scores"
    )


def model_dtype(classifier: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter or buffer; float32 if there is none."""
    tensors = chain(classifier.parameters(), classifier.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def image_values(scores: Tensor, labels: Tensor, temperature: float | None = None) -> Tensor:
    """The values of each image that `Outcome.of` summarizes, on the device of the scores.

    Args:
        scores: floats (N, classes), taken for the logarithms of probabilities up to a constant.
        labels: int64 (N,), the index of the right score.
        temperature: also give the last three columns for the scores divided by it.

    Returns:
        float32, or float64 for float64 scores, (N, 6), or (N, 9) with a temperature: 1 if the right class has
        the highest score; 1 if the highest score is NaN or infinite; its index; the negative log-likelihood
        in nats; the Brier score, from 0 to 2; the highest probability.
    """
    highest, predicted = scores.max(1)
    logits = scores.to(torch.promote_types(scores.dtype, torch.float32))
    columns = [predicted == labels, ~highest.isfinite(), predicted, *_sureness(logits, labels)]
    if temperature is not None:
        columns += _sureness(logits / temperature, labels)
    return torch.stack([column.to(logits.dtype) for column in columns], 1)


def _sureness(logits: Tensor, labels: Tensor) -> list[Tensor]:
    """For each image, the negative log-likelihood, the Brier score and the highest probability."""
    log_p = logits.log_softmax(1)
    log_right = log_p.gather(1, labels[:, None])[:, 0]
    p = log_p.exp()
    brier = p.square().sum(1) - 2 * log_right.exp() + 1  # Σ (p − y)²
    return [-log_right, brier, p.amax(1)]


@torch.inference_mode()
def scores_of(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    device: torch.device,
    chosen: npt.NDArray[np.int64],
    precision: str = "float32",
) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Yield the indices and the scores of one batch after the other; the arguments are those of `measure`."""
    size = batch_size(device, images.shape[1])
    dtype = model_dtype(classifier)
    with autocast(device, precision == "bfloat16"):
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            x = to_float(moved(torch.from_numpy(images[batch]), device), dtype)
            yield batch, check_scores(classifier(x), len(batch)).to(device)


@torch.inference_mode()
def measure(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64] | None = None,
    precision: str = "float32",
    temperature: float | None = None,
    sink: Sink | None = None,
) -> Outcome:
    """Classify images, and compare the scores with the labels.

    Args:
        classifier: maps floats (N, 3, H, W) in [0, 1], of its dtype, to scores (N, classes); on `device`.
        images: uint8 (N, H, W, 3); may be a memory map, which is read batch by batch.
        labels: int64 (N,), the index of the right score for each image.
        device: where to compute.
        chosen: indices of the images to evaluate; all by default.
        precision: "bfloat16" computes under autocast. TF32 on CUDA is a setting of the process, see
            `rsslcli.core.runtime.set_precision`.
        temperature: also say how sure the classifier is with its scores divided by this.
        sink: called with the scores of each batch.

    Raises:
        UserError: the classifier does not return scores.
    """
    chosen = np.arange(len(labels)) if chosen is None else chosen
    # The values stay on the device until the last batch, so that without a sink the host waits only once.
    values = []
    for batch, scores in scores_of(classifier, images, device, chosen, precision):
        values.append(image_values(scores, moved(torch.from_numpy(labels[batch]), device), temperature))
        if sink is not None:
            sink(scores)
    return Outcome.of(torch.cat(values).numpy(force=True).astype(np.float64))


def count_correct(
    classifier: nn.Module,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64] | None = None,
    precision: str = "float32",
) -> tuple[int, int]:
    """As `measure`: count the images that are right, and those whose highest score is NaN or infinite.

    The latter have no predicted class: the first count is meaningless unless the second is 0.
    """
    if chosen is not None and not len(chosen):  # the share of a rank where there are few images
        return 0, 0
    outcome = measure(classifier, images, labels, device, chosen, precision)
    return outcome.right, outcome.undecided


@torch.no_grad()
def measure_adapted(
    adaptive: AdaptiveClassifier,
    cells: Sequence[Images],
    labels: npt.NDArray[np.int64],
    device: torch.device,
    chosen: npt.NDArray[np.int64],
    precision: str = "float32",
    sink: Sink | None = None,
) -> list[Outcome]:
    """As `measure`, for a classifier that adapts to the images of some cells as they come.

    The classifier is reset first. The images of all cells are one stream, in the order that its settings say.
    They are divided into as few batches as their size allows, which differ by at most one image: no stream
    ends with a small batch, whose statistics would be poor.

    Args:
        adaptive: the classifier.
        cells: the images of each cell, uint8 (N, H, W, 3).
        labels: int64 (N,), the index of the right score for each image, the same in every cell.
        device, chosen, precision: as for `measure`.
        sink: called with all scores at once, in the order of the cells.

    Returns:
        The outcome of each cell.
    """
    settings = adaptive.settings
    adaptive.reset()
    dtype = model_dtype(adaptive)
    # Position i of the stream is image i % len(chosen) of cell i // len(chosen).
    order = np.random.default_rng(derive_seed(settings.seed, "stream")).permutation(len(cells) * len(chosen))
    if settings.stream == "sorted":
        order = order[np.argsort(labels[chosen[order % len(chosen)]], kind="stable")]
    batches = [np.sort(batch) for batch in np.array_split(order, -(-len(order) // settings.batch_size))]
    values = []
    kept = []
    with autocast(device, precision == "bfloat16"):
        for batch in batches:
            cell, image = np.divmod(batch, len(chosen))
            image = chosen[image]
            images = np.concatenate([cells[i][image[cell == i]] for i in np.unique(cell)])
            x = to_float(moved(torch.from_numpy(images), device), dtype)
            y = moved(torch.from_numpy(labels[image]), device)
            scores = check_scores(adaptive(x), len(batch)).to(device)
            values.append(image_values(scores, y))
            if sink is not None:
                kept.append(scores)
    in_order = np.argsort(np.concatenate(batches))
    if sink is not None:
        sink(torch.cat(kept)[moved(torch.from_numpy(in_order), device)])
    found = torch.cat(values).numpy(force=True).astype(np.float64)
    return [Outcome.of(cell) for cell in found[in_order].reshape(len(cells), len(chosen), -1)]
