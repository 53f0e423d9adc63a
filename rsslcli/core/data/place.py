"""The default folder of prepared data sets. Imports nothing heavy."""

import os
from pathlib import Path


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
