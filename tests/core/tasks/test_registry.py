"""The registry: custom tasks from a file, a package or Python, and the one-line refusals."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rsslcli.core.config import JSD, WEIGHTINGS, Config
from rsslcli.core.errors import UserError
from rsslcli.core.presets import make_config
from rsslcli.core.tasks import registry
from rsslcli.core.tasks.base import Task
from rsslcli.core.tasks.check import check_task
from rsslcli.core.tasks.registry import build_tasks, check_task_names

FLIP = Path(__file__).parents[3] / "docs" / "examples" / "flip.py"
HEAD = "from dataclasses import dataclass, field\nfrom rsslcli.core.tasks.base import Task\n"
METHODS = "    def head(self, f): ...\n    def transform(self, i, r): ...\n    def loss(self, o, t): ...\n"


@pytest.fixture(autouse=True)
def packages_are_looked_up_anew() -> Iterator[None]:
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


def written(folder: Path, text: str, name: str = "my.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        registry.load_task_file(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert registry.custom_tasks() == [], "what is refused leaves nothing behind"
    return str(caught.value)


def test_a_file_makes_its_tasks_known_in_this_process() -> None:
    with pytest.raises(UserError, match=r"unknown task 'flip'.*`task_file`"):
        make_config(overrides={"tasks": ["flip"]})
    before = sorted(FLIP.parent.iterdir())
    assert registry.load_task_file(FLIP) == registry.load_task_file(FLIP) == ["flip"]
    assert sorted(FLIP.parent.iterdir()) == before, "nothing is written beside the file"
    config = make_config(overrides={"tasks": ["rotation", "flip"], "task_options": {"flip": {"scale": 2}}})
    flip = build_tasks(config.tasks, config.task_options)["flip"]
    assert (flip.title, flip.scale) == ("Upside down", 2)
    with pytest.raises(UserError, match="did you mean 'flip'"):
        check_task_names(["flipp"])
    check_task(flip)


def test_several_classes_bases_and_options(tmp_path: Path) -> None:
    text = HEAD + (
        "from rsslcli.core.tasks.rotation import Rotation\n"
        "class Base(Task):\n    def head(self, f): ...\n    def transform(self, i, r): ...\n"
        "class _Hidden(Task):\n    pass\n"
        "@dataclass(frozen=True)\nclass Shift(Base):\n    scale: float = 2.0\n    distance: float = 4.0\n"
        "    def loss(self, o, t): ...\n"
        "class Turn2(Rotation):\n    title = 'Turn'\n"
    )
    assert registry.load_task_file(written(tmp_path, text)) == ["shift", "turn2"]
    built = build_tasks(["shift", "turn2"], {"shift": {"distance": 6}})
    assert vars(built["shift"]) == {"scale": 2.0, "distance": 6}
    with pytest.raises(UserError, match="task 'shift' has no option 'far': it takes scale, distance"):
        build_tasks(["shift"], {"shift": {"far": 6}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"my\.py: SyntaxError: .* \(.*my\.py, line 1\)"),
        ("a = 1\n\nb = a + None\n", r"my\.py: TypeError: .* \(.*my\.py, line 3\)"),
        ("import nothing_of_this_name\n", r"ModuleNotFoundError: .*nothing_of_this_name.*line 1\)"),
        (
            "def f():\n    raise ValueError('a\\nb\\x1b[31m')\n\nf()\n",
            r"ValueError: a b\\x1b\[31m .*line 2\)",
        ),
        ("import sys\nsys.exit('bye')\n", r"SystemExit: bye .*line 2\)"),
        ("x = '\0'\n", "my.py: "),
        ("# -*- coding: nothing -*-\n", "SyntaxError"),
        ("x = 1\n", "defines no task: derive a class from"),
        ("from rsslcli.core.tasks.rotation import Rotation\n", "defines no task"),
        (HEAD + "class _Flip(Task):\n" + METHODS, "defines no task"),
        (
            HEAD + "class Flip(Task):\n    def head(self, f): ...\n",
            r"my\.py, line 3: class Flip has no method loss",
        ),
        (
            HEAD + "\n\nclass Rotation(Task):\n" + METHODS,
            r"my\.py, line 5: class Rotation: the name 'rotation' is",
        ),
        (HEAD + "class Main(Task):\n" + METHODS, "the name 'main' is taken"),
        (HEAD + "class Keys(Task):\n" + METHODS, "the name 'keys' is taken"),  # of ModuleDict
        (HEAD + "class Drehung°(Task):\n" + METHODS, "SyntaxError"),
        (HEAD + "class Überkopf(Task):\n" + METHODS, "'überkopf' cannot be a task's name"),
        (HEAD + f"class {'A' * 50}(Task):\n{METHODS}", "cannot be a task's name"),
        (
            HEAD + f"class Flip(Task):\n{METHODS}class FLIP(Task):\n{METHODS}",
            "another task is already named 'flip'",
        ),
        (HEAD + "class Flip(Task):\n    scale = 2.0\n" + METHODS, "'scale' needs @dataclass"),
        (HEAD + "class Flip(Task):\n    far: float = 2.0\n" + METHODS, "'far' needs @dataclass"),
        (
            HEAD + "@dataclass(frozen=True)\nclass Flip(Task):\n    far: str = 'a'\n" + METHODS,
            "needs a default: a n",
        ),
        (HEAD + "@dataclass\nclass Flip(Task):\n" + METHODS, r"TypeError: cannot inherit .* \(.*, line 3\)"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    found = refusal(written(tmp_path, text))
    assert re.search(message, found), found


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot read the task file" in refusal(tmp_path / "none.py")
    assert "cannot read the task file" in refusal(tmp_path)


def test_two_files_may_not_define_the_same_name(tmp_path: Path) -> None:
    first = written(tmp_path, HEAD + "class Flip(Task):\n" + METHODS, "a.py")
    second = written(tmp_path, HEAD + "class Flip(Task):\n" + METHODS, "b.py")
    registry.load_task_file(first)
    with pytest.raises(UserError, match=r"b\.py, line 3: .*another task is already named 'flip'"):
        registry.load_task_file(second)
    assert sys.modules[registry.load_custom_task("flip").__module__].__file__ == str(first)


def test_a_class_may_check_its_options(tmp_path: Path) -> None:
    text = HEAD + (
        "@dataclass(frozen=True)\nclass Shift(Task):\n    distance: float = 4.0\n"
        "    def __post_init__(self):\n        if self.distance > 9:\n"
        "            raise ValueError(f'distance {self.distance}:\\nabove 9')\n" + METHODS
    )
    registry.load_task_file(written(tmp_path, text))
    assert build_tasks(["shift"], {"shift": {"distance": 9}})
    with pytest.raises(UserError, match=r"^task_options of 'shift': distance 10: above 9$"):
        build_tasks(["shift"], {"shift": {"distance": 10}})


def test_from_python() -> None:
    from rsslcli.core.tasks.rotation import Rotation

    class Turn(Rotation):
        title = "one"

    assert registry.register_task(Turn) == "turn"
    assert registry.register_task(Turn, "other") == "other"
    again = type("Turn", (Rotation,), {"title": "two"})
    registry.register_task(again)  # as when a cell of a notebook runs again
    assert [task.title for task in build_tasks(["turn", "other"]).values()] == ["two", "one"]
    for name in ("rotation", "meta", "Turn", "a-b", ""):
        with pytest.raises(UserError, match=f"'{name}'"):
            registry.register_task(Turn, name)
    with pytest.raises(UserError, match="has no method head and no method loss and no method transform"):
        registry.register_task(Task)
    with pytest.raises(UserError, match="is not derived from"):
        registry.register_task(int)  # type: ignore[arg-type]


def test_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked up by name, imported when the name is used, and cannot replace ours."""
    (tmp_path / "my_tasks.py").write_text(FLIP.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "my_broken.py").write_text("raise ValueError('not today')\n")
    info = tmp_path / "my_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tasks\nVersion: 1.0\n")
    points = {
        "flip": "my_tasks:Flip", "rotation": "my_broken:Rotation", "broken": "my_broken:Flip",
        "gone": "my_tasks:Gone", "number": "my_tasks:torch", "keys": "my_tasks:Flip",
        "../up": "my_tasks:Flip",
    }  # fmt: skip
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[rssl.tasks]\n{lines}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry._installed.cache_clear()

    check_task_names(["rotation", "flip"])
    assert type(build_tasks(["rotation"])["rotation"]).__module__ == "rsslcli.core.tasks.rotation"
    assert not {"my_tasks", "my_broken"} & set(sys.modules), "a name alone imports nothing"
    with pytest.raises(UserError, match="did you mean 'flip'"):
        check_task_names(["flap"])
    with pytest.raises(UserError, match=r"unknown task '\.\./up'"):
        check_task_names(["../up"])
    try:
        assert build_tasks(["flip"], {"flip": {"scale": 3.0}})["flip"].title == "Upside down"
        for name, message in {
            "broken": "of the package my-tasks cannot be loaded: ValueError: not today",
            "gone": "of the package my-tasks cannot be loaded: AttributeError",
            "number": "of the package my-tasks is not derived from",
            "keys": "the name 'keys' is taken",
        }.items():
            with pytest.raises(UserError, match=message):
                build_tasks([name])
    finally:
        sys.modules.pop("my_tasks", None)


