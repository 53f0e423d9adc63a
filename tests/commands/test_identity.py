"""Classifiers and corrupted images that are not of the data set are refused, after it was prepared anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import Here
from PIL import Image

from rsslcli.core.data.shapes import draw_shapes

TINY = "--depth 10 --width 1 --batch-size 8 --epochs 1 --device cpu"
EVALUATE = "eval-c runs/mine --corruptions fog --severity 1 --output found.json"


@pytest.fixture
def mine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, Here]:
    """A folder with images of four classes, prepared, and a baseline trained on them."""
    images, labels, classes = draw_shapes(160, 0, "train")
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if label < 4:
            folder = tmp_path / "images" / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:03}.png")
        elif label == 4:
            folder = tmp_path / "more"
            folder.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:03}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSSL_DATA_DIR", "data")
    monkeypatch.setattr("rsslcli.core.runtime.keep_freed_memory", lambda: None)
    here = Here(capsys, monkeypatch)
    here.succeed("prepare-data --dataset mine --source images --corruptions generate")
    here.succeed(f"train-single --task none --dataset mine {TINY} --output runs/mine")
    return tmp_path, here


def accuracies(folder: Path) -> tuple[float, float]:
    found = json.loads((folder / "found.json").read_text())
    return found["clean_accuracy"], found["accuracy"]["fog"][0]


def test_renamed_classes_are_refused_until_the_user_knows_better(mine: tuple[Path, Here]) -> None:
    """Renaming the first class to what sorts last moves every label by one."""
    folder, here = mine
    here.succeed(EVALUATE)
    before = accuracies(folder)
    first = sorted(path.name for path in (folder / "images").iterdir())[0]
    (folder / "images" / first).rename(folder / "images" / "zebra")
    here.succeed("prepare-data --dataset mine --source images --corruptions generate")
    expected = f"has the classes '{first}', .* but 'mine' has .*'zebra': .*--classes-by-position"
    here.refuse(EVALUATE, expected)
    assert accuracies(folder) == before, "the result of before stays"
    here.refuse("visualize-tasks --checkpoint runs/mine --images 1", expected)
    code, _, err = here(f"{EVALUATE} --classes-by-position")
    assert code == 0
    assert f"note: classes matched by position: the classifier's '{first}', " in err
    assert json.loads((folder / "found.json").read_text())["classes_by_position"] is True
    here.refuse(
        "train-single --resume --output runs/mine",
        f"was trained on the classes '{first}', .*, and 'mine' has .*'zebra' now",
    )
    # Named as they were, all is as before.
    (folder / "images" / "zebra").rename(folder / "images" / first)
    here.succeed("prepare-data --dataset mine --source images --corruptions generate")
    here.succeed(EVALUATE)
    assert accuracies(folder) == before


def test_corrupted_images_of_other_test_images_are_refused_wherever_they_are_used(
    mine: tuple[Path, Here],
) -> None:
    folder, here = mine
    shutil.move(folder / "more", folder / "images" / "aardvark")
    for _ in range(2):  # as long as it is so
        _, _, err = here("prepare-data --dataset mine --source images")
        assert "are of other test images: prepare them again with `rssl prepare-data" in err
        assert err.endswith("next: rssl prepare-data --dataset mine --corruptions generate\n")
    mends = "prepare-data --dataset mine --corruptions generate"
    expected = f"were made for other test images than those of 'mine': .*`rssl {mends}`"
    here.succeed(f"train-single --task none --dataset mine {TINY} --output runs/five")
    here.refuse("eval-c runs/five", expected)
    here.refuse(
        f"train-automl --tasks rotation --dataset mine {TINY} --warmup-epochs 0 --output runs/tuned", expected
    )
    assert not (folder / "runs" / "tuned").exists()
    assert not (folder / "runs" / "five" / "eval-c.json").exists()
    before = (folder / "data" / "mine" / "corrupted" / "corruptions.json").read_bytes()
    here.refuse("reproduce --preset quick --dataset mine --only 1 --output study", expected)
    assert not (folder / "study").exists()
    assert (folder / "data" / "mine" / "corrupted" / "corruptions.json").read_bytes() == before
    shutil.copytree(folder / "data", folder / "elsewhere")
    here.refuse("eval-c runs/five --data-dir elsewhere", f"`rssl {mends} --data-dir elsewhere`")
    code, _, err = here(mends)
    assert code == 0
    assert "are of other test images" not in err  # they were, and are made again
    here.succeed("eval-c runs/five --corruptions fog")
    shutil.rmtree(folder / "data" / "mine" / "corrupted")
    here.succeed(f"{mends} --only fog")
    shutil.rmtree(folder / "images" / "aardvark")
    _, _, err = here("prepare-data --dataset mine --source images")
    assert err.endswith(f"next: rssl {mends} --only fog\n")  # made again as it was
