"""A model sharded by FSDP2, and its loss. Called by `fsdp2.py`, which trains it.

Sources: PyTorch documentation of `fully_shard` and of `MixedPrecisionPolicy`.
"""

from typing import TYPE_CHECKING, Any

from train_loops.engines.group import Group
from train_loops.plan import Plan

if TYPE_CHECKING:
    import torch

    from train_loops.data.batches import Batch


def agree_on_weights(model: Any, group: Group) -> None:
    """Give every rank rank 0's weights: two machines may decompose one matrix differently, and
    shards of two decompositions do not fit together."""
    import torch.distributed as dist

    if group.world_size > 1:
        for weight in model.parameters():
            dist.broadcast(weight.data, src=0)


def shard(model: Any, plan: Plan, group: Group) -> None:
    """Shard, place, and on a GPU compile the model, in place. Every rank calls it."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    custom = plan.spec.customization
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.config.use_cache = False
    if custom.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    policy = MixedPrecisionPolicy()
    if custom.precision == "bf16":
        # Gradients are summed in fp32: bf16 would round each rank's share away.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(plan.device, (group.world_size,), mesh_dim_names=("data",))
    for layer in _decoder_layers(base):
        if plan.device == "cuda":
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.train()


def _decoder_layers(base: Any) -> list[Any]:
    """The blocks that transformers itself never splits."""
    names = set(base._no_split_modules or ())
    return [module for module in base.modules() if type(module).__name__ in names]


def reshard(model: Any) -> None:
    """Give the whole weights up that a forward pass without a backward one leaves in place."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def token_nll(model: Any, batch: "Batch") -> "torch.Tensor":
    """Negative log-likelihood of the trainable tokens of a batch on the model's device, summed, in
    nats, fp32."""
    from torch.nn.functional import cross_entropy

    from train_loops.data.mask import IGNORED

    inputs = {name: values for name, values in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    # Only what is learnt becomes fp32: with large vocabularies, logits are most of the memory.
    learnt = labels != IGNORED
    return cross_entropy(logits[learnt].float(), labels[learnt], reduction="sum")
