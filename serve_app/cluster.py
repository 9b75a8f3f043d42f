"""What the Ray cluster has, read from Ray. The only reader of `ray.nodes()`."""

import ray

from configs.settings import Settings
from serve_app.capacity import Capacity, NodeCapacity

_ACCELERATOR = "accelerator_type:"


def read_capacity(settings: Settings) -> Capacity:
    """Totals of every living node, and what an autoscaler may bring."""
    nodes = [_node(node) for node in ray.nodes() if node["Alive"]]
    return Capacity(nodes=nodes, max_gpus=settings.max_gpus, max_cpus=settings.max_cpus)


def _node(node: dict) -> NodeCapacity:  # type: ignore[type-arg]
    resources = node["Resources"]
    names = [key.removeprefix(_ACCELERATOR) for key in resources if key.startswith(_ACCELERATOR)]
    return NodeCapacity(
        node_id=node["NodeID"],
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
        memory_gb=resources.get("memory", 0) / 2**30,
        accelerator=names[0] if names else None,
    )
