"""`rssl eval-c`: accuracy on the clean and the corrupted test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsslcli.commands import options
from rsslcli.commands.console import (
    check_checkpoints,
    check_dataset,
    note,
    parse_corruptions,
    parse_severities,
    progress_bar,
    waiting,
)
from rsslcli.commands.evaluation_tables import print_result
from rsslcli.commands.hints import (
    say_difference_to_baseline,
    suggest_evaluation,
    suggest_report,
    suggest_resuming,
)
from rsslcli.core.corruptions.names import SEVERITIES, STANDARD
from rsslcli.core.data.store import check_image_size
from rsslcli.core.errors import UserError, counted
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.files import evaluation_path, save_whole
from rsslcli.core.evaluation.relative import read_reference
from rsslcli.core.evaluation.score_file import check_score_file
from rsslcli.core.files import checkpoint_path
from rsslcli.core.networks.normalization import parse_normalization
from rsslcli.core.run_folder import CHECKPOINT, EVALUATION, RunFolder, partial_evaluation

if TYPE_CHECKING:
    from torch import nn

    from rsslcli.core.data.corrupted import CorruptedSet
    from rsslcli.core.data.store import Dataset, Split
    from rsslcli.core.evaluation.calibration import Calibration
    from rsslcli.core.evaluation.result import Evaluation
    from rsslcli.core.networks.network import Network
    from rsslcli.core.weights.checkpoint import Checkpoint as Trained
    from rsslcli.core.weights.trained_tasks import TrainedTasks


def eval_c(
    checkpoint: options.Checkpoint,
    dataset: options.DatasetName = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
    limit: options.Limit = None,
    corruptions: options.OnlyCorruptions = None,
    severity: options.OnlySeverities = None,
    protocol: options.Protocol = "paper",
    network: options.Network = None,
    normalization: options.Normalization = None,
    classes_by_position: options.ClassesByPosition = False,
    same_images_as: options.SameImagesAs = None,
    leave_out_validation: options.LeaveOutValidation = False,
    relative_to: options.RelativeTo = None,
    calibrate: options.Calibrate = False,
    adapt: options.Adapt = None,
    prior: options.Prior = None,
    adapt_batch: options.AdaptBatch = None,
    stream: options.AdaptStream = None,
    task_file: options.TaskFile = None,
    output: options.EvaluationFile = None,
    predictions: options.ScoreFile = None,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Evaluate a classifier on the corrupted test set: 19 corruptions at 5 severities.

    # all 19 corruptions, into eval-c.json in the run
    rssl eval-c runs/first
    # a look at two of them, on 500 images, as a table for a document
    rssl eval-c runs/first --corruptions fog,snow --limit 500 --output part.md
    # public weights, to set beside RobustBench's leaderboard
    rssl eval-c augmix.pt --dataset cifar10 --protocol robustbench --output augmix.json
    # weights of torchvision, in the order of the data set's classes
    rssl eval-c resnet18.pth --network resnet18 --dataset mine --classes-by-position
    # a baseline, on the images that an AutoML run of the same seed and settings is tested on
    rssl eval-c runs/baseline --leave-out-validation
    # what the network gains by adapting to the corrupted images, without labels
    rssl eval-c runs/first --adapt bn
    # corruption errors in the terms of the benchmark's authors, divided by those of a baseline
    rssl eval-c runs/first --relative-to runs/baseline
    # calibrated probabilities, also for `rssl predict`
    rssl eval-c runs/first --calibrate
    # the scores of every image, for analyses of your own
    rssl eval-c runs/first --predictions scores.npz
    # in about half the time, on a CPU that supports bfloat16
    rssl eval-c runs/first --precision bfloat16
    """
    precision = precision or "float32"
    severities = parse_severities(severity)
    names = _names(protocol, corruptions, severity, limit)
    _check_options(normalization, limit, output, predictions)
    adaptation = _adaptation(adapt, prior, adapt_batch, stream, protocol, calibrate=calibrate)
    reference = None if relative_to is None else read_reference(relative_to)
    check_dataset(dataset, data_dir)
    check_checkpoints(checkpoint, same_images_as)

    with waiting():
        from rsslcli.core.data.loading import load, load_corrupted
        from rsslcli.core.evaluation.accuracy import evaluate
        from rsslcli.core.evaluation.class_names import match_classes
        from rsslcli.core.ranks import join_world
        from rsslcli.core.runtime import set_up_evaluation

    notes: list[str] = []
    classifier, trained, tasks = _load(checkpoint, network, normalization, adapt, notes.append)
    target = set_up_evaluation(device, precision, notes.append)
    name = dataset or (trained.config.dataset if trained else "cifar10")
    with join_world(target) as world, progress_bar() as progress:
        with world.main_first():
            data = load(name, data_dir, progress)
            check_image_size(classifier.image_size, data.size, name)
            corrupted = load_corrupted(data, progress)
        score_of = match_classes(
            classifier.classes, classifier.fc.out_features, data.test.classes, name,
            by_position=classes_by_position, note=notes.append,
        )  # fmt: skip
        excluded = _excluded(trained, data, corrupted, same_images_as, leave_out_validation, notes.append)
        about = _about(checkpoint, name, trained, classes_by_position, classifier)
        calibration, left_out = _calibrate(
            calibrate, classifier, data.test, corrupted, excluded, note=notes.append,
            device=target, score_of=score_of, weights=about["weights"], precision=precision,
        )  # fmt: skip
        _print_notes(notes)
        is_whole = _is_whole(corrupted, names, severities, limit)
        part = _part(adaptation, None if is_whole else _PARTS[protocol], calibrated=left_out != excluded)
        path = output or _default_path(checkpoint, trained, name, part)
        earlier = None if adaptation is None else _default_path(checkpoint, trained, name, None)
        result = evaluate(
            classifier, data.test, corrupted,
            device=target, score_of=score_of, excluded=left_out, limit=limit, corruptions=names,
            severities=severities, adaptation=adaptation, tasks=tasks, earlier=earlier, reference=reference,
            temperature=calibration.temperature if calibration else None, precision=precision, about=about,
            partial=partial_evaluation(path) if path else None, predictions=predictions, notes=notes,
            foreign=not trained, progress=progress, world=world,
        )  # fmt: skip
    if world.is_main:
        result = _in_terms_of(protocol, result)
        saved, remarks = _save(result, path, predictions, beside=output is None and is_whole)
        print_result(result, f"{checkpoint} on corrupted {name}: accuracy in %", saved)
        remarks += _save_calibration(calibration, checkpoint, trained, name, result)
        _print_notes([*result.notes[len(notes) :], *_cautions(result, corrupted, trained), *remarks])
        _suggest(saved if output is None else None, part, trained, data_dir)


