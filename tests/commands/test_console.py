"""What the engine says in its own words reaches the terminal in those of the command line."""

from __future__ import annotations

import pytest

from rsslcli.commands.console import spell_options
from rsslcli.core.errors import rssl_command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lower `meta_lr` or `initial_lambda`", "lower --meta-lr or --lambda"),
        ("match them by position (`classes_by_position`)", "match them by position (--classes-by-position)"),
        ("its `task_options` are no option", "its `task_options` are no option"),
        ("run `rssl prepare-data --dataset mine`", "run `rssl prepare-data --dataset mine`"),
    ],
)
def test_parameters_in_messages_become_options(text: str, expected: str) -> None:
    assert spell_options(text) == expected


def test_a_command_is_spelled_from_keywords_and_quoted_for_the_shell() -> None:
    command = rssl_command(
        "prepare-data", dataset="mine", source="a b", keep_archive=True, limit=None, resize=False
    )
    assert command == "rssl prepare-data --dataset mine --source 'a b' --keep-archive"
