"""`rssl predict` as a person runs it: on files, folders and archives, into a terminal, a pipe or a file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Here, on_a_terminal
from PIL import Image
from rich.cells import cell_len

import rsslcli
from rsslcli.commands.prediction_tables import Summary, print_summary
from rsslcli.commands.terminal import TextConsole
from rsslcli.core.evaluation.predictions import Confusion, Prediction
from rsslcli.core.networks.wide_resnet import WideResNet


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A run with class names, hardly trained."""
    config = rsslcli.Config(
        dataset="mine", depth=10, width=1, batch_size=16, train_size=40, epochs=1, warmup_epochs=0
    )
    rsslcli.train(config, home / "named", data_dir=home / "data")
    return home / "named"


@pytest.fixture
def photos(tmp_path: Path, home: Path) -> Path:
    """Test images in class folders, one outside, one damaged, and a file of another kind."""
    shutil.copytree(home / "images" / "test", tmp_path / "photos")
    first = next((tmp_path / "photos").glob("*/*.png"))
    shutil.copy(first, tmp_path / "photos" / "outside.png")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_pipe_gets_csv_and_the_summary_goes_to_stderr(here: Here, run: Path, photos: Path) -> None:
    code, out, err = here(f"predict named {photos} --top 2")
    assert code == 0, err
    found = rows(out)
    assert len(found) == out.count("\n") - 1 == 41
    assert list(found[0]) == ["file", "label", "prediction", "probability", "prediction_2", "probability_2"]
    classifier = rsslcli.load_classifier(run)
    with torch.inference_mode():
        scores = classifier(rsslcli.load_images([row["file"] for row in found])).softmax(1)
    for row, values in zip(found, scores, strict=True):
        best, second = values.topk(2).indices.tolist()
        assert (row["prediction"], row["prediction_2"]) == (
            classifier.classes[best],
            classifier.classes[second],
        )
        assert float(row["probability"]) == pytest.approx(float(values[best]), rel=1e-4)
        folder = Path(row["file"]).parent.name
        assert row["label"] == ("" if folder == "photos" else folder)
    right = sum(row["label"] == row["prediction"] for row in found)
    assert f"accuracy {100 * right / 40:.2f}%: {right} of 40 images" in err
    assert "; 1 image in no folder of a class" in err
    assert "note: not used: files of other formats (.txt), 1 in all, e.g. 'notes.txt'" in err
    assert "\nconfusion matrix" in err


def test_images_named_one_by_one_have_no_labels_which_is_told(here: Here, run: Path, photos: Path) -> None:
    code, _, err = here(f"predict named {next(photos.glob('*/*.png'))}")
    assert code == 0, err
    assert "note: no accuracy: name the folder that the classes' folders are in, and it is measured" in err


