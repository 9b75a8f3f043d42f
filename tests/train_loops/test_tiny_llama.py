"""The small model that is built on the spot."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train_loops.conftest import TINY, texts
from train_loops.tiny_llama import TinyLlamaReport, build_tiny_llama, read_plain_text

TURNS = [
    {"role": "user", "content": "What is a rank?"},
    {"role": "assistant", "content": "The inner dimension of an adapter."},
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyLlamaReport]:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return folder, build_tiny_llama(folder, texts(), steps=12, shape=TINY)


@pytest.fixture(scope="module")
def tokenizer(built: tuple[Path, TinyLlamaReport]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built[0])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    loaded: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return loaded


def test_it_learns_a_little(built: tuple[Path, TinyLlamaReport]) -> None:
    assert built[1].last_loss < built[1].first_loss


def test_transformers_loads_it_like_any_model(
    built: tuple[Path, TinyLlamaReport], tokenizer: Any
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(built[0])
    assert model.num_parameters() == built[1].parameters
    assert model.config.vocab_size == len(tokenizer) == built[1].vocabulary_size
    answer = model.generate(**tokenizer("What", return_tensors="pt"), max_new_tokens=4)
    assert answer.shape[1] > 1


def test_its_weights_are_safetensors_only(built: tuple[Path, TinyLlamaReport]) -> None:
    suffixes = {path.suffix for path in built[0].iterdir()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".jinja"}


def test_a_seed_fixes_every_weight(built: tuple[Path, TinyLlamaReport], tmp_path: Path) -> None:
    build_tiny_llama(tmp_path / "again", texts(), steps=12, shape=TINY)
    build_tiny_llama(tmp_path / "other", texts(), steps=12, seed=1, shape=TINY)
    ours, again, other = weights(built[0]), weights(tmp_path / "again"), weights(tmp_path / "other")
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert any(not torch.equal(ours[name], other[name]) for name in ours)


def test_building_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_tiny_llama(tmp_path / "model", texts(), steps=1, shape=TINY)
    assert torch.equal(torch.rand(3), expected)


def test_the_prompt_for_an_answer_begins_the_whole_conversation(tokenizer: Any) -> None:
    prompt = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert whole.startswith(prompt)
    assert TURNS[1]["content"] in whole.removeprefix(prompt)


def test_the_template_marks_the_answer_and_the_token_that_ends_it(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template(
        TURNS, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [
        token
        for token, is_answer in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
        if is_answer
    ]
    assert tokenizer.decode(marked) == TURNS[1]["content"] + tokenizer.eos_token


def test_any_text_can_be_encoded_and_comes_back(tokenizer: Any) -> None:
    text = "Größe 模型 🙂\n\ttabs  and  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("steps", "corpus"), [(0, ["text"]), (1, [])])
def test_nothing_to_do_is_refused(tmp_path: Path, steps: int, corpus: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        build_tiny_llama(tmp_path / "model", corpus, steps=steps, shape=TINY)


def test_a_chat_file_is_read_as_plain_texts(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        "\n"
        '{"messages": [{"role": "user", "content": "ü"}]}\n',
        "utf-8",
    )
    assert read_plain_text(tmp_path / "chats.jsonl") == ["a", "b", "ü"]
