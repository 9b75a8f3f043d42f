"""What the cluster has and what a job asks of it, in the scheduler's terms.

Pure: the tracker fills `Capacity` from Ray and stores it as JSON; replicas read it from there.
"""

from typing import NamedTuple

from configs.job import Record
from configs.resources import ResourcesSpec

ROUNDING = 1e-6
"""Shares such as 256 GiB / 3 must still fit three times."""


class NodeCapacity(Record):
    """Totals of one living node, whatever is in use."""

    node_id: str
    """Ray's id of the node."""
    cpus: float
    """CPU cores."""
    gpus: float = 0
    """GPUs."""
    memory_gb: float = 0
    """Memory that Ray may reserve, GiB."""
    accelerator: str | None = None
    """Type of its GPUs as Ray names it, such as `A100`."""


class Capacity(Record):
    """Totals of the cluster, and what an autoscaler may make of them."""

    nodes: list[NodeCapacity]
    """The living nodes."""
    max_gpus: int = 0
    """GPUs that the cluster may scale up to; 0: it does not."""
    max_cpus: int = 0
    """CPU cores that the cluster may scale up to; 0: it does not."""

    def may_grow_to(self, gpus: float, cpus: float) -> bool:
        """Whether an autoscaler may bring what the cluster lacks of these totals."""
        gpus_here = sum(node.gpus for node in self.nodes)
        cpus_here = sum(node.cpus for node in self.nodes)
        if not (self.max_gpus > gpus_here if gpus else self.max_cpus > cpus_here):
            return False
        # A limit on GPUs alone says nothing of CPUs: nodes with GPUs bring some.
        cpus_allowed = max(self.max_cpus, cpus_here) if self.max_cpus else cpus
        return gpus <= max(self.max_gpus, gpus_here) and cpus <= cpus_allowed


class Demand(NamedTuple):
    """One job's gang: `workers` equal shares, on at least `nodes` machines."""

    workers: int
    nodes: int
    cpus: float
    """CPU cores of each worker."""
    gpus: float
    """GPUs of each worker: 1 or 0."""
    memory_gb: float
    """Memory of each worker, 0 when none is reserved."""
    gpu_type: str | None


def demand(resources: ResourcesSpec) -> Demand:
    """What the job's workers need."""
    workers = resources.worker_count
    return Demand(
        workers=workers,
        nodes=resources.nodes,
        cpus=resources.cpus_per_worker,
        gpus=1 if resources.gpus else 0,
        memory_gb=(resources.memory_gb or 0) / workers,
        gpu_type=resources.gpu_type,
    )
