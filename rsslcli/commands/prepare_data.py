"""`rssl prepare-data`: bring a data set into the form that the other commands read."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rsslcli.commands import completion
from rsslcli.commands.console import (
    DEFAULT_DATA_DIR,
    DataDir,
    err,
    note,
    out,
    parse_corruptions,
    parse_severities,
    progress_bar,
    say_next,
)
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.errors import UserError


class Corruptions(str, Enum):
    """Where the corrupted test set comes from."""

    none = "none"
    generate = "generate"
    download = "download"


def prepare_data(
    dataset: Annotated[
        str,
        typer.Option(
            help="cifar10, cifar100, shapes (embedded), or a name for images of your own.",
            metavar="<name>",
            autocompletion=completion.new_datasets,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            help="A folder or archive of train/<class>/* and test/<class>/*, or of <class>/* alone; the "
            "official CIFAR archive; a folder or archive of CIFAR-10-C; with --corruptions download, a URL.  "
            "[default: download]",
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    resize: Annotated[
        bool,
        typer.Option(
            "--resize/--no-resize",
            help="Bring images of other sizes to 32x32 pixels, or refuse them.",
        ),
    ] = True,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Leave out images that cannot be read, rather than stop."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(help="Keep so many images of each split, or of each corruption."),
    ] = None,
    corruptions: Annotated[
        Corruptions | None,
        typer.Option(
            help="How to come by the corrupted test set.  [default: generate for shapes, else none]"
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Generate only these corruptions, separated by commas.",
            autocompletion=completion.corruptions,
        ),
    ] = None,
    severity: Annotated[
        str | None,
        typer.Option(
            help="Generate only these severities, 1 to 5, separated by commas.",
            autocompletion=completion.severities,
        ),
    ] = None,
    keep_archive: Annotated[
        bool,
        typer.Option("--keep-archive", help="Keep the archive that was downloaded."),
    ] = False,
) -> None:
    """Prepare a data set, and its corrupted test set.

    # the paper's
    rssl prepare-data --dataset cifar10 --corruptions generate
    # images of your own: a folder of class folders
    rssl prepare-data --dataset mine --source path/to/images --corruptions generate
    """
    names = parse_corruptions(only) or CORRUPTIONS
    levels = parse_severities(severity)
    from rsslcli.core.data.corrupted import GENERATED
    from rsslcli.core.data.corrupted_source import is_corrupted_set
    from rsslcli.core.data.decoding import ImageError
    from rsslcli.core.data.loading import generate_corruptions
    from rsslcli.core.data.prepare import prepare
    from rsslcli.core.data.store import EMBEDDED, dataset_folder
    from rsslcli.core.locks import locked

    downloads = corruptions is Corruptions.download
    imports = source is not None and not downloads and is_corrupted_set(Path(source))
    if corruptions is None:
        corruptions = Corruptions.generate if dataset == EMBEDDED and not imports else Corruptions.none
    if (only is not None or severity is not None) and corruptions is not Corruptions.generate:
        raise UserError("--only and --severity choose what to generate: add --corruptions generate")
    if imports and corruptions is Corruptions.generate:
        raise UserError(
            f"{source} is a corrupted test set, which takes the place of a generated one: "
            "leave out --corruptions generate, or give the images with --source"
        )
    with locked(dataset_folder(data_dir, dataset), wait=True):
        with progress_bar() as progress:
            # --source names the archive of corrupted images if those are to be downloaded, else the data set.
            try:
                prepared = prepare(
                    dataset,
                    data_dir,
                    source=Path(source) if source is not None and not downloads else None,
                    limit=limit if not (downloads or corruptions is Corruptions.generate) else None,
                    resize=resize,
                    skip_damaged=skip_damaged,
                    progress=progress,
                )
            except ImageError as error:
                hint = "or go on without with `rssl prepare-data --skip-damaged`"
                raise UserError(f"{error}, {hint}") from error
        done = "prepared" if prepared.changed else "already prepared"
        data = prepared.dataset
        out.print(
            f"{dataset} {done} in {prepared.folder} ({prepared.kind}): {len(data.train.labels)} training and "
            f"{len(data.test.labels)} test images of {len(data.train.classes)} classes",
            soft_wrap=True,
        )
        for text in prepared.notes:
            note(text)
        imported = prepared.stale_corruptions and not (data.corrupted_folder / GENERATED).exists()
        again = ("--source", "PATH") if imported else ("--corruptions", "generate")
        if prepared.stale_corruptions:
            err.print(
                f"the corrupted images in {data.corrupted_folder} are of other test images: "
                f"prepare them again with {' '.join(again)}",
                soft_wrap=True,
            )
        if corruptions is Corruptions.generate:
            with progress_bar() as progress:
                corrupted = generate_corruptions(
                    data,
                    limit=limit,
                    names=names,
                    severities=levels,
                    progress=progress,
                )
        elif downloads:
            from rsslcli.core.data.download import download_corrupted

            with progress_bar() as progress:
                corrupted = download_corrupted(
                    dataset,
                    data.corrupted_folder,
                    test=data.test,
                    source=source,
                    keep_archive=keep_archive,
                    limit=limit,
                    progress=progress,
                    note=note,
                )
        else:
            corrupted = prepared.corrupted
    if corrupted is not None:
        out.print(
            f"{len(corrupted.names)} corruptions of {corrupted.images_per_cell} images at 5 severities "
            f"in {corrupted.folder}",
            soft_wrap=True,
        )
    elif corruptions is Corruptions.generate:
        out.print("the corrupted images asked for are made; the rest of their files is still missing")
    in_place = (data.corrupted_folder / "labels.npy").is_file() and not prepared.stale_corruptions
    if corrupted is None and not in_place:
        say_next("prepare-data", "--dataset", dataset, *again, data_dir=data_dir)
    else:
        which = ("--preset", "quick") if dataset == EMBEDDED else ("--dataset", dataset)
        say_next("train-automl", *which, data_dir=data_dir)
