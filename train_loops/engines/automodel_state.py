"""What a checkpoint of a run on NeMo AutoModel holds: what moves, AdamW's moments, the step.

Called by `automodel.py`. The learning rate and the order of the rows are functions of the step, and
not stored.
"""

from pathlib import Path
from typing import Any

from train_loops.engines import sharded_checkpoint
from train_loops.engines.automodel_model import trained

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def store(recipe: Any, folder: Path, step: int) -> None:
    """Write this rank's part into `folder`; every rank calls it.

    Raises:
        StorageFailed: a rank could not write.
    """
    import torch

    sharded_checkpoint.write({**_tensors(recipe), "step": torch.tensor(step)}, folder)


def restore(recipe: Any, folder: Path) -> int:
    """Take up what the ranks' `store` wrote, found together in `folder`; the step it was at.

    Raises:
        ConfigInvalid: it is the checkpoint of another model or adapter.
    """
    import torch

    state = {**_tensors(recipe), "step": torch.tensor(0)}
    sharded_checkpoint.read(state, folder)
    return int(state["step"])


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
