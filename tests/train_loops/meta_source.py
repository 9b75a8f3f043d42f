"""A small Llama with grouped queries, in Meta's layout, for the tests of it. No test of its own."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train_loops.meta_layout import from_hugging_face

DIM, HEADS, KV_HEADS, LAYERS, VOCABULARY = 64, 8, 4, 2, 512
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class Source:
    """A Llama with grouped queries, and the tokenizer files of the test model."""

    tokenizer_folder: Path
    root: Path

    def model(self, name: str, **settings: Any) -> Path:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            **{
                "vocab_size": VOCABULARY,
                "hidden_size": DIM,
                "intermediate_size": 176,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "rms_norm_eps": 1e-5,
                "rope_parameters": PLAIN,
                "initializer_range": 0.2,
                **settings,
            }
        )
        folder = self.root / name
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(self.tokenizer_folder / file, folder / file)
        return folder

    def meta(self, name: str, **settings: Any) -> Path:
        """The same in Meta's layout."""
        from_hugging_face(self.model(name, **settings), self.root / f"{name}-meta")
        return self.root / f"{name}-meta"
