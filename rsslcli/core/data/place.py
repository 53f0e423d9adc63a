"""The folder of prepared data sets, and the command that prepares one there. Imports nothing heavy."""

import os
from pathlib import Path

from rsslcli.core.errors import rssl_command


def default_data_dir() -> Path:
    """The default folder of prepared data sets: the environment variable RSSL_DATA_DIR, if set.

    Otherwise `data` in the current folder if it holds a prepared data set, which keeps a project's data with
    the project; else `rssl` in the user's cache ($XDG_CACHE_HOME or ~/.cache), the same from every folder.
    """
    local = Path("data")
    if named := os.environ.get("RSSL_DATA_DIR"):
        return Path(named)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return local if next(local.glob("*/train.npz"), None) else cache / "rssl"
    except (OSError, RuntimeError):  # a folder that cannot be read; a user without a home
        return local


def prepare_command(dataset: str, data_dir: Path, **options: object) -> str:
    """The command that prepares a data set in `data_dir`, which it names only if it is not the default."""
    place = None if data_dir == default_data_dir() else data_dir
    return rssl_command("prepare-data", dataset=dataset, **options, data_dir=place)
