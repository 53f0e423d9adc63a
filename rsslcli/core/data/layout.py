"""Find the splits and the classes in a tree of image files."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from rsslcli.core.corruptions.names import CORRUPTIONS
from rsslcli.core.data.archives import Parts
from rsslcli.core.data.decoding import shown
from rsslcli.core.data.file_tree import Key, Tally, Tree, visible
from rsslcli.core.data.listing import Folder, Listing, in_words, list_files, subfolders, told
from rsslcli.core.errors import UserError

SPLITS = ("train", "test")
#: The names of split folders, in lower case, and the splits that they stand for.
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
#: Common names of a third split, which is not used here.
VALIDATION = ("val", "valid", "validation")
#: Without a test split, one in this many images of each class is held out for it.
HOLD_OUT = 5
#: The expected layout, as messages describe it.
LAYOUT = "train/<class>/* and test/<class>/*, or <class>/* alone"
#: Extensions of files that may list which images belong to which class.
_LISTS = (".txt", ".csv", ".tsv", ".json", ".xml")


class TreeImage(NamedTuple):
    """An image in a tree. Images sort by name."""

    name: Parts  #: its class, and its path in the class folder, in Unicode's composed form (NFC)
    parts: Parts  #: its path in the tree
    key: Key  #: identifies its content


#: Images by class.
Classes = dict[str, list[TreeImage]]


class Layout(NamedTuple):
    """The result of `find_layout`."""

    files: dict[str, Classes]  #: by split; both have the same classes
    classes: tuple[str, ...]  #: sorted
    notes: tuple[str, ...]  #: what was held out and what is not used, a line each


def find_layout(tree: Tree) -> Layout:
    """Find the classes and splits of a tree, or hold out a test split. Reads no image.

    Raises:
        UserError: there are no classes, their location is ambiguous, they differ between the splits, one has
            no images, or there are too many images.
    """
    notes: list[str] = []
    splits = _find_splits(tree)
    listing = list_files(tree, splits.values() or [((), tree.top)])
    if splits:  # both split folders exist: their subfolders are the classes
        branches = {split: parts for split, (parts, _) in splits.items()}
        files = {split: _classes(branch, listing) for split, branch in branches.items()}
        beside = _beside(tree, branches)
        _check_labels(tree, listing, files, beside)
        if beside:
            unused = in_words(parts[-1] for parts, _ in beside)
            notes.append(f"not used: folders beside train/ and test/, {len(beside)} in all: {unused}")
    else:  # one folder holds the classes: split it
        branch, lacking = _find_classes(tree, listing)
        branches = dict.fromkeys(SPLITS, branch)
        classes = _classes(branch, listing)
        files = _hold_out(tree, listing, branch, classes)
        held, total = (sum(map(len, part.values())) for part in (files["test"], classes))
        notes.append(
            f"no {' and '.join(f'{split}/' for split in lacking)} in {tree.source}: "
            f"{held} of the {total} images, a fifth of each class, are the test set"
        )
    names = _check_classes(tree, listing, branches, files)
    notes += _notes(tree, listing, {*branches.values()}, files)
    notes += _doubts(names, files)
    return Layout(files, tuple(names), tuple(notes))


def _find_splits(tree: Tree) -> dict[str, Folder]:
    """The folders of both splits, at the top or in a folder directly below; empty unless both exist."""
    top: Folder = ((), tree.top)
    # Look for a folder that contains both splits: first the top, then all folders directly below it.
    for level in ([top], subfolders(tree, top)):
        found: list[dict[str, list[Folder]]] = []
        for folder in level:
            named: dict[str, list[Folder]] = {}
            lost: list[str] = []  # split folders that are broken links
            for entry in visible(tree, folder[1]):
                split = SPLIT_NAMES.get(entry.name.lower())
                if split and entry.place is not None:
                    named.setdefault(split, []).append(((*folder[0], entry.name), entry.place))
                elif split and entry.reason:
                    lost.append(entry.name)
            if len(named) == 1 and lost:
                name = shown("/".join((*folder[0], lost[0])))
                raise UserError(
                    f"{name} in {tree.source} leads nowhere or out of it: replace it with the folder itself"
                )
            if len(named) == len(SPLITS):
                found.append(named)
        if len(found) > 1:
            roots = _paths(named["train"][0][0][:-1] for named in found)
            several = f"several trees of train/ and test/, in {roots}"
            raise UserError(f"{tree.source} holds {several}: prepare only one of them")
        for named in found:
            for split, folders in named.items():
                if len(folders) > 1:
                    names = _paths(parts for parts, _ in folders)
                    raise UserError(
                        f"{tree.source} has several folders for {split}/, {names}: put all its images in one"
                    )
            return {split: named[split][0] for split in SPLITS}
    return {}


def _find_classes(tree: Tree, listing: Listing) -> tuple[Parts, tuple[str, ...]]:
    """The folder that holds the class folders of a tree without both splits, and the missing splits."""
    # If only one split exists, its folder holds the classes; collect such folders from the paths of images.
    lone: set[Parts] = set()
    for parts in listing.images:
        for depth in (1, 2):
            if len(parts) > depth + 1 and parts[depth - 1].lower() in SPLIT_NAMES:
                lone.add(parts[:depth])
                break
    # Otherwise the class folders are one or two levels down. They are two levels down if folders there hold
    # images and at most one of their parents holds some too. So a stray picture beside class folders does not
    # turn their parent into a class.
    above, below = ({parts[:-1] for parts in listing.images if len(parts) == depth} for depth in (2, 3))
    parents = {folder[:-1] for folder in below}
    nested = below and len(above) < 2 and above <= parents
    branches = lone or (parents if nested else {folder[:-1] for folder in above})
    if not branches:
        raise _no_folders(tree, listing)
    if len(branches) > 1:
        raise _several(tree, branches)
    (branch,) = branches
    classes = _classes(branch, listing)
    # Split folders without class folders would be taken for classes.
    if {name.lower() for name in classes} <= {*SPLIT_NAMES, *VALIDATION}:
        names = ", ".join(map(shown, sorted(classes)))
        raise UserError(f"the images of {tree.source} lie in {names} without a class: expected {LAYOUT}")
    if not lone:
        return branch, SPLITS
    # With a lone split, a validation folder beside it may be meant as the other one: ask instead of guessing.
    (lacking,) = {*SPLITS} - {SPLIT_NAMES[branch[-1].lower()]}
    for folder in sorted(listing.folders):
        if folder and folder[:-1] == branch[:-1] and folder[-1].lower() in VALIDATION:
            name = folder[-1]
            advice = _advice(listing, folder, classes, lacking)
            raise UserError(
                f"{tree.source} has {name}/ but no {lacking}/: {advice}; "
                f"or move {name}/ out of it, and a fifth of {branch[-1]}/ is the test set"
            )
    # One folder beside it may hold images without labels; several may be classes, as the lone split may.
    beside = _beside_branch(listing, branch)
    alike = {folder for folder in beside if classes.keys() & _classes(folder, listing).keys()}
    if alike or len(beside) > 1:
        raise _several(tree, {branch, *(alike or beside)})
    return branch, (lacking,)


def _beside_branch(listing: Listing, branch: Parts) -> set[Parts]:
    """The folders with images that lie beside the folder `branch`, or beside one that it is in."""
    found: set[Parts] = set()
    for parts in listing.images:
        depth = next((i for i, (a, b) in enumerate(zip(parts, branch, strict=False)) if a != b), None)
        if depth is not None and len(parts) > depth + 1:
            found.add(parts[: depth + 1])
    return found


def _several(tree: Tree, branches: Collection[Parts]) -> UserError:
    """The error for several folders of which each may hold the classes."""
    return UserError(
        f"{tree.source} holds several trees of classes, in {_paths(branches)}: if they are the splits, "
        "rename them to train and test, side by side; if they are the classes, move them into a folder "
        "train; otherwise prepare only one of them"
    )


def _advice(listing: Listing, folder: Parts, classes: Collection[str], lacking: str) -> str:
    """What to do with a folder of validation images if a split is missing."""
    if any(images for name, images in _classes(folder, listing).items() if name in classes):
        return f"rename {folder[-1]}/ to {lacking}/"
    lists = [
        tally.example
        for (place, ending), tally in sorted(listing.others.items())
        if place[: len(folder)] == folder and ending.lower() in _LISTS
    ]
    by = f" by {shown(lists[0])}, which is not read" if lists else ""
    return f"sort the images of {folder[-1]}/ into {lacking}/<class>/{by}"


def _beside(tree: Tree, branches: dict[str, Parts]) -> list[Folder]:
    """The folders beside the split folders, and beside the folder that holds them."""
    inner = subfolders(tree, ((), tree.top))
    root = branches["train"][:-1]
    if root:
        outer = [folder for folder in inner if folder[0] != root]
        inner = [*outer, *subfolders(tree, next(folder for folder in inner if folder[0] == root))]
    return [folder for folder in inner if folder[0] not in branches.values()]


def _classes(branch: Parts, listing: Listing) -> Classes:
    """The images of the class folders in the folder `branch`, including their subfolders."""
    depth = len(branch)
    found: Classes = {
        _composed(folder[depth:])[0]: []
        for folder in listing.folders
        if len(folder) == depth + 1 and folder[:depth] == branch
    }
    for parts, key in listing.images.items():
        if len(parts) > depth + 1 and parts[:depth] == branch:
            name = _composed(parts[depth:])
            found[name[0]].append(TreeImage(name, parts, key))
    return found


def _composed(parts: Parts) -> Parts:
    """The names in Unicode's composed form, which file systems do not all use."""
    return tuple(part if part.isascii() else unicodedata.normalize("NFC", part) for part in parts)


