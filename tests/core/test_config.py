"""Settings: precedence, refusals of one line, and YAML files that mean no good."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rsslcli.core.config import WEIGHTINGS, Config, check_effective, read_config_file
from rsslcli.core.errors import UserError
from rsslcli.core.plain_yaml import MAX_FILE_BYTES
from rsslcli.core.presets import PRESETS, config_layers, explain, make_config, merge
from rsslcli.core.tasks.registry import TASKS, build_tasks


def refusal(call: Callable[[], object]) -> str:
    """The message with which `call` is refused: a UserError of one short line."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "config.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


# --- Presets, files, overrides --------------------------------------------------------------------------


def test_the_default_is_the_paper() -> None:
    config = make_config()
    assert config == make_config("paper") == Config()
    paper = {
        "epochs": 100, "batch_size": 64, "lr": 0.1, "min_lr": 1e-6, "momentum": 0.9, "weight_decay": 5e-4,
        "initial_lambda": 0.5, "meta_batch_size": 25, "warmup_epochs": 5, "validation_images": 100,
        "depth": 40, "width": 2, "batch_norm": "per-task", "lookahead_scale": 1.0,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in paper} == paper


def test_presets() -> None:
    precursor = make_config("precursor")
    assert (precursor.batch_norm, precursor.meta_lr, precursor.lookahead_scale) == ("joint", 0.01, 10.0)
    # What moves λ per step is β · α: the same in both presets.
    assert precursor.meta_lr * precursor.lookahead_scale == pytest.approx(Config().meta_lr)
    built = build_tasks(TASKS, precursor.task_options)
    assert vars(built["color"]) == {"scale": 2.0}
    assert vars(built["bir"]) == {"scale": 30.0, "sigmoid": True, "hidden": True, "sigma": 7 / 255}
    assert make_config("quick").dataset == "shapes"
    for preset in PRESETS:
        assert build_tasks(TASKS, make_config(preset).task_options)
    assert "choose from paper, robust, finetune, precursor, small, quick" in refusal(
        lambda: make_config("fast")
    )
    refusal(lambda: make_config("a\nb"))
    refusal(lambda: make_config("x" * 9999))


def test_overrides_beat_the_file_which_beats_the_preset(folder: Path) -> None:
    file = written(folder, "epochs: 20\nbatch_size: 32\ntasks: [rotation, bir]\nautoml: yes\n")
    config = make_config("quick", file, {"epochs": 3, "lr": None, "seed": 0})
    assert (config.epochs, config.batch_size, config.depth, config.lr) == (3, 32, 10, 0.1)
    assert config.tasks == ("rotation", "bir")
    assert config.automl is True
    assert make_config(file=written(folder, "")) == Config()
    assert make_config(file=written(folder, "# nothing yet\n---\n")) == Config()
    wrong = written(folder, "epochs: three")
    assert refusal(lambda: make_config(file=wrong)).startswith(f"{wrong}: epochs: expected a whole number")
    assert refusal(lambda: make_config(file=wrong, overrides={"epochs": -1})).startswith("`epochs`: expected")
    before = {name: dict(values) for name, values in PRESETS.items()}
    make_config("precursor", written(folder, "task_options: {bir: {sigma: 2}}"))
    assert before == PRESETS


def test_explained_yaml_is_the_same_configuration(folder: Path) -> None:
    """Also where a value takes several lines, and where the name of a file would end the comment."""
    folder = folder / "a\n# epochs: 1\nseed: 9"
    folder.mkdir()
    file = written(
        folder, "task_options: {bir: {sigma: 2, hidden: true}, ir: {scale: 1e-3}}\ntasks: [bir, ir]\n"
    )
    layers = config_layers("precursor", file, {"lr": 1e-7, "min_lr": 1e-7, "seed": None})
    text = explain(layers)
    assert text.isascii()
    assert make_config(file=written(folder, text)) == merge(layers)
    assert merge(layers) == make_config("precursor", written(folder, text))
    comments = {line.split(":")[0]: line.partition("  # ")[2] for line in text.splitlines() if line[0] != " "}
    assert comments["lr"] == "command line"
    assert comments["batch_norm"] == "preset precursor"
    assert comments["tasks"].endswith("seed: 9/config.yaml")
    assert comments["seed"] == "default"


