"""`rssl demo` as a person runs it, at a size of seconds."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from helpers import Here

from rsslcli.commands import demo as command
from rsslcli.core.data import loading, shapes
from rsslcli.core.study import demo


@pytest.fixture
def small(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    monkeypatch.setattr(shapes, "TRAIN_SIZE", 64)
    monkeypatch.setattr(shapes, "TEST_SIZE", 30)
    monkeypatch.setattr(loading, "EMBEDDED_LIMIT", 10)
    monkeypatch.setattr(demo, "_COMMON", {"epochs": 1, "train_size": 32, "batch_size": 16})
    monkeypatch.chdir(tmp_path)
    return here


def test_one_command_compares_two_classifiers(small: Here, tmp_path: Path) -> None:
    code, out, err = small("demo")
    assert code == 0, err
    assert err.splitlines()[-1] == "next: rssl report demo"
    *table, conclusion, remark, on_tasks = out.splitlines()
    assert all(len(line) <= 80 for line in out.splitlines())
    assert re.fullmatch("accuracy in %: 30 clean test images; 10 under 19 corruptions *", table[0])
    number = r"-?\d+\.\d\d"
    rows = [re.findall(rf"baseline|augmix|[+−]?{number}|–", line) for line in table[4:6]]
    assert [row[0] for row in rows] == ["baseline", "augmix"]
    assert rows[0][-1] == "–"
    assert len(rows[1]) == 7
    low, high = (float(cell.replace("−", "-")) for cell in rows[1][-2:])
    gain = float(rows[1][2]) - float(rows[0][2])
    assert float(rows[1][4].replace("−", "-")) == pytest.approx(gain, abs=0.011)
    assert low <= gain + 0.01
    assert gain - 0.01 <= high
    assert re.fullmatch(
        r"On corrupted images augmix is (level with|\d+\.\d points (above|below)) the baseline\.", conclusion
    )
    assert remark.startswith("The interval is over test images")
    assert on_tasks.startswith("Tasks are not shown: ")

    code, again, err = small("demo")
    assert (code, again) == (0, out)
    assert err == "next: rssl report demo\n"
    small.refuse("demo --seed 1", "with another seed .* choose another --output")
    assert "Table 1" in small.succeed("report demo")
    assert set(small.succeed("list demo").split()) >= {"baseline", "augmix"}


@pytest.mark.parametrize(
    ("interval", "said"),
    [((0.0631, 0.05, 0.08), "6.3 points above"), ((-0.1, -0.2, -0.01), "10.0 points below"),
     ((0.01, -0.01, 0.03), "level with"), ((0.0, 0.0, 0.0), "level with")],
)  # fmt: skip
def test_the_conclusion_is_computed(interval: tuple[float, float, float], said: str) -> None:
    rows = [demo.Row("baseline", 0.9, 0.6, None), demo.Row("augmix", 0.9, 0.7, demo.Difference(*interval))]
    assert command._conclusion(rows).startswith(f"On corrupted images augmix is {said} the baseline.\n")


def test_an_interrupted_demo_says_how_to_go_on(small: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(command.TrainingView):
        def __call__(self, event: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(command, "TrainingView", Told)
        code, _, err = small("demo --output d --seed 2")
    assert code == 130
    assert "to continue: rssl demo --output d --seed 2" in err.splitlines()[-1]
    assert "next: rssl report d" in small("demo --output d --seed 2")[2]
