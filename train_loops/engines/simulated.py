"""No model: the states, events, metrics, checkpoints and files of a run, for development and CI.

Its loss is a formula and its result says `simulated` in every file. Data are read and checked, so
that a simulated run finds a broken dataset.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.plan import Plan

STEPS_PER_EPOCH = 10
STEP_SECONDS = 0.05


@dataclass
class SimulatedLoop:
    """A `TrainLoop` whose loss falls from 4 to 1 along a fixed curve."""

    plan: Plan
    rank: int
    step: int = field(default=0, init=False)

    @property
    def total_steps(self) -> int:
        """Steps of the run, as a real engine with ten steps an epoch would count them."""
        tuning = self.plan.tuning
        return min(tuning.max_steps or 10**9, tuning.num_epochs * STEPS_PER_EPOCH)

    def load(self, folder: Path) -> None:
        self.step = json.loads((folder / "simulated.json").read_text())["step"]

    def begin(self) -> Span:
        return Span(self.step, self.total_steps)

    def steps(self) -> Iterator[Metrics]:
        while self.step < self.total_steps:
            time.sleep(STEP_SECONDS)
            self.step += 1
            yield self._metrics()

    def evaluate(self) -> float:
        return self._metrics().loss

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "simulated.json").write_text(json.dumps({"step": self.step}))

    def export(self, folder: Path) -> None:
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            said = {"simulated": True, "note": "No model was trained.", "steps": self.step}
            (folder / "SIMULATED.json").write_text(json.dumps(said, indent=2) + "\n")

    def close(self) -> None:
        """Nothing is held."""

    def _metrics(self) -> Metrics:
        done = self.step / self.total_steps
        tuning = self.plan.tuning
        return Metrics(
            step=self.step,
            epoch=self.step / STEPS_PER_EPOCH,
            loss=1.0 + 3.0 * math.exp(-4.0 * done),
            learning_rate=tuning.learning_rate * (1.0 - done),
            grad_norm=1.0,
            tokens=tuning.batch_size * min(tuning.max_sequence_length, 128),
        )


class SimulatedEngine:
    """Builds simulated loops."""

    name = "simulated"
    uses_torch = False

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> SimulatedLoop:
        return SimulatedLoop(plan, rank)


ENGINE = SimulatedEngine()
