"""A corrupted test set is used for the test images that it was made for, and for no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rsslcli.core.corruptions.generate import generate_corrupted
from rsslcli.core.corruptions.record import GENERATED
from rsslcli.core.data.corrupted import (
    IMPORTED,
    CorruptedSet,
    check_source,
    open_corrupted,
    record_test_images,
)
from rsslcli.core.data.store import Dataset, make_split
from rsslcli.core.errors import StaleCorruptionsError, UserError
from rsslcli.core.files import read_json, write_json

COUNT = 6


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    split = make_split(images, [0, 1, 2, 0, 1, 2], ["ant", "bee", "cow"])
    return Dataset("mine", tmp_path / "data" / "mine", split, split)


@pytest.fixture
def corrupted(dataset: Dataset) -> CorruptedSet:
    """Generated from the test images of `dataset`."""
    folder = dataset.corrupted_folder
    generate_corrupted(dataset.test.images, dataset.test.labels, folder, corruptions=["fog"], workers=1)
    return open_corrupted(folder, "mine")


def with_test(dataset: Dataset, **changes: object) -> Dataset:
    content = {"images": dataset.test.images, "labels": dataset.test.labels, "classes": dataset.test.classes}
    split = make_split(**(content | changes))  # type: ignore[arg-type]
    return Dataset(dataset.name, dataset.folder, split, split)


def test_a_generated_set_is_of_its_images_and_labels(dataset: Dataset, corrupted: CorruptedSet) -> None:
    check_source(corrupted, dataset)
    check_source(corrupted, with_test(dataset, classes=["ant", "bee", "dog"]))  # labels count the same
    brighter = dataset.test.images.copy()
    brighter[-1, 0, 0, 0] ^= 1
    for changes in ({"images": brighter}, {"labels": [0, 1, 2, 0, 2, 1]}):
        expected = (
            "made for other test images than those of 'mine': .*--corruptions generate --only fog --data"
        )
        with pytest.raises(StaleCorruptionsError, match=expected):
            check_source(corrupted, with_test(dataset, **changes))
    more = with_test(dataset, images=np.tile(brighter, (2, 1, 1, 1)), labels=[0, 1, 2] * 4)
    with pytest.raises(StaleCorruptionsError, match=f"generate --only fog --limit {COUNT} --data"):
        check_source(corrupted, more)


def test_labels_of_other_images_beside_the_files_are_noticed(
    dataset: Dataset, corrupted: CorruptedSet
) -> None:
    """As an interruption leaves them, at the start of generating the set of changed images."""
    np.save(corrupted.folder / "labels.npy", np.tile(dataset.test.labels[::-1], 5))
    with pytest.raises(StaleCorruptionsError):
        check_source(open_corrupted(corrupted.folder, "mine"), dataset)


def test_labels_beyond_the_classes_are_one_clear_line(dataset: Dataset, corrupted: CorruptedSet) -> None:
    (corrupted.folder / GENERATED).unlink()
    check_source(corrupted, dataset)
    fewer = with_test(dataset, labels=[0, 1, 0, 0, 1, 0], classes=["ant", "bee"])
    with pytest.raises(UserError, match="has labels that 'mine' has no class for"):
        check_source(corrupted, fewer)


def test_an_import_that_does_not_say_what_it_is_for_learns_it(
    dataset: Dataset, corrupted: CorruptedSet
) -> None:
    """From the first preparation of other test images on; what a record says already stays."""
    (corrupted.folder / GENERATED).unlink()
    record_test_images(corrupted.folder, dataset.test.checksum)
    check_source(corrupted, dataset)
    renamed = with_test(dataset, classes=["bee", "cow", "doe"])
    record_test_images(corrupted.folder, renamed.test.checksum)
    with pytest.raises(StaleCorruptionsError):
        check_source(corrupted, renamed)


def test_a_generated_set_gets_no_record_of_an_import(dataset: Dataset, corrupted: CorruptedSet) -> None:
    record_test_images(corrupted.folder, dataset.test.checksum)
    assert read_json(corrupted.folder / IMPORTED) == {}


@pytest.mark.parametrize(
    ("record", "mends"),
    [
        ({"origin": "/my sets/c"}, "--source PATH"),  # it was made for the images of before
        ({"origin": "0" * 32}, "--corruptions download"),  # the md5 of a published archive
        ({"origin": "0" * 64}, "--source PATH"),  # of an address that is no longer known
        ({"origin": [1]}, "--source PATH"),
        ({}, "--source PATH"),
    ],
)
def test_the_command_that_imports_a_set_again(
    dataset: Dataset, corrupted: CorruptedSet, record: dict[str, object], mends: str
) -> None:
    (corrupted.folder / GENERATED).unlink()
    write_json(corrupted.folder / IMPORTED, record | {"test": "0" * 64})
    with pytest.raises(StaleCorruptionsError) as caught:
        check_source(corrupted, dataset)
    end = f"with `rssl prepare-data --dataset mine {mends} --data-dir {dataset.folder.parent}`"
    assert str(caught.value).endswith(end)