def _hold_out(tree: Tree, listing: Listing, branch: Parts, classes: Classes) -> dict[str, Classes]:
    """Split the images of each class: a fifth, at least one, becomes the test split.

    The hashes of class and name decide, so the choice depends on nothing else, and images added later barely
    change it.
    """
    files: dict[str, Classes] = {split: {} for split in SPLITS}
    for name, images in classes.items():
        if len(images) < 2:
            count = "only one image" if images else "no images"
            instead = _instead(listing, (*branch, name))
            raise UserError(
                f"{count} of class {shown(name)} in {tree.source}{instead}: add some, or remove the folder"
            )
        names = ("/".join(image.name).encode(errors="surrogatepass") for image in images)
        hashes = (hashlib.sha256(name).digest() for name in names)
        ranked = [image for _, image in sorted(zip(hashes, images, strict=True))]
        held = max(1, round(len(images) / HOLD_OUT))
        files["test"][name] = ranked[:held]
        files["train"][name] = ranked[held:]
    return files


def _check_labels(tree: Tree, listing: Listing, files: dict[str, Classes], beside: list[Folder]) -> None:
    """Refuse splits without a common class; usually the test images have no labels."""
    train, test = ({name for name, images in files[split].items() if images} for split in SPLITS)
    if not train and not test:
        raise _no_folders(tree, listing)
    if train & test:
        return
    advice = "a fifth of train/ is held out"
    for parts, place in beside:
        if parts[-1].lower() in VALIDATION:
            advice = _advice(list_files(tree, [(parts, place)]), parts, train, "test")
    raise UserError(
        f"train/ and test/ of {tree.source} have no class in common ({in_words(train) or 'none'} in train/, "
        f"{in_words(test) or 'none'} in test/): name their class folders alike; "
        f"if the images of test/ have no labels, rename it to unlabeled/, and {advice}"
    )


