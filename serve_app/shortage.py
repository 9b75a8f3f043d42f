"""What a waiting job lacks, in words: the `detail` that its owner reads. The scheduler calls it."""

from collections.abc import Sequence

from serve_app.capacity import ROUNDING, Demand, NodeCapacity


def missing(
    need: Demand, nodes: Sequence[NodeCapacity], free: Sequence[NodeCapacity] | None
) -> str:
    """The first resource that is too scarce, GPUs before CPUs before memory; when each is enough
    in sum, the shape that finds no place. `free` None: compare with the totals."""
    usable = [n for n in nodes if need.gpu_type in (None, n.accelerator)]
    usable_free = [n for n in free or [] if need.gpu_type in (None, n.accelerator)]
    for wanted, field, each in _amounts(need):
        total = sum(getattr(node, field) for node in usable)
        if total + ROUNDING < need.workers * each:
            return f"{wanted}; the cluster has {total:g}"
        left = sum(getattr(node, field) for node in usable_free)
        if free is not None and left + ROUNDING < need.workers * each:
            return f"{wanted}; {left:g} of {total:g} free"
    room = "room" if free is None else "free room"
    return f"{_shape(need)}; the cluster has no {room} for that shape"


def _amounts(need: Demand) -> list[tuple[str, str, float]]:
    """(words for the whole, field of a node, amount for each worker) of what the gang uses."""
    cpus, memory = need.workers * need.cpus, need.workers * need.memory_gb
    rows = [
        (f"{need.workers} × {need.gpu_type or 'GPU'}", "gpus", need.gpus),
        (f"{cpus:g} CPU{'' if cpus == 1 else 's'}", "cpus", need.cpus),
        (f"{memory:g} GiB of memory", "memory_gb", need.memory_gb),
    ]
    return [row for row in rows if row[2]]


def _shape(need: Demand) -> str:
    share = ", ".join(
        part
        for part in (
            f"1 {need.gpu_type or 'GPU'}" if need.gpus else "",
            f"{need.cpus:g} CPU{'' if need.cpus == 1 else 's'}",
            f"{need.memory_gb:g} GiB" if need.memory_gb else "",
        )
        if part
    )
    spread = f" on {need.nodes} nodes" if need.nodes > 1 else ""
    if need.workers == 1:
        return f"1 worker of {share}"
    return f"{need.workers} workers of {share} each{spread}"