@pytest.mark.parametrize(
    ("preset", "epochs", "warmup"),
    [
        ("paper", None, 5), ("paper", 100, 5), ("paper", 500, 5), ("paper", 50, 3), ("paper", 12, 1),
        ("paper", 9, 0), ("paper", 3, 0), ("small", 4, 1), ("small", 3, 0), ("quick", 3, 1), ("quick", 2, 1),
        ("quick", 1, 0),
    ],
)  # fmt: skip
def test_a_shorter_run_warms_up_for_the_preset_s_share_of_its_epochs(
    preset: str, epochs: int | None, warmup: int, folder: Path
) -> None:
    """Of the epochs on the command line or in a file; a warm-up that is given stays."""
    assert make_config(preset, overrides={"epochs": epochs}).warmup_epochs == warmup
    file = written(folder, f"epochs: {epochs or PRESETS[preset].get('epochs', 100)}")
    assert make_config(preset, file).warmup_epochs == warmup
    given = {"epochs": epochs, "warmup_epochs": 4}
    assert make_config(preset, overrides=given).warmup_epochs == 4
    assert make_config(preset, written(folder, "warmup_epochs: 4"), {"epochs": epochs}).warmup_epochs == 4


def test_the_explanation_says_where_a_shorter_warm_up_comes_from() -> None:
    assert re.search(
        r"^warmup_epochs: 1 +# preset quick, its share: 2 of 6 epochs$",
        explain(config_layers("quick", overrides={"epochs": 3})),
        re.MULTILINE,
    )
    assert "warmup_epochs: 2" in explain(config_layers("quick", overrides={"epochs": 7}))
    for wrong in ("many", True, 0, -3, 1.5, [3]):
        assert refusal(lambda e=wrong: make_config(overrides={"epochs": e})).startswith("`epochs`: ")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 5, "warmup_epochs": 9}, "`warmup_epochs`: .* in 9 epochs of 5: expected below 5"),
        ({"epochs": 5}, "`warmup_epochs`: .* in 5 epochs of 5: expected below 5"),
        ({"meta_lr": 0}, "`meta_lr`: .* at 0 no λ moves: expected above 0"),
        ({"lookahead_scale": 0}, "`lookahead_scale`: .* at 0 no λ moves: expected above 0"),
        ({"weighting": "fixed", "initial_lambda": 0}, "`initial_lambda`: .* at 0, ir would have no effect"),
        ({"weighting": "uncertainty", "initial_lambda": 0}, "`initial_lambda`: .* ir would have no effect"),
        (
            {"automl_variants": ("constant-sum",)},
            "`automl_variants`: AutoML tunes nothing, since constant-sum",
        ),
    ],
)
def test_a_new_run_whose_mechanism_would_not_act_is_refused(options: dict[str, Any], message: str) -> None:
    config = Config(**{"tasks": ("ir",), "weighting": "automl"} | options)  # as an old run's file may hold it
    assert re.search(message, refusal(lambda: check_effective(config)))
    without = {"tasks": (), "weighting": "fixed"}
    check_effective(dataclasses.replace(config, **without))  # type: ignore[arg-type]
    if config.automl:
        check_effective(dataclasses.replace(config, weighting="fixed"))


def test_tasks_beside_a_frozen_trunk_are_refused() -> None:
    for weighting in ("fixed", "automl"):
        config = Config(tasks=("ir", "rgb"), weighting=weighting, trunk_lr_factor=0)  # type: ignore[arg-type]
        assert "`trunk_lr_factor`: " in refusal(lambda config=config: check_effective(config))
    check_effective(Config(trunk_lr_factor=0))
    zero = Config(
        tasks=("ir", "rgb"), weighting="automl", initial_lambda=0, automl_variants=("constant-sum",)
    )
    assert "since constant-sum" in refusal(lambda: check_effective(zero))
    check_effective(dataclasses.replace(zero, augment="augmix", tune_jsd=True))  # whose λ starts at 12
    Config(optimizer="adamw", momentum=0)  # adamw ignores both, so they do not contradict each other


@pytest.mark.parametrize(
    ("augment", "weight", "views"), [("standard", 12, 0), ("augmix", 12, 2), ("augmix", 0, 1)]
)
def test_how_many_augmented_views_there_are(augment: str, weight: float, views: int) -> None:
    assert Config(augment=augment, jsd_weight=weight).augmix_views == views


def test_a_new_run_whose_mechanisms_act_is_taken() -> None:
    for options in ({}, {"weighting": "automl"}, {"weighting": "automl", "initial_lambda": 0.0, "epochs": 6}):
        check_effective(Config(tasks=("ir",), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E-6", 1e-6),
        ("5.e-3", 5e-3),
        (".5e-3", 5e-4),
        ("+2e-2", 0.02),
        ("1e0", 1.0),
        ("0", 0.0),
    ],
)
def test_numbers_as_people_write_them(text: str, value: float, folder: Path) -> None:
    assert make_config(file=written(folder, f"weight_decay: {text}")).weight_decay == value


