"""`rssl prepare-data` on images that are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import Here


def test_damaged_images_stop_the_preparation_or_are_left_out(home: Path, here: Here, tmp_path: Path) -> None:
    shutil.copytree(home / "images", tmp_path / "images")
    damaged = sorted((tmp_path / "images" / "train").rglob("*.png"))[:2]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:99])
    command = f"prepare-data --dataset partial --source {tmp_path / 'images'} --data-dir {tmp_path / 'data'}"
    hint = "replace or remove them, or leave out damaged images with --skip-damaged"
    here.refuse(command, rf"cannot decode 2 of 200 images: .*{damaged[0].name}.*{damaged[1].name}.*: {hint}$")
    assert not (tmp_path / "data" / "partial" / "prepared.json").exists()

    note = (
        f"note: left out: damaged images, 2 in all, e.g. 'train/{damaged[0].parent.name}/{damaged[0].name}'"
    )
    for done in ("prepared", "already prepared"):
        code, out, err = here(f"{command} --skip-damaged")
        assert code == 0
        assert out.startswith(f"partial {done} in ")
        assert ": 158 training and 40 test images" in out
        assert note in err
    assert json.loads((tmp_path / "data" / "partial" / "prepared.json").read_text())["damaged"] == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("cifar10 --corruptions download --limit 0", "--limit 0: expected at least 1"),
        (
            "new --source https://h/x.zip",
            "--source https://h/x.zip is an address: add --corruptions download",
        ),
        ("cifar10 --corruptions download --source nofile.tar", "no such source: nofile.tar is not a file"),
        ("cifar10 --corruptions download --source ftp://h/x", "'ftp://h/x' is not an http or https address"),
        ("shapes --keep-archive", "--keep-archive keeps what --corruptions download fetches"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_downloaded(
    here: Here, tmp_path: Path, options: str, match: str
) -> None:
    here.refuse(f"prepare-data --data-dir {tmp_path} --dataset {options}", match)
    assert not list(tmp_path.iterdir())


def test_training_is_suggested_once_a_corruption_is_whole(home: Path, here: Here) -> None:
    prepare = "prepare-data --dataset parts"
    for command in (f"{prepare} --source images --corruptions generate --only fog --severity 1", prepare):
        _, _, err = here(command)
        assert err.endswith("next: rssl prepare-data --dataset parts --corruptions generate\n")
    here.succeed(f"{prepare} --corruptions generate --only fog")
    _, _, err = here(prepare)
    assert "next: rssl train-single --task none --preset robust --dataset parts" in err
