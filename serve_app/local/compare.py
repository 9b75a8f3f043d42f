"""Base and tuned models side by side: loads finished adapters back with PEFT, as a user would."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.job import Job
from serve_app.local.assets import BUCKET, s3_client
from serve_app.local.stack import StackState
from train_loops.data.chats import Conversation
from train_loops.data.mask import encode
from train_loops.data.messages import Message

MOST_NEW_TOKENS = 64
MOST_TOKENS = 256
BASE = "base model"


class Comparison(NamedTuple):
    """What one model says to the prompts, and how well it predicts answers that it has not seen."""

    model: str
    held_out_loss: float
    """Nats per token of the answers."""
    answers: list[str]


def download_adapter(state: StackState, job: Job, folder: Path) -> Path:
    """The job's adapter files in `folder`."""
    client = s3_client(state)
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in job.artifacts:
        if "/adapter/" in artifact.name:
            key = artifact.uri.removeprefix(f"s3://{BUCKET}/")
            client.download_file(BUCKET, key, str(folder / artifact.name.rsplit("/", 1)[-1]))
    return folder


def compare(
    base_folder: Path,
    adapters: Mapping[str, Path],
    prompts: Sequence[str],
    held_out: Sequence[Sequence[Message]],
) -> list[Comparison]:
    """The base model and each adapter on it, by name: greedy answers, and the held-out loss."""
    # PEFT imports it when it is there, and it warns about kernels for GPUs.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from train_loops.data.template import load_tokenizer

    disable_progress_bar()
    tokenizer = load_tokenizer(base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    found = [_measured(BASE, base, tokenizer, prompts, held_out)]
    for name, folder in adapters.items():
        tuned = PeftModel.from_pretrained(base, str(folder)).eval()
        found.append(_measured(name, tuned, tokenizer, prompts, held_out))
        base = tuned.unload()
    return found


def _measured(
    name: str,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    held_out: Sequence[Sequence[Message]],
) -> Comparison:
    answers = [_answer(model, tokenizer, prompt) for prompt in prompts]
    return Comparison(name, _loss(model, tokenizer, held_out), answers)


def _answer(model: Any, tokenizer: Any, prompt: str) -> str:
    import torch

    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=MOST_NEW_TOKENS, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def _loss(model: Any, tokenizer: Any, chats: Sequence[Sequence[Message]]) -> float:
    import torch

    total, tokens = 0.0, 0
    for chat in chats:
        row = encode(Conversation(list(chat)), tokenizer, MOST_TOKENS)
        with torch.inference_mode():
            loss = model(
                input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])
            ).loss
        total += float(loss) * row.trainable_tokens
        tokens += row.trainable_tokens
    return total / tokens
