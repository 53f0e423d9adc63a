"""The metrics of a run for TensorBoard, made of what the training tells as it goes."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from rsslcli.core.files import quietly
from rsslcli.core.run_folder import TENSORBOARD
from rsslcli.core.training.events import EpochDone, Event, Started, StepsDone

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardWriter:
    """Writes a run's scalars into `tensorboard` in its directory, by the names that metrics.jsonl gives them.

    Give it to `train` as `on_event`. It sees the steps that the training reports, about one a second, whose
    values are on the host already: no step waits for it. What an earlier process wrote of steps that are done
    again is not shown. Needs the package tensorboard.
    """

    _writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, event: Event) -> None:
        """Write what the event says."""
        if isinstance(event, Started):
            with quietly():
                from torch.utils.tensorboard import SummaryWriter

                # TensorBoard takes no notice of older events from this step on.
                self._writer = SummaryWriter(event.directory / TENSORBOARD, purge_step=event.step + 1)
        elif isinstance(event, StepsDone):
            self._write(
                {key: value for key, value in event.record.items() if key not in {"step", "epoch"}},
                event.record["step"],
            )
        elif isinstance(event, EpochDone):
            self._write({"clean_accuracy": event.record["clean_accuracy"]}, event.record["step"])
            if self._writer is not None:
                self._writer.flush()

    def _write(self, scalars: dict[str, Any], step: int) -> None:
        assert self._writer is not None  # `Started` comes first
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
