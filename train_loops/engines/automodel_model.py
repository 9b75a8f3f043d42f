"""The recipe's model and its parameters: names, whole tensors, first values, decay, precision."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from configs.adapter import LoraSpec
from configs.errors import ConfigInvalid
from train_loops.engines.schedule import decayed_names
from train_loops.plan import Plan


def trained(model: Any) -> Iterator[tuple[str, Any]]:
    """(name as in the base model, parameter) of all that moves, in the model's order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield plain(name), parameter


def plain(name: str) -> str:
    """A parameter's name without what DDP and checkpointed layers put into it."""
    return name.replace("_checkpoint_wrapped_module.", "").removeprefix("module.")


def everything(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all parameters, tied ones once, and of the buffers that belong to them."""
    parameters = {plain(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    yield from ((plain(name), parameter) for name, parameter in model.named_parameters())
    for name, tensor in model.state_dict().items():
        if plain(name) not in parameters:
            yield plain(name), tensor


def gathered(tensors: Iterable[tuple[str, Any]], rank: int) -> dict[str, Any]:
    """Whole copies on the CPU by name, on rank 0; the others give their parts and get nothing."""
    import torch
    from torch.distributed.tensor import DTensor

    copies: dict[str, Any] = {}
    for name, tensor in tensors:
        value = tensor.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if rank == 0:
            # What was gathered may be a view of a larger buffer, which safetensors refuses.
            copies[name] = value.cpu().clone(memory_format=torch.contiguous_format)
    return copies


def draw_adapters(model: Any, plan: Plan) -> None:
    """Draw each A by the seed, whole, and give every rank its part; B is 0.

    So a run starts the same however many workers it has. Kaiming-uniform, as PEFT.

    Raises:
        ConfigInvalid: a layer that the request names is not there.
    """
    import torch

    names = [name for name, _ in trained(model)]
    _refuse_missing(names, plan.spec.customization.lora or LoraSpec())
    chance = torch.Generator().manual_seed(plan.tuning.seed)
    with torch.no_grad():
        for name, parameter in trained(model):
            value = torch.zeros(parameter.shape, dtype=torch.float32)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=chance)
            _assign(parameter, value)


def _refuse_missing(names: list[str], lora: LoraSpec) -> None:
    if lora.target_modules == "all-linear":
        return
    layers = {name.rsplit(".lora_", 1)[0] for name in names}
    for wanted in lora.target_modules:
        if not any(layer == wanted or layer.endswith(f".{wanted}") for layer in layers):
            raise ConfigInvalid(
                f"customization.lora.target_modules: the model has no linear layer named "
                f"{wanted!r}",
                param="customization.lora.target_modules",
                hint="Name layers as in the model's own module tree, or use 'all-linear'.",
            )


def _assign(parameter: Any, value: Any) -> None:
    """Copy a whole tensor into a parameter, or this rank's part of it."""
    from torch.distributed.tensor import DTensor

    local = parameter
    if isinstance(parameter, DTensor):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
        cut = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
        local, value = parameter.to_local(), value[cut]
    local.copy_(value)


def spare_norms(optimizer: Any, model: Any) -> None:
    """No weight decay on norms and biases, as transformers' `get_decay_parameter_names`."""
    decaying = decayed_names(model)
    spared = [p for n, p in model.named_parameters() if p.requires_grad and n not in decaying]
    if not spared:
        return
    ids = {id(parameter) for parameter in spared}
    first = optimizer.param_groups[0]
    first["params"] = [p for p in first["params"] if id(p) not in ids]
    optimizer.add_param_group({"params": spared, "weight_decay": 0.0})


def under_autocast(model: Any, device: str) -> None:
    """Compute the forward pass in bf16; weights that move stay in fp32."""
    import torch

    model.forward = torch.autocast(device, dtype=torch.bfloat16)(model.forward)
