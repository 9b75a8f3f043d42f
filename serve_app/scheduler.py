"""Which waiting jobs get a place on the cluster now, and what the others wait for.

Pure: (queue, jobs that hold a place, capacity) → decisions. First in, first out, whole gangs only.
A job that the cluster could hold when empty blocks those behind it, so none starves; one that the
present cluster could never hold blocks nobody. The tracker acts on the decisions.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from configs.job import Job
from configs.resources import ResourcesSpec
from serve_app.capacity import ROUNDING, Capacity, Demand, NodeCapacity, demand
from serve_app.shortage import missing


class Admit(NamedTuple):
    """Launch an attempt of this job."""

    job_id: str


class Wait(NamedTuple):
    """Leave this job in the queue; `detail` says what it waits for."""

    job_id: str
    detail: str


Decision = Admit | Wait
Placement = dict[str, int]
"""Workers by node id."""


def decide(queue: Sequence[Job], holding: Sequence[Job], capacity: Capacity) -> list[Decision]:
    """A decision for each job of `queue`, oldest job first.

    `holding` are the jobs whose status holds resources.
    """
    held = [demand(job.resources) for job in holding if job.status.holds_resources]
    room = _Room(capacity, held)
    decisions: list[Decision] = []
    blocker: str | None = None
    for job in sorted(queue, key=lambda job: (job.created_at, job.job_id)):
        need = demand(job.resources)
        if (shortage := room.never(need)) is not None:
            decisions.append(Wait(job.job_id, shortage))
        elif blocker is not None:
            decisions.append(Wait(job.job_id, f"behind job {blocker}"))
        elif room.take(need):
            decisions.append(Admit(job.job_id))
        else:
            decisions.append(Wait(job.job_id, room.shortage(need)))
            blocker = job.job_id if room.holds_when_empty(need) else None
    return decisions


def never_fits(resources: ResourcesSpec, capacity: Capacity) -> str | None:
    """What the cluster lacks for such a job for good; None when it may run one day."""
    return _Room(capacity, []).never(demand(resources))


class _Room:
    """The cluster with its free part, as jobs are placed one after another."""

    def __init__(self, capacity: Capacity, held: Iterable[Demand]) -> None:
        self._capacity = capacity
        self._free = {node.node_id: node for node in capacity.nodes}
        self._gpus = self._cpus = 0.0
        for need in held:
            self._pack(need)

    def take(self, need: Demand) -> bool:
        """Reserve a place for the whole gang: in the free part, or on nodes that are to come."""
        placement = _place(need, self._free.values())
        if placement is None and not self._may_come(need):
            return False
        self._subtract(need, placement or {})
        return True

    def holds_when_empty(self, need: Demand) -> bool:
        """Whether the present nodes could hold the gang if nothing else ran."""
        return _place(need, self._capacity.nodes) is not None

    def never(self, need: Demand) -> str | None:
        """What is missing even when nothing else runs and the cluster has grown; else None."""
        gpus, cpus = need.workers * need.gpus, need.workers * need.cpus
        if self.holds_when_empty(need) or self._capacity.may_grow_to(gpus, cpus):
            return None
        return f"{missing(need, self._capacity.nodes, None)} and may never have more"

    def shortage(self, need: Demand) -> str:
        """What is missing now."""
        return missing(need, self._capacity.nodes, list(self._free.values()))

    def _may_come(self, need: Demand) -> bool:
        gpus = self._gpus + need.workers * need.gpus
        cpus = self._cpus + need.workers * need.cpus
        return self._capacity.may_grow_to(gpus, cpus)

    def _pack(self, need: Demand) -> None:
        """Subtract a gang that has its place already. Which nodes it is on is not known: assume
        first fit, and of a gang that no longer fits (a node has gone) as much as does."""
        placement = _place(need, self._free.values())
        self._subtract(need, _fill(need, self._free.values()) if placement is None else placement)

    def _subtract(self, need: Demand, placement: Placement) -> None:
        self._gpus += need.workers * need.gpus
        self._cpus += need.workers * need.cpus
        for node_id, workers in placement.items():
            self._free[node_id] = _without(self._free[node_id], need, workers)


def _place(need: Demand, nodes: Iterable[NodeCapacity]) -> Placement | None:
    """First fit of the whole gang; over several machines, the same number of workers on each."""
    if need.nodes == 1:
        placement = _fill(need, nodes)
        return placement if sum(placement.values()) == need.workers else None
    share = need.workers // need.nodes
    chosen = [node.node_id for node in nodes if _workers_on(node, need) >= share][: need.nodes]
    return dict.fromkeys(chosen, share) if len(chosen) == need.nodes else None


def _fill(need: Demand, nodes: Iterable[NodeCapacity]) -> Placement:
    """As many of the gang's workers as the nodes hold, first node first."""
    placement: Placement = {}
    left = need.workers
    for node in nodes:
        if workers := min(left, _workers_on(node, need)):
            placement[node.node_id] = workers
            left -= workers
    return placement


def _workers_on(node: NodeCapacity, need: Demand) -> int:
    """How many of the gang's workers one node could hold."""
    if need.gpu_type is not None and need.gpu_type != node.accelerator:
        return 0
    shares = [
        have / each
        for have, each in (
            (node.cpus, need.cpus),
            (node.gpus, need.gpus),
            (node.memory_gb, need.memory_gb),
        )
        if each
    ]
    return max(0, int(min(shares) + ROUNDING))


def _without(node: NodeCapacity, need: Demand, workers: int) -> NodeCapacity:
    return node.model_copy(
        update={
            "cpus": node.cpus - workers * need.cpus,
            "gpus": node.gpus - workers * need.gpus,
            "memory_gb": node.memory_gb - workers * need.memory_gb,
        }
    )
