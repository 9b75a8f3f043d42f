"""The ranks of a run: found where Ray made them a process group, else made here.

Called by the engines that need a group even for one rank.
"""

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

_GROUPS = itertools.count()
"""Numbers the groups that this process has made; every rank makes the same ones."""


@dataclass
class Group:
    """The ranks that train together, and this one's place and device."""

    rank: int
    world_size: int
    device: "torch.device"
    ours: bool
    """Whether we made the process group, and so have to end it."""

    def total(self, values: list[Any]) -> "torch.Tensor":
        """Sums over all ranks, float64 (n,), on the device."""
        import torch
        import torch.distributed as dist

        parts = [torch.as_tensor(value, dtype=torch.float64) for value in values]
        sums = torch.stack([part.to(self.device) for part in parts])
        dist.all_reduce(sums)
        return sums

    def leave(self) -> None:
        """End the group, if it is ours. Safe to call twice."""
        import torch.distributed as dist

        if self.ours and dist.is_initialized():
            dist.destroy_process_group()
        self.ours = False


def join_group(plan: Plan, rank: int, world_size: int) -> Group:
    """The process group that is there (Ray made it), or a new one: of the ranks that the
    environment names (`torchrun`), or of this process alone."""
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if plan.device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        backend = "nccl" if plan.device == "cuda" else "gloo"
        store = _meeting_place(rank, world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return Group(rank, world_size, device, ours)


def _meeting_place(rank: int, world_size: int) -> Any:
    """Where the ranks of a new group find each other's addresses; alone, none is needed."""
    import torch.distributed as dist

    if world_size == 1:
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://", rank, world_size))
    # `torchrun` keeps one store for the life of the processes, and with it the addresses of groups
    # that have ended.
    return dist.PrefixStore(f"group-{next(_GROUPS)}", store)