def test_a_file_comes_before_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("flip", "nothing_of_this_name:Flip", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_installed", lambda: {"flip": entry})
    monkeypatch.setattr(registry._installed, "cache_clear", lambda: None, raising=False)
    registry.load_task_file(FLIP)
    assert registry.custom_tasks() == ["flip"]
    assert build_tasks(["flip"])["flip"].title == "Upside down"


@pytest.mark.parametrize("name", ["my.py", "/tmp/my.py", "my:Flip", "../my", "os", "my_py"])
def test_what_a_run_has_left_runs_no_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that names a file, or anything else, only names an unknown task."""
    written(tmp_path, "from pathlib import Path\nPath('pwned').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for tasks, options in (([name], {}), (["rotation"], {name: {}})):
        with pytest.raises(UserError, match="unknown task"):
            make_config(overrides={"tasks": tasks, "task_options": options})
        with pytest.raises(UserError, match="unknown task"):
            build_tasks(tasks, options)
    assert not Path("pwned").exists()
    if registry.TASK_NAME.fullmatch(name):
        assert Config(tasks=(name,)).name == name
    else:
        with pytest.raises(UserError, match="unknown task"):
            Config(tasks=(name,))


def test_the_guide_shows_the_example() -> None:
    guide = (FLIP.parents[1] / "tasks.md").read_text(encoding="utf-8")
    assert f"```python\n{FLIP.read_text(encoding='utf-8')}```" in guide


def test_options_of_tasks_that_are_not_trained_must_fit_too() -> None:
    """Else a misspelled one is found only once the task is added."""
    for wrong, match in (
        ({"bir": {"sigmo": 1}}, "task 'bir' has no option 'sigmo'"),
        ({"rotatio": {}}, "unknown"),
    ):
        with pytest.raises(UserError, match=match):
            build_tasks(["ir"], wrong)
    assert list(build_tasks(["ir"], {"bir": {"sigma": 2}, "ir": {"scale": 3}})) == ["ir"]


def test_no_task_may_have_the_name_of_a_rule_for_the_weights() -> None:
    """Since λ, folders and rows of a study go by these names."""
    assert {*WEIGHTINGS, JSD, "main"} <= {*registry._RESERVED}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("    title = 5\n", "title: expected text, got 5"),
        ("    answers = (0, 1)\n", "answers: expected texts, got a tuple"),
        ("    answers = 'ab'\n", "answers: expected texts, got 'ab'"),
    ],
)
def test_texts_are_texts(change: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong_texts.py"
    name = change.split(maxsplit=1)[0]
    path.write_text(re.sub(rf"    {name} = .*\n", change, FLIP.read_text()).replace("Flip", "WrongTexts"))
    assert change in path.read_text()
    with pytest.raises(UserError, match=match):
        registry.load_task_file(path)


OPTIONS = """

class StrictFlip(BaseFlip):
    def __post_init__(self):
        if self.scale > 10:
            raise ValueError("scale is at most 10")


class OwnFlip(BaseFlip):
    def __init__(self, n):
        pass
"""


def test_options_are_checked_without_the_decorator_too(tmp_path: Path) -> None:
    path = tmp_path / "strict_tasks.py"
    path.write_text(FLIP.read_text().replace("Flip", "BaseFlip") + OPTIONS)
    assert {*registry.load_task_file(path)} >= {"strictflip", "ownflip"}
    build_tasks(["strictflip"], {"strictflip": {"scale": 9}})
    with pytest.raises(UserError, match="task_options of 'strictflip': scale is at most 10"):
        build_tasks(["strictflip"], {"strictflip": {"scale": 100}})
    with pytest.raises(UserError, match=r"task 'ownflip' cannot be made: .*options as fields of a dataclass"):
        build_tasks(["ownflip"])
