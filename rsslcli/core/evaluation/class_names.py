"""Matching the scores of a classifier with the classes of a data set, by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from torch import nn

from rsslcli.core.errors import UserError, short_repr
from rsslcli.core.networks.network import Network

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
        UserError: the classifier tells other classes apart, carries no names and the classes are not those
            of CIFAR-10, or does not have one distinct name per score.
    """
    same_count = f"the classifier has {outputs} outputs but '{dataset}' has {len(classes)} classes"
    if by_position:
        if outputs != len(classes):
            raise UserError(f"{same_count}: they cannot be matched by position")
        if scored and tuple(scored) != tuple(classes):
            ours = list_names(scored, classes)
            note(f"classes matched by position: the classifier's {ours} as {list_names(classes, scored)}")
        return tuple(range(outputs))
    if not scored and outputs == len(CIFAR10) and {*classes} == {*CIFAR10}:
        note("the classifier carries no class names: its scores are taken in the order of CIFAR-10's classes")
        scored = CIFAR10
    if not scored:
        if outputs != len(classes):
            raise UserError(f"{same_count}: choose the data set that it was trained for")
        raise UserError(
            f"the classifier carries no class names, and '{dataset}' has {list_names(classes)}: if its "
            "scores are in that order, match them by position (`classes_by_position`)"
        )
    check_names(scored, outputs)
    # A file system may spell the same name in two ways, and older data sets kept its spelling.
    position = {unicodedata.normalize("NFC", name): index for index, name in enumerate(scored)}
    wanted = [unicodedata.normalize("NFC", name) for name in classes]
    if {*position} != {*wanted}:
        advice = (
            " or, if its scores are in that order, match them by position (`classes_by_position`)"
            if outputs == len(classes)
            else ""
        )
        raise UserError(
            f"the classifier has the classes {list_names(scored, classes)}, but '{dataset}' has "
            f"{list_names(classes, scored)}: choose the data set that it was trained on{advice}"
        )
    return tuple(position[name] for name in wanted)


def check_names(names: Sequence[str], outputs: int) -> None:
    """Raise UserError unless there is one distinct name for each of a classifier's scores."""
    if len(names) != outputs or len({*names}) != outputs:
        raise UserError(
            f"the classifier gives {outputs} scores, and its class names are {list_names(names)}: "
            "give each score a different name"
        )


def networks_in(model: nn.Module) -> list[Network]:
    """The networks of ours that a model is or holds, whatever wraps them."""
    return [module for module in model.modules() if isinstance(module, Network)]


def carried_names(model: nn.Module, outputs: int) -> tuple[str, ...]:
    """The names of the classes that the networks of ours in a model carry; empty where there are none.

    A network with names for another number of scores than `outputs` is passed over: what the model gives are
    the scores of something behind it, such as a new head.

    Raises:
        UserError: they carry different names, or the same in different orders, or only some carry any.
    """
    found = {network.classes for network in networks_in(model) if len(network.classes) in (0, outputs)}
    if len(found) > 1:
        shown = " and ".join(list_names(names) or "none" for names in sorted(found))
        raise UserError(
            f"the model holds several classifiers, whose class names are {shown}: pass those of the model's "
            "own scores (`classes`)"
        )
    return found.pop() if found else ()


def list_names(names: Sequence[str], others: Sequence[str] = ()) -> str:
    """Class names for a message: all of a few, else some and the count, those not in `others` first."""
    if len(names) > _MAX_NAMED:
        known = {*others}
        names = sorted(names, key=lambda name: name in known)
    shown = ", ".join(map(short_repr, names[:_MAX_NAMED]))
    return shown if len(names) <= _MAX_NAMED else f"{shown}, … ({len(names)} classes)"
