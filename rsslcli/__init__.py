"""rssl: robust image classifiers through self-supervision tasks whose weights tune themselves.

From Python: `load_classifier`, `train` and `evaluate`; docs/python.md shows them at work.
"""

import importlib
from typing import TYPE_CHECKING

from rsslcli.core.version import __version__ as __version__

if TYPE_CHECKING:
    from rsslcli.core.api import Classifier, evaluate, load_classifier, train
    from rsslcli.core.config import Config, make_config
    from rsslcli.core.corruptions.names import CORRUPTIONS
    from rsslcli.core.errors import DivergedError, InterruptedTrainingError, RsslError, UserError
    from rsslcli.core.evaluation.result import Evaluation
    from rsslcli.core.randomness import BatchRandom
    from rsslcli.core.report.write import write_report
    from rsslcli.core.tasks.base import Task
    from rsslcli.core.tasks.check import check_task
    from rsslcli.core.tasks.own import register_task
    from rsslcli.core.training.events import EpochDone, Event, Notice, Started, StepsDone
    from rsslcli.core.training.loop import TrainingResult
    from rsslcli.core.weights.export import Exported, export_classifier

__all__ = [
    "CORRUPTIONS", "BatchRandom", "Classifier", "Config", "DivergedError", "EpochDone", "Evaluation", "Event",
    "Exported", "InterruptedTrainingError", "Notice", "RsslError", "Started", "StepsDone", "Task",
    "TrainingResult", "UserError", "check_task", "evaluate", "export_classifier", "load_classifier",
    "make_config", "register_task", "train", "write_report",
]  # fmt: skip

#: Where each name lives. Loading torch takes seconds, which `rssl --help` and `import rsslcli` do not.
_EXPORTS = {
    "core.api": ("Classifier", "evaluate", "load_classifier", "train"),
    "core.config": ("Config", "make_config"),
    "core.corruptions.names": ("CORRUPTIONS",),
    "core.errors": ("DivergedError", "InterruptedTrainingError", "RsslError", "UserError"),
    "core.evaluation": ("Evaluation",),
    "core.export": ("Exported", "export_classifier"),
    "core.randomness": ("BatchRandom",),
    "core.report": ("write_report",),
    "core.tasks.base": ("Task",),
    "core.tasks.contract": ("check_task",),
    "core.tasks.own": ("register_task",),
    "core.training": ("EpochDone", "Event", "Notice", "Started", "StepsDone", "TrainingResult"),
}


if not TYPE_CHECKING:  # a type checker shall still tell a name that there is not

    def __getattr__(name: str) -> object:
        for home, names in _EXPORTS.items():
            if name in names:
                return getattr(importlib.import_module(f"rsslcli.{home}"), name)
        raise AttributeError(f"module 'rsslcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
