"""Meta's layout: read into a Hugging Face folder, written back bit by bit, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import ModelAccess
from tests.train_loops.meta_source import DIM, HEADS, KV_HEADS, PLAIN, Source
from train_loops import meta_layout
from train_loops.meta_layout import from_hugging_face, to_hugging_face
from train_loops.meta_params import feed_forward_size

SCALED = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture
def source(model_root: Path, tmp_path: Path) -> Source:
    return Source(model_root / "tiny-llama", tmp_path)


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=torch.arange(3, 43)[None]).logits
    return out


def consolidated(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "consolidated.00.pth", weights_only=True)
    return weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rope", [PLAIN, SCALED], ids=["plain", "scaled"])
def test_there_and_back_is_the_same_model(
    tied: bool, rope: dict[str, Any], source: Source, tmp_path: Path
) -> None:
    meta = source.meta("model", tie_word_embeddings=tied, rope_parameters=rope)
    back = tmp_path / "back"
    to_hugging_face(meta, back)
    before = load_file(tmp_path / "model/model.safetensors")
    after = load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert torch.equal(logits(back), logits(tmp_path / "model"))


def test_settings_survive_there_and_back(source: Source, tmp_path: Path) -> None:
    settings = {"rope_parameters": SCALED, "max_position_embeddings": 4321}
    to_hugging_face(source.meta("model", **settings), tmp_path / "back")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "back")
    )
    ours = {"bos_token_id", "eos_token_id", "pad_token_id", "initializer_range"}
    assert {k: v for k, v in after.items() if k not in ours} == {
        k: v for k, v in before.items() if k not in ours
    }
    tokenizer = json.loads((tmp_path / "back/tokenizer.json").read_text())
    known = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert (after["bos_token_id"], after["eos_token_id"]) == (known["<|begin|>"], known["<|end|>"])


def test_the_tokenizer_comes_with_it_both_ways(source: Source, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    to_hugging_face(source.meta("model"), tmp_path / "back")
    there, back = (AutoTokenizer.from_pretrained(tmp_path / n) for n in ("model", "back"))
    text = "It moves the adapter."
    assert back(text)["input_ids"] == there(text)["input_ids"]
    assert back.chat_template == there.chat_template


def meta_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """The model as Meta computes it: rotary pairs as complex numbers; tokens (T,)."""
    weights = {name: weight.float() for name, weight in consolidated(folder).items()}
    params = json.loads((folder / "params.json").read_text())
    size, length = params["dim"] // params["n_heads"], len(tokens)
    frequencies = params["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    mask = torch.full((length, length), float("-inf")).triu(1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"])
        return x * scale * weights[name]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)

    x = weights["tok_embeddings.weight"][tokens]
    for layer in range(params["n_layers"]):
        at, ff = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        h = norm(x, f"{at}_norm.weight")
        q, k, v = (
            (h @ weights[f"{at}.{n}.weight"].T).view(length, -1, size) for n in ("wq", "wk", "wv")
        )
        groups = params["n_heads"] // params["n_kv_heads"]
        q, k, v = (
            rotated(q),
            rotated(k).repeat_interleave(groups, 1),
            v.repeat_interleave(groups, 1),
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5 + mask
        heads = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + heads @ weights[f"{at}.wo.weight"].T
        h = norm(x, f"layers.{layer}.ffn_norm.weight")
        gate = torch.nn.functional.silu(h @ weights[f"{ff}.w1.weight"].T)
        x = x + (gate * (h @ weights[f"{ff}.w3.weight"].T)) @ weights[f"{ff}.w2.weight"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


def test_metas_own_forward_pass_gives_the_same_logits(source: Source, tmp_path: Path) -> None:
    meta = source.meta("model")
    to_hugging_face(meta, tmp_path / "back")
    expected = meta_logits(meta, torch.arange(3, 43))
    assert torch.allclose(logits(tmp_path / "back")[0], expected, atol=1e-3)


def split(folder: Path, files: int, *, by_columns: bool = False) -> Path:
    """The same model in several files, as model parallelism leaves it."""
    weights = consolidated(folder)
    target = folder.with_name(f"{folder.name}-{files}")
    shutil.copytree(folder, target)
    for number in range(files):
        part = {
            name: _part(name, weight, number, files, by_columns) for name, weight in weights.items()
        }
        part["rope.freqs"] = torch.zeros(DIM // HEADS // 2)
        torch.save(part, target / f"consolidated.{number:02}.pth")
    return target


def _part(
    name: str, weight: torch.Tensor, number: int, files: int, by_columns: bool
) -> torch.Tensor:
    if "norm" in name:
        return weight.clone()
    if ".wk." in name or ".wv." in name:
        copies = max(1, files // KV_HEADS)
        return weight.chunk(files // copies, 0)[number // copies].clone()
    columns = ".wo." in name or ".w2." in name or ("tok_emb" in name and by_columns)
    return weight.chunk(files, int(columns))[number].clone()


@pytest.mark.parametrize(
    ("files", "by_columns"), [(2, False), (2, True), (8, False)], ids=["two", "llama-2", "eight"]
)
def test_files_of_model_parallelism_are_joined(
    files: int, by_columns: bool, source: Source, tmp_path: Path
) -> None:
    whole = source.meta("model", max_position_embeddings=512)
    to_hugging_face(split(whole, files, by_columns=by_columns), tmp_path / "back")
    before = load_file(tmp_path / "model/model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_large_model_is_written_in_parts_with_an_index(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meta_layout, "LARGEST_FILE_BYTES", 100_000)
    to_hugging_face(source.meta("model"), tmp_path / "back")
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits(tmp_path / "back"), logits(tmp_path / "model"))


def test_metas_releases_have_the_feed_forward_sizes_of_their_papers() -> None:
    assert feed_forward_size(4096, None, 256) == 11008
    assert feed_forward_size(4096, 1.3, 1024) == 14336
    assert feed_forward_size(8192, 1.3, 4096) == 28672
    assert feed_forward_size(2048, 1.5, 256) == 8192


@pytest.mark.parametrize("size", [1, 11, 96, 170, 171, 176, 255, 256, 8192])
def test_any_feed_forward_size_can_be_said(size: int, source: Source) -> None:
    params = json.loads((source.meta("model", intermediate_size=size) / "params.json").read_text())
    multiplier = params.get("ffn_dim_multiplier")
    assert feed_forward_size(DIM, multiplier, params["multiple_of"]) == size


def test_metas_own_params_without_optional_fields_are_read(source: Source, tmp_path: Path) -> None:
    meta = source.meta("model")
    params = json.loads((meta / "params.json").read_text())
    kept = {
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "multiple_of",
        "ffn_dim_multiplier",
        "norm_eps",
    }
    plain = {k: v for k, v in params.items() if k in kept} | {"vocab_size": -1}
    (meta / "params.json").write_text(json.dumps(plain))
    to_hugging_face(meta, tmp_path / "back")
    assert torch.equal(logits(tmp_path / "back"), logits(tmp_path / "model"))


class Hostile:
    """Runs a command where a pickle of it is loaded without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    source: Source, tmp_path: Path
) -> None:
    meta = source.meta("model")
    torch.save(
        {"tok_embeddings.weight": Hostile(f"touch {tmp_path}/ran")}, meta / "consolidated.00.pth"
    )
    with pytest.raises(ModelAccess, match=r"consolidated\.00\.pth: no plain tensors"):
        to_hugging_face(meta, tmp_path / "back")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {1: torch.ones(2)}])
