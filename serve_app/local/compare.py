"""Base and tuned answers side by side: loads a finished adapter back with PEFT, as a user would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.job import Job
from serve_app.local.assets import BUCKET, s3_client
from serve_app.local.stack import StackState

MOST_NEW_TOKENS = 64


class Answer(NamedTuple):
    """One prompt and what each model says to it."""

    prompt: str
    base: str
    tuned: str


def download_adapter(state: StackState, job: Job, folder: Path) -> Path:
    """The job's adapter files in `folder`."""
    client = s3_client(state)
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in job.artifacts:
        if "/adapter/" in artifact.name:
            key = artifact.uri.removeprefix(f"s3://{BUCKET}/")
            client.download_file(BUCKET, key, str(folder / artifact.name.rsplit("/", 1)[-1]))
    return folder


def compare(base_folder: Path, adapter_folder: Path, prompts: Sequence[str]) -> list[Answer]:
    """Greedy answers of the base model, without and with the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(adapter_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    before = [_answer(base, tokenizer, prompt) for prompt in prompts]
    tuned = PeftModel.from_pretrained(base, str(adapter_folder))
    after = [_answer(tuned, tokenizer, prompt) for prompt in prompts]
    return [Answer(*row) for row in zip(prompts, before, after, strict=True)]


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
