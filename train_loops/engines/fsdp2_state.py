"""What a checkpoint of a sharded run holds: the weights that move, optimizer, scheduler, step.

Called by `fsdp2.py`. Frozen weights are left out: they come from the base model.
"""

from pathlib import Path
from typing import Any

from train_loops.engines import sharded_checkpoint


def save(folder: Path, model: Any, optimizer: Any, scheduler: Any, step: int) -> None:
    """Write this rank's part into `folder`. Every rank calls it at the same step.

    Raises:
        StorageFailed: a rank could not write.
    """
    sharded_checkpoint.write(_state(model, optimizer, scheduler, step), folder)


def load(folder: Path, model: Any, optimizer: Any, scheduler: Any) -> int:
    """Put back all that `save` wrote on all ranks; the number of steps done.

    Raises:
        ConfigInvalid: the checkpoint is of another model or adapter.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    state = _state(model, optimizer, scheduler, 0)
    sharded_checkpoint.read(state, folder)
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return int(state["step"])


def trained_weights(model: Any) -> dict[str, Any]:
    """All weights that move, whole and on CPU; empty on ranks other than 0. Every rank calls it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def _state(model: Any, optimizer: Any, scheduler: Any, step: int) -> dict[str, Any]:
    """This rank's shards; an optimizer that has done no step gets its zeros here."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(ignore_frozen_params=True)
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "scheduler": scheduler.state_dict(),
        "step": step,
    }
