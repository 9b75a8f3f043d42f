"""Checkpoints of a run on NeMo AutoModel: what moves, the optimizer, chance, and the step.

PyTorch's distributed checkpoint: each rank writes `__<rank>_<n>.distcp` with its own parts and rank
0 `.metadata`, so that the ranks' folders lie side by side as one. The learning rate is a function of
the step, the order of rows too; neither is stored.
"""

from pathlib import Path
from typing import Any

from train_loops.engines.automodel_model import trained

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def store(recipe: Any, folder: Path, rank: int, step: int) -> None:
    """Write this rank's part into `folder`; every rank calls it."""
    import torch
    import torch.distributed.checkpoint as checkpoint

    state = {**_tensors(recipe), **_chance(rank), "step": torch.tensor(step)}
    checkpoint.save(state, checkpoint_id=folder)


def restore(recipe: Any, folder: Path, rank: int) -> int:
    """Take up what the ranks' `store` wrote, found together in `folder`; the step it was at."""
    import torch
    import torch.distributed.checkpoint as checkpoint

    state = {**_tensors(recipe), **_chance(rank), "step": torch.tensor(0)}
    checkpoint.load(state, checkpoint_id=folder)
    torch.set_rng_state(state[f"chance.{rank}.cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state[f"chance.{rank}.cuda"])
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


def _chance(rank: int) -> dict[str, Any]:
    """This rank's generators, which draw the dropout."""
    import torch

    states = {f"chance.{rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"chance.{rank}.cuda"] = torch.cuda.get_rng_state()
    return states
