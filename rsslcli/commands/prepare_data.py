"""`rssl prepare-data`: write a data set in the form that the other commands read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsslcli.commands import completion
from rsslcli.commands.console import (
    err,
    note,
    out,
    parse_corruptions,
    parse_severities,
    progress_bar,
    shell_command,
    suggest_line,
    waiting,
)
from rsslcli.commands.hints import suggest_training
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir
from rsslcli.core.corruptions.names import CORRUPTIONS, SEVERITIES
from rsslcli.core.errors import UserError, counted

if TYPE_CHECKING:
    from rsslcli.core.data.corrupted import CorruptedSet
    from rsslcli.core.data.prepare import Prepared
    from rsslcli.core.data.store import Dataset


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
            "official CIFAR archive; CIFAR-10-C or ImageNet-C; with --corruptions download, the file or URL "
            "of the published archive.  [default: CIFAR is downloaded]",
        ),
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    size: Annotated[
        int | None,
        typer.Option(
            help="Height and width of the images in pixels: 32, 64 or 224.  [default: that of the "
            "data set, 32 for a new one]",
            metavar="<pixels>",
        ),
    ] = None,
    resize: Annotated[
        bool,
        typer.Option("--resize/--no-resize", help="Resize images of other sizes, or refuse them."),
    ] = True,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Leave out images that cannot be read instead of stopping."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Keep N source images of the corrupted set, if one is made or imported; else N per split."
        ),
    ] = None,
    corruptions: Annotated[
        Corruptions | None,
        typer.Option(help="Where to get the corrupted test set.  [default: generate for shapes, else none]"),
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
        bool, typer.Option("--keep-archive", help="Keep the downloaded archive of corrupted images.")
    ] = False,
) -> None:
    """Prepare a data set, and its corrupted test set.

    # CIFAR-10, with a corrupted test set made here
    rssl prepare-data --dataset cifar10 --corruptions generate
    # images of your own: a folder of class folders, here with more pixels
    rssl prepare-data --dataset mine --source path/to/images --size 64 --corruptions generate
    """
    prepared, usable = bring_in_place(
        dataset,
        source,
        data_dir,
        size=size,
        resize=resize,
        skip_damaged=skip_damaged,
        limit=limit,
        corruptions=corruptions,
        names=parse_corruptions(only),
        severities=parse_severities(severity) if severity is not None else None,
        keep_archive=keep_archive,
    )
    if usable:
        suggest_training(dataset, len(prepared.dataset.train.labels), data_dir)
    else:
        generate = ("prepare-data", "--dataset", dataset, "--corruptions", "generate")
        suggest_line(prepared.stale_corruptions or shell_command(*generate, data_dir=data_dir))


def bring_in_place(
    dataset: str,
    source: str | None,
    data_dir: Path,
    *,
    corruptions: Corruptions | None,
    size: int | None = None,
    limit: int | None = None,
    resize: bool = True,
    skip_damaged: bool = False,
    names: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    keep_archive: bool = False,
) -> tuple[Prepared, bool]:
    """Prepare a data set and its corrupted test set as the options of `prepare-data` say.

    Returns:
        The data set, and whether its corrupted test set can be used.
    """
    with waiting():
        from rsslcli.core.data.cifar import OFFICIAL
        from rsslcli.core.data.corrupted_source import is_corrupted_set
        from rsslcli.core.data.loading import generate_corruptions
        from rsslcli.core.data.published import check_download, download_corrupted
        from rsslcli.core.data.store import EMBEDDED, check_limit, dataset_folder, is_prepared
        from rsslcli.core.locks import locked

    if source == "":
        raise UserError("--source is empty: name a folder or an archive, or leave it out")
    check_limit(limit)
    downloads = corruptions is Corruptions.download
    if downloads and source is not None and not is_prepared(data_dir, dataset) and dataset not in OFFICIAL:
        raise UserError(
            "with --corruptions download, --source names the corrupted images: prepare the clean ones of "
            f"{dataset} first"
        )
    if source is not None and not downloads and source.startswith(("http://", "https://")):
        raise UserError(
            f"--source {source} is an address: add --corruptions download if it is of corrupted images, "
            "else download it and give the file"
        )
    if keep_archive and not downloads:
        raise UserError("--keep-archive keeps what --corruptions download fetches: add that, or leave it out")
    if source is not None and downloads:
        check_download(source)
    imports = source is not None and not downloads and is_corrupted_set(Path(source))
    if corruptions is None:
        corruptions = Corruptions.generate if dataset == EMBEDDED and not imports else Corruptions.none
    generates = corruptions is Corruptions.generate
    if not (names is None and severities is None) and not generates:
        raise UserError("--only and --severity choose what to generate: add --corruptions generate")
    if imports and generates:
        raise UserError(
            f"{source} is a corrupted test set, which takes the place of a generated one: "
            "leave out --corruptions generate, or give the images with --source"
        )
    with locked(dataset_folder(data_dir, dataset), wait=True, note=note):
        # --source names the archive of corrupted images if those are to be downloaded, else the data set.
        prepared = _prepare(
            dataset,
            data_dir,
            source=Path(source) if source is not None and not downloads else None,
            size=size,
            limit=None if downloads or generates else limit,
            resize=resize,
            skip_damaged=skip_damaged,
        )
        data = prepared.dataset
        corrupted = prepared.corrupted
        if generates:
            with progress_bar() as progress:
                corrupted = generate_corruptions(
                    data, limit=limit, names=names or CORRUPTIONS,
                    severities=severities or SEVERITIES, progress=progress,
                )  # fmt: skip
        elif downloads:
            with progress_bar() as progress:
                corrupted = download_corrupted(
                    dataset, data.corrupted_folder, test=data.test, source=source,
                    keep_archive=keep_archive, limit=limit, progress=progress, note=note,
                )  # fmt: skip
    _report_corrupted(prepared, corrupted, generates=generates)
    in_place = not (generates or prepared.stale_corruptions) and _is_usable(data)
    return prepared, corrupted is not None or in_place


def _is_usable(data: Dataset) -> bool:
    """Whether the data set has a corrupted set of at least one whole corruption."""
    from rsslcli.core.data.corrupted import open_corrupted

    try:
        open_corrupted(data.corrupted_folder, data.name)
    except UserError:
        return False
    return True


def _report_corrupted(prepared: Prepared, corrupted: CorruptedSet | None, *, generates: bool) -> None:
    """Print the state of the corrupted test set, if it was asked for or no longer fits the test images."""
    if corrupted is not None:
        out.print(
            f"{counted(len(corrupted.names), 'corruption')} of {counted(corrupted.images_per_cell, 'image')} "
            f"at 5 severities in {corrupted.folder}",
        )
    elif generates:
        out.print("the images asked for are generated; no corruption has all its severities yet")
    elif prepared.stale_corruptions:
        err.print(
            f"the corrupted images in {prepared.dataset.corrupted_folder} are of other test images: "
            f"prepare them again with `{prepared.stale_corruptions}`",
            soft_wrap=True,
        )


def _prepare(dataset: str, data_dir: Path, **options: Any) -> Prepared:
    """Prepare both splits and report what was done. For the options see `prepare` in core."""
    from rsslcli.core.data.decoding import ImageError
    from rsslcli.core.data.listing import in_words
    from rsslcli.core.data.prepare import prepare

    try:
        with progress_bar() as progress:
            prepared = prepare(dataset, data_dir, progress=progress, **options)
    except ImageError as error:
        raise UserError(f"{error}, or leave out damaged images with --skip-damaged") from error
    done = "prepared" if prepared.changed else "already prepared"
    train = prepared.dataset.train
    test = prepared.dataset.test
    out.print(
        f"{dataset} {done} in {prepared.folder} ({prepared.kind}): {len(train.labels)} training and "
        f"{len(test.labels)} test images of {len(train.classes)} classes: {in_words(train.classes)}",
    )
    for text in prepared.notes:
        note(text)
    return prepared
