"""The tokenizer of a Meta folder as a fast one. Called by `meta_layout.py`.

`tokenizer.json` is taken as it is. `tokenizer.model` is converted: a sentencepiece model (up to
Llama 2), or tiktoken ranks (since Llama 3), one token a line in base64 and its rank.
The tokens that follow the ranks are not in that file: their names are those of Llama 3.1's model
card, and 3.0 has the same at the places that it uses.
"""

import base64
import binascii
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import ModelAccess

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "tokenizer.model",
)  # fmt: skip
_ENDS = [("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>")]
_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
]  # fmt: skip
_FIRST_RESERVED = 3


def write_tokenizer(folder: Path, target: Path, vocabulary: int) -> Any:
    """Write the tokenizer of `folder` into `target` as transformers reads it; and read it.

    `vocabulary` is the number of the model's embeddings.

    Raises:
        ModelAccess: there is none, or it cannot be read or converted.
    """
    from transformers import AutoTokenizer

    whole, model = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if whole.exists() and (folder / "tokenizer_config.json").exists():
            _copy(folder, target)
        elif whole.exists():
            _described(whole).save_pretrained(target)
        elif model.exists():
            _converted(model, vocabulary).save_pretrained(target)
        else:
            raise _unreadable(model, "there is no such file")
        return AutoTokenizer.from_pretrained(target, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        cause = str(error).strip().splitlines()[:1]
        raise _unreadable(whole if whole.exists() else model, "".join(cause)) from error


def _copy(folder: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if name != "tokenizer.model" and (folder / name).exists():
            shutil.copyfile(folder / name, target / name)


def _described(path: Path) -> Any:
    """A bare `tokenizer.json`, which does not say which tokens begin and end a text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    known = tokenizer.get_vocab()
    for begin, end in _ENDS:
        if begin in known and end in known:
            tokenizer.bos_token, tokenizer.eos_token = begin, end
            return tokenizer
    raise _unreadable(path, "it has none of the tokens that end a text in Meta's models")


def _converted(path: Path, vocabulary: int) -> Any:
    if (ranks := _ranks(path)) is not None:
        return _from_ranks(path, ranks, vocabulary)
    return _from_sentencepiece(path)


def _ranks(path: Path) -> dict[bytes, int] | None:
    """Tokens and ranks of a tiktoken file; None when it is none."""
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (binascii.Error, ValueError):
        return None


def _from_ranks(path: Path, ranks: Mapping[bytes, int], vocabulary: int) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]
        """With ranks that are read already: tiktoken's own reader keeps files by their paths."""

        def load_tiktoken_bpe(self, tiktoken_url: str) -> dict[bytes, int]:
            return dict(ranks)

    special = _special_tokens(path, vocabulary - len(ranks))
    return PreTrainedTokenizerFast(
        tokenizer_object=Converter(str(path), extra_special_tokens=special).converted(),
        bos_token=special[0],
        eos_token=special[1],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _from_sentencepiece(path: Path) -> Any:
    """By sentencepiece's own reader: transformers' needs the very protobuf that the package has its
    classes made for."""
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    model = SentencePieceProcessor(model_file=str(path))
    pieces = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    return LlamaTokenizer(vocab=pieces, merges=generate_merges(pieces))


def _special_tokens(path: Path, count: int) -> list[str]:
    if count < len(_SPECIAL):
        raise _unreadable(path, f"{count} embeddings are left for {len(_SPECIAL)} special tokens")
    reserved = range(_FIRST_RESERVED, _FIRST_RESERVED + count - len(_SPECIAL))
    return _SPECIAL + [f"<|reserved_special_token_{number}|>" for number in reserved]


def _unreadable(path: Path, cause: str) -> ModelAccess:
    return ModelAccess(
        f"{path.name}: the base model's tokenizer cannot be read: {cause[:300]}",
        param="base_model.model_name",
        hint="Put the model's tokenizer.json and tokenizer_config.json beside params.json.",
    )
