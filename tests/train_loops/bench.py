"""Runs of a real engine on one machine: its folders, plans for it, and what the runs left. Shared
by the tests of engines; no test of its own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.job import Order
from configs.settings import Settings
from tests.train_loops.plans import OrderingReporter
from tests.train_loops.plans import plan as resolved
from train_loops.engines.base import Inputs, TrainLoop, find_engine
from train_loops.inputs import fetch
from train_loops.plan import Plan
from train_loops.run import run

TUNING = {"batch_size": 4, "micro_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Bench:
    """One machine, and runs of `engine` on it."""

    file_root: Path
    model_root: Path
    home: Path
    engine: str

    @property
    def settings(self) -> Settings:
        return Settings(
            _env_file=None, home=self.home, file_root=self.file_root, model_root=self.model_root
        )

    def plan(
        self, job_id: str, method: str = "lora", engine: str | None = None, **changes: Any
    ) -> Plan:
        """A small job on CPU; `customization` and `tuning` are laid over the defaults."""
        custom = {"method": method, **changes.pop("customization", {})}
        return resolved(
            f"file://{self.file_root}",
            job_id=job_id,
            engine=engine or self.engine,
            customization=custom,
            tuning_parameters={**TUNING, **changes.pop("tuning", {})},
            **changes,
        )

    def run(self, plan: Plan, reporter: OrderingReporter | None = None) -> Order:
        return run(plan, self.settings, reporter or OrderingReporter())

    def trained(self, plan: Plan) -> list[float]:
        """Losses of a whole run."""
        assert self.run(plan).stop is None
        return self.losses(plan)

    def losses(self, plan: Plan) -> list[float]:
        return [line["train_loss"] for line in self.metrics(plan)]

    def metrics(self, plan: Plan) -> list[dict[str, Any]]:
        """One line a step."""
        lines = (path(plan.log_uri) / "metrics.jsonl").read_text().splitlines()
        return [found for line in lines if "train_loss" in (found := json.loads(line))]

    def inputs(self, plan: Plan, rank: int = 0) -> Inputs:
        return fetch(plan, self.settings, None, worker=f"rank-{rank}")

    def loop(self, plan: Plan, rank: int = 0, world_size: int = 1) -> TrainLoop:
        """A loop of one rank, in this process."""
        inputs = self.inputs(plan, rank)
        return find_engine(plan.engine).build(plan, inputs, rank=rank, world_size=world_size)

    def base_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.model_root / "tiny-llama")


def path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def results(plan: Plan) -> Path:
    return path(plan.results_uri)
