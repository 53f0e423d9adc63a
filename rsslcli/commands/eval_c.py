"""`rssl eval-c`: accuracy on the clean and the corrupted test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rsslcli.commands import options
from rsslcli.commands.console import (
    check_checkpoints,
    check_dataset,
    note,
    out,
    parse_corruptions,
    parse_severities,
    percent,
    progress_bar,
    waiting,
)
from rsslcli.commands.hints import say_difference_to_baseline, suggest_evaluation, suggest_report
from rsslcli.core.config import PRECISIONS, Config
from rsslcli.core.corruptions.names import SEVERITIES, STANDARD
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.evaluation.adaptation_settings import Adaptation
from rsslcli.core.evaluation.files import evaluation_path, save_whole
from rsslcli.core.files import checkpoint_path
from rsslcli.core.networks.normalization import parse_normalization
from rsslcli.core.run_folder import EVALUATION, partial_evaluation

if TYPE_CHECKING:
    from rsslcli.core.data.corrupted import CorruptedSet
    from rsslcli.core.evaluation.result import Evaluation
    from rsslcli.core.weights.checkpoint import Checkpoint as Trained


def eval_c(
    checkpoint: options.Checkpoint,
    dataset: options.DatasetName = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
    limit: options.Limit = None,
    corruptions: options.OnlyCorruptions = None,
    severity: options.OnlySeverities = None,
    protocol: options.Protocol = "paper",
    normalization: options.Normalization = None,
    classes_by_position: options.ClassesByPosition = False,
    same_images_as: options.SameImagesAs = None,
    leave_out_validation: options.LeaveOutValidation = False,
    adapt: options.Adapt = None,
    prior: options.Prior = None,
    adapt_batch: options.AdaptBatch = None,
    stream: options.AdaptStream = None,
    task_file: options.TaskFile = None,
    output: options.EvaluationFile = None,
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
    # a baseline, on the images that an AutoML run of the same seed and settings is tested on
    rssl eval-c runs/baseline --leave-out-validation
    # what the network gains by adapting to the corrupted images, without labels
    rssl eval-c runs/first --adapt bn
    # in half the time, if the CPU or GPU supports bfloat16
    rssl eval-c runs/first --precision bfloat16
    """
    severities = parse_severities(severity)
    names = _names(protocol, corruptions, severity, limit)
    precision = precision or "float32"
    _check_options(protocol, precision, normalization, limit, output)
    adaptation = _adaptation(adapt, prior, adapt_batch, stream, protocol)
    check_dataset(dataset, data_dir)
    check_checkpoints(checkpoint, same_images_as)

    with waiting():
        from rsslcli.core.data.loading import load, load_corrupted
        from rsslcli.core.evaluation.accuracy import evaluate, fingerprint_weights
        from rsslcli.core.evaluation.class_names import match_classes
        from rsslcli.core.evaluation.fairness import images_to_leave_out
        from rsslcli.core.ranks import join_world
        from rsslcli.core.runtime import keep_freed_memory, resolve_device, set_precision
        from rsslcli.core.weights.checkpoint import load_checkpoint, load_classifier
        from rsslcli.core.weights.heads import trained_tasks

    notes: list[str] = []
    network, trained = load_classifier(checkpoint, normalization=normalization, note=notes.append)
    tasks = trained_tasks(trained) if adapt == "tasks" else None
    rival = None if same_images_as is None else load_checkpoint(same_images_as)
    keep_freed_memory()
    target = resolve_device(device or "auto")
    set_precision(precision, target, notes.append)
    name = dataset or (trained.config.dataset if trained else "cifar10")
    with join_world(target) as world, progress_bar() as progress:
        with world.main_first():
            data = load(name, data_dir, progress)
            corrupted = load_corrupted(data, progress)
        score_of = match_classes(
            network.classes, network.fc.out_features, data.test.classes, name,
            by_position=classes_by_position, note=notes.append,
        )  # fmt: skip
        excluded = images_to_leave_out(
            trained, corrupted, rival=rival, leave_out_validation=leave_out_validation, note=notes.append
        )
        for text in notes:
            note(text)
        part = _part(adaptation, None if _is_whole(corrupted, names, severities, limit) else _PARTS[protocol])
        path = output or _default_path(checkpoint, trained, name, part)
        earlier = None if adaptation is None else _default_path(checkpoint, trained, name, None)
        about = _about(checkpoint, name, trained, classes_by_position, fingerprint_weights(network))
        result = evaluate(
            network, data.test, corrupted,
            device=target, score_of=score_of, excluded=excluded, limit=limit, corruptions=names,
            severities=severities, adaptation=adaptation, tasks=tasks, earlier=earlier,
            partial=partial_evaluation(path) if path else None, precision=precision, about=about,
            notes=notes, foreign=not trained, progress=progress, world=world,
        )  # fmt: skip
    if not world.is_main:
        return
    result = _in_terms_of(protocol, result)
    saved, remarks = _save(result, path, beside=output is None and part is None)
    _print(result, f"{checkpoint} on corrupted {name}: accuracy in %", saved)
    for text in [*result.notes[len(notes) :], *_cautions(result, corrupted, trained), *remarks]:
        note(text)
    if saved and trained and output is None:
        _suggest(saved, part, checkpoint, trained.config, data_dir)


