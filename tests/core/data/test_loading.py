"""Generating corruptions beside those that are there loses none that are of use."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from rsslcli.core.corruptions.record import GENERATED
from rsslcli.core.data.corrupted import check_source, open_corrupted
from rsslcli.core.data.loading import generate_corruptions
from rsslcli.core.data.store import Dataset, make_split
from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.files import read_json

COUNT = 6


def make_dataset(folder: Path, seed: int = 0) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    split = make_split(images, [0, 1, 2, 0, 1, 2], ["ant", "bee", "cow"])
    return Dataset("mine", folder / "data" / "mine", split, split)


def names_and_count(dataset: Dataset) -> tuple[tuple[str, ...], int]:
    found = open_corrupted(dataset.corrupted_folder, "mine")
    return found.names, found.images_per_cell


def test_another_number_of_images_does_not_replace_what_is_there(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    generate_corruptions(dataset, limit=4, names=["fog", "brightness"])
    before = {path: path.read_bytes() for path in dataset.corrupted_folder.iterdir()}
    for options in (
        {"limit": 3},
        {"limit": 3, "names": ["fog", "brightness"]},
        {"names": ["fog"]},
        {"limit": 5, "names": ["contrast"]},
        {"names": ["fog", "brightness"], "severities": [1]},
    ):
        expected = "holds 2 corruptions of 4 images, which would be replaced: set `limit` to 4"
        with pytest.raises(UserError, match=expected):
            generate_corruptions(dataset, **options)  # type: ignore[arg-type]
        assert {path: path.read_bytes() for path in dataset.corrupted_folder.iterdir()} == before
    generate_corruptions(dataset, limit=4, names=["contrast"])  # the same number is added
    assert names_and_count(dataset) == (("fog", "brightness", "contrast"), 4)
    generate_corruptions(dataset, names=["contrast", "fog", "brightness"])  # more of all
    assert names_and_count(dataset)[1] == COUNT


def test_finished_severities_are_not_lost_either(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    generate_corruptions(dataset, names=["fog", "contrast"], severities=[1, 3])
    before = {path: path.read_bytes() for path in dataset.corrupted_folder.iterdir()}
    for options in ({"limit": 3, "severities": [1]}, {"limit": 3, "names": ["snow"]}):
        with pytest.raises(
            UserError, match=f"holds 2 corruptions of {COUNT} images, which would be replaced"
        ):
            generate_corruptions(dataset, **options)  # type: ignore[arg-type]
        assert {path: path.read_bytes() for path in dataset.corrupted_folder.iterdir()} == before
    generate_corruptions(dataset, names=["fog"])
    assert names_and_count(dataset) == (("fog",), COUNT)


def test_a_set_of_other_test_images_is_replaced(tmp_path: Path) -> None:
    generate_corruptions(make_dataset(tmp_path), names=["fog"])
    dataset = make_dataset(tmp_path, seed=1)
    generate_corruptions(dataset, limit=2, names=["contrast"])
    assert names_and_count(dataset) == (("contrast",), 2)


def test_a_generated_set_takes_the_place_of_what_an_import_left(tmp_path: Path) -> None:
    """Files without labels after an interruption, or the record of a set that was moved away."""
    dataset = make_dataset(tmp_path)
    folder = dataset.corrupted_folder
    folder.mkdir(parents=True)
    np.save(folder / "fog.npy", np.zeros((5, 32, 32, 3), np.uint8))
    (folder / "downloaded.json").write_text('{"in_order": false}')
    generate_corruptions(dataset, names=["fog"])
    found = open_corrupted(folder, "mine")
    assert (found.names, found.images_per_cell) == (("fog",), COUNT)
    check_source(found, dataset)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_and_what_is_finished_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(tmp_path)
    expected = r"corrupted \(No space left on device\): free space .* run it again; what is finished is kept"
    with pytest.raises(RsslError, match=expected) as caught:
        generate_corruptions(dataset, names=["contrast"])
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    cell = COUNT * 32 * 32 * 3
    free = namedtuple("usage", "free")
    done = len(read_json(dataset.corrupted_folder / GENERATED)["contrast"]["severities"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: free((5 - done) * cell - 1))
    with pytest.raises(RsslError, match=r"corrupted has 0\.0 GiB of free space, of the 0\.0 GiB needed"):
        generate_corruptions(dataset, names=["contrast"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: free((5 - done) * cell))
    generate_corruptions(dataset, names=["contrast"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: free(0))
    generate_corruptions(make_dataset(tmp_path, seed=1), names=["contrast"])  # in place of the other one


@pytest.mark.parametrize("limit", [0, -1, -COUNT])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(UserError, match=f"`limit` {limit}: expected at least 1"):
        generate_corruptions(make_dataset(tmp_path), limit=limit)
    assert not (tmp_path / "data").exists()
