"""Where a study's numbers come from, and what they cost: settings, images, precision, machines, time."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from rsslcli.core.config import Config
from rsslcli.core.errors import counted, sanitize
from rsslcli.core.report.comparison import Row, Study
from rsslcli.core.report.conditions import describe_corrupted_sets, number_range
from rsslcli.core.report.methods import (
    OF_ALL,
    OF_AUGMIX,
    OF_AUTOML,
    OF_TASKS,
    WITHOUT_EFFECT,
    acting_settings,
    canonical,
    describe,
)
from rsslcli.core.report.page import Block, Table, Text

#: Trainings of one method on one machine take equally long; beyond this ratio, something else ran too.
_UNEVEN = 1.2


def departures(study: Study) -> list[list[str]]:
    """The settings that differ from the defaults, the preset `paper`, or between rows.

    Returns:
        For each setting and value: the setting, its value, the default, and the labels of the rows with it.
    """
    default = Config().to_dict()
    found = [
        [name, _words(value), _words(default.get(name, "–")), "all"]
        for name, value in study.settings.items()
        if value != default.get(name)
    ]
    acting_on = [
        (row.label, [acting_settings(run.config) for run in row.runs.values()]) for row in study.rows
    ]
    for name in (*OF_ALL, *OF_AUGMIX, *OF_TASKS, *OF_AUTOML, *WITHOUT_EFFECT):
        labels: dict[str, list[str]] = defaultdict(list)
        acted_on = 0
        for label, acting in acting_on:
            values = dict.fromkeys(_words(each[name]) for each in acting if name in each)
            acted_on += bool(values)
            for value in values:
                labels[value].append(label)
        labels.pop(_words(default[name]), None)
        every = "all with AutoML" if name in OF_AUTOML else "all with tasks"
        if acted_on == len(study.rows):
            every = "all"
        for value, having in labels.items():
            which = every if len(having) == acted_on > 1 else "; ".join(having)
            found.append([name, value, _words(default[name]), which])
    return found


def _words(value: object) -> str:
    """A setting's value as the report shows it."""
    if value is None:  # of train_size
        return "all"
    if isinstance(value, Mapping):  # of task_options
        return describe({"task_options": value}) or "none"
    text = value if isinstance(value, str) else canonical(value).replace('"', "")
    return sanitize(text)


def provenance(study: Study) -> Table:
    """Which images, precisions, machines and versions the runs used, as far as their files say."""
    runs = study.runs
    size = study.settings["train_size"]
    trained_on = f"{'all' if size is None else f'{size:,}'} training images of {study.settings['dataset']}"
    sets = {run.corrupted_data[:8] for run in runs}
    evaluated = _counted(run.precision for run in runs)
    rows = [
        ["trained on", sanitize(trained_on)],
        ["tested on", f"{describe_corrupted_sets(runs)} (fingerprint {', '.join(sorted(sets))})"],
        ["images per cell", _images(study)],
        ["λ tuned on", _tuned_on(study)],
        ["precision", f"training {study.settings['precision']}; evaluation {evaluated}"],
        ["training's machine", _counted(run.trained_with or "not recorded" for run in runs)],
    ]
    return Table("Provenance", ["what", "here"], rows, frozenset({"what", "here"}), stacked=True)


def _images(study: Study) -> str:
    cells = 5 * len(study.corruptions)
    text = f"{number_range([run.images for run in study.runs])} in each of {cells} cells; "
    return text + f"{number_range([run.clean_images for run in study.runs])} clean ones"


def _tuned_on(study: Study) -> str:
    tuned = [run for run in study.runs if run.config.automl]
    if not tuned:
        return "–"
    words = {"all": "the same corruptions, other images", "extra": "the four extra corruptions, other images"}
    return _counted(words.get(run.config.validation_corruptions, "–") for run in tuned)


def _counted(values: Iterable[str]) -> str:
    """The different values, each with the number of runs that have it if there are several."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({counted(count, 'run')})" for value, count in counts.most_common())


def cost(study: Study) -> Iterator[Block]:
    """The training time of each row, and whether the times can be relied on."""
    rows = []
    base = study.baseline
    for row in study.rows:
        histories = [run.history for run in row.runs.values()]
        pairs = row.pairs(base) if base else []
        values = (
            (np.mean([h.seconds for h in histories]), ",.0f"),
            (np.mean([h.steps * row.config.batch_size / h.seconds for h in histories]), ",.0f"),
            (np.mean([a.history.seconds / b.history.seconds for a, b in pairs] or math.nan), ".2f"),
        )
        cells = ["–" if np.isnan(value) else format(value, form) for value, form in values]
        rows.append([row.label, str(len(histories)), *cells])
    label, spread = max(((row.label, _spread(row)) for row in study.rows), key=lambda item: item[1])
    if spread > _UNEVEN:
        yield Text(
            f"These times say little: the slowest training of the row {label} took {spread:.1f} times as "
            "long as the fastest one."
        )
    columns = ["trained with", "seeds", "seconds of training", "images/s", "times the baseline"]
    caption = "Cost, mean over seeds; times are comparable only if every run had the same machine to itself"
    yield Table(caption, columns, rows, frozenset({"trained with"}), stacked=True)


def _spread(row: Row) -> float:
    """The longest training of a row divided by the shortest; 1 if unknown."""
    seconds = [run.history.seconds for run in row.runs.values() if run.history.seconds > 0]
    return max(seconds) / min(seconds) if seconds else 1.0
