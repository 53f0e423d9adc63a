"""rssl: robust image classifiers through self-supervision tasks with self-tuning weights.

From Python: `load_classifier`, `train`, `evaluate` and `adapt`; see docs/python.md.
"""

import importlib
from typing import TYPE_CHECKING

from rsslcli.core.version import __version__ as __version__

if TYPE_CHECKING:
    from rsslcli.core.api import Classifier, adapt, evaluate, load_classifier, load_images, train
    from rsslcli.core.config import Config
    from rsslcli.core.corruptions.names import CORRUPTIONS
    from rsslcli.core.errors import DivergedError, InterruptedTrainingError, RsslError, UserError
    from rsslcli.core.evaluation.adaptation_settings import Adaptation
    from rsslcli.core.evaluation.result import Evaluation
    from rsslcli.core.networks.names import allow_network
    from rsslcli.core.presets import make_config
    from rsslcli.core.randomness import BatchRandom
    from rsslcli.core.report.write import write_report
    from rsslcli.core.tasks.base import Task
    from rsslcli.core.tasks.check import check_task
    from rsslcli.core.tasks.registry import register_task
    from rsslcli.core.training.events import EpochDone, Event, Notice, Started, StepsDone
    from rsslcli.core.training.loop import TrainingResult
    from rsslcli.core.weights.export import Exported, export_classifier

__all__ = [
    "CORRUPTIONS", "Adaptation", "BatchRandom", "Classifier", "Config", "DivergedError", "EpochDone",
    "Evaluation", "Event", "Exported", "InterruptedTrainingError", "Notice", "RsslError", "Started",
    "StepsDone", "Task", "TrainingResult", "UserError", "adapt", "allow_network", "check_task", "evaluate",
    "export_classifier", "load_classifier", "load_images", "make_config", "register_task", "train",
    "write_report",
]  # fmt: skip

#: The module of each public name, imported on first use: `import rsslcli` must not load torch, which takes
#: seconds.
_EXPORTS = {
    "core.api": ("Classifier", "adapt", "evaluate", "load_classifier", "load_images", "train"),
    "core.config": ("Config",),
    "core.corruptions.names": ("CORRUPTIONS",),
    "core.errors": ("DivergedError", "InterruptedTrainingError", "RsslError", "UserError"),
    "core.evaluation.adaptation_settings": ("Adaptation",),
    "core.evaluation.result": ("Evaluation",),
    "core.networks.names": ("allow_network",),
    "core.presets": ("make_config",),
    "core.randomness": ("BatchRandom",),
    "core.report.write": ("write_report",),
    "core.tasks.base": ("Task",),
    "core.tasks.check": ("check_task",),
    "core.tasks.registry": ("register_task",),
    "core.training.events": ("EpochDone", "Event", "Notice", "Started", "StepsDone"),
    "core.training.loop": ("TrainingResult",),
    "core.weights.export": ("Exported", "export_classifier"),
}


if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name otherwise

    def __getattr__(name: str) -> object:
        for home, names in _EXPORTS.items():
            if name in names:
                return getattr(importlib.import_module(f"rsslcli.{home}"), name)
        raise AttributeError(f"module 'rsslcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
