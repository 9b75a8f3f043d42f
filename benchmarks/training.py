"""Training through each API beside a bare script on the same stack: the first example, with the
same numbers.

Both are timed at the end of each step, and both count the tokens of their own steps: the rows are
the same, their order is not. `loss_difference` compares what was learnt.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.load import ROOT
from configs.adapter import LoraSpec
from configs.capabilities import choose_engine
from configs.errors import InternalError
from configs.job import JobStatus
from configs.names import Backend
from configs.request import TrainRequest
from serve_app.client import TrainerClient
from serve_app.local import assets
from serve_app.local.demo import EXAMPLE, example
from serve_app.local.stack import StackState

NEVER = 1_000_000
JOB_TIMEOUT_S = 900.0
QUICK_STEPS = 5


@dataclass(frozen=True)
class Run:
    """One run of the training."""

    seconds_to_first_step: float
    tokens_per_second: float
    losses: list[float]
    peak_rss_bytes: int


@dataclass(frozen=True)
class TrainingResult:
    """Runs on one engine; those without checkpoints alternate with the bare ones."""

    engine: str
    bare: list[Run]
    service: list[Run]
    with_checkpoints: Run | None

    @property
    def speed_ratio(self) -> float:
        """Service's tokens per second over the bare script's: median over the rounds."""
        pairs = zip(self.service, self.bare, strict=True)
        return statistics.median(s.tokens_per_second / b.tokens_per_second for s, b in pairs)

    @property
    def loss_difference(self) -> float:
        """Of the mean loss of the last quarter of steps, in nats per token."""
        service, bare = self.service[0].losses, self.bare[0].losses
        last = max(1, len(bare) // 4)
        return statistics.mean(service[-last:]) - statistics.mean(bare[-last:])


def measure(
    clients: Mapping[Backend, TrainerClient],
    state: StackState,
    model: Path,
    *,
    rounds: int,
    quick: bool,
    say: Callable[[str], None],
) -> list[TrainingResult]:
    """Train `rounds` times by each way, in turn, on the engine of each API; and once on the first
    with the default checkpoints."""
    results: list[TrainingResult] = []
    for backend, client in clients.items():
        engine = choose_engine(TrainRequest.model_validate(example(EXAMPLE)), backend).engine
        bare: list[Run] = []
        service: list[Run] = []
        for number in range(1, rounds + 1):
            say(f"{engine}, round {number} of {rounds}: bare script, then service")
            bare.append(run_bare(_request(quick), model, engine))
            service.append(run_service(client, state, _request(quick, NEVER)))
        saved = None
        if not results:
            say(f"{engine}: service with its default checkpoints")
            saved = run_service(client, state, _request(quick))
        results.append(TrainingResult(engine, bare, service, saved))
    return results


def run_bare(request: dict[str, Any], model: Path, engine: str, dataset: Path | None = None) -> Run:
    """One run of the bare script on `dataset`, the demo's when left out."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.json"
        recipe.write_text(json.dumps({"engine": engine, **_recipe(request, model, dataset)}))
        command = [sys.executable, "-m", "benchmarks.bare", str(recipe)]
        command += ["--started", str(time.time())]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT,
            env=environment(request),
        )  # fmt: skip
    if done.returncode:
        raise InternalError(f"the bare script failed: {done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def run_service(client: TrainerClient, state: StackState, request: dict[str, Any]) -> Run:
    """One run through the API, timed by the job's own metrics."""
    job = client.wait(client.submit(request).job_id, timeout_s=JOB_TIMEOUT_S)
    if job.status is not JobStatus.SUCCEEDED:
        raise InternalError(f"job {job.job_id} ended as {job.status}: {job.detail}")
    steps = assets.metrics(state, job)
    ends = [datetime.fromisoformat(step["at"]) for step in steps]
    tokens = sum(step["tokens"] for step in steps[1:])
    return Run(
        seconds_to_first_step=(ends[0] - job.created_at).total_seconds(),
        tokens_per_second=tokens / (ends[-1] - ends[0]).total_seconds(),
        losses=[step["train_loss"] for step in steps],
        peak_rss_bytes=steps[-1]["peak_memory_bytes"],
    )


def _request(quick: bool, checkpoint_every_steps: int | None = None) -> dict[str, Any]:
    request = example(EXAMPLE)
    if quick:
        request["tuning_parameters"]["max_steps"] = QUICK_STEPS
    if checkpoint_every_steps is not None:
        request["tuning_parameters"]["checkpoint_every_steps"] = checkpoint_every_steps
    return request


def environment(request: dict[str, Any]) -> dict[str, str]:
    """As many threads as Ray gives the service's worker."""
    threads = str(request["resources"]["cpus"])
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": threads}


def _recipe(request: dict[str, Any], model: Path, dataset: Path | None) -> dict[str, Any]:
    """The request in the words of PEFT and TRL, defaults filled in."""
    spec = TrainRequest.model_validate(request)
    lora = spec.customization.lora or LoraSpec()
    return {
        "model": str(model),
        "dataset": str(dataset or assets.dataset_file()),
        "lora": {
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": lora.target_modules,
            "bias": lora.bias,
        },
        "arguments": _trainer_arguments(spec),
    }


def _trainer_arguments(spec: TrainRequest) -> dict[str, Any]:
    tuning = spec.tuning_parameters
    micro = tuning.micro_batch_size or tuning.batch_size
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": tuning.batch_size // micro,
        "num_train_epochs": tuning.num_epochs,
        "max_steps": tuning.max_steps or -1,
        "learning_rate": tuning.learning_rate,
        "lr_scheduler_type": tuning.lr_scheduler,
        "warmup_steps": tuning.warmup_ratio,
        "weight_decay": tuning.weight_decay,
        "max_grad_norm": tuning.max_grad_norm,
        "max_length": tuning.max_sequence_length,
        "seed": tuning.seed,
        "data_seed": tuning.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": spec.customization.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
