"""The contract of an engine, and how one is found: by the module of its name in this package.

A new engine is one new file here and one row in `configs/capabilities.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from train_loops.plan import Plan


@dataclass(frozen=True, slots=True)
class Metrics:
    """One optimizer step, averaged or summed over all workers."""

    step: int
    """1-based number of the step."""
    epoch: float
    loss: float
    """Nats per trainable token."""
    learning_rate: float
    grad_norm: float | None
    tokens: int
    """Tokens of the step's batch, padding left out."""


@dataclass(frozen=True, slots=True)
class Span:
    """The steps of a run."""

    first_step: int
    """Steps already done, by a checkpoint; 0 on a fresh run."""
    total_steps: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """What lies ready on the worker's disk before an engine is built."""

    model_folder: Path
    """Config, tokenizer, safetensors; empty for an engine that needs no model."""
    data_folder: Path
    """What `train_loops.data.prepare` wrote."""
    scratch: Path
    """Folder of this worker alone."""


class TrainLoop(Protocol):
    """A training run that yields after each optimizer step, on every rank in step.

    Call `load` (optional), `begin`, then iterate `steps`. Between two steps `save` writes all that
    a resumed run needs. `export` writes the finished adapter or model; `close` frees the loop.
    """

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote. Before `begin`."""

    def begin(self) -> Span:
        """Set up, and say how many steps there are."""

    def steps(self) -> Iterator[Metrics]:
        """Train. Each value is a finished optimizer step."""

    def evaluate(self) -> float:
        """Loss on the validation rows, nats per trainable token, the same on every rank. Between
        two steps or after the last; the run goes on as if it had not been called. Called only when
        there are validation rows."""

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint into `folder`, which does not exist yet."""

    def export(self, folder: Path) -> None:
        """Write the result; every rank calls it, rank 0 writes."""

    def close(self) -> None:
        """End the loop early or after its last step. Safe to call twice."""


class Engine(Protocol):
    """A stack that computes steps."""

    name: str
    uses_torch: bool
    """Whether workers need a torch process group, a model and tokenised data."""

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> TrainLoop:
        """A loop for this rank.

        Raises:
            RunError: the model cannot be read, or the settings do not fit it.
        """


def find_engine(name: str) -> Engine:
    """The engine called `name`."""
    module: Any = import_module(f"train_loops.engines.{name}")
    engine: Engine = module.ENGINE
    return engine
