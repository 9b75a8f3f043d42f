"""Runs of the `trl` engine that end after a step or two, without service, store or log: one for
each cell of its table. Shared by the tests of the engine; no test of its own."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from configs.dataset import DatasetSpec
from tests.train_loops.plans import plan as resolved
from train_loops.data.prepare import prepare
from train_loops.engines.base import Inputs, Metrics
from train_loops.engines.trl import ENGINE
from train_loops.engines.trl_loop import TrlLoop
from train_loops.plan import Plan

TUNING = {
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "max_sequence_length": 128,
}
QUESTIONS = [f"What is the {word} of step {n}?" for n, word in enumerate(["loss", "rank"] * 6)]
GRPO = {"reward_functions": ["short_answer"], "generations": 2, "max_completion_tokens": 6}


def _row(objective: str, question: str, number: int) -> dict[str, Any]:
    good, bad = "It is " + "small " * (1 + number % 3), "I do not know the answer"
    pair = {"prompt": question, "chosen": good, "rejected": bad}
    rows: dict[str, dict[str, Any]] = {
        "sft": {"prompt": question, "completion": good},
        "cpt": {"text": f"{question} {good}"},
        "dpo": pair,
        "orpo": pair,
        "reward": pair,
        "kto": {"prompt": question, "completion": good, "label": bool(number % 2)},
        "grpo": {"prompt": question, "reference": "small"},
    }
    return rows[objective]


@dataclass(frozen=True)
class Cells:
    """A model and prepared rows, and loops over them."""

    model_folder: Path
    home: Path

    def plan(self, objective: str = "sft", method: str = "lora", **changes: Any) -> Plan:
        custom: dict[str, Any] = {"method": method, "objective": objective}
        if objective == "grpo":
            custom["grpo"] = GRPO
        custom |= changes.pop("customization", {})
        tuning = TUNING | changes.pop("tuning", {})
        return resolved(engine="trl", customization=custom, tuning_parameters=tuning, **changes)

    def inputs(self, plan: Plan, name: str = "run") -> Inputs:
        scratch = self.home / name
        scratch.mkdir(parents=True, exist_ok=True)
        return Inputs(self.model_folder, self._data(plan), scratch)

    def loop(self, plan: Plan, name: str = "run", rank: int = 0, world_size: int = 1) -> TrlLoop:
        inputs = self.inputs(plan, name)
        return ENGINE.build(plan, inputs, rank=rank, world_size=world_size)

    def _data(self, plan: Plan) -> Path:
        objective, tuning = plan.spec.customization.objective, plan.tuning
        name = f"{objective}-{tuning.packing}-{tuning.validation_share}"
        lines = [json.dumps(_row(objective, text, n)) for n, text in enumerate(QUESTIONS)]
        source = self.home / f"{name}.jsonl"
        source.write_text("\n".join(lines) + "\n")
        prepare(
            [(DatasetSpec.model_validate({"source": "file:///rows.jsonl"}), source)],
            self.model_folder,
            max_sequence_length=tuning.max_sequence_length,
            seed=0,
            folder=self.home / name,
            objective=objective,
            packing=tuning.packing,
            validation_share=tuning.validation_share,
        )
        return self.home / name


def finished(loop: TrlLoop) -> list[Metrics]:
    """All steps of `loop`."""
    loop.begin()
    return list(loop.steps())


@cache
def _tokens() -> torch.Tensor:
    return torch.arange(5, 25)[None]


def logits(model: Any) -> torch.Tensor:
    """What `model` says to a fixed text (1, T, vocabulary), or (1, 1) of a reward model."""
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=_tokens()).logits
    return out
