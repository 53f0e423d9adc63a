"""Locks on folders."""

from pathlib import Path

import pytest

from rsslcli.core.errors import RsslError, UserError
from rsslcli.core.locks import locked


def test_a_second_one_is_refused_until_the_first_is_out(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="in use by another rssl"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_whoever_waits_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    held = locked(tmp_path)
    held.__enter__()

    def release(text: str) -> None:
        told.append(text)
        held.__exit__(None, None, None)

    with locked(tmp_path, wait=True, note=release):
        assert told == [f"waiting for another rssl that uses {tmp_path}"]
    with locked(tmp_path, wait=True, note=told.append):
        assert len(told) == 1


def test_a_folder_made_for_the_lock_alone_goes_again(tmp_path: Path) -> None:
    with locked(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    with locked(tmp_path / "full"):
        (tmp_path / "full" / "file").touch()
    assert (tmp_path / "full" / "file").exists()


def test_data_that_cannot_be_written_can_be_read(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # as in a folder of somebody else, no file can be opened there
    with locked(tmp_path, wait=True):
        pass
    with pytest.raises(RsslError, match="cannot write into"), locked(tmp_path):
        pass