def _check_classes(
    tree: Tree, listing: Listing, branches: dict[str, Parts], files: dict[str, Classes]
) -> list[str]:
    """The sorted classes; refuse unprintable names, a single class, and classes without images in a split."""
    classes = sorted(set().union(*files.values()))
    for name in classes:
        if not name.isprintable():
            raise UserError(
                f"{tree.source} has a class named {shown(name)}: rename it to printable characters"
            )
    lacking: list[str] = []
    for split in SPLITS:
        empty = [name for name in classes if not files[split].get(name)]
        if empty:
            many = f"{len(empty)} classes ({in_words(empty)})"
            which = f"class {shown(empty[0])}" if len(empty) == 1 else many
            instead = _instead(listing, (*branches[split], empty[0]))
            lacking.append(f"of {which} in {split}/ of {tree.source}{instead}")
    if lacking:
        raise UserError(f"no images {', and none '.join(lacking)}: add some to both splits")
    if len(classes) < 2:
        raise UserError(
            f"{tree.source} has only one class, {shown(classes[0])}: a classifier needs at least two"
        )
    return classes


def _notes(
    tree: Tree, listing: Listing, branches: Collection[Parts], files: dict[str, Classes]
) -> Iterator[str]:
    """Notes on images that are used unexpectedly, and on what is not used."""
    for branch in branches:
        folders = (folder for folder in listing.folders if folder and folder[:-1] == branch)
        forms = Counter(_composed(folder)[-1] for folder in folders)
        for name in sorted(name for name, count in forms.items() if count > 1):
            yield f"class {shown(name)} has {forms[name]} folders: their names differ only in Unicode form"
    images = [image for classes in files.values() for members in classes.values() for image in members]
    if inner := sorted(image for image in images if len(image.name) > 2):
        first = "/".join(inner[0].parts)
        yield told("images in subfolders of their class folders", Tally(len(inner), first))
    if outer := listing.images.keys() - {image.parts for image in images}:
        yield told("not used: images outside the class folders", Tally(len(outer), "/".join(min(outer))))
    if tree.strays.count:
        yield told("not used: members whose names lead out of the archive", tree.strays)
    yield from listing.notes(branches)


