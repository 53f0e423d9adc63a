"""`rssl eval-c`: accuracy on the clean and the corrupted test set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rsslcli.commands import completion
from rsslcli.commands.console import (
    DEFAULT_DATA_DIR,
    Checkpoint,
    ClassesByPosition,
    DataDir,
    DatasetName,
    Device,
    Normalization,
    Precision,
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
from rsslcli.commands.hints import suggest_evaluation, suggest_report
from rsslcli.core.config import PRECISIONS, Config
from rsslcli.core.corruptions.names import SEVERITIES, STANDARD
from rsslcli.core.errors import UserError, unknown
from rsslcli.core.evaluation.files import evaluation_path, save_whole
from rsslcli.core.files import checkpoint_path
from rsslcli.core.networks.normalization import parse_normalization
from rsslcli.core.run_folder import EVALUATION, partial_evaluation

if TYPE_CHECKING:
    from rsslcli.core.data.corrupted import CorruptedSet
    from rsslcli.core.evaluation.result import Evaluation
    from rsslcli.core.weights.checkpoint import Checkpoint as Trained


def eval_c(
    checkpoint: Checkpoint,
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    limit: Annotated[int | None, typer.Option(help="Evaluate only so many source images.")] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(
            help="Evaluate only these corruptions, separated by commas.",
            metavar="<names>",
            autocompletion=completion.corruptions,
        ),
    ] = None,
    severity: Annotated[
        str | None,
        typer.Option(
            help="Evaluate only these severities, 1 to 5, separated by commas.",
            metavar="<numbers>",
            autocompletion=completion.severities,
        ),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="paper: all 19 corruptions. robustbench: the 15 of RobustBench's leaderboard, at all "
            "severities, and a summary in its terms.",
            metavar="<paper|robustbench>",
        ),
    ] = "paper",
    normalization: Normalization = None,
    classes_by_position: ClassesByPosition = False,
    same_images_as: Annotated[
        Path | None,
        typer.Option(
            help="Leave out what tuned λ in that run too, to compare the two fairly.",
            metavar="<run>",
            autocompletion=completion.runs,
        ),
    ] = None,
    leave_out_validation: Annotated[
        bool,
        typer.Option(
            "--leave-out-validation",
            help="Leave out the images on which an AutoML run of the same seed and settings tunes λ, to "
            "compare this run fairly with it.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the result: .json, .csv or .md. Default: eval-c.json in the run, and "
            "eval-c-partial.json for a part."
        ),
    ] = None,
    device: Device = None,
    precision: Precision = None,
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
    # in half the time, where the CPU or GPU knows bfloat16
    rssl eval-c runs/first --precision bfloat16
    """
    severities, names = parse_severities(severity), parse_corruptions(corruptions)
    if protocol == "robustbench":
        names = _robustbench_corruptions((corruptions, severity, limit))
    precision = precision or "float32"
    _check_options(protocol, precision, normalization, limit, output)
    check_dataset(dataset, data_dir)
    check_checkpoints(checkpoint, same_images_as)

    with waiting():
        from rsslcli.core.data.loading import load, load_corrupted
        from rsslcli.core.data.validation import validation_source
        from rsslcli.core.evaluation.accuracy import evaluate, fingerprint_weights
        from rsslcli.core.evaluation.class_names import match_classes
        from rsslcli.core.evaluation.result import with_robustbench
        from rsslcli.core.ranks import join_world
        from rsslcli.core.runtime import keep_freed_memory, resolve_device, set_precision
        from rsslcli.core.weights.checkpoint import load_checkpoint, load_classifier

    notes: list[str] = []
    network, trained = load_classifier(checkpoint, normalization=normalization, note=notes.append)
    excluded = set(trained.excluded if trained else ())
    if same_images_as is not None:
        excluded |= set(load_checkpoint(same_images_as).excluded)
    if leave_out_validation and not trained:
        raise UserError(
            f"--leave-out-validation: {checkpoint} has no seed to draw those images by: use --same-images-as"
        )
    keep_freed_memory()
    target = resolve_device(device or "auto")
    set_precision(precision, target, notes.append)
    name = dataset or (trained.config.dataset if trained else "cifar10")
    with join_world(target) as world, progress_bar() as progress:
        with world.main_first():
            data = load(name, data_dir, progress)
            corrupted = load_corrupted(data, progress)
        score_of = match_classes(
            network.classes,
            network.fc.out_features,
            data.test.classes,
            name,
            by_position=classes_by_position,
            note=notes.append,
        )
        if leave_out_validation and trained and not trained.config.automl:
            excluded |= set(validation_source(trained.config, corrupted.images_per_cell))
        if trained and trained.excluded and trained.validation_data != corrupted.identity:
            notes.append(
                f"λ was tuned on another corrupted set than {corrupted.folder}; "
                "the images with the same numbers are left out all the same"
            )
        for text in notes:
            note(text)
        part = None if _is_whole(corrupted, names, severities, limit) else _PARTS[protocol]
        path = output or _default_path(checkpoint, trained.config.dataset if trained else None, name, part)
        result = evaluate(
            network,
            data.test,
            corrupted,
            device=target,
            score_of=score_of,
            excluded=sorted(excluded),
            limit=limit,
            corruptions=names,
            severities=severities,
            partial=partial_evaluation(path) if path else None,
            precision=precision,
            about={"checkpoint": str(checkpoint), "dataset": name}
            | ({"step": trained.step} if trained else {})
            | {"weights": fingerprint_weights(network)},
            notes=notes,
            foreign=not trained,
            progress=progress,
            world=world,
        )
    if not world.is_main:
        return
    cautions: list[str] = []
    if protocol == "robustbench":
        result = with_robustbench(result)
        cautions = _cautions(result, corrupted, trained)
    saved, remarks = _save(result, path, beside=output is None and part is None)
    _print(result, f"{checkpoint} on corrupted {name}: accuracy in %", saved)
    for text in [*result.notes[len(notes) :], *cautions, *remarks]:
        note(text)
    if saved and trained and output is None:
        _suggest(saved, part, checkpoint, trained.config, data_dir)


