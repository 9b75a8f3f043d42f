"""A model small enough to be trained many times in a test run."""

import json
from pathlib import Path

import pytest

from train_loops.tiny_llama import TinyLlamaShape, build_tiny_llama

WORDS = ["rank", "adapter", "loss", "gradient", "weight", "token", "batch", "warm-up", "epoch"]
TINY = TinyLlamaShape(
    vocabulary_size=500,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    context_tokens=256,
    block_tokens=32,
    batch_blocks=4,
)


def chats(count: int = 24) -> list[dict[str, object]]:
    """Rows of one question and one answer each, of different lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What does the {WORDS[n % 9]} of step {n} do?"},
                {
                    "role": "assistant",
                    "content": f"It moves the {WORDS[(n + 2) % 9]}. " * (1 + n % 4),
                },
            ]
        }
        for n in range(count)
    ]


def texts() -> list[str]:
    """The same words as running text."""
    return [message["content"] for row in chats() for message in row["messages"]]  # type: ignore


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with one model in it, `tiny-llama`."""
    root = tmp_path_factory.mktemp("models")
    build_tiny_llama(root / "tiny-llama", texts(), steps=10, shape=TINY)
    return root


@pytest.fixture(scope="module")
def file_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file root with one dataset in a project's ingestion folder. One a file of tests: runs of
    the same job id go on in each other's logs."""
    root = tmp_path_factory.mktemp("files")
    folder = root / "users/u1/projects/p1/ingestion"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats()))
    return root