def _doubts(classes: list[str], files: dict[str, Classes]) -> Iterator[str]:
    """Tell what looks as if the classes, or their order, were meant otherwise."""
    inner = [
        {image.name[1] for split in SPLITS for image in files[split][name] if len(image.name) > 2}
        for name in classes
    ]
    common = set.intersection(*inner)
    if len(common) > 1:
        yield (
            f"the classes are {in_words(classes)}, and in all of their folders are folders named "
            f"{in_words(common)}: if those are the classes, or splits, arrange the images as {LAYOUT}"
        )
    by_value = sorted(classes, key=lambda name: (len(name), name))
    if all(map(str.isdecimal, classes)) and by_value != classes:
        index = next(index for index, name in enumerate(classes) if name != by_value[index])
        yield (
            f"the classes are numbers that sort as text: label {index} is class {shown(classes[index])}, "
            "and so is the order of a classifier's scores; for that of the numbers, name them 00, 01, …"
        )


def _instead(listing: Listing, folder: Parts) -> str:
    """What a class folder holds instead of images, in parentheses."""
    found, advice = listing.instead(folder)
    return f" ({found}{advice and ': '}{advice})" if found else ""


def _no_folders(tree: Tree, listing: Listing) -> UserError:
    """The error for a tree without class folders."""
    found, advice = listing.instead()
    if listing.images:
        first = min(listing.images)
        found = f"found images such as {shown('/'.join(first))}"
        is_corrupted = any(name in CORRUPTIONS and below == "1" for name, below in pairwise(first))
        packed = is_corrupted and not tree.source.is_dir()
        advice = "unpack them, since corrupted images are read from a folder" if packed else ""
    return UserError(
        f"no folders of images in {tree.source}: {found}{found and ': '}{advice or f'expected {LAYOUT}'}"
    )


def _paths(folders: Iterable[Parts]) -> str:
    """The paths of the first few folders."""
    return in_words("/".join(folder) for folder in folders)
