"""Runs of a real engine on one machine: its folders, plans for it, and what the runs left. Shared
by the tests of engines; no test of its own."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from configs.job import Order
from configs.settings import Settings
from tests.train_loops.plans import OrderingReporter
from tests.train_loops.plans import plan as resolved
from train_loops.data.batches import Batch, collate
from train_loops.data.prepare import load_validation
from train_loops.engines.base import Inputs, TrainLoop, find_engine
from train_loops.inputs import fetch
from train_loops.plan import Plan
from train_loops.run import run

TUNING = {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2}


@dataclass(frozen=True)
class Bench:
    """One machine, and runs of `engine` on it, of three steps where nothing else is said."""

    file_root: Path
    model_root: Path
    home: Path
    engine: str
    max_steps: int = 3

    @property
    def settings(self) -> Settings:
        return Settings(
            _env_file=None, home=self.home, file_root=self.file_root, model_root=self.model_root
        )

    def plan(
        self, job_id: str, method: str = "lora", engine: str | None = None, **changes: Any
    ) -> Plan:
        """A small job on CPU; `customization` and `tuning` are laid over the defaults. The engine's
        name goes before the id: runs of one id go on in each other's logs."""
        engine = engine or self.engine
        custom = {"method": method, **changes.pop("customization", {})}
        tuning = {**TUNING, "max_steps": self.max_steps, **changes.pop("tuning", {})}
        return resolved(
            f"file://{self.file_root}",
            job_id=f"{engine}-{job_id}",
            engine=engine,
            customization=custom,
            tuning_parameters=tuning,
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

    def validation_batch(self, plan: Plan) -> Batch:
        """All validation rows in one."""
        rows = load_validation(self.inputs(plan).data_folder)
        assert rows is not None
        return collate(list(rows))

    def base_model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.model_root / "tiny-llama")

    def torchrun(self, module: str, folder: Path) -> list[str]:
        """The module on two ranks, with a folder as its argument; the lines that both print."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        command += [f"--master-port={port}", "-m", module, str(folder)]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1", **self.environment},
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout.splitlines()

    @property
    def environment(self) -> dict[str, str]:
        """The settings, for another process."""
        return {
            "TRAINER_HOME": str(self.home),
            "TRAINER_FILE_ROOT": str(self.file_root),
            "TRAINER_MODEL_ROOT": str(self.model_root),
        }


def path(uri: str) -> Path:
    """The local file of a `file://` URI."""
    return Path(uri.removeprefix("file://"))


def results(plan: Plan) -> Path:
    """Where the run of `plan` published."""
    return path(plan.results_uri)


def second_attempt(plan: Plan) -> Plan:
    return plan.model_copy(update={"attempt": 2})


def logits(model: Any) -> torch.Tensor:
    """What `model` says to a fixed row."""
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=torch.arange(5, 25)[None]).logits
    return out


def loss_of(model: Any, batch: Batch) -> float:
    """Transformers' own loss: nats per trainable token."""
    with torch.no_grad():
        return float(model.eval()(**batch, use_cache=False).loss)


def weights(plan: Plan) -> dict[str, torch.Tensor]:
    """What a run published."""
    found: dict[str, torch.Tensor] = load_file(next(results(plan).rglob("*.safetensors")))
    return found


def furthest(one: Plan, other: Plan) -> float:
    """Largest difference of what two runs published; 0 means the same bits."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def assert_both_ranks_stopped_and_resumed(said: list[str]) -> None:
    """What `two_ranks` printed: a whole run, a stop, and the rest of it, on each rank."""
    assert sorted(line for line in said if line.startswith("rank")) == [
        "rank 0: None, cancel, None",
        "rank 1: None, cancel, None",
    ]
