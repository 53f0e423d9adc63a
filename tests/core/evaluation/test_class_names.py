"""A score counts for the class that it was trained for, by name, in whatever order a data set has them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rsslcli.core.errors import UserError
from rsslcli.core.evaluation.class_names import CIFAR10, carried_names, match_classes
from rsslcli.core.networks.wide_resnet import WideResNet


def test_the_same_names_in_another_order_are_matched_by_name() -> None:
    score_of = match_classes(("cat", "dog", "ship"), 3, ("ship", "cat", "dog"), "mine")
    assert score_of == (2, 0, 1)
    labels = np.array([0, 1, 2, 0])  # ship, cat, dog, ship
    assert [("cat", "dog", "ship")[score] for score in np.array(score_of)[labels]] == [
        "ship",
        "cat",
        "dog",
        "ship",
    ]


@pytest.mark.parametrize(
    ("scored", "classes"),
    [
        (("cat", "dog"), ("kitten", "dog")),
        (("cat", "dog", "ship"), ("cat", "dog")),
        (("cat", "dog"), ("cat", "dog", "ship")),
    ],
)
def test_other_names_are_refused_and_both_lists_shown(
    scored: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        match_classes(scored, len(scored), classes, "mine")
    message = str(caught.value)
    assert f"has the classes {', '.join(map(repr, scored))}, " in message
    assert f"'mine' has {', '.join(map(repr, classes))}: " in message
    assert ("`classes_by_position`" in message) == (len(scored) == len(classes))


def test_long_lists_are_cut_in_messages() -> None:
    names = [f"class {number:03}" for number in range(100)]
    with pytest.raises(UserError) as caught:
        match_classes(names, 100, [*names[1:], "other"], "mine")
    message = str(caught.value)
    assert message.count("… (100 classes)") == 2
    assert "class 050" not in message


def test_of_long_lists_those_names_are_shown_that_differ() -> None:
    names = [f"class {number:03}" for number in range(100)]
    with pytest.raises(UserError, match=r"has the classes 'class 057', .* but 'mine' has 'changed', "):
        match_classes(names, 100, [*names[:57], "changed", *names[58:]], "mine")


@pytest.mark.parametrize("names", [("cat", "dog"), ("cat", "cat", "dog"), ("cat", "dog", "dog", "ship")])
def test_every_score_needs_a_name_of_its_own(names: tuple[str, ...]) -> None:
    """With two of three scores named, or two named alike, some score would count for no class, unseen."""
    with pytest.raises(UserError, match="the classifier gives 3 scores, and its class names are 'cat', "):
        match_classes(names, 3, tuple(dict.fromkeys(names)), "mine")


def test_the_two_spellings_of_a_name_are_one() -> None:
    """A file system may keep é as one character or as two."""
    assert match_classes(("caf\u0065\u0301", "bar"), 2, ("bar", "caf\u00e9"), "mine") == (1, 0)


def carrying(names: tuple[str, ...], outputs: int) -> WideResNet:
    network = WideResNet(10, 1, outputs)
    network.classes = names
    return network


def test_a_model_of_classifiers_that_differ_has_no_names_to_go_by() -> None:
    one, same, turned = (carrying(names, 10) for names in (CIFAR10, CIFAR10, CIFAR10[::-1]))
    assert carried_names(Ensemble(one, same), 10) == CIFAR10
    for other in (turned, WideResNet(10, 1)):
        with pytest.raises(UserError, match=r"several classifiers, whose class names are .*`classes`"):
            carried_names(Ensemble(one, other), 10)


def test_the_scores_of_a_new_head_have_no_names() -> None:
    model = nn.Sequential(carrying(CIFAR10, 10), nn.Linear(10, 4))
    assert carried_names(model, 4) == ()


def test_by_position_takes_the_scores_as_they_come_and_says_so() -> None:
    notes: list[str] = []
    assert match_classes(("cat", "dog"), 2, ("kitten", "dog"), "m", by_position=True, note=notes.append) == (
        0,
        1,
    )
    assert notes == ["classes matched by position: the classifier's 'cat', 'dog' as 'kitten', 'dog'"]
    with pytest.raises(UserError, match="has 3 outputs but 'm' has 2 classes: they cannot be matched"):
        match_classes((), 3, ("a", "b"), "m", by_position=True)


def test_weights_without_names_are_taken_by_position_on_cifar_10_alone() -> None:
    notes: list[str] = []
    assert match_classes((), 10, CIFAR10, "cifar10", note=notes.append) == tuple(range(10))
    assert len(notes) == 1
    assert "carries no class names" in notes[0]
    # The same ten in another order are matched with the order in which classifiers of CIFAR-10 give them.
    turned = CIFAR10[::-1]
    assert match_classes((), 10, turned, "mine") == tuple(range(9, -1, -1))
    with pytest.raises(UserError, match="carries no class names, and 'cifar100' has "):
        match_classes((), 100, [str(number) for number in range(100)], "cifar100")


class Ensemble(nn.Module):
    """Two networks of ours in one model."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.one(images) + self.other(images)
        return scores


@pytest.mark.parametrize(
    "wrap",
    [
        lambda classifier: classifier,
        lambda classifier: classifier.network,
        lambda classifier: nn.Sequential(nn.Identity(), classifier),
        nn.DataParallel,
        lambda classifier: torch.compile(classifier, backend="eager"),
        lambda classifier: torch.compile(classifier.network, backend="eager"),
        copy.deepcopy,
        lambda classifier: Ensemble(classifier, WideResNet(10, 1)),
    ],
    ids=["bare", "network", "Sequential", "DataParallel", "compile", "compiled network", "copy", "ensemble"],
)
def test_a_wrapped_classifier_is_still_not_tested_on_what_tuned_its_weights(
    wrap: Callable[[nn.Module], nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import rsslcli
    from rsslcli.core.data import loading, shapes

    monkeypatch.setattr(shapes, "TRAIN_SIZE", 20)
    monkeypatch.setattr(shapes, "TEST_SIZE", 20)
    monkeypatch.setattr(loading, "EMBEDDED_LIMIT", 8)
    folder = tmp_path_factory.getbasetemp() / "wrapped"  # shared by all cases
    names = shapes.draw_shapes(10, 0, "test")[2]
    classifier = rsslcli.Classifier(WideResNet(10, 1), names, excluded=(1, 6))
    found = rsslcli.evaluate(
        wrap(classifier), "shapes", data_dir=folder, corruptions=["fog"], severities=[1],
        classes=names,
    )  # fmt: skip
    assert (found.images, found.excluded) == (6, (1, 6))