def _about(
    checkpoint: Path, dataset: str, trained: Trained | None, by_position: bool, weights: str
) -> dict[str, Any]:
    """What the result says of its origin."""
    step = {"step": trained.step} if trained else {}
    position = {"classes_by_position": True} if by_position else {}
    return {"checkpoint": str(checkpoint), "dataset": dataset, **step, **position, "weights": weights}


def _adaptation(
    method: str | None, prior: float | None, batch_size: int | None, stream: str | None, protocol: str
) -> Adaptation | None:
    """How the classifier shall adapt; None unless the user asks for it."""
    given = {"--prior": prior, "--adapt-batch": batch_size, "--stream": stream}
    if method is None:
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option} is a setting of the adaptation: add --adapt, such as --adapt bn")
        return None
    if protocol == "robustbench":
        raise UserError("--protocol robustbench is for numbers without adaptation: leave out --adapt")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--adapt-batch {batch_size}: expected at least 1")
    chosen: dict[str, Any] = {"method": method, "prior": prior, "batch_size": batch_size, "stream": stream}
    return Adaptation(**{name: value for name, value in chosen.items() if value is not None})


_WRITERS = (".json", ".csv", ".md")
#: What a part of the whole evaluation is called, by the protocol.
_PARTS = {"paper": "partial", "robustbench": "robustbench"}
PROTOCOLS = tuple(_PARTS)


def _part(adaptation: Adaptation | None, part: str | None) -> str | None:
    """What the file name of a result adds to that of the whole unadapted evaluation; None for that one."""
    words = [f"adapted-{adaptation.method}"] if adaptation else []
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


def _save(result: Evaluation, path: Path | None, *, beside: bool) -> tuple[Path | None, list[str]]:
    """Write the result to `path`; `beside` its checkpoint it replaces none better.

    Returns:
        Where it is, and notes on what was there.
    """
    if path is not None and beside:
        return save_whole(result, path)
    if path is not None:
        result.save(path)
    return path, []


def _suggest(saved: Path, part: str | None, checkpoint: Path, config: Config, data_dir: Path) -> None:
    """Say what to do next with a run whose evaluation is saved beside it."""
    if part and part.startswith("adapted"):
        note(f"adapted accuracies stay out of reports, which read {EVALUATION}")
    elif part:
        note(f"this is a part of the whole evaluation, {EVALUATION}, which reports read")
    else:
        say_difference_to_baseline(saved.parent)
    if saved.with_name(EVALUATION).is_file():
        suggest_report(saved.parent)
    else:
        suggest_evaluation(checkpoint, config, data_dir)


def _check_options(
    protocol: str, precision: str, normalization: str | None, limit: int | None, output: Path | None
) -> None:
    """Refuse what no evaluation can do, before anything heavy is loaded."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if normalization is not None:
        parse_normalization(normalization)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    if output is not None and output.suffix not in _WRITERS:
        raise UserError(f"--output {output}: the name must end in {', '.join(_WRITERS)}")


def _names(
    protocol: str, corruptions: str | None, severity: str | None, limit: int | None
) -> list[str] | None:
    """The corruptions to evaluate, None for all; RobustBench's protocol leaves no choice of anything."""
    if protocol != "robustbench":
        return parse_corruptions(corruptions)
    if any(choice is not None for choice in (corruptions, severity, limit)):
        raise UserError(
            "--protocol robustbench says which corruptions, severities and images: leave out --corruptions, "
            "--severity and --limit"
        )
    return list(STANDARD)


