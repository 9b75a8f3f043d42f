"""What packing gains on short rows: the `trl` engine with packing beside TRL with its defaults.

The same model, LoRA and rows, and about as many tokens in a step. gsm8k where it is at hand (a file
named by `BENCH_GSM8K`), else the demo's own dataset. Without Ray, in processes of their own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load import ROOT
from benchmarks.training import environment, run_bare
from configs.errors import InternalError
from configs.job import Job
from configs.request import TrainRequest
from serve_app.local import assets
from train_loops.plan import resolve

LENGTH = 512
ROWS_A_STEP = 16
"""TRL's rows in a step; as packs, the same tokens fill about a third as many sequences."""
PACKS_A_STEP = 4
STEPS, QUICK_STEPS = 30, 3
THREADS = 2


@dataclass(frozen=True)
class PackingResult:
    """Tokens (padding left out) a second, after the first step."""

    dataset: str
    unpacked_tokens_per_second: float
    packed_tokens_per_second: float

    @property
    def gain(self) -> float:
        """Packed over unpacked."""
        return self.packed_tokens_per_second / self.unpacked_tokens_per_second


def measure(model: Path, *, quick: bool, say: Callable[[str], None]) -> PackingResult:
    """One run each."""
    steps = QUICK_STEPS if quick else STEPS
    with tempfile.TemporaryDirectory() as folder:
        name, rows = _rows(Path(folder))
        say(f"packing on {name}: TRL's defaults, then packed")
        unpacked = run_bare(_request(rows, model, steps, packing=False), model, "trl", rows)
        packed = _packed(model, rows, steps, Path(folder))
    return PackingResult(name, unpacked.tokens_per_second, packed)


def _rows(folder: Path) -> tuple[str, Path]:
    """Name and file of rows as `messages`."""
    found = os.environ.get("BENCH_GSM8K")
    if found is None:
        return "the demo's dataset", assets.dataset_file()
    target = folder / "rows.jsonl"
    with target.open("w") as file:
        for line in Path(found).read_text().splitlines():
            row = json.loads(line)
            turns = [("user", row["question"]), ("assistant", row["answer"])]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return "gsm8k", target


def _packed(model: Path, rows: Path, steps: int, folder: Path) -> float:
    source = folder / "users/u/projects/p/ingestion/rows.jsonl"
    source.parent.mkdir(parents=True)
    source.write_bytes(rows.read_bytes())
    posted = _request(source, model, steps, packing=True)
    request = TrainRequest.model_validate(posted)
    uri = f"file://{folder}/results/"
    job = Job(
        job_id="packing",
        backend="hf-unsloth",
        engine="trl",
        engine_reason="a benchmark",
        created_at=datetime.now(UTC),
        log_uri=uri,
        output_uri=uri,
        request=request.public(),
    )
    (folder / "plan.json").write_text(resolve(job, 1).model_dump_json())
    _run(
        folder / "plan.json",
        environment(posted)
        | {
            "TRAINER_HOME": str(folder / "home"),
            "TRAINER_FILE_ROOT": str(folder),
            "TRAINER_MODEL_ROOT": str(model.parent),
        },
    )
    logs = folder / "users/u/projects/p/logs/packing/metrics.jsonl"
    lines = [json.loads(line) for line in logs.read_text().splitlines()]
    first, last = (datetime.fromisoformat(lines[index]["at"]) for index in (0, -1))
    return float(sum(line["tokens"] for line in lines[1:]) / (last - first).total_seconds())


def _request(source: Path, model: Path, steps: int, *, packing: bool) -> dict[str, Any]:
    rows_a_step = PACKS_A_STEP if packing else ROWS_A_STEP
    return {
        "base_model": {"provider": "local", "model_name": model.name},
        "datasets": [{"source": f"file://{source}"}],
        "customization": {
            "method": "lora",
            "precision": "fp32",
            "lora": {"rank": 16, "alpha": 32},
        },
        "resources": {"cpus": THREADS},
        "tuning_parameters": {
            "learning_rate": 1e-3,
            "batch_size": rows_a_step,
            "micro_batch_size": rows_a_step,
            "max_steps": steps,
            "num_epochs": 100,
            "max_sequence_length": LENGTH,
            "packing": packing,
            "checkpoint_every_steps": 10**6,
        },
    }


def _run(plan: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train_loops.run", str(plan)], capture_output=True, text=True,
        check=False, cwd=ROOT, env=variables,
    )  # fmt: skip
    if done.returncode:
        raise InternalError(f"the packed run failed: {done.stderr[-2000:]}")
