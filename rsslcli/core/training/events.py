"""The events that `train` reports to `on_event`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsslcli.core.config import Config


@dataclass(frozen=True)
class Started:
    """A run starts, or resumes after `step` of its `steps`."""

    config: Config  #: the settings
    directory: Path  #: the run directory
    device: str  #: a description, as in the log
    images: int  #: number of training images
    validation_images: int  #: number of corrupted images that tune λ; 0 if none do
    step: int  #: number of steps done
    steps: int  #: number of steps of the whole run
    steps_per_epoch: int  #: number of steps of an epoch


@dataclass(frozen=True)
class StepsDone:
    """Some steps are done; `record` holds the metrics of the last one."""

    record: Mapping[str, Any]


@dataclass(frozen=True)
class EpochDone:
    """An epoch is done and saved; `record` holds its metrics."""

    record: Mapping[str, Any]


@dataclass(frozen=True)
class Notice:
    """Something that the user should know about the run, in one line."""

    text: str


Event = Started | StepsDone | EpochDone | Notice