_WRITERS = (".json", ".csv", ".md")
#: What a part of the whole evaluation is called, by the protocol.
_PARTS = {"paper": "partial", "robustbench": "robustbench"}
PROTOCOLS = tuple(_PARTS)


def _default_path(checkpoint: Path, trained_on: str | None, dataset: str, part: str | None) -> Path | None:
    """Where the result goes unless the user says where: beside the checkpoint, if it is of a run."""
    if trained_on is None:
        return None
    other = dataset if dataset != trained_on else None
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
    if part:
        note(f"this is a part of the whole evaluation, {EVALUATION}, which reports read")
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


def _robustbench_corruptions(choices: tuple[object, ...]) -> list[str]:
    """The corruptions of RobustBench's protocol, which leaves no choice of anything."""
    if any(choice is not None for choice in choices):
        raise UserError(
            "--protocol robustbench says which corruptions, severities and images: leave out --corruptions, "
            "--severity and --limit"
        )
    return list(STANDARD)


def _print(result: Evaluation, title: str, saved: Path | None) -> None:
    out.print(_table(result, title))
    out.print(_summary(result), soft_wrap=True)
    if "robustbench" in result.about:
        out.print(_robustbench_summary(result), soft_wrap=True)
    if saved is not None:
        out.print(f"written to {saved}", soft_wrap=True)


def _cautions(result: Evaluation, corrupted: CorruptedSet, trained: Trained | None) -> list[str]:
    """What to say beside a result that is compared with RobustBench's leaderboard."""
    cautions = []
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
        f"{terms['corruptions_acc']:.2f}%, unnormalised mCE {terms['corruptions_mce']:.2f}%  "
        f"(n = {result.images:,}{differs})"
    )
