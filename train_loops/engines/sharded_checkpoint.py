"""Checkpoints that every rank writes a part of, by PyTorch's distributed checkpoint (DCP).

Each rank writes `__<rank>_<n>.distcp`, rank 0 also `.metadata`, which refers to them by name only:
ranks may write to different folders, whose files together are the checkpoint. Another number of
ranks can read it. What is in one is the business of `fsdp2_state.py` and `automodel_state.py`.
Source: torch.distributed.checkpoint documentation.

A checkpoint is the service's own: like all of DCP's it holds pickles, so none may come from
elsewhere.
"""

from pathlib import Path
from typing import Any

from configs.errors import ConfigInvalid, StorageFailed

State = dict[str, Any]


def write(state: State, folder: Path) -> None:
    """Write this rank's part of `state`, and its random state, into `folder`. Every rank calls it.

    Raises:
        StorageFailed: a rank could not write.
    """
    import torch.distributed.checkpoint as dcp

    folder.mkdir(parents=True, exist_ok=True)
    try:
        dcp.save({**state, **_random_state()}, storage_writer=dcp.FileSystemWriter(folder))
    except dcp.CheckpointException as error:  # A BaseException, which nobody expects.
        raise StorageFailed(f"a checkpoint was not written: {_first_cause(error)}") from error


def read(state: State, folder: Path) -> None:
    """Fill `state` with what the ranks' `write` wrote, found together in `folder`, and go on with
    its random state. A rank that had no part in the writing keeps its own.

    Raises:
        ConfigInvalid: the checkpoint is of another model or adapter.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.FileSystemReader(folder)
    written = reader.read_metadata().state_dict_metadata
    random_state = {key: value for key, value in _random_state().items() if key in written}
    everything = {**state, **random_state}
    try:
        dcp.load(everything, storage_reader=reader)
    except dcp.CheckpointException as error:
        raise ConfigInvalid(
            f"the checkpoint does not fit this run: {_first_cause(error)}",
            param="customization",
            hint="Start the job anew: its model or its adapter is another one.",
        ) from error
    state.update({name: everything[name] for name in state})
    _set_random_state({name: everything[name] for name in random_state})


def _random_state() -> State:
    """torch's generators, the only ones that a step draws from (dropout), under the rank's name."""
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    states = {f"random.cpu.{rank}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random.cuda.{rank}"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(states: State) -> None:
    import torch

    for key, value in states.items():
        setter = torch.set_rng_state if ".cpu." in key else torch.cuda.set_rng_state
        setter(value)


def _first_cause(error: Any) -> str:
    """The line that one rank gave; DCP joins the tracebacks of all."""
    causes = [str(cause[0]) for cause in error.failures.values()]
    return causes[0].splitlines()[0] if causes else str(error).splitlines()[0]
