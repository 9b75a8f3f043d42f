"""The chat template of a tokenizer: the model's own, or ours where it has none.

`DEFAULT_CHAT_TEMPLATE` is for base models. It writes a chat as plain text, so that it needs no
special tokens but the end token that the model knows:

    User: What is 2 + 2?
    Assistant: 4</s>

Called by `prepare.py` and the engines (`load_tokenizer`), and by `mask.py` (`ChatTemplate`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.errors import ConfigInvalid, DatasetInvalid, ModelAccess
from train_loops.data.messages import Message
from train_loops.data.tools import Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Unmarked: `{% generation %}` is unknown to most servers, and the mask is found without it. The
# prompt ends at the colon: the space belongs to the answer's first token, as in pre-training.
DEFAULT_CHAT_TEMPLATE = (
    "{%- if bos_token is defined and bos_token -%}{{- bos_token -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- 'Assistant: ' + message['content'] | trim + eos_token + '\\n' -}}"
    "{%- else -%}"
    "{{- message['role'] | capitalize + ': ' + message['content'] | trim + '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer saved in `folder`, never one from the network; it has a chat template after.

    Raises:
        ModelAccess: there is no tokenizer that can be read.
        ConfigInvalid: it is not a fast one, or cannot close a turn.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise ModelAccess(
            f"the base model's tokenizer cannot be read: {''.join(reason)[:300]}",
            param="base_model.model_name",
            hint="The model's folder must hold tokenizer.json and tokenizer_config.json.",
        ) from error
    if not tokenizer.is_fast:
        raise ConfigInvalid(
            "the base model's tokenizer does not say where its tokens lie in the text",
            param="base_model.model_name",
            hint="Save a tokenizer.json (a fast tokenizer) beside the model.",
        )
    chat_template(tokenizer)
    return tokenizer


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that are written whole, their special tokens included: none is added."""
    encoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoding["input_ids"]
    return ids


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> "ChatTemplate":
    """The template of `tokenizer`, which is given the default one when it has none.

    So the tokenizer saved beside the adapter carries the template that the adapter was trained on.
    """
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise ConfigInvalid(
                "the base model's tokenizer has neither a chat template nor an end token",
                param="base_model.model_name",
                hint="Set chat_template or eos_token in its tokenizer_config.json.",
            )
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    try:
        text = str(tokenizer.get_chat_template())
        with_tools = str(tokenizer.get_chat_template(tools=[{}]))
    except ValueError as error:
        raise _broken(error) from error
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return ChatTemplate(
        text=text,
        text_with_tools=with_tools,
        variables=dict(tokenizer.special_tokens_map),
        closers=tuple(token for token in added - {tokenizer.bos_token} if token.strip()),
    )


@dataclass(frozen=True)
class ChatTemplate:
    """A template as Jinja text, with what it may refer to and the tokens that may close a turn."""

    text: str
    text_with_tools: str
    """What chats with tools are rendered by: some models have a template of its own for them."""
    variables: dict[str, Any]
    closers: tuple[str, ...]

    @cached_property
    def source(self) -> Literal["model", "default"]:
        """Whose template it is."""
        return "default" if self.text == DEFAULT_CHAT_TEMPLATE else "model"

    def check_texts(self) -> None:
        """Whether a message's text gets into the rendering: some templates of models for pictures
        pass over contents that are no list of parts, and nothing would be left to learn.

        Raises:
            ConfigInvalid: it does not.
        """
        probe = "probe"
        try:
            text = self.render([{"role": "user", "content": probe}])
        except DatasetInvalid:
            return  # It speaks up by itself, also about the rows.
        if probe not in text:
            raise ConfigInvalid(
                "the model's chat template leaves out contents that are texts",
                param="base_model.model_name",
                hint="Use a language model, or one whose chat template accepts text.",
            )

    @cached_property
    def marked(self) -> bool:
        """Whether it says itself what the assistant's part is."""
        return _GENERATION_MARK.search(self.text) is not None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat as text; with `add_generation_prompt`, up to where the assistant goes on."""
        return self._render(messages, tools, add_generation_prompt=add_generation_prompt)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """The chat as text, and the characters inside the template's `{% generation %}` marks."""
        return self._render(messages, tools, return_assistant_tokens_mask=True)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, **how: bool
    ) -> tuple[str, Any]:
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=list(tools) if tools else None,
                chat_template=self.text_with_tools if tools else self.text,
                **how,
                **self.variables,
            )
        except TemplateSyntaxError as error:
            raise _broken(error) from error
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            # Templates speak up by themselves: "roles must alternate", "no system role".
            raise DatasetInvalid(
                f"the model's chat template refuses this conversation: {error}",
                param="datasets",
                hint="Bring the conversation into the form that the model was trained on.",
            ) from error
        return texts[0], spans[0] if spans else []


def _broken(error: Exception) -> ConfigInvalid:
    return ConfigInvalid(
        f"the model's chat template cannot be used: {error}",
        param="base_model.model_name",
        hint="Correct chat_template in the model's tokenizer_config.json.",
    )
