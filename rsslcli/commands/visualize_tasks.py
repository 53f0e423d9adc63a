"""`rssl visualize-tasks`: Figure 1, the inputs that tasks make from images, and a network's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands import completion, options
from rsslcli.commands.console import (
    check_checkpoints,
    check_dataset,
    choose_dataset,
    note,
    out,
    progress_bar,
    split_names,
    waiting,
)
from rsslcli.commands.hints import suggest_evaluation, suggest_training
from rsslcli.commands.options import DEFAULT_DATA_DIR, ClassesByPosition, DataDir, DatasetName
from rsslcli.core.config import AUGMENTS
from rsslcli.core.errors import UserError
from rsslcli.core.tasks.registry import check_task_names

#: The columns of the paper's Figure 1, after the original.
FIGURE_1 = "rotation,color,bir,inpaint,rgb,jigsaw"


def visualize_tasks(
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A trained run: add its network's answer to each input, on test images.",
            metavar="<run>",
            autocompletion=completion.runs,
        ),
    ] = None,
    network: options.Network = None,
    classes_by_position: ClassesByPosition = False,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="The columns, separated by commas.  [default: those of the paper, or of the checkpoint]",
            metavar="<name,name>",
            autocompletion=completion.tasks,
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="augmix adds a column with an augmented view.  [default: as the checkpoint was trained]",
            **options.one_of(AUGMENTS),
        ),
    ] = None,
    task_file: options.TaskFile = None,
    images: Annotated[int, typer.Option(help="Number of rows.")] = 5,
    seed: Annotated[
        int, typer.Option(help="Which images, and the tasks' random choices.", min=0, metavar="<int>")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(help="The PNG to write.  [default: figure1.png, or predictions.png of a checkpoint]"),
    ] = None,
) -> None:
    """Draw Figure 1: the inputs that the tasks make from some images, and a network's answers.

    # the inputs
    rssl visualize-tasks --dataset cifar10 --output figure1.png
    # and the answers of a trained network, beside the truth
    rssl visualize-tasks --checkpoint runs/first
    """
    output = output or Path("predictions.png" if checkpoint else "figure1.png")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the name must end in .png")
    columns = split_names(FIGURE_1 if tasks is None else tasks)
    check_task_names(columns)
    check_checkpoints(checkpoint)
    check_dataset(dataset, data_dir)

    with waiting():
        from rsslcli.core.data.loading import load
        from rsslcli.core.pictures.drawing import save_png
        from rsslcli.core.pictures.tasks import draw_tasks
        from rsslcli.core.weights.checkpoint import load_checkpoint

    trained = None if checkpoint is None else load_checkpoint(checkpoint)
    if trained is not None:
        dataset = dataset or trained.config.dataset
        columns = columns if tasks else list(trained.config.tasks)
        augment = augment or trained.config.augment
    dataset = dataset or choose_dataset(data_dir)
    with progress_bar() as progress:
        data = load(dataset, data_dir, progress)
    # A network's answers are meaningful only on images that it was not trained on.
    split = data.test if trained else data.train
    picture = draw_tasks(
        split,
        columns,
        rows=images,
        seed=seed,
        augmented=augment == "augmix",
        checkpoint=trained,
        dataset=dataset,
        classes_by_position=classes_by_position,
        note=note,
    )
    save_png(picture, output)
    out.print(f"written to {output}")
    if checkpoint is not None and trained is not None:
        suggest_evaluation(checkpoint, trained.config, data_dir)
    else:
        suggest_training(data.name, len(data.train.labels), data_dir, with_tasks=True)
