"""`rssl eval-c` on checkpoints as they are found, without training any."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Here, refuse, rssl, succeed
from PIL import Image
from rich.console import Console
from synthetic import make_run

import rsslcli
from rsslcli.commands.console import spell_options
from rsslcli.commands.eval_c import eval_c
from rsslcli.commands.evaluation_tables import _adapted_table, _summary, _table
from rsslcli.core.config import Config
from rsslcli.core.corruptions.names import CORRUPTIONS, STANDARD
from rsslcli.core.data.augment import to_float
from rsslcli.core.data.loading import load, load_corrupted
from rsslcli.core.data.shapes import draw_shapes
from rsslcli.core.data.validation import draw_validation_set
from rsslcli.core.evaluation.confidence import Confidence
from rsslcli.core.evaluation.result import Evaluation
from rsslcli.core.networks.wide_resnet import WideResNet
from rsslcli.core.tasks.registry import build_tasks
from rsslcli.core.training.multitask import MultiTaskNetwork
from rsslcli.core.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

#: Of the data set `mine`, which holds drawn shapes.
CLASSES = tuple(sorted(draw_shapes(10, 0, "test")[2]))
CONFIG = Config(dataset="mine", depth=10, width=1, validation_images=7, seed=3)


def save_run(
    folder: Path, config: Config, excluded: tuple[int, ...] = (), network: WideResNet | None = None
) -> None:
    """A run directory with the checkpoint of `network`, or of one of random weights."""
    network = network or WideResNet(config.depth, config.width)
    optimizer = torch.optim.SGD(network.parameters()).state_dict()
    lambdas = torch.ones(len(config.tasks))
    save_checkpoint(
        folder / "checkpoint.pt",
        Checkpoint(
            config=config, classes=CLASSES, step=1, classifier=network.state_dict(), heads={},
            optimizer=optimizer, lambdas=lambdas, excluded=excluded, train_data="", validation_data="",
        ),
    )  # fmt: skip


def better_than_guessing(home: Path) -> WideResNet:
    """A network that compares the features of an image of `mine` with the mean of each class."""
    torch.manual_seed(0)
    test = load("mine", home / "data").test
    network = WideResNet(CONFIG.depth, CONFIG.width).eval()
    with torch.no_grad():
        features = network.features(to_float(torch.from_numpy(test.images)))
        means = torch.stack([features[test.labels == label].mean(0) for label in range(len(CLASSES))])
        network.fc.weight.copy_((means - features.mean(0)) / (1.5 * features.var()))
        network.fc.bias.copy_(-network.fc.weight @ features.mean(0))
    return network


def test_leave_out_validation(home: Path) -> None:
    """A run that tuned nothing is tested on the images that an AutoML run of the same settings is."""
    save_run(home / "plain", CONFIG)
    out = succeed("eval-c plain --corruptions fog --severity 1 --leave-out-validation", cwd=home)
    assert "(33 images per cell, 7 left out, kept for tuning λ)" in out
    data = load("mine", home / "data")
    tuned = dataclasses.replace(CONFIG, tasks=("ir",), weighting="automl")
    expected = draw_validation_set(tuned, data, load_corrupted(data)).source
    assert json.loads((home / "plain" / "eval-c-partial.json").read_text())["excluded"] == list(expected)
    torch.save(WideResNet(10, 1).state_dict(), home / "w.pt")
    command = "eval-c w.pt --dataset mine --classes-by-position --leave-out-validation"
    refuse(command, cwd=home, match="weights from elsewhere have no seed .*: use --same-images-as")


def test_a_run_is_not_silently_tested_on_what_it_may_have_seen(home: Path, here: Here) -> None:
    """The data set was prepared again since the training: both ways to evaluate tell, and the result too."""
    save_run(home / "earlier", CONFIG, excluded=(3, 5))
    run = load_checkpoint(home / "earlier")
    old = dataclasses.replace(run, train_data="of before", validation_data="of before")
    save_checkpoint(home / "earlier" / "checkpoint.pt", old)
    code, _, err = here("eval-c earlier --corruptions fog")
    assert code == 0, err
    result = json.loads((home / "earlier" / "eval-c-partial.json").read_text())
    seen = "mine has other training images than those that this run saw, which may be among its test"
    tuned = "λ was tuned on another corrupted set than "
    for text in (seen, tuned):
        assert f"note: {text}" in err
        assert any(text in note for note in result["notes"])
    with pytest.warns(UserWarning, match="this run saw|was tuned") as warned:
        found = rsslcli.evaluate(
            rsslcli.load_classifier(home / "earlier"), "mine", data_dir=home / "data", corruptions=["fog"]
        )
    assert found.notes == tuple(str(each.message) for each in warned)
    assert [note.replace(f"{home}/", "") for note in found.notes] == result["notes"]


def test_precision(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said in the result, and where it is no gain; the numbers are about those of float32."""
    save_run(home / "precise", CONFIG)
    out = succeed("eval-c precise --corruptions fog,snow --precision bfloat16 --output r.json", cwd=home)
    assert "(40 images per cell, computed in bfloat16)" in out
    rounded = json.loads((home / "r.json").read_text())
    exact = succeed("eval-c precise --corruptions fog,snow", cwd=home)
    assert "(40 images per cell)" in exact
    whole = json.loads((home / "precise" / "eval-c-partial.json").read_text())
    assert (rounded["precision"], whole["precision"]) == ("bfloat16", "float32")
    assert rounded["mean_accuracy_evaluated"] == pytest.approx(whole["mean_accuracy_evaluated"], abs=0.05)

    monkeypatch.setattr("rsslcli.core.runtime._emulates_bfloat16", lambda device: True)
    for precision in ("float32", "bfloat16"):
        eval_c(home / "precise", data_dir=home / "data", corruptions="fog", precision=precision)
        assert ("only emulates bfloat16" in capsys.readouterr().err) == (precision == "bfloat16")