def _print_notes(notes: Sequence[str]) -> None:
    for text in notes:
        note(text)


def _load(
    checkpoint: Path,
    network: str | None,
    normalization: str | None,
    adapt: str | None,
    note: Callable[[str], None],
) -> tuple[Network, Trained | None, TrainedTasks | None]:
    """The classifier; its checkpoint, if it belongs to a run; and the run's tasks, if it adapts by them."""
    from rsslcli.core.weights.checkpoint import load_classifier
    from rsslcli.core.weights.trained_tasks import trained_tasks

    classifier, trained = load_classifier(checkpoint, network=network, normalization=normalization, note=note)
    return classifier, trained, trained_tasks(trained) if adapt == "tasks" else None


def _excluded(
    trained: Trained | None,
    data: Dataset,
    corrupted: CorruptedSet,
    same_images_as: Path | None,
    leave_out_validation: bool,
    note: Callable[[str], None],
) -> list[int]:
    """The source images to leave out."""
    from rsslcli.core.evaluation.fairness import images_to_leave_out, notes_on_data
    from rsslcli.core.weights.checkpoint import load_checkpoint

    for text in notes_on_data(trained, data) if trained else ():
        note(text)
    rival = of_rival = None
    if same_images_as is not None:
        rival = load_checkpoint(same_images_as)
        of_rival = checkpoint_path(same_images_as).with_name(EVALUATION)
    return images_to_leave_out(
        trained, corrupted,
        rival=rival, of_rival=of_rival, leave_out_validation=leave_out_validation, note=note,
    )  # fmt: skip


