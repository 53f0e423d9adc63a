"""Distributed runs: `torchrun` starts several processes, and each takes a part of every batch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rsslcli.core.errors import InterruptedTrainingError, LostRankError, RsslError, UserError, sanitize

#: What gloo, NCCL and the store say when a connection to another process ended.
_ENDED = re.compile(
    r"closed|closure|reset by peer|broken pipe|remote process|tim(ed|e) ?out|recv|socket", re.IGNORECASE
)


@dataclass(frozen=True)
class World:
    """This process's rank and the world size; the default is a single process.

    Every rank gets bit-identical sums, so all ranks hold identical states after each step.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True on rank 0, the one that writes files and prints."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This rank's part of `count` items; the parts of two ranks differ by at most one item."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, count: int) -> float:
        """The local part's fraction of `count` items: the weight of its mean in the mean over all."""
        part = self.shard(count)
        return float(part.stop - part.start) / count

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum the tensors of all ranks, in place on every rank. The host does not wait for CUDA."""
        if self.size > 1:
            with _others_may_end():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_together(self, tensors: Sequence[Tensor]) -> None:
        """`all_reduce` several tensors of the same dtype in one exchange."""
        flat = self.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """True if `flag` is true on any rank. The ranks wait for each other, but not for CUDA."""
        return bool(self.all_reduce(torch.tensor(int(flag)))) if self.size > 1 else flag

    def broadcast(self, text: str) -> str:
        """Broadcast `text` from rank 0."""
        if self.size == 1:
            return text
        box = [text]
        with _others_may_end():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [text]
        texts = [""] * self.size
        with _others_may_end():
            dist.all_gather_object(texts, text)
        return texts

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0 first, so that the other ranks find its files when they run it."""
        if not self.is_main:
            self.any(False)
        yield
        if self.is_main:
            self.any(False)


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the ranks that `torchrun` started, within this context; otherwise the world is this process.

    Each rank computes on the CPU, or on a separate GPU, which becomes its current device. A rank that fails
    does not leave the others, since NCCL would wait for them to leave too: its process must end at once, so
    that `torchrun` ends the rest.

    Raises:
        UserError: this machine has fewer GPUs than ranks.
        RsslError: the ranks cannot connect.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World()
        return
    cuda = device.type == "cuda"
    if cuda:
        local_rank = int(os.environ["LOCAL_RANK"])
        gpus = torch.cuda.device_count()
        # On all ranks, so that the first one says it.
        if max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "0"))) > gpus:
            raise UserError(
                f"each rank needs its own GPU, and this machine has {gpus}: start no more ranks than that"
            )
        torch.cuda.set_device(local_rank)
    try:
        # Gradients are summed on CUDA; counts and flags on the host, which then need not wait for CUDA.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RsslError(f"the ranks cannot connect: {str(error).splitlines()[0]}") from None
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    except InterruptedTrainingError:  # of all ranks
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def _others_may_end() -> Iterator[None]:
    """Turn a failed exchange into LostRankError if a connection ended, else into an error of this rank.

    Torch's own message is about sockets or, from NCCL, of many lines, of which the last one states the cause.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        if lines[0].startswith("CUDA error"):  # of an earlier computation: CUDA tells later
            raise
        if _ENDED.search(str(error)):
            raise LostRankError(
                f"another rank of this job ended: see its message ({lines[0][:100]})"
            ) from None
        raise RsslError(f"the ranks cannot exchange values: {sanitize(lines[-1])}") from None
