"""Every command in the documents does what it is there for, at a size of seconds."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import Here

from rsslcli.core.config import Config
from rsslcli.core.data import published
from rsslcli.core.study.estimate import Speed
from rsslcli.core.study.runner import Runner
from rsslcli.core.training import loop as training

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
#: Lines that .ci/run runs, or that stand for what is not ours to test.
OTHERS = re.compile(
    r"python3 -m venv |source \.venv/bin/activate|(\.venv/bin/)?pip install |\.venv/bin/python -m pytest|# "
)
#: What every training is cut down to.
TINY = {
    "epochs": 1, "warmup_epochs": 0, "train_size": 32, "depth": 10, "width": 1, "batch_size": 16,
    "precision": "float32", "meta_batch_size": 5, "validation_images": 5, "device": "cpu", "compile": False,
}  # fmt: skip


def shell_lines(document: str) -> list[str]:
    """The lines of the document's shell blocks, but those of blocks that a marker leaves to another test."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^(<!-- [^\n]* -->\n)?```(?:sh|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ours = [block for marker, block in blocks if marker.strip() in ("", "<!-- main -->", "<!-- tests -->")]
    lines = "\n".join(ours).replace("\\\n", " ")
    return [part.strip() for line in lines.splitlines() for part in line.split("&&") if part.strip()]


@pytest.fixture
def documented(
    home: Path, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Here:
    """A folder that holds what the documents speak of, where trainings are tiny and nothing is downloaded."""
    # One document is about other networks; the others train the cheap one.
    of_networks = request.node.callspec.params["document"] == "docs/networks.md"
    settings = TINY if of_networks else TINY | {"network": "wrn"}
    shutil.copytree(home / "data", tmp_path / "data", ignore=shutil.ignore_patterns(".lock"))
    monkeypatch.chdir(tmp_path)
    if of_networks:  # large ones, which take long to classify an image
        shutil.rmtree(tmp_path / "data" / "mine" / "corrupted")
        here.succeed("prepare-data --dataset mine --corruptions generate --limit 10")
    for name in ("cifar10", "cifar100"):
        shutil.copytree(tmp_path / "data" / "mine", tmp_path / "data" / name)
    (tmp_path / "path" / "to").mkdir(parents=True)
    shutil.copytree(home / "images", tmp_path / "path" / "to" / "images")
    shutil.copytree(home / "data" / "mine" / "corrupted", tmp_path / "path" / "to" / "CIFAR-10-C")
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    shutil.make_archive(str(tmp_path / "cifar10-images"), "gztar", home / "images")
    (tmp_path / "my.yaml").write_text("lr: 0.05\n")
    (tmp_path / "bfloat16.yaml").write_text("precision: bfloat16\n")

    def tiny(config: Config, *arguments: Any, **options: Any) -> Any:
        return train(dataclasses.replace(config, **settings), *arguments, **options)

    from rsslcli.core.data import loading, shapes

    train = training.train
    monkeypatch.setattr(training, "train", tiny)
    monkeypatch.setattr(loading, "EMBEDDED_LIMIT", 20)
    monkeypatch.setattr(shapes, "TRAIN_SIZE", 200)
    monkeypatch.setattr(shapes, "TEST_SIZE", 60)
    monkeypatch.setattr(
        published,
        "download_corrupted",
        lambda name, folder, *, test, **_: loading.open_corrupted(folder, name),
    )
    # Speed is measured in the tests of the estimate.
    monkeypatch.setattr("rsslcli.core.study.estimate._measure", lambda *_: Speed(1e9, 1e9))
    # The data are too few for a study, and the networks only guess.
    monkeypatch.setattr("rsslcli.commands.reproduce.check_fit", lambda cells, images: None)
    monkeypatch.setattr("rsslcli.core.evaluation.calibration._is_fitted", lambda temperature: True)
    monkeypatch.setattr(Runner, "run", lambda self, cells, **_: {"done": 0, "failed": 0})
    return here


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_works(document: str, documented: Here) -> None:
    variables: dict[str, str] = {}
    for line in shell_lines(document):
        for name, value in variables.items():
            line = line.replace(f"${name}", value)  # noqa: PLW2901
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if re.fullmatch(r"\w+=.*", words[0]) and len(words) == 1:
            name, _, value = words[0].partition("=")
            variables[name] = value
        elif words[0] in ("rssl", ".venv/bin/rssl", "torchrun"):
            arguments = words[1:] if words[0].endswith("rssl") else words[words.index("rsslcli") + 1 :]
            code, _, err = documented(" ".join(arguments))
            assert code == 0, f"{line}: {err}"
        elif words[:1] == ["python"] and words[1].startswith("benchmarks/"):
            assert (ROOT / words[1]).is_file(), line
        else:
            assert OTHERS.match(line), f"{document}: who tests {line!r}?"
