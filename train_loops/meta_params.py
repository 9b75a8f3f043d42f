"""Meta's `params.json`, and the same settings as transformers' `LlamaConfig`.

Called by `meta_layout.py`, whose docstring names the sources. Not for weights.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from configs.errors import ModelAccess

PARAMS_FILE = "params.json"
ORIGINAL_CONTEXT = 8192
LOW_FREQUENCY_FACTOR = 1.0


class Params(BaseModel):
    """What of `params.json` shapes the model, under Meta's names."""

    dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int | None = None
    vocab_size: int = -1
    multiple_of: int = Field(256, gt=0)
    ffn_dim_multiplier: float | None = None
    norm_eps: float
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: float | None = None
    rope_high_freq_factor: float | None = None
    max_seq_len: int | None = None

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def kv_rows(self) -> int:
        return self.kv_heads * (self.dim // self.n_heads)

    @property
    def feed_forward_size(self) -> int:
        """Rows of w1."""
        return feed_forward_size(self.dim, self.ffn_dim_multiplier, self.multiple_of)


def read_params(folder: Path) -> Params:
    """The `params.json` of `folder`.

    Raises:
        ModelAccess: it is missing, is no JSON, or lacks a number.
    """
    path = folder / PARAMS_FILE
    try:
        read = json.loads(path.read_text("utf-8"))
        params = Params.model_validate(read.get("model", read))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise broken(path, str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        cause = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise broken(path, cause) from error
    if params.dim % params.n_heads or params.n_heads % params.kv_heads:
        raise broken(path, "dim, n_heads and n_kv_heads do not divide each other")
    return params


def write_params(params: Params, folder: Path) -> None:
    """`params.json` in `folder`."""
    text = json.dumps(params.model_dump(exclude_none=True), indent=2)
    (folder / PARAMS_FILE).write_text(text + "\n", "utf-8")


def feed_forward_size(dim: int, multiplier: float | None, multiple_of: int) -> int:
    """Rows of w1, by Meta's rule."""
    size = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple_of * -(-size // multiple_of)


def config_of(params: Params, vocabulary: int, tied: bool, tokenizer: Any, dtype: Any) -> Any:
    """The `LlamaConfig`; tokenizer and weights say what `params.json` leaves open."""
    from transformers import LlamaConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": params.rope_theta}
    if params.use_scaled_rope:
        rope |= {
            "rope_type": "llama3",
            "factor": params.rope_scaling_factor or (32.0 if tied else 8.0),
            "low_freq_factor": LOW_FREQUENCY_FACTOR,
            "high_freq_factor": params.rope_high_freq_factor or 4.0,
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
        }
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=params.dim,
        intermediate_size=params.feed_forward_size,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.kv_heads,
        max_position_embeddings=params.max_seq_len or _context(params),
        rms_norm_eps=params.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )


def _context(params: Params) -> int:
    """Tokens that the release was trained for, which `params.json` does not say."""
    if params.use_scaled_rope:
        return 131072
    return ORIGINAL_CONTEXT if params.rope_theta > 10000 else 4096


def params_of(config: Any, path: Path) -> Params:
    """The settings of a `LlamaConfig` in Meta's words.

    Raises:
        ModelAccess: Meta's layout has no word for one of them.
    """
    if config.model_type != "llama":
        raise broken(path, f"model_type {config.model_type!r} has no layout of Meta's")
    rope = config.rope_parameters
    kind, scaled = rope["rope_type"], rope["rope_type"] == "llama3"
    usual = {
        "attention_bias": (config.attention_bias, False),
        "mlp_bias": (config.mlp_bias, False),
        "hidden_act": (config.hidden_act, "silu"),
        "head_dim": (config.head_dim, config.hidden_size // config.num_attention_heads),
        "rope_type": (kind, "llama3" if scaled else "default"),
        "low_freq_factor": (rope.get("low_freq_factor", 1.0), LOW_FREQUENCY_FACTOR),
        "original_max_position_embeddings": (
            rope["original_max_position_embeddings"] if scaled else ORIGINAL_CONTEXT,
            ORIGINAL_CONTEXT,
        ),
    }
    for name, (found, expected) in usual.items():
        if found != expected:
            raise broken(path, f"{name} {found!r}: Meta's layout has {expected!r} only")
    multiplier, multiple_of = _feed_forward_terms(config.hidden_size, config.intermediate_size)
    return Params(
        dim=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        multiple_of=multiple_of,
        ffn_dim_multiplier=multiplier,
        norm_eps=config.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        use_scaled_rope=scaled,
        rope_scaling_factor=rope["factor"] if scaled else None,
        rope_high_freq_factor=rope["high_freq_factor"] if scaled else None,
        max_seq_len=config.max_position_embeddings,
    )


def _feed_forward_terms(dim: int, size: int) -> tuple[float | None, int]:
    """(ffn_dim_multiplier, multiple_of) that make `size`, with the fewest digits."""
    multiple_of = min(size & -size, 4096)
    if feed_forward_size(dim, None, multiple_of) == size:
        return None, multiple_of
    plain = feed_forward_size(dim, None, 1)
    # A little less than the ratio: rounded up to `multiple_of`, more would be one too many.
    tries = (round((size - 0.5 * (multiple_of > 1)) / plain, digits) for digits in range(1, 18))
    for multiplier in tries:
        if feed_forward_size(dim, multiplier, multiple_of) == size:
            return multiplier, multiple_of
    return (size + 0.5) / plain, 1


def broken(path: Path, cause: str) -> ModelAccess:
    """The error about one file of a base model."""
    return ModelAccess(
        f"{path.name}: {cause}",
        param="base_model.model_name",
        hint="The folder must be a Llama text model: params.json, consolidated.00.pth and on, "
        "and tokenizer.json or tokenizer.model.",
    )
