"""Meta's own layout of a Llama text model, read into a Hugging Face folder and written back.

The layout: `params.json`; `consolidated.00.pth` and, where a model was split for model parallelism,
`.01` and so on; `tokenizer.model` (sentencepiece up to Llama 2, tiktoken ranks since Llama 3), or a
`tokenizer.json` beside it. Called where a base model of provider `meta` is fetched, and where a
result is exported as `meta`.

Facts from Meta's `llama-models` (ModelArgs, Transformer, fairscale's parallel layers) and from
transformers' `convert_llama_weights_to_hf`:
- Rotary pairs lie side by side (0, 1), (2, 3) … in Meta's query and key rows; in Hugging Face's the
  first halves of all pairs come before the second halves.
- Split by rows: wq, wk, wv, w1, w3, output; by columns: wo, w2. Embeddings: by columns up to
  Llama 2, by rows since Llama 3. Norms are whole in each file. Where there are more files than
  key-value heads, each of these lies in several files.
- Feed-forward size: 2/3 of 4 · dim, times `ffn_dim_multiplier`, rounded up to `multiple_of`.
- Scaled rope (Llama 3.1): factor 8, or 32 in Llama 3.2, whose embeddings are tied.
"""

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from train_loops.meta_params import Params, broken, config_of, params_of, read_params, write_params
from train_loops.meta_tokenizer import TOKENIZER_FILES, write_tokenizer

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]
    Named = Iterator[tuple[str, torch.Tensor]]

EMBEDDINGS, OUTPUT = "tok_embeddings.weight", "output.weight"
WEIGHTS_FILES = "consolidated.*.pth"
LARGEST_FILE_BYTES = 5 * 10**9
_LAYER = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}


class Piece(NamedTuple):
    """One weight in both layouts."""

    meta: str
    hugging_face: str
    split: int | None
    """Dimension that model parallelism splits; None: whole in each file."""
    shape: tuple[int, ...]
    rotary_heads: int = 0
    """Heads whose rows are paired by the rotary embedding; 0: none."""


def to_hugging_face(folder: Path, target: Path) -> None:
    """Write Meta's model in `folder` as one that `from_pretrained` reads, with the weights' own
    dtype. `config.json` comes last, so that an unfinished `target` is no model. Files are mapped,
    and written in parts of 5 GB at most, which bounds the memory.

    Raises:
        ModelAccess: a file is missing, not plain tensors, or does not fit `params.json`.
    """
    params = read_params(folder)
    paths = sorted(folder.glob(WEIGHTS_FILES))
    if not paths:
        raise broken(folder / "consolidated.00.pth", "there is no such file")
    shards = [_tensors(path) for path in paths]
    vocabulary = _vocabulary(params, shards, paths[0])
    tied = _is_tied(shards)
    pieces = _pieces(params, vocabulary, tied)
    _refuse_others(paths[0], shards[0], {piece.meta for piece in pieces})
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder, target, vocabulary)
    _write_safetensors(_read(pieces, shards, params, paths[0]), target)
    dtype = shards[0][EMBEDDINGS].dtype
    config_of(params, vocabulary, tied, tokenizer, dtype).save_pretrained(target)


def from_hugging_face(model_folder: Path, target: Path) -> None:
    """Write a Hugging Face Llama as Meta's `consolidated.00.pth`, `params.json`, tokenizer files.

    All weights are in memory once. A tied output is written out, as Meta's model has one.

    Raises:
        ModelAccess: not a Llama, a file is missing, or Meta's layout has no word for a setting.
    """
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise broken(model_folder / "config.json", str(error).splitlines()[0]) from error
    params = params_of(config, model_folder / "config.json")
    tied = bool(config.tie_word_embeddings)
    files = _safetensors(model_folder)
    weights: dict[str, torch.Tensor] = {}
    for piece in _pieces(params, config.vocab_size, tied):
        weight = _stored(files, piece, model_folder)
        weights[piece.meta] = _paired(weight, piece.rotary_heads) if piece.rotary_heads else weight
    if tied:
        weights[OUTPUT] = weights[EMBEDDINGS]
    target.mkdir(parents=True, exist_ok=True)
    torch.save(weights, target / "consolidated.00.pth")
    for name in TOKENIZER_FILES:
        if (model_folder / name).exists():
            shutil.copyfile(model_folder / name, target / name)
    write_params(params, target)


def _tensors(path: Path) -> "Weights":
    """The tensors of one file, mapped. Nothing in the file is run: torch reads plain tensors only.

    Raises:
        ModelAccess: the file holds anything else, or is broken.
    """
    import torch

    try:
        read = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise broken(path, f"no plain tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(read, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.is_floating_point()
        for name, value in read.items()
    ):
        raise broken(path, "it is not a dictionary of names and floating point tensors")
    return read


def _vocabulary(params: Params, shards: "Sequence[Weights]", path: Path) -> int:
    embeddings = shards[0].get(EMBEDDINGS)
    if embeddings is None or embeddings.dim() != 2:
        raise broken(path, f"no matrix {EMBEDDINGS}")
    rows, columns = embeddings.shape
    found = int(rows if columns != params.dim else rows * len(shards))
    if params.vocab_size not in {-1, found}:
        raise broken(path, f"{found} embeddings, but vocab_size is {params.vocab_size}")
    return found


def _is_tied(shards: "Sequence[Weights]") -> bool:
    """Whether the output is the embeddings: left out, or the same values."""
    import torch

    return OUTPUT not in shards[0] or all(
        shard[OUTPUT].shape == shard[EMBEDDINGS].shape
        and torch.equal(shard[OUTPUT], shard[EMBEDDINGS])
        for shard in shards
    )


