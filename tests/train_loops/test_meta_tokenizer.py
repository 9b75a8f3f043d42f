"""The tokenizer that comes with Meta's layout: its own kinds become a fast one, or are refused."""

import base64
import json
from pathlib import Path

import pytest

from configs.errors import ModelAccess
from tests.train_loops.meta_source import VOCABULARY, Source
from train_loops.data.template import load_tokenizer
from train_loops.meta_layout import to_hugging_face


@pytest.fixture
def source(model_root: Path, tmp_path: Path) -> Source:
    return Source(model_root / "tiny-llama", tmp_path)


def without_tokenizer(source: Source) -> Path:
    meta = source.meta("model")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (meta / name).unlink()
    return meta


def test_no_tokenizer_is_refused_with_the_remedy(source: Source, tmp_path: Path) -> None:
    with pytest.raises(ModelAccess, match=r"tokenizer\.model") as refused:
        to_hugging_face(without_tokenizer(source), tmp_path / "back")
    assert "tokenizer.json" in str(refused.value.hint)


def test_a_tokenizer_model_that_is_neither_kind_is_refused(source: Source, tmp_path: Path) -> None:
    meta = without_tokenizer(source)
    (meta / "tokenizer.model").write_bytes(b"\x00neither\xff")
    with pytest.raises(ModelAccess, match=r"tokenizer\.model") as refused:
        to_hugging_face(meta, tmp_path / "back")
    assert "tokenizer.json" in str(refused.value.hint)


def test_tiktoken_ranks_become_a_fast_tokenizer(source: Source, tmp_path: Path) -> None:
    import tiktoken

    meta = without_tokenizer(source)
    pieces = [bytes([n]) for n in range(256)] + [b"th", b"the", b" t", b" the"]
    lines = [base64.b64encode(piece).decode() + f" {n}\n" for n, piece in enumerate(pieces)]
    (meta / "tokenizer.model").write_text("".join(lines))
    to_hugging_face(meta, tmp_path / "back")

    ours = load_tokenizer(tmp_path / "back")
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    theirs = tiktoken.Encoding(
        "test",
        pat_str=pattern,
        mergeable_ranks={p: n for n, p in enumerate(pieces)},
        special_tokens={},
    )
    text = "the theme: then 1234\n\nother — ünïcode"
    assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)
    assert (ours.bos_token_id, ours.eos_token_id, len(ours)) == (260, 261, VOCABULARY)
    assert ours.convert_tokens_to_ids("<|eot_id|>") == 269


def test_a_sentencepiece_model_becomes_a_fast_tokenizer(source: Source, tmp_path: Path) -> None:
    import sentencepiece

    meta = without_tokenizer(source)
    (tmp_path / "text").write_text("It moves the adapter and the loss.\nThe rank of a step.\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(meta / "tokenizer"), vocab_size=300,
        model_type="bpe", byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
        character_coverage=1.0,
    )  # fmt: skip
    to_hugging_face(meta, tmp_path / "back")
    ours = load_tokenizer(tmp_path / "back")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(meta / "tokenizer.model"))
    text = "The loss moves a step. ü"
    assert ours(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)
    assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")


def test_a_tokenizer_json_alone_gets_its_end_token(source: Source, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    meta = without_tokenizer(source)
    words = {"<s>": 0, "</s>": 1, "a": 2}
    Tokenizer(models.BPE(words, [])).save(str(meta / "tokenizer.json"))
    to_hugging_face(meta, tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)
