"""A short run of the fuzzing script: every reader takes damaged and hostile input as it should."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_readers_take_or_refuse_whatever_comes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--inputs", "60", "--save", str(tmp_path / "problems")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not (tmp_path / "problems").exists()
