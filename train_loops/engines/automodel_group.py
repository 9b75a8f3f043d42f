"""The process group of a run on NeMo AutoModel, where Ray Train has not made one already."""

import atexit
import os

from train_loops.plan import Plan


def join_group(plan: Plan, rank: int, world_size: int) -> bool:
    """Be in a process group; whether it is this loop's own, to be left with it.

    Ray's is taken as it is. Under `torchrun` it is made of the environment, and stays until the
    process ends: the next loop of the process takes it over. A single process makes one of its own,
    because the recipe asks for one.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return False
    if world_size == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return True
    if plan.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if plan.device == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    atexit.register(leave_group, True)
    return False


def leave_group(ours: bool) -> None:
    """End the process group if it is `ours`. Safe to call twice."""
    import torch.distributed as dist

    if ours and dist.is_initialized():
        dist.destroy_process_group()