def test_an_unfinished_run_is_told_to_go_on(home: Path, here: Here) -> None:
    save_run(home / "halfway", CONFIG)
    (home / "halfway" / "config.yaml").write_text(CONFIG.to_yaml())
    (home / "halfway" / "log.txt").write_text("12:00 rssl\n")
    _, _, err = here("eval-c halfway --corruptions fog --severity 1")
    assert "note: the training is not finished (step 1): evaluate it again once it is\n" in err
    assert err.splitlines()[-1] == "next: rssl train-single --resume --output halfway"


def test_a_part_never_replaces_the_whole_evaluation(home: Path, here: Here) -> None:
    save_run(home / "judged", CONFIG)
    part, whole = home / "judged" / "eval-c-partial.json", home / "judged" / "eval-c.json"
    code, out, err = here("eval-c judged --corruptions fog --severity 1")
    assert (code, "mean of 1 of 19 (fog)" in out) == (0, True)
    assert "written to judged/eval-c-partial.json\n" in out
    assert "note: reports read only the whole evaluation, eval-c.json, not this part of it\n" in err
    # And with what a comparison needs, which depends on the runs beside it.
    assert err.splitlines()[-1].startswith("next: rssl eval-c judged")
    assert (part.exists(), whole.exists()) == (True, False)

    assert "written to judged/eval-c.json\n" in here.succeed("eval-c judged")
    before = whole.read_bytes()
    for options in ("--corruptions fog,snow", "--limit 5", "--severity 1,2", "--protocol robustbench"):
        code, out, err = here(f"eval-c judged {options}")
        assert (code, whole.read_bytes() == before) == (0, True), options
        assert ("eval-c-robustbench.json" if "protocol" in options else "eval-c-partial.json") in out
        assert err.endswith("next: rssl report judged\n")
    assert here.succeed("eval-c judged --corruptions fog --output judged/eval-c.json")
    assert list(json.loads(whole.read_text())["accuracy"]) == ["fog"], "where the user says, it goes"


def test_an_evaluation_is_compared_with_the_baseline_beside_it(home: Path, here: Here) -> None:
    shown = []
    for name, tasks in (("base", ()), ("ir", ("ir",))):
        config = dataclasses.replace(CONFIG, tasks=tasks, epochs=1, warmup_epochs=0)
        run = make_run(home / "pair" / name, steps_per_epoch=1, **config.to_dict())
        (run / "eval-c.json").unlink()
        save_run(run, config)
        shown.append(here(f"eval-c pair/{name} --severity 1,2,3,4,5")[2])
    assert "the baseline" not in shown[0]
    assert re.search(
        r"^note: [+−][\d.]+ points over the baseline pair/base, mean over the 19", shown[1], re.M
    )