def test_whole_numbers_of_a_file_are_the_numbers_that_they_are(folder: Path) -> None:
    """YAML reads 1 as a whole number; tensors made from it, and reports, must not differ by that."""
    path = folder / "whole.yaml"
    path.write_text("{initial_lambda: 1, weight_decay: 0, task_share: 1, lr: 1, jsd_weight: 0}")
    config = Config(**read_config_file(path))
    assert {type(getattr(config, f.name)) for f in dataclasses.fields(Config) if f.type == "float"} == {float}
    assert config.to_yaml() == dataclasses.replace(config, initial_lambda=1.0).to_yaml()
    assert "initial_lambda: 1.0\n" in config.to_yaml()


def test_what_only_looks_like_a_number_is_none(folder: Path) -> None:
    for text in ("010", "1:30", "0x1F", "0b1", "1e", "e5", "1e-6x", "'1e-6'", "1 e-6", "0x", "1.2.3", "--1"):
        assert "weight_decay: expected a number" in refusal(
            lambda text=text: make_config(file=written(folder, f"weight_decay: {text}"))  # type: ignore[misc]
        )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "baseline"),
        ({"tasks": ("rotation",)}, "rotation"),
        ({"tasks": ("rotation", "bir")}, "fixed-rotation-bir"),
        ({"tasks": ("bir", "color"), "weighting": "automl"}, "automl-bir-color"),
        ({"tasks": ["bir"], "weighting": "automl"}, "automl-bir"),
    ],
)
def test_names_of_runs(options: dict[str, Any], name: str) -> None:
    assert Config(**options).name == name


# --- Refusals -------------------------------------------------------------------------------------------

KINDS = {
    "a whole number": (
        "epochs",
        "batch_size",
        "train_size",
        "meta_batch_size",
        "warmup_epochs",
        "seed",
        "depth",
        "width",
        "validation_images",
    ),
    "a number": (
        "lr",
        "min_lr",
        "momentum",
        "weight_decay",
        "initial_lambda",
        "meta_lr",
        "lookahead_scale",
        "task_share",
        "jsd_weight",
        "trunk_lr_factor",
        "ema",
    ),
    "true or false": ("tune_jsd", "nesterov", "compile"),
    "a word": (
        "dataset",
        "weighting",
        "augment",
        "optimizer",
        "validation_corruptions",
        "network",
        "weights",
        "batch_norm",
        "device",
        "precision",
    ),
    "a list of names": ("tasks", "automl_variants"),
    "a mapping": ("task_options",),
    "options of 'bir'": ("task_options",),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "a whole number": (True, "5", 5.0, [5], {}, math.nan, 1e3),
    "a number": (True, "0.5", [0.5], {}, None),
    "true or false": (1, 0, "yes", None, []),
    "a word": (1, None, True, ["cpu"], 1.5),
    "a list of names": ("rotation", None, 5, {"rotation": 1}, [1], ["rotation", None], [["rotation"]]),
    "a mapping": (None, [], "bir", 3),
    "options of 'bir'": ({"bir": None}, {"bir": 3}, {"bir": {"sigma": "wide"}}, {"bir": {1: 2}}),
}


def test_every_setting_is_among_those_that_are_refused() -> None:
    named = {name for names in KINDS.values() for name in names}
    assert named == {option.name for option in dataclasses.fields(Config)}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in KINDS.items() for name in names])
