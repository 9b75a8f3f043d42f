"""The same training as a job's by transformers, PEFT and TRL. Called by `bare.py`; it imports
nothing of the service."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any


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
