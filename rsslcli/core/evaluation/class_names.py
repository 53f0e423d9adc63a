"""Matching the scores of a classifier with the classes of a data set, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rsslcli.core.errors import UserError, short_repr

#: The classes of CIFAR-10 in the usual order of a classifier's scores, which is alphabetical.
CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_MAX_NAMED = 12


def match_classes(
    scored: Sequence[str],
    outputs: int,
    classes: Sequence[str],
    dataset: str,
    *,
    by_position: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[int, ...]:
    """Find the index of the score of each class of a data set.

    Args:
        scored: the names of the classes in the order of the classifier's scores; empty if it carries none.
        outputs: number of its scores.
        classes: the names of the data set's classes, in the order of its labels.
        dataset: the data set's name, for messages.
        by_position: take score i for class i, whatever the names.
        note: called with one line if the match is not by name.

    Returns:
        For each label of the data set, the index of its score.

    Raises:
        UserError: the classifier has other classes, or carries no names and the classes are not those of
            CIFAR-10.
    """
    same_count = f"the classifier has {outputs} outputs but '{dataset}' has {len(classes)} classes"
    if by_position:
        if outputs != len(classes):
            raise UserError(f"{same_count}: they cannot be matched by position")
        if scored and tuple(scored) != tuple(classes):
            note(f"classes matched by position: the classifier's {_list(scored)} as {_list(classes)}")
        return tuple(range(outputs))
    if not scored and outputs == len(CIFAR10) and {*classes} == {*CIFAR10}:
        note("the classifier carries no class names: its scores are taken in the order of CIFAR-10's classes")
        scored = CIFAR10
    if not scored:
        if outputs != len(classes):
            raise UserError(f"{same_count}: choose the data set that it was trained for")
        raise UserError(
            f"the classifier carries no class names, and '{dataset}' has {_list(classes)}: if its scores are "
            "in that order, match them by position (`classes_by_position`)"
        )
    if {*scored} != {*classes}:
        raise UserError(
            f"the classifier has the classes {_list(scored)}, but '{dataset}' has {_list(classes)}: choose "
            "the data set that it was trained on or, if only the names differ, match them by position "
            "(`classes_by_position`)"
        )
    position = {name: index for index, name in enumerate(scored)}
    return tuple(position[name] for name in classes)


def _list(names: Sequence[str]) -> str:
    """Format class names for a message: all if they are few, else the first ones and the count."""
    shown = ", ".join(map(short_repr, names[:_MAX_NAMED]))
    return shown if len(names) <= _MAX_NAMED else f"{shown}, … ({len(names)} classes)"