def test_values_of_the_wrong_kind(kind: str, name: str) -> None:
    for value in WRONG[kind]:
        message = refusal(lambda value=value: Config(**{name: value}))  # type: ignore[misc]
        assert message.startswith(f"{name}: expected {kind}"), value


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1, 1 << 20_000, -(1 << 20_000)],
    ids=["nan", "inf", "-inf", "-1", "huge", "-huge"],
)
def test_numbers_out_of_range(value: float) -> None:
    for kind in ("a whole number", "a number"):
        for name in KINDS[kind]:
            assert refusal(lambda name=name: Config(**{name: value})).startswith(f"{name}: expected")  # type: ignore[misc]
    assert "task_options" in refusal(lambda: Config(task_options={"bir": {"sigma": 1 << 20_000}}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "lr: "),
        ({"epochs": None}, "epochs: expected a whole number, got None"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "min_lr: "),
        ({"momentum": 1.0}, "momentum: "),
        ({"momentum": 0.0}, "nesterov: "),
        ({"ema": 1.0}, "ema: expected at least 0, below 1, got 1.0"),
        ({"warmup_epochs": -1}, "warmup_epochs: expected at least 0"),
        ({"validation_images": 0}, "validation_images: expected at least 1"),
        ({"weighting": "automal"}, "unknown weighting 'automal': did you mean 'automl'?"),
        ({"augment": "mixup"}, "unknown augment 'mixup': choose from standard, augmix"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam': did you mean 'adamw'?"),
        ({"validation_corruptions": "some"}, "unknown validation_corruptions 'some': choose from all, extra"),
        ({"automl_variants": ["cosin"]}, "unknown automl_variants 'cosin': did you mean 'cosine'?"),
        ({"optimizer": "adamw", "automl_variants": ["sgd-lookahead"]}, "sgd-lookahead needs `optimizer` sgd"),
        ({"batch_size": 1}, "batch_size: expected at least 2"),
        ({"meta_batch_size": 1}, "meta_batch_size: expected at least 2"),
        ({"task_share": 0}, "task_share: expected above 0 and at most 1, got 0"),
        ({"task_share": 1.01}, "task_share: expected above 0 and at most 1, got 1.01"),
        ({"depth": 11}, "depth: "),
        ({"depth": 4}, "depth: "),
        ({"width": 0}, "width: "),
        ({"train_size": 0}, "train_size: "),
        ({"weighting": "automl"}, "tasks: "),
        ({"batch_norm": "both"}, "unknown batch_norm 'both': choose from per-task, joint, all"),
        ({"device": "mps"}, "unknown device 'mps': choose from auto, cpu, cuda"),
        ({"device": "cdua"}, "unknown device 'cdua': did you mean 'cuda'?"),
        ({"precision": "a\nb"}, "unknown precision"),
        ({"precision": "x" * 9999}, "unknown precision"),
        ({"tasks": ["Rotation"]}, "did you mean 'rotation'?"),
        ({"tasks": ["../rotation"]}, "unknown task '../rotation'"),
        ({"tasks": ["bir", "bir"]}, "named twice"),
        ({"task_options": {5: {}}}, "unknown task"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    assert message in refusal(lambda: Config(**options))


def test_tasks_have_to_be_known_only_where_a_run_is_configured() -> None:
    for options in ({"tasks": ["rotaton"]}, {"task_options": {"rotaton": {}}}):
        assert "did you mean 'rotation'?" in refusal(lambda o=options: make_config(overrides=o))  # type: ignore[misc]
        assert Config(**options).to_dict()  # type: ignore[arg-type]


def test_settings_at_the_border_are_taken() -> None:
    config = Config(momentum=0, nesterov=False, min_lr=1, warmup_epochs=0, train_size=None, lr=1, seed=2**62)
    assert (config.lr, config.seed) == (1, 2**62)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch: 3", "unknown option 'epoch': did you mean 'epochs'?"),
        ("lambda: 3", "initial_lambda"),
        ("zzzzz: 3", "choose from dataset, tasks"),
        ("5: 3", "unknown option 5"),
        ("null: 3", "unknown option None"),
        ("yes: 3", "unknown option True"),
        ("? !!int 0x" + "f" * 9999 + "\n: 3", "unknown option a huge number"),
        ("? 0x" + "f" * 9999 + "\n: 3", "unknown option '0xfff"),
        (f"? {'x' * 200}\n: 3", "unknown option"),
        ("? [1, 2]\n: 3", "is not plain YAML"),
        ("- epochs: 3", "got a list"),
        ("epochs", "got a str"),
        ("5", "got a int"),
        ("epochs: [", "line 1 is not plain YAML"),
        ("epochs: 3\nlr: {", "line 2 is not plain YAML"),
        ("epochs: 3\n---\nepochs: 4", "is not plain YAML"),
        ("epochs: *missing", "undefined alias"),
        ("epochs: !!python/object/apply:os.system ['touch pwned']", "constructor for the tag"),
        ("epochs: !!python/name:os.system", "constructor for the tag"),
        ("!!python/object/new:type {args: [a, [], {}]}", "constructor for the tag"),
        ("epochs: !!int ''", "is not plain YAML"),
        ("epochs: !!float ''", "is not plain YAML"),
        ("epochs: !!bool maybe", "is not plain YAML"),
        ("epochs: !!timestamp soon", "is not plain YAML"),
        ("epochs: 2020-13-45", "is not plain YAML"),
        ("epochs: " + "9" * 5000, "is not plain YAML"),
        ("epochs: " + ":".join(["59"] * 400) + ".5", "expected a whole number"),
        ("epochs: !!float " + ":".join(["59"] * 400) + ".5", "is not plain YAML"),
        ("epochs: !!binary '*'", "expected a whole number"),
        ("[" * 5000, "is not plain YAML"),
        ("{a: " * 4000, "is not plain YAML"),
        ("a: &a [*a]\nlr: *a", "unknown option 'a'"),
        ("lr: &a [*a]", "lr: expected a number, got a list"),
        ("tasks: &a [*a]", "tasks: expected a list of names"),
        (
            "task_options: &a {bir: *a}",
            "task_options: expected options of 'bir' such as {sigma: 1.5}, each a number",
        ),
        (b"\x00\x01\x02", "is not plain YAML"),
        (b"\xff\xfe\xfd", "is not plain YAML"),
        (b"\x80abc", "is not plain YAML"),
        (bytes(range(256)) * 20, "is not plain YAML"),
        ("dataset: \x1b[31m", "is not plain YAML"),
        (b"PK\x03\x04" + bytes(200), "is not plain YAML"),
        (b"a" * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_files_that_are_no_configuration(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = written(tmp_path, content)
    text = refusal(lambda: make_config(file=file))
    assert message in text
    assert list(tmp_path.iterdir()) == [file], "no code may run"
    assert not Path("pwned").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(lambda: make_config(file=tmp_path / "none.yaml"))
    assert "directory" in refusal(lambda: make_config(file=tmp_path))


@pytest.mark.parametrize("option", ["lr", "tasks", "task_options", "dataset", "epochs", "weighting"])
def test_an_alias_bomb_is_refused_at_once(option: str, folder: Path) -> None:
    lines = ["lr: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    bomb = "\n".join(lines).replace("lr: &a0", "k0: &a0") + f"\n{option}: *a11\n"
    began = time.process_time()
    # Nested in the option's own value, so that no other key is refused first.
    nested = "&a0 [x, x, x]"
    for i in range(1, 25):
        nested = f"&a{i} [{nested}, *a{i - 1}, *a{i - 1}]"
    for text in (
        bomb,
        f"{option}: {nested}",
        f"{option}: {{bir: {nested}}}",
        f"{option}: {{bir: {{sigma: {nested}}}}}",
    ):
        refusal(lambda text=text: make_config(file=written(folder, text)))  # type: ignore[misc]
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: " + "9" * 16_000 + "x", "lr: expected a number"),
        ("lr: " + "9" * 16_000 + ".", "lr: expected"),
        ("{" + ",".join(f"a{i}" for i in range(2500)) + "}", "a mapping has more than 200 entries"),
        ("lr: {" + ",".join(f"a{i}" for i in range(2500)) + "}", "a mapping has more than 200 entries"),
        ("[" * 16_000, "is not plain YAML"),
        ("{" * 16_000, "is not plain YAML"),
    ],
    ids=range(6),
)
def test_small_files_that_would_take_long(content: str, message: str, folder: Path) -> None:
    began = time.process_time()
    assert message in refusal(lambda: make_config(file=written(folder, content)))
    assert time.process_time() - began < 2


def test_merges_of_merges_are_refused_at_once(folder: Path) -> None:
    lines = ["task_options: {a0: &a0 {x: 1, y: 2}"]
    lines += [f"  , a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    began = time.process_time()
    message = refusal(lambda: make_config(file=written(folder, "\n".join([*lines, "}"]))))
    # PyYAML 6.0.4 and newer merge without repeating, and it is the names that do not fit.
    assert "a mapping has more than 200 entries" in message or "unknown task 'a0'" in message
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "content",
    [
        "lr: !!int '\\e[31m'", 'lr: !!int "\\e[31m\\u202e"', 'lr: !!float "\\e[31m"', 'lr: !!bool "\\e"',
        '"\\e[31m\\n": 1', 'precision: "\\e[31m"', 'tasks: ["\\e[31m"]', 'task_options: {"\\e[31m": {}}',
        "lr: *\u202e", "lr: !\u202e 5", "%TAG ! \u202e\n---\na", "\u202e: 5", 'a: {"\\e": 1, "\\e": 2}',
    ],
)  # fmt: skip
def test_nothing_reaches_the_terminal_raw(content: str, folder: Path) -> None:
    assert refusal(lambda: make_config(file=written(folder, content))).replace(str(folder), "").isprintable()


# --- Round trips and fuzzing ----------------------------------------------------------------------------

positive = st.floats(1e-9, 1e9)
not_negative = st.just(0.0) | positive | st.integers(0, 10**9)
configs = st.builds(
    Config,
    dataset=st.text(max_size=20) | st.sampled_from(["1e5", "5e-3", "010", "1:30", ".inf", "no", "1_0"]),
    tasks=st.lists(st.sampled_from(list(TASKS)), min_size=1, unique=True),
    weighting=st.sampled_from(WEIGHTINGS),
    epochs=st.integers(1, 10**9),
    batch_size=st.integers(2, 10**6),
    train_size=st.none() | st.integers(1, 10**9),
    lr=st.floats(0.1, 1e6),
    min_lr=st.floats(0, 0.1),
    momentum=st.floats(1e-12, 1, exclude_max=True),
    nesterov=st.booleans(),
    weight_decay=not_negative,
    initial_lambda=not_negative,
    meta_lr=not_negative,
    meta_batch_size=st.integers(2, 10**6),
    lookahead_scale=not_negative,
    warmup_epochs=st.integers(0, 100),
    validation_images=st.integers(1, 9999),
    depth=st.integers(1, 30).map(lambda n: 6 * n + 4),
    width=st.integers(1, 20),
    batch_norm=st.sampled_from(["per-task", "joint", "all"]),
    task_options=st.dictionaries(
        st.sampled_from(list(TASKS)),
        st.dictionaries(st.sampled_from(["scale", "sigma", "hidden"]), positive | st.booleans()),
    ),
    task_share=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 2**62),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    precision=st.sampled_from(["float32", "tf32", "bfloat16"]),
)


@settings(max_examples=60, deadline=None)
@given(configs)
def test_yaml_round_trip(folder: Path, config: Config) -> None:
    file = written(folder, config.to_yaml())
    assert make_config("quick", file) == config
    assert yaml.safe_load(config.to_yaml()).keys() == {option.name for option in dataclasses.fields(Config)}


def check_file(folder: Path, content: str | bytes) -> None:
    """Whatever a file holds, reading it gives options or a refusal of one line."""
    file = written(folder, content)
    refused = ""
    try:
        assert isinstance(read_config_file(file), dict)
        config = make_config(file=file)
        build_tasks(config.tasks, config.task_options)
    except UserError as error:
        refused = str(error)
    assert len(refused.splitlines()) == bool(refused)
    if not refused:
        assert make_config(file=written(folder, config.to_yaml())) == config


names = [option.name for option in dataclasses.fields(Config)]
tokens = [
    *names, *TASKS, ": ", "\n", "\n  ", "\n- ", "{", "}", "[", "]", ", ", "? ", "&a ", "*a", "!!int ",
    "!!float ", "!!bool ", "!!str ", "!!binary ", "!!timestamp ", "!!set ", "!!omap ", "!!pairs ",
    "!!null ", "!!python/tuple ", "! ", "<<: ", "= ", "1e-6", "-.inf", ".nan", "0x_", "0b", "1:30", "1_0",
    "''", '"', "'", "~", "on", "2020-01-01", "|\n ", ">\n ", "%YAML 1.1\n", "---", "...", "#", "\t", "é",
    "\\x", "{sigma: 2}", "true", "5",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(tokens), max_size=14).map("".join))
@example("lr: 1:1.5e400")
def test_fuzz_with_pieces_of_yaml(folder: Path, content: str) -> None:
    check_file(folder, content)


@settings(max_examples=80, deadline=None)
@given(st.text() | st.binary())
def test_fuzz_with_anything(folder: Path, content: str | bytes) -> None:
    check_file(folder, content)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(names), plain)
def test_fuzz_with_values_of_any_kind(folder: Path, name: str, value: object) -> None:
    check_file(folder, yaml.safe_dump({name: value}))


def test_an_option_given_twice(folder: Path) -> None:
    with pytest.raises(UserError, match=r"line 1.*'epochs' is given twice"):
        read_config_file(written(folder, "epochs: 3\nseed: 1\nepochs: 4\n"))
    merged = "task_options: {ir: &a {scale: 2}, bir: {<<: *a, sigma: 1}, inpaint: {<<: *a, scale: 3}}\n"
    options = read_config_file(written(folder, merged))["task_options"]
    assert options["bir"] == {"scale": 2, "sigma": 1}
    assert options["inpaint"] == {"scale": 3}
