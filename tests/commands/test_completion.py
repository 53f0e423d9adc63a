"""What <TAB> offers, as bash and zsh ask for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers import RSSL, Here


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tr", ["train-single", "train-automl"]),
        ("train-automl --pre", ["--preset", "--precision"]),
        ("train-automl --tasks rotation,b", ["rotation,bir"]),
        ("train-automl --tasks rotation,ir,r", ["rotation,ir,rgb"]),
        ("train-single --task no", ["none"]),
        ("train-automl --preset qu", ["quick"]),
        ("train-automl --device c", ["cpu", "cuda"]),
        ("train-automl --batch-norm ", ["per-task", "joint", "all"]),
        ("train-automl --precision tf", ["tf32"]),
        ("train-automl --weighting u", ["uncertainty", "upgrad"]),
        ("train-automl --augment a", ["augmix"]),
        ("train-automl --automl-variants relative,c", ["relative,cosine", "relative,constant-sum"]),
        ("eval-c --precision bf", ["bfloat16"]),
        ("eval-c x --adapt ", ["bn", "tent", "tasks"]),
        ("eval-c x --adapt bn --stream s", ["shuffled", "sorted"]),
        ("train-automl --validation-corruptions ", ["all", "extra"]),
        ("train-automl --dataset mi", ["mine"]),
        ("train-automl --data-dir nowhere --dataset ", ["shapes"]),
        ("eval-c x --dataset m", ["mine"]),
        ("eval-c x --corruptions fog,spec", ["fog,speckle_noise"]),
        ("eval-c x --severity 1,2,", ["1,2,3", "1,2,4", "1,2,5"]),
        ("eval-c do", ["done"]),
        ("eval-c ./do", ["./done"]),
        ("eval-c w.p", []),
        ("train-automl --output do", ["done"]),
        ("prepare-data --dataset cifar", ["cifar10", "cifar100"]),
        ("visualize-tasks --tasks col", ["color"]),
        ("visualize-tasks --checkpoint do", ["done"]),
        ("visualize-corruptions --corruptions fog,sno", ["fog,snow"]),
    ],
)
def test_completion(here: Here, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]) -> None:
    Path("done").mkdir(exist_ok=True)
    Path("done", "config.yaml").touch()
    words = f"rssl {typed}"
    monkeypatch.setenv("_RSSL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    code, out, err = here("")
    assert (code, out.split(), err) == (0, offered, "")
    # zsh gets the same, with explanations where there are some.
    monkeypatch.setenv("_RSSL_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
    code, out, err = here("")
    assert (code, err) == (0, "")
    assert out.strip() == "_files" if not offered else all(f'"{value}"' in out for value in offered)


def test_completion_in_bash(home: Path) -> None:
    """Installed as a person does, into a home of its own, then asked by bash itself."""
    script = """
    rssl --install-completion
    source ~/.bashrc
    COMP_WORDS=(rssl train-automl --tasks rotation,b) COMP_CWORD=3
    _rssl_completion rssl
    echo "${COMPREPLY[@]}"
    complete -p rssl
    """
    assert RSSL
    environment = {"HOME": str(home / "person"), "PATH": f"{Path(RSSL).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bash completion installed in" in result.stdout
    assert result.stdout.splitlines()[-2:] == ["rotation,bir", "complete -o default -F _rssl_completion rssl"]
