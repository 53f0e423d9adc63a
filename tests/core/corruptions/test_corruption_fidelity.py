"""Against the original generator's own output, where the file with it lies beside the repository."""

import runpy
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
GOLDEN = REPOSITORY.parent / "shared" / "data" / "cifar10-c-golden.npz"


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"needs the original generator's output in {GOLDEN}")
def test_every_target_is_met(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["corruption_fidelity", str(GOLDEN)])
    benchmark = runpy.run_path(str(REPOSITORY / "benchmarks" / "corruption_fidelity.py"))
    code = benchmark["main"]()
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert printed.count("gaussian_noise") == 3
    assert "**miss**" not in printed
