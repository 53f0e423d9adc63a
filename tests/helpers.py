"""Run the commands as a person does: through the installed `rssl`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from rsslcli.app import main

RSSL = shutil.which("rssl", path=str(Path(sys.executable).parent)) or shutil.which("rssl")
#: Options of a run that takes seconds, on the data set of the fixture `home`.
TINY = "--dataset mine --depth 10 --width 1 --batch-size 16"


def rssl(arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    assert RSSL, "the project is not installed: pip install -e ."
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RSSL_")}
    return subprocess.run(
        [RSSL, *arguments.split()],
        cwd=cwd,
        env=clean | {"COLUMNS": "100", "RSSL_DATA_DIR": "data"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeed(arguments: str, cwd: Path) -> str:
    result = rssl(arguments, cwd)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def refuse(arguments: str, cwd: Path, match: str, code: int = 2) -> None:
    """The command ends with `code` and one line on stderr that matches."""
    result = rssl(arguments, cwd)
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("rssl: error: ")
    assert re.search(match, lines[0]), lines[0]


def on_a_terminal(
    command: list[str], environment: dict[str, str], *, cwd: Path | None = None, interrupt_at: str = ""
) -> tuple[int, str]:
    """The exit code of a command, and what it prints on a terminal, where Ctrl-C follows `interrupt_at`."""
    main_end, terminal = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=cwd,
        env=clean | {"TERM": "xterm-256color"} | environment,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509
    ) as process:
        os.close(terminal)
        shown = b""
        with (
            contextlib.suppress(OSError),
            os.fdopen(main_end, "r+b", buffering=0) as stream,
        ):  # EIO at its end
            while part := stream.read(65536):
                shown += part
                if interrupt_at and interrupt_at.encode() in shown:
                    stream.write(b"\x03")
                    interrupt_at = ""
    return process.returncode, shown.decode()


def _take_terminal() -> None:
    """Let Ctrl-C on the terminal at stdin reach this process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Here:
    """Runs `rssl` in this process, where the installed command would add nothing but a second or two."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, arguments: str) -> tuple[int, str, str]:
        """The exit code, stdout and stderr."""
        self._monkeypatch.setattr("sys.argv", ["rssl", *arguments.split()])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = self._capsys.readouterr()
        return int(str(caught.value.code)), out, err

    def succeed(self, arguments: str) -> str:
        """What the command prints on stdout."""
        code, out, err = self(arguments)
        assert code == 0, err
        return out

    def refuse(self, arguments: str, match: str, code: int = 2) -> str:
        """The command ends with `code` and one line on stderr that matches. Returns its stdout."""
        found, out, err = self(arguments)
        assert found == code, err
        assert re.fullmatch(r"rssl: error: [^\n]+\n", err)
        assert re.search(match, err.strip())
        return out
