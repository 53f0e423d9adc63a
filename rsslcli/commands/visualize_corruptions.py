"""`rssl visualize-corruptions`: an image under every corruption at every severity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsslcli.commands import completion
from rsslcli.commands.console import (
    check_dataset,
    choose_dataset,
    note,
    out,
    parse_corruptions,
    progress_bar,
    suggest_next,
    waiting,
)
from rsslcli.commands.hints import suggest_training
from rsslcli.commands.options import DEFAULT_DATA_DIR, DataDir, DatasetName
from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.errors import UserError

if TYPE_CHECKING:
    from rsslcli.core.data.store import Dataset


def visualize_corruptions(
    dataset: DatasetName = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    image: Annotated[
        int | None, typer.Option(help="Which test image, counted from 0.  [default: 0]", metavar="<int>")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="An image file of your own instead.", metavar="<file>")
    ] = None,
    corruptions: Annotated[
        str | None,
        typer.Option(
            help="Only these, separated by commas.",
            metavar="<name,name>",
            autocompletion=completion.corruptions,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("corruptions.png"),
) -> None:
    """Draw an image under the 19 corruptions at their 5 severities.

    The images come from the prepared corrupted set if it has them; the others are generated.

    # the first test image
    rssl visualize-corruptions --dataset cifar10
    # a photo of your own, in fog and snow
    rssl visualize-corruptions --file photo.jpg --corruptions fog,snow
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the name must end in .png")
    names = parse_corruptions(corruptions) or list(CORRUPTIONS)
    if file is not None and (dataset is not None or image is not None):
        raise UserError("--file shows an image of your own: leave out --dataset and --image")
    check_dataset(dataset, data_dir)

    with waiting():
        from rsslcli.core.data.loading import load
        from rsslcli.core.pictures.corruptions import (
            draw_corruptions,
            generate_versions,
            prepared_versions,
            read_own_image,
        )
        from rsslcli.core.pictures.drawing import save_png

    data = None
    with progress_bar() as progress:
        if file is None:
            data = load(dataset or choose_dataset(data_dir), data_dir, progress)
            number = image or 0
            if not 0 <= number < len(data.test.labels):
                raise UserError(
                    f"--image {number}: '{data.name}' has test images 0 to {len(data.test.labels) - 1}"
                )
            original = data.test.images[number]
            prepared = prepared_versions(data, number, names, note)
            subject = f"Test image {number} of '{data.name}': {data.test.classes[data.test.labels[number]]}"
        else:
            original = read_own_image(file)
            prepared = {}
            subject = file.name
        missing = [name for name in names if name not in prepared]
        versions = prepared | (generate_versions(original, missing, progress) if missing else {})
    origin = _origin(data, list(prepared), missing)
    side = len(original)
    save_png(draw_corruptions(original, versions, [subject, f"{side}x{side} pixels", origin]), output)
    out.print(f"{origin}; written to {output}", soft_wrap=True)
    if data is not None:
        _suggest(data, data_dir)


def _origin(data: Dataset | None, prepared: list[str], missing: list[str]) -> str:
    """Where the corrupted images come from, in words."""
    if data is None or not prepared:
        return "corrupted images: generated for this picture"
    text = f"corrupted images: from {data.corrupted_folder}"
    if not missing:
        return text
    if len(missing) > len(prepared):
        return f"{text}: {', '.join(prepared)}; the other {len(missing)} generated for this picture"
    return f"{text}, but generated for this picture: {', '.join(missing)}"


def _suggest(data: Dataset, data_dir: Path) -> None:
    """Suggest the corrupted set if there is none yet, else a training."""
    from rsslcli.core.data.store import EMBEDDED

    if data.name != EMBEDDED and not (data.corrupted_folder / "labels.npy").is_file():
        suggest_next("prepare-data", "--dataset", data.name, "--corruptions", "generate", data_dir=data_dir)
    else:
        suggest_training(data.name, len(data.train.labels), data_dir)