def _in_terms_of(protocol: str, result: Evaluation) -> Evaluation:
    """The result, with what a protocol adds to it."""
    from rsslcli.core.evaluation.result import with_robustbench

    return with_robustbench(result) if protocol == "robustbench" else result


def _print(result: Evaluation, title: str, saved: Path | None) -> None:
    if result.adapted is None:
        out.print(_table(result, title))
        out.print(_summary(result), soft_wrap=True)
    else:
        out.print(_adapted_table(result, title))
        out.print(f"unadapted: {_summary(result)}", soft_wrap=True)
        out.print(f"adapted: {_adapted_summary(result.adapted)}", soft_wrap=True)
    if "robustbench" in result.about:
        out.print(_robustbench_summary(result), soft_wrap=True)
    if saved is not None:
        out.print(f"written to {saved}", soft_wrap=True)


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


def _table(result: Evaluation, title: str) -> Table:
    """The table: clean and a row per corruption, a column per severity, means and drops from clean."""
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    for severity in SEVERITIES:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right", style="bold")
    table.add_column("drop", justify="right")
    (clean, *rows, mean) = result.rows()
    for group in ([clean], rows, [mean]):
        for name, values in group:
            table.add_row(name, *map(percent, values))
        table.add_section()
    return table


def _adapted_table(result: Evaluation, title: str) -> Table:
    """The table of an adapted evaluation: the accuracies without and with it, and the gains in points.

    The gains at severities 1, 3 and 5 show whether mild corruptions lose where severe ones gain.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("corruption")
    for heading in ("unadapted", "adapted", "gain", "at 1", "at 3", "at 5"):
        style = "bold" if heading == "gain" else None
        table.add_column(heading, justify="right", style=style)
    (clean, *rows, mean) = result.rows_adapted()
    for group in ([clean], rows, [mean]):
        for name, (before, after, gain, *gains) in group:
            shown = [_signed(value) for value in (gain, *gains[::2])]
            table.add_row(name, percent(before), percent(after), *shown)
        table.add_section()
    return table


def _signed(gain: float | None) -> str:
    """A gain for a table, in points."""
    return "–" if gain is None else f"{100 * gain:+.2f}".replace("-", "−")


def _adapted_summary(adapted: Evaluation) -> str:
    from rsslcli.core.evaluation.result import describe

    means = adapted.means().items()
    parts = [f"{name} {percent(mean)}%" for name, mean in means if mean is not None]
    return f"{' · '.join(parts)}  ({describe(adapted.about)})"


def _summary(result: Evaluation) -> str:
    means = result.means().items()
    parts = [
        f"no {name}: not every severity was evaluated" if mean is None else f"{name} {percent(mean)}%"
        for name, mean in means
    ]
    clean = f", {result.clean_images} clean ones" if result.clean_images != result.images else ""
    left_out = f", {len(result.excluded)} left out, kept for tuning λ" if result.excluded else ""
    precision = result.about["precision"]
    computed = "" if precision == "float32" else f", computed in {precision}"
    return f"{' · '.join(parts)}  ({result.images} images per cell{clean}{left_out}{computed})"


def _robustbench_summary(result: Evaluation) -> str:
    """What RobustBench's corruption leaderboard would say, and what would be different there."""
    from rsslcli.core.evaluation.result import ROBUSTBENCH_IMAGES

    terms = result.about["robustbench"]
    differs = ""
    if result.images != ROBUSTBENCH_IMAGES:
        left_out = f": {len(result.excluded)} are left out because they tune λ" if result.excluded else ""
        differs = f", not RobustBench's {ROBUSTBENCH_IMAGES:,}{left_out}"
    return (
        f"RobustBench's terms: clean accuracy {terms['clean_acc']:.2f}%, robust accuracy (corruptions) "
        f"{terms['corruptions_acc']:.2f}%, unnormalized mCE {terms['corruptions_mce']:.2f}%  "
        f"(n = {result.images:,}{differs})"
    )