def test_the_evaluation_counts_the_lines(here: Here, run: Path, photos: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    saved = tmp_path / "evaluation.json"
    damaged = sorted(photos.glob("*/*.png"))[3]
    damaged.write_bytes(damaged.read_bytes()[:60])
    code, out, err = here(f"predict named {photos} --output {lines} --evaluation {saved}")
    assert code == 1
    assert f"note: skipped {damaged}: " in err
    assert err.endswith("rssl: error: 1 of 41 images cannot be read: the notes above name them\n")
    assert f"written to {lines}\nwritten to {saved}\n" in out
    content = json.loads(saved.read_text())
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(found) == 40
    assert content["images"] == 39
    assert content["skipped"] == [str(damaged)]
    classes = content["classes"]
    for label, line in zip(classes, content["confusion"], strict=True):
        of_class = [each["prediction"] for each in found if each["label"] == label]
        assert line == [of_class.count(name) for name in classes]
    right = sum(each["label"] == each["prediction"] for each in found)
    assert content["accuracy"] == right / 39
    assert len(found[0]["top"]) == 1


def test_an_archive_gives_what_its_folder_gives(here: Here, run: Path, photos: Path) -> None:
    shutil.make_archive(str(photos), "zip", photos)
    of_folder = {row.pop("file"): row for row in rows(here.succeed(f"predict named {photos}"))}
    of_archive = {row.pop("file"): row for row in rows(here.succeed(f"predict named {photos}.zip"))}
    assert of_archive == {name.replace("photos", "photos.zip"): row for name, row in of_folder.items()}


def test_bfloat16_changes_probabilities_a_little(here: Here, run: Path, photos: Path) -> None:
    of_float32, of_bfloat16 = (
        [
            float(row["probability"])
            for row in rows(here.succeed(f"predict named {photos} --precision {name}"))
        ]
        for name in ("float32", "bfloat16")
    )
    assert of_float32 != of_bfloat16
    assert of_float32 == pytest.approx(of_bfloat16, rel=0.1)


def test_weights_from_elsewhere_give_class_numbers(here: Here, photos: Path, tmp_path: Path) -> None:
    torch.save(WideResNet(10, 1, 4).state_dict(), tmp_path / "w.pt")
    (tmp_path / "numbers").mkdir()
    shutil.copytree(next(path for path in photos.iterdir() if path.is_dir()), tmp_path / "numbers" / "2")
    code, out, err = here(f"predict {tmp_path}/w.pt {tmp_path}/numbers --top 9 --normalization cifar10")
    assert code == 0, err
    assert "│ 2 " in err
    row = rows(out)[0]
    assert {row["prediction"], *(row[f"prediction_{rank}"] for rank in (2, 3, 4))} == set("0123")
    assert row["label"] == "2"
    assert (
        "note: the weights have no class names: a folder named 7 is taken for the class of score 7\n" in err
    )
    assert "prediction_5" not in row
    plain = rows(here.succeed(f"predict {tmp_path}/w.pt {tmp_path}/numbers --normalization half"))[0]
    assert plain["probability"] != row["probability"]


def test_a_terminal_shows_a_table_that_fits(run: Path, photos: Path) -> None:
    command = [sys.executable, "-m", "rsslcli", "predict", str(run), str(photos), "--top", "2"]
    code, shown = on_a_terminal(command, {"COLUMNS": "80", "NO_COLOR": "1"})
    assert code == 0, shown
    assert "the 20 most confident of " in shown
    assert "file,label" not in shown
    table = [line for line in shown.splitlines() if line.startswith(("│", "┃"))]
    assert table
    assert all(len(line) <= 80 for line in table)
    assert f"next: rssl predict {run} {photos} --top 2 --output predictions.csv" in "".join(
        shown.split("\r\n")
    )


def predictions(count: int, name: str = "photos/{}.jpg") -> list[Prediction]:
    ranking = (("a", 0.75), ("b", 0.2))
    return [Prediction(name.format(index), None, ranking) for index in range(count)]


def shown_at(width: int, confusion: Confusion | None, found: list[Prediction]) -> str:
    summary = Summary(confusion)
    for prediction in found:
        summary.add(prediction)
    console = TextConsole()
    console.width = width
    with console.capture() as captured:
        print_summary(summary, console, with_rows=True)
    return captured.get()


def test_names_are_kept_where_the_encoding_of_a_pipe_lacks_them(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """They are escaped as other odd names are, and docs/predict.md says how to read them."""
    name = "фото ž.png"
    Image.new("RGB", (32, 32)).save(tmp_path / name)
    found = subprocess.run(
        [sys.executable, "-m", "rsslcli", "predict", str(run), str(tmp_path / name)],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True,
    )  # fmt: skip
    cell = next(csv.reader([found.stdout.decode("latin-1").splitlines()[1]]))[0]
    assert cell.encode("latin-1", "backslashreplace").decode("unicode_escape") == str(tmp_path / name)


def test_long_names_of_classes_do_not_push_the_numbers_out() -> None:
    names = [f"{'a' * 60} {end}" for end in ("one", "two")]
    ranking = tuple(zip(names, (0.75, 0.25), strict=True))
    shown = shown_at(80, None, [Prediction("x.png", None, ranking)])
    assert "aaa one │" in shown
    assert "75.00%" in shown
    assert all(len(line) <= 80 for line in shown.splitlines() if "│" in line)


def test_the_table_shows_the_first_images_whatever_their_names() -> None:
    shown = shown_at(80, None, predictions(50, "a/" * 60 + "\x1b[31m[bold]日本\n{}.jpg"))
    assert "the first 20 of 50 images" in shown
    assert [f"31m[bold]日本 {index}.jpg │" in shown for index in (0, 19, 20)] == [True, True, False]
    assert re.search(r"│ a +│ +75\.00% │ b 20\.00% │", shown)
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert shown.endswith("50 images, by predicted class: a 50\n")
    assert "…" not in shown_at(80, None, predictions(1))


def test_the_confusion_matrix_is_shown_where_it_fits() -> None:
    names = [f"class {index}" for index in range(12)]
    found = [Prediction("x", one, ((other, 0.5),)) for one in names for other in names for _ in range(100)]
    wide, narrow = (shown_at(width, Confusion(names), found) for width in (120, 80))
    assert "confusion matrix" in wide
    assert "confusion matrix" not in narrow
    assert wide.count("accuracy 8.33%: 1,200 of 14,400 images, 95 % interval 7.89 to 8.80%") == 1


def test_nothing_is_written_by_a_mistake(here: Here, run: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    for arguments, match in (
        (f"{photos} none.png", "no such file or folder: none.png"),
        (f"{photos} --top 0", "--top 0: expected at least 1"),
        (
            f"{photos}/outside.png --evaluation e.json",
            "--evaluation e.json: no image lies in a folder with the",
        ),
        (f"{photos} --evaluation e.csv", "must end in .json"),
        (f"{photos} --precision double", "unknown precision"),
    ):
        here.refuse(f"predict named {arguments} --output {output}", match=match)
    here.refuse(f"predict named {photos} --output out.txt", match=r"must end in \.csv or \.jsonl")
    here.refuse(f"predict none {photos}", match="no checkpoint at none")
    assert not output.exists()


def test_only_damaged_images_are_a_failure(here: Here, run: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"text")
    code, out, err = here(f"predict named {tmp_path}/a.png {tmp_path}/b.jpg")
    assert code == 1
    assert out == "file,prediction,probability\n"
    assert [line[:14] for line in err.splitlines()] == ["note: skipped ", "note: skipped ", "rssl: error: 2"]


def test_mistakes_are_told_without_loading_torch(tmp_path: Path) -> None:
    code = "import sys; from rsslcli.app import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for arguments in (["--help"], ["w.pt", "a.png"]):
        result = subprocess.run(
            [sys.executable, "-c", code, "predict", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == (0 if arguments == ["--help"] else 2), result.stderr


def test_it_adapts_to_shuffled_batches(here: Here, run: Path, photos: Path) -> None:
    """The images of a folder are mixed in the same order every time, and adapted to as in Python."""
    code, out, err = here(f"predict named {photos} --adapt bn")
    assert code == 0, err
    assert here(f"predict named {photos} --adapt bn")[1] == out
    found = rows(out)
    plain = rows(here(f"predict named {photos}")[1])
    assert sorted(row["file"] for row in found) == sorted(row["file"] for row in plain)
    assert [row["file"] for row in found] != [row["file"] for row in plain]
    adapted = rsslcli.adapt(rsslcli.load_classifier(run), "bn")
    scores = adapted(rsslcli.load_images([row["file"] for row in found])).softmax(1)
    for row, values in zip(found, scores, strict=True):
        assert float(row["probability"]) == pytest.approx(float(values.max()), abs=1e-4)
    assert any(row["probability"] != other["probability"] for row, other in zip(found, plain, strict=True))


def test_adapting_by_tasks_needs_tasks_and_a_known_method(here: Here, run: Path, photos: Path) -> None:
    here.refuse(f"predict named {photos} --adapt tasks", match="task")
    here.refuse(
        f"predict named {photos} --adapt nb", match="unknown adaptation 'nb': choose from bn, tent, tasks"
    )