def _pieces(params: Params, vocabulary: int, tied: bool) -> list[Piece]:
    """Every weight of the model, in the order of its layers."""
    dim, inner = params.dim, params.feed_forward_size
    shapes = {
        "attention.wk": (params.kv_rows, dim),
        "attention.wv": (params.kv_rows, dim),
        "feed_forward.w1": (inner, dim),
        "feed_forward.w2": (dim, inner),
        "feed_forward.w3": (inner, dim),
        "attention_norm": (dim,),
        "ffn_norm": (dim,),
    }
    rotary = {"attention.wq": params.n_heads, "attention.wk": params.kv_heads}
    pieces = [Piece(EMBEDDINGS, "model.embed_tokens.weight", 0, (vocabulary, dim))]
    for layer in range(params.n_layers):
        pieces += [
            Piece(
                f"layers.{layer}.{meta}.weight",
                f"model.layers.{layer}.{name}.weight",
                split,
                shapes.get(meta, (dim, dim)),
                rotary.get(meta, 0),
            )
            for meta, (name, split) in _LAYER.items()
        ]
    pieces.append(Piece("norm.weight", "model.norm.weight", None, (dim,)))
    if not tied:
        pieces.append(Piece(OUTPUT, "lm_head.weight", 0, (vocabulary, dim)))
    return pieces


def _refuse_others(path: Path, shard: "Weights", known: set[str]) -> None:
    """Refuse a model of more parts than a Llama of text has. Frequencies are computed anew."""
    if others := sorted(shard.keys() - known - {"rope.freqs", OUTPUT}):
        raise broken(path, f"{others[0]} is no weight of a Llama of text")


def _read(
    pieces: Sequence[Piece], shards: "Sequence[Weights]", params: Params, path: Path
) -> "Named":
    """Each weight by its Hugging Face name, joined and with its rotary rows in that order."""
    for piece in pieces:
        if missing := [n for n, shard in enumerate(shards) if piece.meta not in shard]:
            raise broken(path.with_name(f"consolidated.{missing[0]:02}.pth"), f"no {piece.meta}")
        parts = [shard[piece.meta] for shard in shards]
        if any(part.dim() != len(piece.shape) for part in parts):
            raise broken(path, f"{piece.meta} has {parts[0].dim()} dimensions")
        try:
            weight = _joined(piece, parts, params)
        except RuntimeError as error:
            raise broken(path, f"{piece.meta} does not join: {error}") from error
        if tuple(weight.shape) != piece.shape:
            raise broken(path, f"{piece.meta} is {tuple(weight.shape)}, not {piece.shape}")
        if piece.rotary_heads:
            weight = _halved(weight, piece.rotary_heads)
        yield piece.hugging_face, weight


def _joined(piece: Piece, parts: "list[torch.Tensor]", params: Params) -> "torch.Tensor":
    import torch

    if len(parts) == 1 or piece.split is None:
        return parts[0]
    if ".attention.wk." in piece.meta or ".attention.wv." in piece.meta:
        # One of each group of files that hold the same head.
        parts = parts[:: max(1, len(parts) // params.kv_heads)]
    by_columns = piece.split == 1
    if piece.meta == EMBEDDINGS:
        by_columns = parts[0].shape[1] != params.dim
    return torch.cat(parts, dim=int(by_columns))


def _halved(weight: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows from Meta's order (pairs side by side) to Hugging Face's (halves of a head)."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _paired(weight: "torch.Tensor", heads: int) -> "torch.Tensor":
    """The inverse of `_halved`."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _write_safetensors(weights: "Named", target: Path) -> None:
    """One `model.safetensors`, or several with an index."""
    from safetensors.torch import save_file

    parts: list[list[str]] = []
    size = 0

    def write(part: "dict[str, torch.Tensor]") -> None:
        save_file(part, target / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(part))

    pending: dict[str, torch.Tensor] = {}
    for name, weight in weights:
        if pending and sum(map(_bytes, pending.values())) + _bytes(weight) > LARGEST_FILE_BYTES:
            write(pending)
            pending = {}
        size += _bytes(weight)
        pending[name] = _alone(weight)
    write(pending)
    _name_parts(parts, size, target)


def _name_parts(parts: Sequence[Sequence[str]], size: int, target: Path) -> None:
    if len(parts) == 1:
        (target / "part-0").rename(target / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        (target / f"part-{number}").rename(target / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    text = json.dumps(index, indent=2, sort_keys=True)
    (target / "model.safetensors.index.json").write_text(text + "\n", "utf-8")


def _bytes(weight: "torch.Tensor") -> int:
    return int(weight.nbytes)


def _alone(weight: "torch.Tensor") -> "torch.Tensor":
    """The weight in memory of its own: some of Meta's files keep several in one storage."""
    own = weight.untyped_storage().nbytes() == _bytes(weight) and weight.is_contiguous()
    return weight if own else weight.contiguous().clone()


def _safetensors(folder: Path) -> dict[str, Path]:
    """The file of each weight."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise broken(path, str(error)) from error
    return found


def _stored(files: Mapping[str, Path], piece: Piece, folder: Path) -> "torch.Tensor":
    from safetensors import safe_open

    if piece.hugging_face not in files:
        raise broken(folder, f"no safetensors file there has {piece.hugging_face}")
    path = files[piece.hugging_face]
    with safe_open(path, "pt") as file:
        weight: torch.Tensor = file.get_tensor(piece.hugging_face)
    if tuple(weight.shape) != piece.shape:
        raise broken(path, f"{piece.hugging_face} is {tuple(weight.shape)}, not {piece.shape}")
    return _alone(weight)
