"""Checkpoints of a run on NeMo AutoModel: what moves, the optimizer, chance, and the step.

PyTorch's distributed checkpoint: each rank writes `__<rank>_<n>.distcp` with its own parts, rank 0
also `.metadata`, so the ranks' folders may lie side by side as one. The learning rate and the order
of the rows are functions of the step, and not stored.
"""

from pathlib import Path
from typing import Any

from configs.errors import ConfigInvalid
from train_loops.engines.automodel_model import trained

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def store(recipe: Any, folder: Path, rank: int, step: int) -> None:
    """Write this rank's part into `folder`; every rank calls it."""
    import torch
    from torch.distributed import checkpoint

    state = {**_tensors(recipe), **_chance(rank), "step": torch.tensor(step)}
    checkpoint.save(state, checkpoint_id=folder)


def restore(recipe: Any, folder: Path, rank: int) -> int:
    """Take up what the ranks' `store` wrote, found together in `folder`; the step it was at.

    Raises:
        ConfigInvalid: it is the checkpoint of another model or adapter.
    """
    import torch
    from torch.distributed import checkpoint

    stored = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = _tensors(recipe)
    _refuse_other(tensors, stored)
    # A rank that was not there when the checkpoint was written keeps the chance it has.
    chance = {name: value for name, value in _chance(rank).items() if name in stored}
    state = {**tensors, **chance, "step": torch.tensor(0)}
    checkpoint.load(state, checkpoint_id=folder)
    for name in chance:
        device = torch.cuda if name.endswith(".cuda") else torch
        device.set_rng_state(state[name])
    return int(state["step"])


def _refuse_other(tensors: dict[str, Any], stored: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if name not in stored or stored[name].size != tensor.shape:
            raise ConfigInvalid(
                f"the checkpoint does not fit the run: {name} is missing in it or of another shape",
                param="customization",
                hint="A run can only go on with the model and the adapter that it began with.",
            )


def _tensors(recipe: Any) -> dict[str, Any]:
    """Parameters that move and AdamW's moments, by name; they are read into as they are."""
    optimizer = recipe.optimizer[0]
    tensors: dict[str, Any] = {}
    for name, parameter in trained(recipe.model_parts[0]):
        tensors[f"model.{name}"] = parameter.detach()
        moments = optimizer.state[parameter] or _first_moments(parameter)
        optimizer.state[parameter] = moments
        for key in MOMENTS:
            tensors[f"optimizer.{name}.{key}"] = moments[key]
    return tensors


def _first_moments(parameter: Any) -> dict[str, Any]:
    """What AdamW makes of a parameter at its first step."""
    import torch

    return {
        "step": torch.tensor(0.0),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _chance(rank: int) -> dict[str, Any]:
    """This rank's generators, which draw the dropout."""
    import torch

    states = {f"chance.{rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"chance.{rank}.cuda"] = torch.cuda.get_rng_state()
    return states
