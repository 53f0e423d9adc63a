"""`rssl visualize-tasks`: Figure 1, what each task makes of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands.console import (
    DEFAULT_DATA_DIR,
    DataDir,
    DatasetName,
    err,
    out,
    progress_bar,
    split_names,
)
from rsslcli.core.errors import UserError

#: The columns of the paper's Figure 1, after the original.
FIGURE_1 = "rotation,color,bir,inpaint,rgb,jigsaw"


def visualize_tasks(
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    tasks: Annotated[str, typer.Option(help="The columns, separated by commas.")] = FIGURE_1,
    images: Annotated[int, typer.Option(help="Rows.")] = 5,
    seed: Annotated[int, typer.Option(help="Which images, and the tasks' random choices.")] = 0,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("figure1.png"),
) -> None:
    """Render Figure 1: the inputs that the tasks make of some images.

    rssl visualize-tasks --dataset cifar10 --output figure1.png
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the name must end in .png")
    from rsslcli.core.data.loading import EMBEDDED, load
    from rsslcli.core.data.store import prepared_datasets
    from rsslcli.core.figures import draw_tasks, save_png

    if dataset is None:
        prepared = prepared_datasets(data_dir)
        dataset = "cifar10" if "cifar10" in prepared else next(iter(prepared), EMBEDDED)
        err.print(f"showing '{dataset}'; choose another with --dataset", soft_wrap=True)
    with progress_bar() as progress:
        data = load(dataset, data_dir, progress)
    save_png(draw_tasks(data.train, split_names(tasks), rows=images, seed=seed), output)
    out.print(f"written to {output}", soft_wrap=True)
