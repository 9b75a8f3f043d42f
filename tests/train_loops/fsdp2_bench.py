"""Runs of the fsdp2 engine on one machine, for the tests of it. No test of its own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.job import Order
from configs.settings import Settings
from tests.train_loops.plans import OrderingReporter
from tests.train_loops.plans import plan as resolved
from train_loops.data.batches import Batch, collate
from train_loops.data.prepare import load_validation
from train_loops.engines.base import Inputs, TrainLoop, find_engine
from train_loops.engines.fsdp2_model import token_nll, trainable_in
from train_loops.inputs import fetch
from train_loops.plan import Plan
from train_loops.run import run

TUNING = {"batch_size": 4, "micro_batch_size": 2, "max_steps": 4, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Bench:
    """One machine: its folders, and runs on it."""

    file_root: Path
    model_root: Path
    home: Path

    @property
    def settings(self) -> Settings:
        return Settings(
            _env_file=None, home=self.home, file_root=self.file_root, model_root=self.model_root
        )

    def plan(
        self, job_id: str, method: str = "lora", engine: str = "fsdp2", **changes: Any
    ) -> Plan:
        custom = {"method": method, **changes.pop("customization", {})}
        return resolved(
            f"file://{self.file_root}",
            job_id=job_id,
            engine=engine,
            customization=custom,
            tuning_parameters={**TUNING, **changes.pop("tuning", {})},
            **changes,
        )

    def run(self, plan: Plan, reporter: OrderingReporter | None = None) -> Order:
        return run(plan, self.settings, reporter or OrderingReporter())

    def losses(self, plan: Plan) -> list[float]:
        return [line["train_loss"] for line in self.metrics(plan) if "train_loss" in line]

    def metrics(self, plan: Plan) -> list[dict[str, Any]]:
        lines = (_path(plan.log_uri) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def trained(self, plan: Plan) -> list[float]:
        """Losses of a whole run."""
        assert self.run(plan).stop is None
        return self.losses(plan)

    def inputs(self, plan: Plan) -> Inputs:
        return fetch(plan, self.settings, None, worker="rank-0")

    def loop(self, plan: Plan) -> TrainLoop:
        """A loop of one rank, in this process."""
        return find_engine("fsdp2").build(plan, self.inputs(plan), rank=0, world_size=1)


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def results(plan: Plan) -> Path:
    return _path(plan.results_uri)


def base_model(bench: Bench) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(bench.model_root / "tiny-llama")


def loss_of(model: Any, batch: Batch) -> float:
    """Nats per trainable token."""
    with torch.no_grad():
        return float(token_nll(model.eval(), batch)) / trainable_in(batch)


def validation_batch(bench: Bench, plan: Plan) -> Batch:
    """All validation rows in one."""
    rows = load_validation(bench.inputs(plan).data_folder)
    assert rows is not None
    return collate(list(rows))