def test_what_is_no_dictionary_of_tensors_is_refused(
    content: Any, source: Source, tmp_path: Path
) -> None:
    meta = source.meta("model")
    torch.save(content, meta / "consolidated.00.pth")
    with pytest.raises(ModelAccess, match="not a dictionary of names"):
        to_hugging_face(meta, tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("layers.1.attention.wo.weight"), r"no layers\.1\.attention\.wo\.weight"),
        (lambda w: w.update({"vision.weight": torch.ones(2)}), r"vision\.weight is no weight"),
        (lambda w: w.update({"norm.weight": torch.ones(3)}), r"norm\.weight is \(3,\)"),
        (lambda w: w.pop("tok_embeddings.weight"), "no matrix tok_embeddings"),
    ],
    ids=["missing", "more", "shape", "embeddings"],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Any, said: str, source: Source, tmp_path: Path
) -> None:
    meta = source.meta("model")
    weights = consolidated(meta)
    change(weights)
    torch.save(weights, meta / "consolidated.00.pth")
    with pytest.raises(ModelAccess, match=said):
        to_hugging_face(meta, tmp_path / "back")
    assert not (tmp_path / "back/config.json").exists()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ("{", r"params\.json"),
        ("[]", r"params\.json"),
        ('{"dim": 64, "n_heads": 8, "norm_eps": 1e-5}', r"params\.json: n_layers: Field required"),
        ('{"dim": 65, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-5}', "do not divide"),
    ],
)
def test_params_that_say_too_little_are_refused(
    params: str, said: str, source: Source, tmp_path: Path
) -> None:
    meta = source.meta("model")
    (meta / "params.json").write_text(params)
    with pytest.raises(ModelAccess, match=said):
        to_hugging_face(meta, tmp_path / "back")


def test_a_file_that_was_cut_off_is_refused(source: Source, tmp_path: Path) -> None:
    meta = source.meta("model")
    content = (meta / "consolidated.00.pth").read_bytes()
    (meta / "consolidated.00.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelAccess, match=r"consolidated\.00\.pth"):
        to_hugging_face(meta, tmp_path / "back")


@pytest.mark.parametrize("setting", [{"attention_bias": True}, {"head_dim": 16}])
def test_what_metas_layout_cannot_say_is_refused(
    setting: dict[str, Any], source: Source, tmp_path: Path
) -> None:
    with pytest.raises(ModelAccess, match=next(iter(setting))):
        from_hugging_face(source.model("model", **setting), tmp_path / "meta")
