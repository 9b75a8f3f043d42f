"""The same training as a job's, as a script that anyone would write: transformers, PEFT and TRL.

`python -m benchmarks.bare recipe.json`, in a process of its own; it imports nothing of the service.
Prints one JSON object: `seconds_to_first_step` (from the process's start to the end of the first
optimizer step), `tokens_per_second` over all steps after the first, `peak_rss_bytes`, and per step
`losses` and `tokens`.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def main() -> int:
    """Train by the recipe; the figures as JSON on stdout."""
    parser = argparse.ArgumentParser(prog="benchmarks.bare")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--started", type=float, default=time.time(), help="Unix time of the start")
    arguments = parser.parse_args()
    steps = train(json.loads(arguments.recipe.read_text()))
    sys.stdout.write("\n" + json.dumps(figures(steps, arguments.started)) + "\n")
    return 0


def train(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Each step's `at`, `loss` and tokens so far."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(recipe["dataset"]).read_text().splitlines()]
    callback, steps = _recorder()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(recipe["model"], dtype="float32"),
            args=SFTConfig(output_dir=folder, assistant_only_loss=True, **recipe["arguments"]),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(recipe["model"]),
            peft_config=LoraConfig(task_type="CAUSAL_LM", **recipe["lora"]),
            callbacks=[callback],
        )
        trainer.train()
    return steps


def _recorder() -> tuple[Any, list[dict[str, Any]]]:
    """A callback that notes each step, at the hook at which the service does."""
    from transformers import TrainerCallback

    steps: list[dict[str, Any]] = []

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                steps.append({"at": time.time(), "loss": logs["loss"], "seen": logs["num_tokens"]})

    return Recorder(), steps


def figures(steps: list[dict[str, Any]], started: float) -> dict[str, Any]:
    """What the steps say."""
    seen = [0, *(int(step["seen"]) for step in steps)]
    seconds = steps[-1]["at"] - steps[0]["at"]
    return {
        "seconds_to_first_step": steps[0]["at"] - started,
        "tokens_per_second": (seen[-1] - seen[1]) / seconds,
        # Linux counts in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": [step["loss"] for step in steps],
        "tokens": [after - before for before, after in pairwise(seen)],
    }


if __name__ == "__main__":
    sys.exit(main())
