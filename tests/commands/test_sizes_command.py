"""Own images at 64×64, from the photographs to a prediction, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import Here
from PIL import Image

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy photographs of 96×80 pixels in two colors."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos64")
    for name, color in COLORS.items():
        for split, count in (("train", 16), ("test", 8)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(random.normal(color, 40, (80, 96, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return root


def test_a_data_set_of_64_pixels_goes_all_the_way(photos: Path, here: Here, home: Path) -> None:
    prepare = f"prepare-data --dataset large --source {photos} --size 64"
    code, out, err = here(f"{prepare} --corruptions generate --only fog,gaussian_noise")
    assert code == 0, err
    assert "48 of 48 images resized to 64x64" in err
    assert "2 corruptions of 16 images at 5 severities" in out
    train = "train-automl --dataset large --depth 10 --width 1 --batch-size 8 --epochs 4 --warmup-epochs 1"
    code, _, err = here(f"{train} --tasks rotation,inpaint --output run64")
    assert code == 0, err
    code, _, err = here("eval-c run64")
    assert code == 0, err
    assert json.loads((home / "run64" / "eval-c.json").read_text())["clean_images"] == 8
    code, out, err = here(f"predict run64 {photos / 'test'} --evaluation run64.json --output run64.csv")
    assert code == 0, err
    counts = np.array(json.loads((home / "run64.json").read_text())["confusion"])
    assert counts.sum() == 16
    code, _, err = here("visualize-tasks --checkpoint run64 --images 2 --output run64.png")
    assert code == 0, err
    small = "--network resnet18 --train-size 8 --batch-size 4 --epochs 1 --output resnet64"
    code, _, err = here(f"train-single --task none --dataset large {small}")
    assert code == 0, err
    code, out, err = here("eval-c resnet64 --limit 4 --corruptions fog --severity 1")
    assert (code, "clean" in out) == (0, True), err
    here.refuse(
        "eval-c run64 --dataset mine --classes-by-position",
        r"trained on images of 64x64 pixels, and 'mine' has 32x32",
    )
    here.refuse(f"prepare-data --dataset large --source {photos} --size 65", "size: expected 32, 64 or 224")
    shutil.rmtree(home / "data" / "large")
