"""A prepared data set for the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Here, succeed
from PIL import Image

from rsslcli.core.data.shapes import draw_shapes


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `mine`, prepared from image files with its corrupted test set."""
    home = tmp_path_factory.mktemp("home")
    for split, count in (("train", 160), ("test", 40)):
        images, labels, classes = draw_shapes(count, 0, split)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = home / "images" / split / classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:04}.png")
    out = succeed("prepare-data --dataset mine --source images --corruptions generate", cwd=home)
    assert "mine prepared in data/mine (image folder): 160 training and 40 test images of 10 classes: " in out
    assert "19 corruptions of 40 images at 5 severities" in out
    return home


@pytest.fixture
def here(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """`rssl` in the folder `home`, in this process."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("RSSL_DATA_DIR", "data")
    monkeypatch.setattr("rsslcli.core.runtime.keep_freed_memory", lambda: None)
    return Here(capsys, monkeypatch)
