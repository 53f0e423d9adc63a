"""A custom task through the commands, and pictures of what a network says."""

from __future__ import annotations

from pathlib import Path

import yaml
from helpers import TINY, Here
from PIL import Image

from rsslcli.core.tasks import registry
from rsslcli.core.weights.checkpoint import load_checkpoint

FLIP = Path(__file__).parents[2] / "docs" / "examples" / "flip.py"


def forget() -> None:
    """Go on as in another process, which knows only our tasks."""
    registry._registered.clear()
    registry._files.clear()


def test_the_example_in_docs_trains_and_only_what_runs_the_task_needs_its_file(
    home: Path, here: Here
) -> None:
    (home / "own.yaml").write_text(
        "{validation_images: 10, warmup_epochs: 0, task_options: {flip: {scale: 2}}}"
    )
    train = f"train-automl --tasks rotation,flip --config own.yaml {TINY} --epochs 1 --output own"
    unknown = r"unknown task 'flip'.*--task-file"
    here.refuse(train, unknown)
    assert not (home / "own").exists()
    code, out, err = here(f"{train} --task-file {FLIP}")
    assert (code, " flip " in out) == (0, True), err
    config = (home / "own" / "config.yaml").read_text()
    assert yaml.safe_load(config)["tasks"] == ["rotation", "flip"]
    assert "flip.py" not in config, "a run directory names no file"
    assert set(load_checkpoint(home / "own").heads) >= {"flip.weight", "rotation.weight"}

    forget()
    code, out, err = here("eval-c own --limit 5 --corruptions fog --severity 1")
    assert (code, "clean" in out) == (0, True), err
    here.refuse("train-automl --resume --output own", unknown)
    here.refuse("visualize-tasks --checkpoint own", unknown)
    assert not (home / "predictions.png").exists()
    here.refuse("predict own images/test --adapt tasks", unknown)
    assert here(f"train-automl --resume --output own --task-file {FLIP}")[0] == 0
    here.succeed(f"predict own images/test --adapt tasks --task-file {FLIP}")
    code, out, err = here(f"visualize-tasks --checkpoint own --images 3 --task-file {FLIP}")
    assert (code, out) == (0, "written to predictions.png\n"), err
    with Image.open(home / "predictions.png") as picture:
        assert picture.width == 48 + 26 + 160 * 3 + 12 * 2
    here.refuse("visualize-tasks --checkpoint own --tasks ir", r"no head for 'ir': .* with rotation, flip")
    here.refuse("visualize-tasks --checkpoint none", r"no checkpoint at none")


def test_mistakes_in_the_file_are_one_line_with_its_number(home: Path, here: Here) -> None:
    (home / "bad.py").write_text("from rsslcli.core.tasks.base import Task\n\nclass Flip(Task: pass\n")
    here.refuse(
        "train-single --task flip --task-file bad.py", r"task file bad\.py: SyntaxError.*bad\.py, line 3"
    )
    text = FLIP.read_text(encoding="utf-8")
    (home / "bad.py").write_text(text.replace("images.flip(2)", "images.flip(7)"), encoding="utf-8")
    line = 1 + text.split("images.flip(2)")[0].count("\n")
    train = f"train-single --task flip {TINY} --epochs 1 --output bad --task-file"
    code, out, err = here(f"{train} bad.py")
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("rssl: error: task 'flip': transform fails: IndexError: Dimension out of range"), (
        last
    )
    assert last.endswith(f"(bad.py, line {line})")
    forget()
    assert here(f"{train} {FLIP}")[0] == 0, "once it is mended, the same command works"
