"""The Python interface: load, train and evaluate a classifier, with one call each."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsslcli.core.config import Config, check_effective
from rsslcli.core.corruptions.names import SEVERITIES
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.image_files import read_image_file
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.data.place import default_data_dir
from rsslcli.core.errors import UserError, sanitize, short_repr
from rsslcli.core.evaluation import accuracy as evaluation
from rsslcli.core.evaluation.adaptation import AdaptiveClassifier, make_adaptive
from rsslcli.core.evaluation.adaptation_settings import Adaptation, AdaptationMethod
from rsslcli.core.evaluation.class_names import carried_names, match_classes, networks_in
from rsslcli.core.evaluation.fairness import note_on_tuning, notes_on_data
from rsslcli.core.evaluation.measuring import check_scores, model_dtype
from rsslcli.core.evaluation.result import Evaluation
from rsslcli.core.evaluation.score_file import check_score_file
from rsslcli.core.networks.names import allow_network
from rsslcli.core.networks.network import Network
from rsslcli.core.progress import Progress, silent
from rsslcli.core.run_folder import RunFolder
from rsslcli.core.runtime import autocast
from rsslcli.core.training import loop as training
from rsslcli.core.training.events import Event
from rsslcli.core.training.loop import TrainingResult
from rsslcli.core.weights.checkpoint import Checkpoint
from rsslcli.core.weights.checkpoint import load_classifier as load_network
from rsslcli.core.weights.trained_tasks import TrainedTasks, trained_tasks


class Classifier(nn.Module):
    """A trained classifier, in evaluation mode: float images (N, 3, S, S) in [0, 1] → scores (N, classes).

    Attributes:
        network: its trunk and classifier; `network.features(images)` are the features (N, feature_width).
        classes: class names in the order of the scores; empty if unknown.
        excluded: indices of the source images that tuned λ; `evaluate` excludes them.
        image_size: S, height and width of the images on which it trained, in pixels; None if unknown.
        checkpoint: the checkpoint of rssl that it was loaded from, for `adapt`; None for public weights.
    """

    def __init__(
        self,
        network: Network,
        classes: Sequence[str] = (),
        excluded: Sequence[int] = (),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.network = network
        network.classes = tuple(classes) or network.classes
        network.excluded = tuple(excluded) or network.excluded
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the scores."""
        return self.network.classes

    @property
    def excluded(self) -> tuple[int, ...]:
        """Indices of the source images that tuned λ."""
        return self.network.excluded

    @property
    def image_size(self) -> int | None:
        """Height and width of the images on which it trained, in pixels."""
        return self.network.image_size

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores


def load_classifier(
    path: str | Path, *, network: str | None = None, normalization: str | None = None
) -> Classifier:
    """Load the classifier in a run directory, a checkpoint, or a public file with a state dict.

    Args:
        path: the directory, or a file of torch.save or safetensors. No code in it is run.
        network: the network of weights from elsewhere, such as "resnet18" of torchvision; by default the
            paper's WideResNet. A run whose network is "package.module:function" needs that name here: it is
            then imported.
        normalization: the input normalization of weights from elsewhere: "half" (x·2 − 1), "cifar10",
            "imagenet", "none", or means and standard deviations as "R,G,B/R,G,B". By default the one in the
            file, or else that usual for the network: "half" for a WideResNet.

    Returns:
        The classifier, on the CPU.

    Raises:
        UserError: the file is missing, of another kind, or damaged.

    Warns:
        UserWarning: parts of the file are not used, its input normalization is unknown, or its weights are
            those of another architecture with the same names.
    """
    if network is not None:
        allow_network(network)
    loaded, trained = load_network(
        Path(path),
        network=network,
        normalization=normalization,
        note=lambda text: warnings.warn(text, stacklevel=4),
    )
    return Classifier(loaded, checkpoint=trained)


