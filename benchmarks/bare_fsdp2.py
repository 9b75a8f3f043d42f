"""The same training as a job's by PyTorch's own tools and PEFT, as a loop that anyone would write.

Called by `bare.py`; it imports nothing of the service.
"""

import json
import random
import time
from pathlib import Path
from typing import Any


def train(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Each step's `at`, `loss` and tokens so far."""
    import torch
    import torch.distributed as dist
    from peft import LoraConfig, get_peft_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

    arguments = recipe["arguments"]
    torch.manual_seed(arguments["seed"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    rows = _rows(recipe, AutoTokenizer.from_pretrained(recipe["model"]))
    base = AutoModelForCausalLM.from_pretrained(recipe["model"], dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **recipe["lora"]))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=arguments["learning_rate"], weight_decay=0.0)
    micro, accumulation = (
        arguments["per_device_train_batch_size"],
        arguments["gradient_accumulation_steps"],
    )
    batch = micro * accumulation
    total = -(-len(rows) // batch) * arguments["num_train_epochs"]
    schedule = get_scheduler(
        arguments["lr_scheduler_type"], optimizer, int(arguments["warmup_steps"] * total), total
    )
    steps: list[dict[str, Any]] = []
    seen = 0
    for _ in range(arguments["num_train_epochs"]):
        random.shuffle(rows)
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            trainable = sum(sum(label != -100 for label in labels) for _, labels in chosen)
            loss = 0.0
            for at in range(0, len(chosen), micro):
                part = _padded(chosen[at : at + micro])
                found = model(**part, num_items_in_batch=trainable).loss
                found.backward()
                loss += float(found.detach())
                seen += int(part["attention_mask"].sum())
            torch.nn.utils.clip_grad_norm_(weights, arguments["max_grad_norm"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps.append({"at": time.time(), "loss": loss, "seen": seen})
    dist.destroy_process_group()
    return steps


def _rows(recipe: dict[str, Any], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    longest = recipe["arguments"]["max_length"]
    rows = []
    for line in Path(recipe["dataset"]).read_text().splitlines():
        done = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_assistant_tokens_mask=True, return_dict=True
        )
        ids, mask = done["input_ids"], done["assistant_masks"]
        labels = [token if learnt else -100 for token, learnt in zip(ids, mask, strict=True)]
        rows.append((ids[:longest], labels[:longest]))
    return rows


def _padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    import torch

    longest = max(len(ids) for ids, _ in rows)

    def filled(values: list[list[int]], filler: int) -> Any:
        return torch.tensor([[*v, *[filler] * (longest - len(v))] for v in values])

    return {
        "input_ids": filled([ids for ids, _ in rows], 0),
        "labels": filled([labels for _, labels in rows], -100),
        "attention_mask": filled([[1] * len(ids) for ids, _ in rows], 0),
    }
