"""Preference rows as rendered texts, bounded as TRL's trainers bound them. Called by `encoders.py`.

`prompt` ends where the assistant goes on; an answer ends with the token that ends its turn, so that
prompt + answer is the template's rendering, begin token included: tokenise it without special
tokens. How TRL 1.16 bounds rows, done here beforehand so that it is counted:

- `dpo`, `kto`, `orpo`: prompt + answer are cut at the end; a row whose prompt alone fills the
  length is left out, and so is a pair that is the same up to the cut.
- `reward`: a pair is left out when either text is longer; a cut answer cannot be judged.
- `grpo`: a prompt that fills the length is left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from train_loops.data.mask import render_answer
from train_loops.data.preferences import Judged, Pair, Question
from train_loops.data.row_file import Columns, Encoded, Prepared
from train_loops.data.template import chat_template, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


class _AnswerEncoder:
    """What the three share: the template and the tokens of texts."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template(tokenizer)
        self._template.check_texts()
        self._longest = max_sequence_length

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        return token_ids(self._tokenizer, texts)


class PairEncoder(_AnswerEncoder):
    """Pairs; with `whole`, a pair is never cut."""

    columns: ClassVar[Columns] = {"prompt": "text", "chosen": "text", "rejected": "text"}

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", max_sequence_length: int, *, whole: bool
    ) -> None:
        super().__init__(tokenizer, max_sequence_length)
        self._whole = whole

    def render(self, content: Pair) -> tuple[str, str, str]:
        prompt, chosen = render_answer(content.prompt, content.chosen, self._template)
        _, rejected = render_answer(content.prompt, content.rejected, self._template)
        return prompt, chosen, rejected

    def encode(self, rendered: Sequence[tuple[str, str, str]]) -> list[Encoded]:
        prompts = self._ids([prompt for prompt, _, _ in rendered])
        chosen = self._ids([prompt + answer for prompt, answer, _ in rendered])
        rejected = self._ids([prompt + answer for prompt, _, answer in rendered])
        parts = zip(rendered, prompts, chosen, rejected, strict=True)
        return [self._bounded(*part) for part in parts]

    def _bounded(
        self, values: tuple[str, str, str], prompt: Ids, chosen: Ids, rejected: Ids
    ) -> Encoded:
        cut = self._longest
        full = max(len(chosen), len(rejected))
        if chosen[:cut] == rejected[:cut] or (self._whole and full > cut):
            return Encoded([], full)
        start = min(shared_start(prompt, chosen), shared_start(prompt, rejected))
        lengths = [min(len(ids), cut) for ids in (chosen, rejected)]
        if start >= cut:
            return Encoded([], full)
        learnt = sum(length - start for length in lengths)
        return Encoded([Prepared(values, sum(lengths), learnt, full > cut)], full)


class JudgedEncoder(_AnswerEncoder):
    """Single answers with their label."""

    columns: ClassVar[Columns] = {"prompt": "text", "completion": "text", "label": "flag"}

    def render(self, content: Judged) -> tuple[str, str, bool]:
        return *render_answer(content.prompt, content.completion, self._template), content.label

    def encode(self, rendered: Sequence[tuple[str, str, bool]]) -> list[Encoded]:
        prompts = self._ids([prompt for prompt, _, _ in rendered])
        whole = self._ids([prompt + answer for prompt, answer, _ in rendered])
        return [self._bounded(*part) for part in zip(rendered, prompts, whole, strict=True)]

    def _bounded(self, values: tuple[str, str, bool], prompt: Ids, whole: Ids) -> Encoded:
        start, length = shared_start(prompt, whole), min(len(whole), self._longest)
        if start >= length:
            return Encoded([], len(whole))
        row = Prepared(values, length, length - start, len(whole) > length)
        return Encoded([row], len(whole))


class QuestionEncoder(_AnswerEncoder):
    """Prompts; the model writes the answers itself, so none of their tokens is here."""

    columns: ClassVar[Columns] = {"prompt": "text", "reference": "text"}

    def render(self, content: Question) -> tuple[str, str]:
        prompt = self._template.render(content.prompt, add_generation_prompt=True)
        return prompt, content.reference

    def encode(self, rendered: Sequence[tuple[str, str]]) -> list[Encoded]:
        encoded = []
        for values, ids in zip(rendered, self._ids([row[0] for row in rendered]), strict=True):
            rows = [Prepared(values, len(ids), 0)] if len(ids) < self._longest else []
            encoded.append(Encoded(rows, len(ids)))
        return encoded


def shared_start(prompt: Ids, whole: Ids) -> int:
    """Tokens with which both begin: a text may be cut into tokens across the prompt's end."""
    pairs = zip(prompt, whole, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(whole)))