def _about(
    checkpoint: Path, dataset: str, trained: Trained | None, by_position: bool, classifier: nn.Module
) -> dict[str, Any]:
    """What the result says of its origin."""
    from rsslcli.core.evaluation.fingerprint import fingerprint_weights

    weights = fingerprint_weights(classifier)
    step = {"step": trained.step, "train_data": trained.train_data} if trained else {}
    position = {"classes_by_position": True} if by_position else {}
    return {"checkpoint": str(checkpoint), "dataset": dataset, **step, **position, "weights": weights}


def _adaptation(
    method: str | None,
    prior: float | None,
    batch_size: int | None,
    stream: str | None,
    protocol: str,
    *,
    calibrate: bool,
) -> Adaptation | None:
    """How the classifier adapts; None unless the user asks for it."""
    if calibrate and (method is not None or protocol == "robustbench"):
        raise UserError(
            "--calibrate is for the paper's protocol without adaptation: leave out --adapt and --protocol"
        )
    given = {"--prior": prior, "--adapt-batch": batch_size, "--stream": stream}
    if method is None:
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option} is a setting of the adaptation: add --adapt, such as --adapt bn")
        return None
    if protocol == "robustbench":
        raise UserError("--protocol robustbench is for numbers without adaptation: leave out --adapt")
    if batch_size is not None and not 1 <= batch_size < 2**63:
        raise UserError(f"--adapt-batch {batch_size}: expected a whole number from 1")
    chosen: dict[str, Any] = {"method": method, "prior": prior, "batch_size": batch_size, "stream": stream}
    return Adaptation(**{name: value for name, value in chosen.items() if value is not None})


_WRITERS = (".json", ".csv", ".md")
#: What a part of the whole evaluation is called, by the protocol.
_PARTS = {"paper": "partial", "robustbench": "robustbench"}


def _calibrate(
    is_wanted: bool,
    network: nn.Module,
    test: Split,
    corrupted: CorruptedSet,
    excluded: list[int],
    note: Callable[[str], None],
    **how: Any,
) -> tuple[Calibration | None, list[int]]:
    """Fit the temperature if it is wanted; also say which images the evaluation must leave out."""
    if not is_wanted:
        return None, excluded
    from rsslcli.core.evaluation.calibration import calibrate

    found, left_out = calibrate(network, test, corrupted, excluded, **how)
    note(f"temperature {found.temperature:.4g}, fitted on {found.images} clean images {found.chosen}")
    return found, left_out


def _save_calibration(
    calibration: Calibration | None,
    checkpoint: Path,
    trained: Trained | None,
    dataset: str,
    result: Evaluation,
) -> list[str]:
    """Write the calibration beside the checkpoint if it helps; return a note on who reads it."""
    from rsslcli.core.evaluation.calibration import what_it_harms

    if calibration is None:
        return []
    if harm := what_it_harms(result):
        few = counted(calibration.images, "image")
        return [f"the temperature, fitted on {few} alone, is not kept: {harm}"]
    if trained is not None and dataset != trained.config.dataset:
        own = trained.config.dataset
        return [f"`rssl predict` does not use this temperature: it uses only one fitted on {own}"]
    return [f"`rssl predict` uses {calibration.save(checkpoint_path(checkpoint))}"]


def _part(adaptation: Adaptation | None, part: str | None, *, calibrated: bool) -> str | None:
    """What the file name of a result adds to that of the whole unadapted evaluation; None for that one."""
    words = [f"adapted-{adaptation.name}"] if adaptation else []
    words += ["calibrated"] if calibrated else []
    return "-".join([*words, *([part] if part else [])]) or None


def _default_path(checkpoint: Path, trained: Trained | None, dataset: str, part: str | None) -> Path | None:
    """Where the result goes unless the user says where: beside the checkpoint, if it is of a run."""
    if trained is None:
        return None
    other = dataset if dataset != trained.config.dataset else None
    return evaluation_path(checkpoint_path(checkpoint), dataset=other, part=part)


