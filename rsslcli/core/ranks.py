"""The processes that share a run: `torchrun` starts them, each takes a part of every batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rsslcli.core.errors import LostRankError, RsslError, UserError


@dataclass(frozen=True)
class World:
    """This process, and how many there are. One that is alone, the default, exchanges nothing.

    What a step leaves behind is the same on every rank to the last bit: each of the sums below is.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Which of `count` things this rank takes: the parts differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, count: int) -> float:
        """The weight of the mean over this rank's part in the mean over all `count` things."""
        part = self.shard(count)
        return float(part.stop - part.start) / count

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place and on every rank. The host does not wait for CUDA."""
        if self.size > 1:
            with _others_may_end():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_together(self, tensors: Sequence[Tensor]) -> None:
        """`all_reduce` of each of these tensors of one dtype, in one exchange."""
        flat = self.all_reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. The hosts wait for each other, not for CUDA."""
        return bool(self.all_reduce(torch.tensor(int(flag)))) if self.size > 1 else flag

    def broadcast(self, text: str) -> str:
        """What the first rank says, on every rank."""
        if self.size == 1:
            return text
        box = [text]
        with _others_may_end():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first rank runs the block while the others wait; then they do, and find its files there."""
        if not self.is_main:
            self.any(False)
        yield
        if self.is_main:
            self.any(False)


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Within this context, this process is one of the ranks that `torchrun` started; alone where it did not.

    Each of them computes on the CPU, or on a GPU of its own, which becomes the current one.

    Raises:
        UserError: there are more ranks on this machine than GPUs.
        RsslError: the ranks do not find each other.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield World()
        return
    cuda = device.type == "cuda"
    if cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(f"--nproc-per-node: each rank takes a GPU, and this machine has {gpus}")
        torch.cuda.set_device(local)
    try:
        # Tensors of either device may be summed: gradients on CUDA, counts and flags of the host without it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    except (RuntimeError, ValueError) as error:
        raise RsslError(f"the ranks do not find each other: {str(error).splitlines()[0]}") from None
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _others_may_end() -> Iterator[None]:
    """Say what it means when an exchange fails: torch's own message names sockets."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"another rank of this job ended: see its message ({str(error).splitlines()[0][:100]})"
        ) from None
