"""`rssl predict`: what a classifier says of image files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsslcli.commands import options
from rsslcli.commands.console import (
    check_checkpoints,
    err,
    note,
    out,
    progress_bar,
    suggest_next,
    waiting,
)
from rsslcli.commands.prediction_tables import Summary, print_summary
from rsslcli.core.errors import RsslError, UserError, command_arguments, counted, sanitize
from rsslcli.core.evaluation.adaptation_settings import ADAPTATION_METHODS, Adaptation
from rsslcli.core.files import checkpoint_path, replacing
from rsslcli.core.networks.normalization import parse_normalization

if TYPE_CHECKING:
    from torch import nn

    from rsslcli.core.data.image_files import ImageFiles
    from rsslcli.core.networks.network import Network
    from rsslcli.core.weights.checkpoint import Checkpoint

_WRITERS = (".csv", ".jsonl")
#: The line to type next repeats at most this many arguments, the checkpoint among them.
_REPEATED = 4


_Files = Annotated[
    list[Path],
    typer.Argument(help="Images, or folders or archives of them.", metavar="FILES...", show_default=False),
]
_EvaluationFile = Annotated[
    Path | None,
    typer.Option(
        help="If the images lie in folders named like the classes: write the accuracy, the rates of "
        "each class and the confusion matrix into this .json.",
    ),
]
_Adapt = Annotated[
    str | None,
    typer.Option(
        help="Adapt to the images, without their labels, in batches of up to 200; those of a folder are "
        "mixed first. See eval-c --adapt.",
        **options.one_of(ADAPTATION_METHODS, "adaptation"),
    ),
]


def predict(
    checkpoint: options.Checkpoint,
    files: _Files,
    top: Annotated[int, typer.Option(help="Name the N most probable classes.", metavar="<int>")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write a line per image into this file, .csv or .jsonl. Without it, a terminal shows a "
            "table, and a pipe or a file gets CSV.",
        ),
    ] = None,
    evaluation: _EvaluationFile = None,
    adapt: _Adapt = None,
    task_file: options.TaskFile = None,
    network: options.Network = None,
    normalization: options.Normalization = None,
    device: options.Device = None,
    precision: options.Precision = None,
) -> None:
    """Classify image files; in folders named like the classes, also say how many are right.

    # what is in these two pictures, with the three most probable classes
    rssl predict runs/mine one.jpg two.png --top 3
    # all images below a folder, a line each
    rssl predict runs/mine photos --output predictions.csv
    # photographs of one kind, to whose light and blur the network adapts
    rssl predict runs/mine photos --adapt bn
    # real bad photographs, sorted into class folders: accuracy and confusion matrix
    rssl predict runs/mine photos --evaluation photos.json
    """
    precision = precision or "float32"
    adaptation = None if adapt is None else Adaptation(adapt)  # type: ignore[arg-type]
    _check_options(top, normalization, output, evaluation)
    check_checkpoints(checkpoint)
    from rsslcli.core.data.image_files import find_images

    found = find_images(files)
    with waiting():
        from rsslcli.core.evaluation import predictions as engine
        from rsslcli.core.runtime import set_up_evaluation
        from rsslcli.core.weights.checkpoint import load_classifier

    notes: list[str] = []
    classifier, trained = load_classifier(
        checkpoint, network=network, normalization=normalization, note=notes.append
    )
    target = set_up_evaluation(device, precision, notes.append)
    temperature = 1.0 if adaptation else _temperature(checkpoint, classifier, notes.append)
    classes = engine.class_names(classifier, classifier.fc.out_features)
    size = classifier.image_size or classifier.built_for
    adaptive, batch = _adaptive(classifier.to(target), trained, adaptation, found)
    found = found if adaptation is None else found.shuffled(adaptation.seed)
    named = bool(classifier.classes)
    labeled = _are_labeled(found, classes, evaluation, notes.append, named=named)
    for text in (*notes, *found.notes):
        note(text)

    skipped: list[str] = []

    def skip(name: str, reason: str) -> None:
        skipped.append(name)
        note(f"skipped {sanitize(name, 300)}: {reason}")

    top = min(top, len(classes))
    is_json = output is not None and output.suffix == ".jsonl"
    line = partial(engine.Prediction.to_json if is_json else engine.Prediction.to_csv, labeled=labeled)
    summary = Summary(engine.Confusion(classes) if labeled else None)
    with _line_writer(output) as write, progress_bar() as progress:
        if not is_json:
            write(engine.csv_header(top, labeled=labeled))
        for prediction in engine.predict(
            adaptive, found, classes, device=target, batch=batch, top=top, precision=precision, size=size,
            temperature=temperature, skip=skip, progress=progress,
        ):  # fmt: skip
            write(line(prediction))
            summary.add(prediction)
    if evaluation is not None and summary.confusion is not None:
        about = {"checkpoint": str(checkpoint), "files": list(map(str, files)), "skipped": skipped}
        with replacing(evaluation) as file:
            file.write(summary.confusion.to_json(about).encode())
    again = command_arguments(
        "predict", *map(str, (checkpoint, *files)), top=top if top > 1 else None, adapt=adapt,
        task_file=task_file, network=network, normalization=normalization, device=device,
        precision=precision if precision != "float32" else None,
    )  # fmt: skip
    _report(summary, output, evaluation, again if len(files) < _REPEATED else [])
    if skipped:
        total = counted(summary.images + len(skipped), "image")
        raise RsslError(f"{len(skipped)} of {total} cannot be read: the notes above name them")


def _adaptive(
    network: nn.Module, trained: Checkpoint | None, adaptation: Adaptation | None, found: ImageFiles
) -> tuple[nn.Module, int | None]:
    """The classifier, adaptive if wanted, and its batch size: the batches are few, and nearly equal."""
    if adaptation is None:
        return network, None
    from rsslcli.core.evaluation.adaptation import make_adaptive
    from rsslcli.core.weights.trained_tasks import trained_tasks

    tasks = trained_tasks(trained) if adaptation.method == "tasks" else None
    images = sum(1 for _ in found.images)
    batches = -(-images // adaptation.batch_size)
    return make_adaptive(network, adaptation, tasks), -(-images // batches)


def _temperature(checkpoint: Path, network: Network, note: Callable[[str], None]) -> float:
    """What to divide the scores by: the temperature of the run if it is calibrated, else 1."""
    from rsslcli.core.evaluation.calibration import read_temperature
    from rsslcli.core.evaluation.fingerprint import fingerprint_weights

    weights = fingerprint_weights(network)
    found = read_temperature(checkpoint_path(checkpoint), weights, network.temperature)
    if found is None:
        return 1.0
    note(f"the probabilities are calibrated: the scores are divided by {found:.4g}")
    return found


def _report(summary: Summary, output: Path | None, evaluation: Path | None, again: Sequence[str]) -> None:
    """Print the summary and which files are written: on stderr if the lines themselves went to stdout.

    `again` is the command without the files that it wrote; empty if it is too long to be suggested.
    """
    is_table = output is None and sys.stdout.isatty()
    console = out if output is not None or is_table else err
    print_summary(summary, console, with_rows=is_table)
    for path in filter(None, (output, evaluation)):
        console.print(f"written to {path}", soft_wrap=True)
    if is_table and len(summary.rows()) < summary.images and again:
        suggest_next(*again, "--output", "predictions.csv")


def _are_labeled(
    found: ImageFiles,
    classes: Sequence[str],
    evaluation: Path | None,
    note: Callable[[str], None],
    *,
    named: bool,
) -> bool:
    """Whether images lie in folders named like the classes; UserError if none do but `evaluation` is set."""
    from rsslcli.core.evaluation.class_names import list_names
    from rsslcli.core.evaluation.predictions import folder_labels

    label = folder_labels(classes)
    if any(label(image.folders) is not None for image in found.images):
        if not named:
            note("the weights have no class names: a folder named 7 is taken for the class of score 7")
        return True
    text = f"no image lies in a folder with the name of a class: {list_names(classes)}"
    if evaluation is not None:
        raise UserError(f"--evaluation {evaluation}: {text}; name the folder that those folders are in")
    if any(image.folders for image in found.images):
        note(f"no accuracy: {text}")
    elif any(label(Path(image.name).parent.parts[-1:]) is not None for image in found.images):
        note("no accuracy: name the folder that the classes' folders are in, and it is measured")
    return False


def _check_options(top: int, normalization: str | None, output: Path | None, evaluation: Path | None) -> None:
    """Refuse what cannot be done, before anything heavy is loaded."""
    if normalization is not None:
        parse_normalization(normalization)
    if top < 1:
        raise UserError(f"--top {top}: expected at least 1")
    if output is not None and output.suffix not in _WRITERS:
        raise UserError(f"--output {output}: the name must end in {' or '.join(_WRITERS)}")
    if evaluation is not None and evaluation.suffix != ".json":
        raise UserError(f"--evaluation {evaluation}: the name must end in .json")


@contextmanager
def _line_writer(output: Path | None) -> Iterator[Callable[[str], object]]:
    """Yield a function that writes a line: to the file `output`, else to stdout unless it is a terminal."""
    if output is not None:
        with replacing(output) as file:
            yield lambda text: file.write(text.encode())
    else:
        yield (lambda text: None) if sys.stdout.isatty() else _write_out


def _write_out(text: str) -> None:
    """Write to stdout. If that fails, go on without it, so that the files are written, and fail in the end.

    Characters that its encoding lacks become escapes, not look-alikes, so that names remain recoverable.
    """
    if out.failure is None:
        try:
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BrokenPipeError:  # nobody reads: stop
            raise
        except OSError as error:
            out.failure = error