def _is_whole(
    corrupted: CorruptedSet, names: Sequence[str] | None, severities: Sequence[int], limit: int | None
) -> bool:
    """Whether every cell and image is evaluated, but for the images that are left out on purpose."""
    return (
        (names is None or set(names) >= set(corrupted.names))
        and set(severities) >= set(SEVERITIES)
        and (limit is None or limit >= corrupted.images_per_cell)
    )


def _save(
    result: Evaluation, path: Path | None, predictions: Path | None, *, beside: bool
) -> tuple[Path | None, list[str]]:
    """Write the result to `path`, and remove the file of its finished cells.

    With `beside`, `path` is the usual one beside the checkpoint: a better evaluation there is kept.

    Returns:
        The path of the result, and notes on the evaluation that was there and on the file `predictions`.
    """
    scores = [f"the scores of every image are in {predictions}"] if predictions else []
    if path is None:
        return None, scores
    saved, notes = path, list[str]()
    if beside:
        saved, notes = save_whole(result, path)
    else:
        result.save(path)
    partial_evaluation(path).unlink(missing_ok=True)
    return saved, [*notes, *scores]


def _suggest(saved: Path | None, part: str | None, trained: Trained | None, data_dir: Path) -> None:
    """Say what to do next with a run whose evaluation is saved beside it; nothing of other evaluations."""
    if saved is None or trained is None:
        return
    folder = RunFolder(saved.parent)
    if folder.log.is_file() and not folder.is_trained():
        note(f"the training is not finished (step {trained.step}): evaluate it again once it is")
        suggest_resuming(saved.parent, trained.config, data_dir)
        return
    if part and part.startswith("calibrated"):
        note(f"reports read {EVALUATION}, an evaluation of all images")
    elif part and part.startswith("adapted"):
        note(f"reports show adapted accuracies beside those of {EVALUATION}")
    elif part:
        note(f"reports read only the whole evaluation, {EVALUATION}, not this part of it")
    elif saved.name == EVALUATION:
        say_difference_to_baseline(saved.parent)
    if saved.with_name(EVALUATION).is_file():
        suggest_report(saved.parent)
    elif saved.with_name(CHECKPOINT).is_file():
        suggest_evaluation(saved.parent, trained.config, data_dir)


def _check_options(
    normalization: str | None,
    limit: int | None,
    output: Path | None,
    predictions: Path | None,
) -> None:
    """Refuse what no evaluation can do, before anything heavy is loaded."""
    if normalization is not None:
        parse_normalization(normalization)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    if output is not None and output.suffix not in _WRITERS:
        raise UserError(f"--output {output}: the name must end in {', '.join(_WRITERS)}")
    if output is not None and output.is_dir():
        raise UserError(f"--output {output}: expected a file, but it is a folder")
    if predictions is not None:
        check_score_file(predictions)


def _names(
    protocol: str, corruptions: str | None, severity: str | None, limit: int | None
) -> list[str] | None:
    """The corruptions to evaluate, None for all; RobustBench's protocol fixes them, severities and images."""
    if protocol != "robustbench":
        return parse_corruptions(corruptions)
    if any(choice is not None for choice in (corruptions, severity, limit)):
        raise UserError(
            "--protocol robustbench fixes the corruptions, severities and images: leave out --corruptions, "
            "--severity and --limit"
        )
    return list(STANDARD)


def _in_terms_of(protocol: str, result: Evaluation) -> Evaluation:
    """The result, with what a protocol adds to it."""
    from rsslcli.core.evaluation.result import with_robustbench

    return with_robustbench(result) if protocol == "robustbench" else result


def _cautions(result: Evaluation, corrupted: CorruptedSet, trained: Trained | None) -> list[str]:
    """What to say beside a result in RobustBench's terms; nothing beside others."""
    cautions: list[str] = []
    if "robustbench" not in result.about:
        return cautions
    if trained and trained.config.automl and trained.config.validation_corruptions == "all":
        cautions.append("λ was tuned on these corruptions, on other images: say so beside published numbers")
    if result.about["corrupted_origin"] == "generated":
        cautions.append(
            f"{corrupted.folder} was generated here: it is close to the published set, not the same"
        )
    return cautions