def test_whole_evaluations_replace_each_other_where_they_cover_as_much(home: Path, here: Here) -> None:
    save_run(home / "again", CONFIG)
    here.succeed("eval-c again")
    first = json.loads((home / "again" / "eval-c.json").read_text())
    out = here.succeed("eval-c again --leave-out-validation --precision bfloat16")
    assert "written to again/eval-c-bfloat16.json\n" in out
    assert json.loads((home / "again" / "eval-c.json").read_text()) == first
    code, out, err = here("eval-c again --leave-out-validation")
    assert (code, "written to again/eval-c.json\n" in out) == (0, True)
    assert "note: eval-c-40-images.json keeps the evaluation that excluded other images\n" in err
    assert json.loads((home / "again" / "eval-c-40-images.json").read_text()) == first
    save_run(home / "again", CONFIG)  # other weights
    here.succeed("eval-c again --precision bfloat16")
    newer = json.loads((home / "again" / "eval-c.json").read_text())
    assert (newer["precision"], newer["images"], newer["weights"] != first["weights"]) == (
        "bfloat16",
        40,
        True,
    )


def test_scores_that_are_not_finite_are_a_failure_in_one_line(home: Path) -> None:
    network = WideResNet(10, 1)
    with torch.no_grad():
        network.fc.weight[3] = network.fc.bias[3] = 3e38  # finite, but their sum is not
    save_run(home / "lost", CONFIG, network=network)
    match = "the clean test set: the highest score of 40 of 40 images is NaN or infinite"
    refuse("eval-c lost", cwd=home, match=match, code=1)
    assert not list((home / "lost").glob("eval-c*"))


def test_a_summary_says_what_its_numbers_do_not_cover() -> None:
    cells: dict[str, list[float | None]] = {name: [0.5, None, 0.3, None, None] for name in CORRUPTIONS[:17]}
    part = Evaluation(0.9, 30, cells, 10, (), {"precision": "float16"})
    missing = "missing: spatter, saturate"
    assert _summary(part) == (
        f"clean 90.00% · no mean of 17 of 19 ({missing}): not every severity was evaluated  "
        "(10 images per cell, 30 clean ones, computed in float16)"
    )
    assert "- 10 images per cell, 30 clean ones\n" in part.to_markdown()
    assert f"- mean of 17 of 19 ({missing}): –\n" in part.to_markdown()


def certain_to(**intervals: tuple[float, float]) -> Confidence:
    """What says only how sure the accuracies are."""
    unknown: dict[str, list[float | None]] = {"clean": [None]}
    return Confidence(unknown, unknown, unknown, (), {}, intervals, {})


