"""From canonical rows to the rows of the prepared file, for each objective. Called by `prepare.py`.

`sft` and `cpt` become token ids with labels; the others become rendered texts, which the trainers
of preferences tokenise themselves (`answers.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from configs.adapter import Objective
from configs.errors import ConfigInvalid
from train_loops.data.answers import JudgedEncoder, PairEncoder, QuestionEncoder
from train_loops.data.chats import Conversation
from train_loops.data.mask import IGNORED, Rendered, render, tokenize
from train_loops.data.row_file import Columns, Encoded, Prepared
from train_loops.data.template import chat_template, token_ids
from train_loops.data.texts import Text, blocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_COLUMNS: Columns = {"input_ids": "ids", "labels": "ids"}


class Encoder(Protocol):
    """Two steps: rendering says what is wrong with a row, encoding is faster for many at once."""

    @property
    def columns(self) -> Columns:
        """The columns of the prepared file."""

    def render(self, content: Any) -> Any:
        """The row as the model reads it.

        Raises:
            DatasetInvalid, ConfigInvalid: the chat template does not allow it.
        """

    def encode(self, rendered: Sequence[Any]) -> list[Encoded]:
        """What becomes of each of the rendered rows."""


def encoder(
    objective: Objective, tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int
) -> Encoder:
    """The encoder of an objective."""
    if objective == "sft":
        return ChatEncoder(tokenizer, max_sequence_length)
    if objective == "cpt":
        return TextEncoder(tokenizer, max_sequence_length)
    if objective == "kto":
        return JudgedEncoder(tokenizer, max_sequence_length)
    if objective == "grpo":
        return QuestionEncoder(tokenizer, max_sequence_length)
    return PairEncoder(tokenizer, max_sequence_length, whole=objective == "reward")


class ChatEncoder:
    """Conversations, cut at the end; the assistant's part is learnt."""

    columns = TOKEN_COLUMNS

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template(tokenizer)
        self._template.check_texts()
        self._longest = max_sequence_length

    def render(self, content: Conversation) -> Rendered:
        return render(content, self._template)

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        encoded = []
        for example in tokenize(rendered, self._tokenizer, self._longest):
            ids, labels, truncated, full_tokens = example
            learnt = example.trainable_tokens
            row = Prepared((ids, labels), len(ids), learnt, truncated)
            encoded.append(Encoded([row] if learnt else [], full_tokens))
        return encoded


class TextEncoder:
    """Documents from begin to end token, split into blocks; all but the first token is learnt."""

    columns = TOKEN_COLUMNS

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigInvalid(
                "the base model's tokenizer has no end token, which closes a text",
                param="base_model.model_name",
                hint="Set eos_token in its tokenizer_config.json.",
            )
        self._tokenizer = tokenizer
        self._begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._longest = max_sequence_length

    def render(self, content: Text) -> Text:
        return content

    def encode(self, rendered: Sequence[Text]) -> list[Encoded]:
        texts = [document.text for document in rendered]
        return [self._split(ids) for ids in token_ids(self._tokenizer, texts)]

    def _split(self, ids: list[int]) -> Encoded:
        ids = [*self._begin, *ids, self._tokenizer.eos_token_id]
        if len(ids) < 2:
            return Encoded([], len(ids))
        pieces = [[*block] for block in blocks(ids, self._longest)]
        rows = [
            Prepared((piece, [IGNORED, *piece[1:]]), len(piece), len(piece) - 1) for piece in pieces
        ]
        return Encoded(rows, len(ids))