def adapt(classifier: nn.Module, method: AdaptationMethod = "bn", **settings: Any) -> AdaptiveClassifier:
    """Make a copy of a classifier that adapts to each batch of images that it is given, without labels.

    Its scores depend on the other images in the batch, and in "tent" on the earlier batches: `reset()`
    forgets those. A batch should hold images of one kind and of many classes.

    Args:
        classifier: any model with batch normalization, on the device to compute on; it stays unchanged.
            "tasks" needs a `Classifier` of a run with tasks.
        method: "bn", "tent" or "tasks", see `Adaptation`.
        settings: further fields of `Adaptation`: `prior`, `steps`, `learning_rate`, `episodic`, `seed`.

    Returns:
        A module that maps float images (N, 3, H, W) in [0, 1] to scores (N, classes), without gradients.

    Raises:
        UserError: the classifier has no batch normalization for "bn" and "tent", or no tasks for "tasks", or
            a setting is wrong.
    """
    adaptation = Adaptation(method, **settings)
    return make_adaptive(classifier, adaptation, _tasks_of(classifier, adaptation))


def _tasks_of(model: nn.Module, adaptation: Adaptation | None) -> TrainedTasks | None:
    """The tasks of the run that a model was loaded from, if it adapts by them."""
    if adaptation is None or adaptation.method != "tasks":
        return None
    found = [module.checkpoint for module in model.modules() if isinstance(module, Classifier)]
    return trained_tasks(found[0] if found else None)


def load_images(paths: str | Path | Sequence[str | Path], *, size: int = 32) -> Tensor:
    """Read image files as `rssl prepare-data` and `rssl predict` do, for a classifier.

    The center square of an image of another size is scaled; see docs/data.md.

    Args:
        paths: a file, or several, in any common raster format.
        size: the height and width of the result, in pixels.

    Returns:
        float32 (N, 3, size, size) in [0, 1], RGB, in the order of `paths`.

    Raises:
        UserError: a file is missing or not a file, damaged, too large or not an image; or `size` is not from
            1 to 4096.
    """
    if not isinstance(size, int) or not 1 <= size <= _MAX_SIZE:
        raise UserError(f"size: expected 1 to {_MAX_SIZE}, got {short_repr(size)}")
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    images = np.empty((len(files), size, size, 3), np.uint8)
    for place, path in zip(images, files, strict=True):
        place[:], _ = read_image_file(path, size)
    return to_float(torch.from_numpy(images))


#: Pixels: the largest side of loaded images.
_MAX_SIZE = 4096


