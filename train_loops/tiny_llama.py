"""A base model built on the spot: a small Llama with its own tokenizer, from a few pages of text.

For demonstrations and tests that need a real model where no hub can be reached. It is pre-trained
just enough for adapters to learn on top of it: low-rank updates of random weights barely move the
loss. Not for use as an assistant, and no engine depends on it. Called by the demo and the tests.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, HEADER, CONTENT, END, PAD = "<|begin|>", "<|header|>", "<|content|>", "<|end|>", "<|pad|>"

# The header opens a turn and the end token closes it, as in Llama 3. `generation` marks what an
# assistant-only loss counts: the answer and the token that ends it.
CHAT_TEMPLATE = (
    "{{- '" + BEGIN + "' -}}"
    "{%- for message in messages -%}"
    "{{- '" + HEADER + "' + message['role'] + '" + CONTENT + "' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] | trim + '" + END + "' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] | trim + '" + END + "' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + HEADER + "assistant" + CONTENT + "' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class TinyLlamaShape:
    """Sizes of the model and of its pre-training; the defaults fit two CPU cores.

    The initial weights are six times as wide as Llama's own: after so little pre-training, that is
    what gives low-rank updates features to work with (a loss of 1.1 in place of 2.7 was measured).
    """

    vocabulary_size: int = 2000
    hidden_size: int = 256
    intermediate_size: int = 768
    layers: int = 2
    heads: int = 4
    context_tokens: int = 512
    initializer_range: float = 0.12
    block_tokens: int = 64
    batch_blocks: int = 8
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class TinyLlamaReport:
    """What was built, and what it took."""

    parameters: int
    vocabulary_size: int
    corpus_tokens: int
    first_loss: float
    last_loss: float
    seconds: float


def build_tiny_llama(
    folder: Path,
    corpus: Sequence[str],
    *,
    steps: int = 60,
    seed: int = 0,
    shape: TinyLlamaShape = TinyLlamaShape(),
) -> TinyLlamaReport:
    """Train tokenizer and model on `corpus`, save both into `folder`; a seed fixes every byte."""
    import torch

    if steps < 1 or not corpus:
        raise ValueError(f"{steps} steps on {len(corpus)} texts: at least one of each is needed")
    started = time.monotonic()
    tokenizer = _train_tokenizer(corpus, shape)
    token_ids = _running_text(tokenizer, corpus)
    # Forked, so that a caller's own random state goes on as if nothing had happened.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new_model(tokenizer, shape)
        losses = list(_pretrain(model, token_ids, steps, shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TinyLlamaReport(
        parameters=model.num_parameters(),
        vocabulary_size=len(tokenizer),
        corpus_tokens=len(token_ids),
        first_loss=losses[0],
        last_loss=losses[-1],
        seconds=time.monotonic() - started,
    )


def read_plain_text(chat_file: Path) -> list[str]:
    """Each message of a JSONL chat file as a text of its own.

    A base that reads them learns the language, but neither the turns of a chat nor which answer
    belongs to which question: that is left to the fine-tuning.
    """
    with chat_file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [str(message["content"]) for row in rows for message in row["messages"]]


def _train_tokenizer(corpus: Sequence[str], shape: TinyLlamaShape) -> "PreTrainedTokenizerFast":
    """Byte-level BPE: every text can be encoded, so there is no unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary_size,
        special_tokens=[BEGIN, HEADER, CONTENT, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=shape.context_tokens,
        clean_up_tokenization_spaces=False,
    )


def _running_text(tokenizer: "PreTrainedTokenizerFast", corpus: Sequence[str]) -> "torch.Tensor":
    """The corpus as one line of ids (T,), each text between a begin and an end token."""
    import torch

    texts = [tokenizer.encode(f"{BEGIN}{text}{END}", add_special_tokens=False) for text in corpus]
    return torch.tensor([token_id for text in texts for token_id in text])


def _new_model(tokenizer: "PreTrainedTokenizerFast", shape: TinyLlamaShape) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context_tokens,
        initializer_range=shape.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _pretrain(
    model: "LlamaForCausalLM", token_ids: "torch.Tensor", steps: int, shape: TinyLlamaShape
) -> Iterator[float]:
    """Next-token training of all weights on random blocks of the text; yields each step's loss."""
    import torch

    block = min(shape.block_tokens, len(token_ids))
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, shape.learning_rate, total_steps=steps + 1, pct_start=0.1
    )
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(token_ids) - block + 1, (shape.batch_blocks,))
        input_ids = torch.stack([token_ids[start : start + block] for start in starts.tolist()])
        loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield float(loss.detach())
    model.eval()


def main() -> int:
    """`python -m train_loops.tiny_llama chats.jsonl folder`: build the model into a new folder."""
    chat_file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    unfinished = folder.with_name(folder.name + ".part")
    build_tiny_llama(unfinished, read_plain_text(chat_file))
    unfinished.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
