"""Checkpoints of a sharded run, by PyTorch's distributed checkpoint (DCP). Called by `fsdp2.py`.

Each rank writes its shards to files of its own name (`__<rank>_<n>.distcp`), rank 0 also
`.metadata`, which refers to them by name only: ranks may write to different folders, whose files
together are the checkpoint. Another number of ranks can read it. Frozen weights are left out: they
come from the base model. Source: torch.distributed.checkpoint documentation.

A checkpoint is the service's own: like all of DCP's it holds pickles, so none may come from
elsewhere.
"""

from pathlib import Path
from typing import Any

from configs.errors import ConfigInvalid, StorageFailed


def save(folder: Path, model: Any, optimizer: Any, scheduler: Any, step: int) -> None:
    """Write this rank's part into `folder`. Every rank calls it at the same step.

    Raises:
        StorageFailed: a rank could not write.
    """
    import torch.distributed.checkpoint as dcp

    folder.mkdir(parents=True, exist_ok=True)
    state = _weights_and_optimizer(model, optimizer)
    state |= {"step": step, "scheduler": scheduler.state_dict(), **_random_state()}
    try:
        dcp.save(state, storage_writer=dcp.FileSystemWriter(folder))
    except dcp.CheckpointException as error:  # A BaseException, which nobody expects.
        raise StorageFailed(f"a checkpoint was not written: {_first_cause(error)}") from error


def load(folder: Path, model: Any, optimizer: Any, scheduler: Any) -> int:
    """Put back all that `save` wrote on all ranks; the number of steps done.

    A rank that had no part in the writing keeps its own fresh random state.

    Raises:
        ConfigInvalid: the checkpoint is of another model or adapter.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    reader = dcp.FileSystemReader(folder)
    written = reader.read_metadata().state_dict_metadata
    random_state = {key: value for key, value in _random_state().items() if key in written}
    state = _weights_and_optimizer(model, optimizer)
    state |= {"step": 0, "scheduler": scheduler.state_dict(), **random_state}
    try:
        dcp.load(state, storage_reader=reader)
    except dcp.CheckpointException as error:
        raise ConfigInvalid(
            f"the checkpoint does not fit this run: {_first_cause(error)}",
            hint="Start the job anew: its model or its adapter is another one.",
        ) from error
    set_model_state_dict(model, state["model"], options=StateDictOptions(strict=False))
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    _set_random_state({key: state[key] for key in random_state})
    return int(state["step"])


def trained_weights(model: Any) -> dict[str, Any]:
    """All weights that move, whole and on CPU; empty on ranks other than 0. Every rank calls it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    return weights


def _weights_and_optimizer(model: Any, optimizer: Any) -> dict[str, Any]:
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
    }


def _random_state() -> dict[str, Any]:
    """torch's generators, the only ones that a step draws from (dropout), under the rank's name."""
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    states = {f"random.cpu.{rank}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random.cuda.{rank}"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(states: dict[str, Any]) -> None:
    import torch

    for key, value in states.items():
        setter = torch.set_rng_state if ".cpu." in key else torch.cuda.set_rng_state
        setter(value)


def _first_cause(error: Any) -> str:
    """The line that one rank gave; DCP joins the tracebacks of all."""
    causes = [str(cause[0]) for cause in error.failures.values()]
    return causes[0].splitlines()[0] if causes else str(error).splitlines()[0]