def train(
    config: Config,
    output: str | Path,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train a network into a run directory, as `rssl train-automl` and `rssl train-single` do.

    Args:
        config: the settings; `config.dataset` names a prepared data set, or "shapes", which is embedded.
        output: the run directory, created if missing.
        data_dir: the folder of prepared data sets. By default that of the command line: see
            `default_data_dir`.
        resume: continue from the directory's checkpoint, or start if it has none yet.
        on_event: called with each event: `Started`, `StepsDone`, `EpochDone`, `Notice`. An exception from it
            ends the training.
        should_stop: called after every step; if it returns true, the run is saved and training stops.

    Returns:
        The run's directory, clean accuracy and λ.

    Raises:
        UserError: the data set is not prepared, the directory already holds a run and `resume` is false,
            another process is writing it, or a new run would tune no λ although `config.automl` is true, or
            have tasks without effect: at a fixed λ of 0, or with a frozen trunk.
        InterruptedTrainingError: `should_stop` returned true.
        DivergedError: a loss, a λ or a weight is not finite; the checkpoint is an earlier one.
        RsslError: a file cannot be written.
    """
    if not RunFolder(Path(output)).checkpoint.exists():
        check_effective(config)  # before loading the data, which takes a while
    dataset = load(config.dataset, _folder(data_dir))
    corrupted = load_corrupted(dataset) if config.automl else None
    return training.train(
        config,
        Path(output),
        dataset,
        corrupted,
        resume=resume,
        on_event=on_event,
        should_stop=should_stop,
    )


def evaluate(
    model: nn.Module,
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    limit: int | None = None,
    excluded: Sequence[int] = (),
    classes: Sequence[str] | None = None,
    classes_by_position: bool = False,
    adaptation: Adaptation | None = None,
    predictions: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    progress: Progress = silent,
) -> Evaluation:
    """Measure the accuracy of any classifier on a data set and its corrupted versions, like `rssl eval-c`.

    Args:
        model: maps float images (N, 3, S, S) in [0, 1], of the data set's size, to scores (N, classes), and
            normalizes them itself. The images have the dtype of its parameters: a model in half precision is
            evaluated in it. It is evaluated in evaluation mode; afterwards its modules return to their
            modes, on `device`.
        dataset: a prepared data set with corrupted versions, such as "cifar10", or "shapes".
        data_dir: the folder of prepared data sets, as for `train`.
        corruptions: names among `rsslcli.CORRUPTIONS`; by default all that the data set has.
        severities: numbers from 1 to 5.
        limit: evaluate at most this many source images.
        excluded: indices of source images to exclude, in addition to those that tuned the λ of any
            network of rssl in the model, such as a `Classifier` in a wrapper. A traced or exported
            program has lost them, and the class names.
        classes: class names in the order of the model's scores, to be matched with those of the data set. By
            default those of a network of rssl in the model; without any, CIFAR-10's on CIFAR-10.
        classes_by_position: use score i for class i of the data set, whatever the names.
        adaptation: also measure the accuracy with adaptation to the images of each cell; see the result's
            `adapted`. For an adaptation by tasks, the model is or holds a `Classifier` of a run with tasks.
        predictions: a .npz file for the scores of all images, see docs/evaluation.md.
        device: any PyTorch device to compute on; by default that of the model.
        precision: "bfloat16" computes a float32 model under autocast; "float32" computes any model in its
            dtype, which the result names. TF32 on CUDA is a setting of PyTorch (`torch.backends`), which
            the result names too.
        progress: called at every cell with its name, the number of finished cells and their total.

    Raises:
        UserError: the data set is not prepared or has no corrupted versions, a corruption is unknown, the
            model cannot adapt, fails on an image or on that device (its exception is the cause), does not
            return scores, or has other classes or classes without names, or `predictions` does not end in
            .npz.
        DivergedError: scores are NaN or infinite.
        RsslError: `predictions` cannot be written.

    Warns:
        UserWarning: the clean accuracy of a model that rssl did not train is near chance; a network of rssl
            in it receives input that is normalized twice; corrupted images are doubtful. The result's `notes`
            hold the text.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected an nn.Module such as load_classifier(RUN), got {short_repr(model)}")
    if any(isinstance(module, AdaptiveClassifier) for module in model.modules()):
        raise UserError("model: it adapts already: pass the classifier itself, with `adaptation`")
    for name, given in (("corruptions", corruptions), ("severities", severities)):
        if isinstance(given, str | int):
            raise UserError(f"{name}: expected a list, got {short_repr(given)}")
    wrong = [severity for severity in severities if severity not in SEVERITIES]
    if wrong or not severities:
        raise UserError(f"severities: expected some of 1 to 5, got {list(severities)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit: expected at least 1, got {limit}")
    if precision not in ("float32", "bfloat16"):
        raise UserError(f"precision: expected float32 or bfloat16, got {short_repr(precision)}")
    predictions = None if predictions is None else Path(predictions)
    if predictions is not None:
        check_score_file(predictions)
    data = load(dataset, _folder(data_dir))
    corrupted = load_corrupted(data)
    images = max(len(data.test.labels), corrupted.images_per_cell)
    for index in excluded:
        if not isinstance(index, int | np.integer) or isinstance(index, bool) or not 0 <= index < images:
            raise UserError(f"excluded: expected indices from 0 to {images - 1}, got {short_repr(index)}")
    tensor = next((tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors), None)
    place = device if device is not None else tensor.device if tensor is not None else "cpu"
    tuned = {index for network in networks_in(model) for index in network.excluded}
    runs = [each.checkpoint for each in model.modules() if isinstance(each, Classifier) and each.checkpoint]
    doubts = [text for run in runs for text in notes_on_data(run, data)]
    if any(run.excluded and run.validation_data != corrupted.identity for run in runs):
        doubts.append(note_on_tuning(corrupted))
    with _evaluating(model):
        with _inputs_of(networks_in(model)) as inputs:
            target, scores = _scores_of_one(model, place, data.size, precision)
        outputs = check_scores(scores, 1).shape[1]
        if classes is None:
            classes = () if classes_by_position else carried_names(model, outputs)
        names = data.test.classes
        score_of = match_classes(classes, outputs, names, dataset, by_position=classes_by_position)
        result = evaluation.evaluate(
            model,
            data.test,
            corrupted,
            device=target,
            score_of=score_of,
            excluded=sorted({*tuned, *excluded}),
            limit=limit,
            corruptions=corruptions,
            severities=severities,
            adaptation=adaptation,
            tasks=_tasks_of(model, adaptation),
            predictions=predictions,
            precision=precision,
            foreign=not any(network.classes for network in networks_in(model)),
            about={"dataset": dataset} | ({"classes_by_position": True} if classes_by_position else {}),
            notes=[*doubts, *_notes_on_inputs(inputs)],
            progress=progress,
        )
    for text in result.notes:
        warnings.warn(text, stacklevel=2)
    return result


def _folder(data_dir: str | Path | None) -> Path:
    return default_data_dir() if data_dir is None else Path(data_dir)


@contextlib.contextmanager
def _inputs_of(networks: Sequence[Network]) -> Iterator[list[Tensor]]:
    """Within this context, collect the inputs of these networks in the list."""
    inputs: list[Tensor] = []
    hooks = [network.register_forward_pre_hook(lambda _, args: inputs.extend(args)) for network in networks]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _notes_on_inputs(inputs: Sequence[Tensor]) -> list[str]:
    """A note where a network of ours is given values far outside [0, 1], of an image from black to white."""
    for values in inputs:
        lowest, highest = (float(value) for value in values.detach().aminmax())
        if lowest < -0.5 or highest > 1.5:
            return [
                f"the model gives the network of rssl in it values from {lowest:.2f} to {highest:.2f} in "
                "place of images in [0, 1]: that network normalizes its input itself, so remove the "
                "normalization before it"
            ]
    return []


def _scores_of_one(
    model: nn.Module, place: str | torch.device, size: int, precision: str
) -> tuple[torch.device, object]:
    """Move the model to a device; return the device and the model's output for one image, black to white.

    Raises:
        UserError: the move or the model fails; the original exception is the cause.
    """
    dtype = model_dtype(model)
    try:
        device = torch.device(place)
        model = model.to(device)  # not in inference mode: weights moved there cannot be trained any more
        image = torch.linspace(0, 1, 3 * size * size, device=device).reshape(1, 3, size, size).to(dtype)
        in_bfloat16 = precision == "bfloat16" and dtype is torch.float32
        with torch.inference_mode(), autocast(device, in_bfloat16):
            scores = model(image)
        if isinstance(scores, Tensor):
            scores = scores.cpu()  # makes asynchronous device errors surface, and fails on the meta device
    except Exception as error:  # a custom model may raise anything
        raise UserError(
            f"the model fails on one image (1, 3, {size}, {size}) of {dtype} in evaluation mode on {place}: "
            f"{type(error).__name__}: {sanitize(error)}"
        ) from error
    return device, scores


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode within this context, then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    with contextlib.suppress(NotImplementedError):  # an exported program has no modes
        model.eval()
    try:
        yield
    finally:
        for module, training_mode in modes:
            module.training = training_mode
