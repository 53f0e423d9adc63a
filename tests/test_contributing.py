"""The steps of CONTRIBUTING.md work: followed in a copy of the package, each example passes its test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The code block that follows a marker in CONTRIBUTING.md."""
    found = re.search(rf"^<!-- {marker} -->\n```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert found, marker
    return found[1]


def insert(path: Path, after: str, line: str) -> None:
    """Insert `line` into a file behind the first line that holds `after`."""
    before, found, rest = path.read_text(encoding="utf-8").partition(after)
    assert found, f"{path} has no {after!r}"
    rest_of_line, _, rest = rest.partition("\n")
    path.write_text(f"{before}{after}{rest_of_line}\n{line}\n{rest}", encoding="utf-8")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "rsslcli", tmp_path / "rsslcli", ignore=ignored))


def run_test(package: Path, name: str, test: str) -> None:
    file = package.parent / f"test_{name}.py"
    file.write_text(test, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        cwd=package.parent,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_task_is_added_as_described(package: Path) -> None:
    shutil.copy(ROOT / "docs" / "examples" / "flip.py", package / "core" / "tasks" / "flip.py")
    line = re.search(r'`("flip": "[^"]*")`', TEXT)
    assert line
    insert(package / "core" / "tasks" / "registry.py", "TASKS = {", f"    {line[1]},")
    run_test(package, "flip", block("add a task"))


def test_a_corruption_is_added_as_described(package: Path) -> None:
    corruptions = package / "core" / "corruptions"
    with (corruptions / "digital.py").open("a", encoding="utf-8") as module:
        module.write(block("add a corruption"))
    names = corruptions / "names.py"
    names.write_text(names.read_text(encoding="utf-8").replace("EXTRA = (", 'EXTRA = ("quantize", '))
    row = re.search(r'`("quantize": .*,)`', TEXT)
    assert row
    for size in (32, 64, 224):
        insert(corruptions / "parameters.py", f"TABLE_{size}: ", f"    {row[1]}")
    run_test(package, "quantize", block("test a corruption"))