def test_the_summary_has_the_intervals() -> None:
    sure = certain_to(clean_accuracy=(0.8812, 0.9151), mean_accuracy_15=(0.25, 0.35))
    cells: dict[str, list[float | None]] = {name: [0.5, 0.4, 0.3, 0.2, 0.1] for name in CORRUPTIONS}
    result = Evaluation(0.9, 30, cells, 30, (), {"precision": "float32"}, confidence=sure)
    assert _summary(result) == (
        "clean 90.00% (88.12–91.51) · mean of 19 30.00% · mean of the usual 15 30.00% (25.00–35.00)  "
        "(30 images per cell)"
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width: int) -> None:
    cells: dict[str, list[float | None]] = {name: [0.5, 0.4, 0.3, 0.2, 0.1] for name in CORRUPTIONS}
    console = Console(width=width, record=True, file=io.StringIO())
    sure = certain_to(mean_accuracy_evaluated=(0.283, 0.318))
    result = Evaluation(0.9, 10, cells, 10, (), {"precision": "float32"}, confidence=sure)
    console.print(_table(result, "a run"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    rows = [line.replace("│", " ").split() for line in lines]
    assert ["clean", *"–––––", "90.00", "–"] in rows
    assert ["fog", "50.00", "40.00", "30.00", "20.00", "10.00", "30.00", "60.00"] in rows
    assert [row[:3] for row in rows if row[:1] == ["mean"]] == [["mean", "of", "19"]]
    assert ["±", "(95", "%)", "1.75"] in rows
    assert len(lines) == 29


def test_a_public_checkpoint_by_robustbench_s_protocol(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The notes say what was not used; the numbers are those of the same weights in a run of our own."""
    network = WideResNet(10, 1)
    with torch.no_grad():
        network.fc.bias += torch.rand(10)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    heads = {"module.rot_pred.weight": torch.ones(4, 64), "module.rot_pred.bias": torch.ones(4)}
    torch.save({"state_dict": state | heads, "epoch": 99}, home / "public.pt")
    save_run(home / "ours", dataclasses.replace(CONFIG, tasks=("ir",), weighting="automl"), (3, 5), network)
    options = "--dataset mine --protocol robustbench --same-images-as ours --output public.json"
    public = rssl(f"eval-c public.pt {options} --classes-by-position", cwd=home)
    assert public.returncode == 0, public.stderr
    assert "public.pt: not part of the WideResNet, so not used: 'rot_pred', 'epoch'" in public.stderr
    assert "public.pt does not say how its input is normalized" in public.stderr

    eval_c(home / "ours", data_dir=home / "data", protocol="robustbench")
    notes = capsys.readouterr().err
    assert "not used" not in notes
    assert "λ was tuned on these corruptions" in notes
    assert "was generated here" in notes
    first, second = (
        json.loads((home / name).read_text()) for name in ("public.json", "ours/eval-c-robustbench.json")
    )
    assert first["accuracy"] == second["accuracy"]
    assert list(first["accuracy"]) == list(STANDARD)
    every = [cell for cells in first["accuracy"].values() for cell in cells]
    terms = first["robustbench"]
    assert terms["n_examples"] == 38
    assert terms["corruptions_acc"] == pytest.approx(100 * np.mean(every), abs=0.005)
    assert terms["corruptions_mce"] == pytest.approx(100 - terms["corruptions_acc"], abs=0.02)
    assert terms["clean_acc"] == pytest.approx(100 * first["clean_accuracy"], abs=0.005)
    assert f"robust accuracy (corruptions) {terms['corruptions_acc']:.2f}%" in public.stdout
    assert "n = 38, not RobustBench's 10,000: 2 are left out because they tune λ" in public.stdout

    # What a normalization does to the scores is tested with the reader, in tests/core/weights/test_public.py.
    eval_c(
        home / "public.pt", "mine", home / "data", corruptions="fog", same_images_as=home / "ours",
        normalization="half", classes_by_position=True, output=home / "fog.json",
    )  # fmt: skip
    assert "does not say" not in capsys.readouterr().err
    assert json.loads((home / "fog.json").read_text())["accuracy"]["fog"] == first["accuracy"]["fog"]


def test_weights_near_chance_are_noted_in_the_result(home: Path) -> None:
    """Beside what was noted on the file; a run of our own may be as bad as it likes."""
    network = WideResNet(10, 1)
    torch.nn.init.zeros_(network.fc.weight)
    torch.save(network.state_dict(), home / "w.pt")
    options = "--dataset mine --corruptions fog --severity 1 --output w.json"
    public = rssl(f"eval-c w.pt {options} --classes-by-position", cwd=home)
    assert public.returncode == 0, public.stderr
    notes = json.loads((home / "w.json").read_text())["notes"]
    assert ["does not say how its input is norm" in notes[0], "is near that of guessing" in notes[1]] == [
        True
    ] * 2
    assert [line for line in public.stderr.splitlines() if line.startswith("note: ")] == [
        f"note: {spell_options(note)}" for note in notes
    ]
    save_run(home / "guesser", CONFIG, network=network)
    assert "guessing" not in rssl("eval-c guesser --corruptions fog --severity 1", cwd=home).stderr
    assert json.loads((home / "guesser" / "eval-c-partial.json").read_text())["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("none.pt --protocol robustbank", "unknown protocol 'robustbank': did you mean 'robustbench'"),
        ("none.pt --protocol robustbench --limit 5", "leave out --corruptions, --severity and --limit"),
        ("none.pt --normalization cifar", "unknown normalization 'cifar': did you mean 'cifar10'"),
        ("none.pt --normalization 1,2,3/4,5,6", "expected three means and three standard deviations"),
        ("none.pt --predictions scores.npy", r"--predictions scores.npy: the name must end in \.npz"),
        ("seven.pt --dataset mine", "the classifier has 7 outputs but 'mine' has 10 classes"),
    ],
)
def test_mistakes(home: Path, arguments: str, match: str) -> None:
    torch.save(WideResNet(10, 1, 7).state_dict(), home / "seven.pt")
    refuse(f"eval-c {arguments}", cwd=home, match=match)


def test_the_same_images_as_a_run_that_tuned_nothing(home: Path, here: Here) -> None:
    """They are those of its evaluation; where that used all images, there is nothing to leave out."""
    save_run(home / "rival", CONFIG)
    save_run(home / "mine", CONFIG)
    evaluate = "eval-c mine --same-images-as rival --corruptions fog --severity 1"
    here.refuse(evaluate, "--same-images-as rival: it tuned no λ and is not evaluated, so nothing says which")
    here.succeed("eval-c rival")
    here.refuse(evaluate, "--same-images-as rival: it tuned no λ and was evaluated on all images")
    here.succeed("eval-c rival --leave-out-validation")
    rival = json.loads((home / "rival" / "eval-c.json").read_text())
    assert len(rival["excluded"]) > 1
    here.succeed(evaluate)
    mine = json.loads((home / "mine" / "eval-c-partial.json").read_text())
    assert mine["excluded"] == rival["excluded"]
    (home / "rival" / "eval-c.json").write_text(json.dumps(rival | {"corrupted_data": "another set"}))
    _, _, err = here(evaluate)
    assert "note: rival/eval-c.json is of another corrupted set than data/mine/corrupted; the images" in err


def test_adapted_accuracies_stand_beside_the_unadapted_ones(home: Path, here: Here) -> None:
    """The second command reuses the unadapted ones; reports go on reading those alone."""
    save_run(home / "adapted", CONFIG)
    options = "--adapt bn --prior 16 --adapt-batch 15"
    out = here.succeed(f"eval-c adapted {options}")
    file = home / "adapted" / "eval-c-adapted-bn-prior16-batch15.json"
    assert f"written to {file.relative_to(home)}\n" in out
    assert "(bn: prior 16, batches of at most 15 images, shuffled by seed 0)" in out
    first = json.loads(file.read_text())
    here.succeed("eval-c adapted")
    whole = json.loads((home / "adapted" / "eval-c.json").read_text())
    assert whole == {name: value for name, value in first.items() if name != "adapted"}
    assert first["adapted"]["accuracy"].keys() == first["accuracy"].keys()
    assert first["adapted"]["mean_accuracy"] != first["mean_accuracy"]

    # In lower precision it goes beside, as the unadapted one does.
    here.succeed(f"eval-c adapted {options} --precision bfloat16")
    assert json.loads(file.read_text()) == first
    assert file.with_name("eval-c-adapted-bn-prior16-batch15-bfloat16.json").is_file()

    code, out, err = here(f"eval-c adapted {options} --corruptions fog --severity 2 --output a.csv")
    assert (code, "at 2" in out, "at 5" in out) == (0, True, False)
    fog, adapted = (float(value) for value in (home / "a.csv").read_text().split()[-1].split(",")[2::2])
    assert fog == whole["accuracy"]["fog"][1]
    assert adapted == first["adapted"]["accuracy"]["fog"][1]
    code, out, err = here("eval-c adapted --adapt tent --corruptions fog")
    assert "written to adapted/eval-c-adapted-tent-partial.json\n" in out
    assert "note: reports show adapted accuracies beside those of eval-c.json\n" in err


def test_a_run_adapts_by_its_own_tasks(home: Path, here: Here) -> None:
    config = dataclasses.replace(CONFIG, tasks=("rotation",))
    model = MultiTaskNetwork(WideResNet(10, 1), build_tasks(config.tasks))
    save_run(home / "turned", config)
    checkpoint = load_checkpoint(home / "turned")
    optimizer = torch.optim.SGD(model.parameters()).state_dict()
    trained = dataclasses.replace(checkpoint, heads=model.heads.state_dict(), optimizer=optimizer)
    save_checkpoint(home / "turned" / "checkpoint.pt", trained)
    out = here.succeed("eval-c turned --adapt tasks --corruptions fog --severity 1,2")
    assert "(tasks: prior " in out
    found = json.loads((home / "turned" / "eval-c-adapted-tasks-partial.json").read_text())["adapted"]
    assert (found["method"], found["steps"], found["episodic"]) == ("tasks", 1, True)


def test_public_weights_adapt_too(home: Path, here: Here) -> None:
    torch.save(WideResNet(10, 1).state_dict(), home / "public.pt")
    options = "--dataset mine --classes-by-position --corruptions fog --stream mixed --output p.md"
    code, _, err = here(f"eval-c public.pt {options} --adapt tent")
    assert code == 0, err
    assert "With adaptation (tent: prior 0," in (home / "p.md").read_text()
    assert "all corruptions mixed by seed 0" in (home / "p.md").read_text()
    here.refuse(f"eval-c public.pt {options} --adapt tasks", "weights from elsewhere lack: adapt them by bn")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--prior 3", "--prior is a setting of the adaptation: add --adapt"),
        ("--stream mixed", "--stream is a setting"),
        (
            "--adapt bn --protocol robustbench",
            "for numbers without adaptation: leave out --adapt",
        ),
        ("--adapt tents", "unknown adaptation 'tents': did you mean 'tent'"),
        ("--adapt bn --stream sort", "unknown stream 'sort': did you mean 'sorted'"),
        ("--adapt bn --prior -1", "--prior: expected a number from 0, got -1"),
        ("--adapt bn --adapt-batch 0", "--adapt-batch 0: expected a whole number from 1"),
        (f"--adapt bn --adapt-batch {10**20}", f"--adapt-batch {10**20}: expected a whole number from 1"),
        ("--adapt tasks", "adaptation by tasks needs a run with tasks, and this is a baseline"),
    ],
)
def test_adaptations_that_make_no_sense(home: Path, here: Here, options: str, match: str) -> None:
    save_run(home / "plain2", CONFIG)
    here.refuse(f"eval-c plain2 {options}", match)
    assert not list((home / "plain2").glob("eval-c*"))


@pytest.mark.parametrize("width", [80, 120])
def test_the_adapted_table_fits_a_terminal(width: int) -> None:
    cells: dict[str, list[float | None]] = {name: [0.5, 0.4, 0.3, 0.2, 0.1] for name in CORRUPTIONS}
    adapted: dict[str, list[float | None]] = {name: [0.45, 0.4, 0.35, 0.3, 0.25] for name in CORRUPTIONS}
    result = Evaluation(0.9, 10, cells, 10, (), adapted=Evaluation(0.8, 10, adapted, 10, ()))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(_adapted_table(result, "a run"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]
    rows = [line.replace("│", " ").split() for line in lines]
    assert ["clean", "90.00", "80.00", "−10.00", "–", "–", "–"] in rows
    assert ["fog", "30.00", "35.00", "+5.00", "−5.00", "+5.00", "+15.00"] in rows


def test_errors_relative_to_a_run_on_the_same_images(home: Path, here: Here) -> None:
    for name in ("mine", "theirs"):
        save_run(home / f"relative-{name}", CONFIG)
    part = "--corruptions fog,snow"
    theirs = here.succeed(f"eval-c relative-theirs {part} --output theirs.json")
    assert "corruption errors" not in theirs
    assert re.search(r"│ ± \(95 %\) .* \d+\.\d\d │", theirs)
    assert re.search(
        r"^NLL \S+ \(clean \S+\) · Brier score \S+ \(clean \S+\) · ECE \S+%", theirs, re.MULTILINE
    )
    out = here.succeed(f"eval-c relative-mine {part} --relative-to theirs.json --output mine.json")
    found = json.loads((home / "mine.json").read_text())["relative_to"]
    assert f"corruption errors relative to theirs.json: mCE {found['mce']:.2f}%, relative mCE" in out
    rival = json.loads((home / "theirs.json").read_text())["accuracy"]
    mine = json.loads((home / "mine.json").read_text())["accuracy"]
    ratios = [(5 - sum(mine[name])) / (5 - sum(rival[name])) for name in ("fog", "snow")]
    assert found["mce"] == pytest.approx(50 * sum(ratios))
    command = f"eval-c relative-mine {part} --relative-to theirs.json"
    refuse(f"{command} --limit 9", cwd=home, match="it was evaluated with another number of images")
    refuse(f"{command} --leave-out-validation", cwd=home, match="other images left out: --same-images-as")
    code, out, _ = here(f"{command} --adapt bn --output adapted.json")
    adapted = json.loads((home / "adapted.json").read_text())
    assert (code, adapted["relative_to"]) == (0, found)
    assert f"\nunadapted: corruption errors relative to theirs.json: mCE {found['mce']:.2f}%" in out
    ratios = [
        (5 - sum(adapted["adapted"]["accuracy"][name])) / (5 - sum(rival[name])) for name in ("fog", "snow")
    ]
    mce = adapted["adapted"]["relative_to"]["mce"]
    assert mce == pytest.approx(50 * sum(ratios))
    assert f"\nadapted: corruption errors relative to theirs.json: mCE {mce:.2f}%" in out
    match = "no evaluation to compare with at relative-theirs/eval-c.json"
    refuse("eval-c relative-mine --relative-to relative-theirs", cwd=home, match=match)


def test_a_calibrated_run_predicts_with_its_temperature(home: Path, here: Here) -> None:
    """It is fitted on a fifth of the images, which are left out, so this never is the whole evaluation."""
    run = home / "calibrated"
    save_run(run, CONFIG, network=better_than_guessing(home))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "one.png")

    def probability() -> float:
        here.succeed("predict calibrated one.png --output one.csv")
        return float((home / "one.csv").read_text().split()[-1].split(",")[-1])

    before = probability()
    code, out, err = here("eval-c calibrated --calibrate --corruptions fog,snow")
    assert code == 0
    fitted = json.loads((run / "calibration.json").read_text())
    temperature = fitted["temperature"]
    assert f"note: temperature {temperature:.4g}, fitted on 8 clean images drawn by seed 0" in err
    assert "32 images per cell, 8 left out, kept for tuning λ or calibration" in out
    assert re.search(rf"\ncalibrated by temperature {temperature:.4g}: NLL ", out)
    content = json.loads((run / "eval-c-calibrated-partial.json").read_text())
    assert (content["images"], content["clean_images"], len(content["excluded"])) == (32, 32, 8)
    assert content["calibrated"]["temperature"] == temperature
    assert content["calibrated"]["mean"].keys() == {"nll", "brier", "ece"}
    assert content["calibrated"]["clean"] != {
        name: content[name]["clean"][0] for name in ("nll", "brier", "ece")
    }
    after = probability()
    assert (after > before) == (temperature < 1) != (after < before)
    (run / "calibration.json").write_text(json.dumps(fitted | {"weights": "others"}))
    assert probability() == before
    for options in ("--adapt bn", "--protocol robustbench"):
        refuse(f"eval-c calibrated --calibrate {options}", cwd=home, match="leave out --adapt and --protocol")


def test_an_evaluation_on_another_data_set_is_no_other(
    home: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its temperature is not kept, and it is not compared with a baseline by the numbers of another one."""
    compared: list[Path] = []
    monkeypatch.setattr("rsslcli.commands.eval_c.say_difference_to_baseline", compared.append)
    run = home / "twofold"
    save_run(run, CONFIG, network=better_than_guessing(home))
    shutil.copytree(home / "data" / "mine", home / "data" / "twin")
    code, _, err = here("eval-c twofold --dataset twin --calibrate --corruptions fog")
    assert code == 0, err
    assert "note: `rssl predict` does not use this temperature: it uses only one fitted on mine" in err
    assert not (run / "calibration.json").exists()
    here.succeed("eval-c twofold --dataset twin")
    assert not compared
    assert not [*run.glob("*.partial")], "what an interruption would need is removed"
    here.succeed("eval-c twofold")
    assert compared == [Path("twofold")]


def test_a_baseline_calibrates_on_the_images_that_would_tune(home: Path, here: Here) -> None:
    save_run(home / "tuned", CONFIG, network=better_than_guessing(home))
    code, _, err = here("eval-c tuned --calibrate --leave-out-validation --corruptions fog")
    content = json.loads((home / "tuned" / "eval-c-partial.json").read_text())
    assert (code, len(content["excluded"])) == (0, content["excluded"] and 40 - content["images"])
    assert f"fitted on {len(content['excluded'])} clean images left out anyway" in err


def test_the_scores_of_every_image_are_written_too(home: Path, here: Here) -> None:
    save_run(home / "scored", CONFIG)
    code, _, err = here("eval-c scored --corruptions fog --severity 2 --predictions scored.npz")
    assert (code, "note: the scores of every image are in scored.npz\n" in err) == (0, True)
    result = json.loads((home / "scored" / "eval-c-partial.json").read_text())
    with np.load(home / "scored.npz") as file:
        fog = file["cell"] == 1
        right = file["scores"].argmax(1) == file["label"]
        about = json.loads(str(file["about"]))
    assert right[fog].mean() == result["accuracy"]["fog"][1]
    assert about["weights"] == result["weights"]
