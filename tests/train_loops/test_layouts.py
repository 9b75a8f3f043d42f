"""Which files of a model are read: Hugging Face's layout, Meta's own, and never another pickle."""

from typing import Any

import pytest

from configs.base_model import BaseModelSpec
from train_loops.layouts import files_of

HUGGING_FACE = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "x.py"]
META = ["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model", "a.bin"]


def model(**fields: Any) -> BaseModelSpec:
    return BaseModelSpec.model_validate(
        {"provider": "huggingface", "model_name": "org/model", **fields}
    )


def test_safetensors_are_read_and_pickles_and_code_are_not() -> None:
    found = files_of(HUGGING_FACE, model())
    assert found is not None
    assert found.names == ["config.json", "tokenizer.json", "model.safetensors"]
    assert found.meta_folder is None


def test_code_is_read_when_the_request_trusts_it() -> None:
    found = files_of(HUGGING_FACE, model(trust_remote_code=True))
    assert found is not None
    assert "x.py" in found.names


def test_a_repository_in_metas_layout_is_read_as_one() -> None:
    found = files_of(META, model())
    assert found is not None
    assert found.meta_folder == ""
    assert found.names == META[:4]


def test_of_a_repository_with_both_the_provider_chooses() -> None:
    both = HUGGING_FACE + [f"original/{name}" for name in META]
    hugging_face, meta = files_of(both, model()), files_of(both, model(provider="meta"))
    assert hugging_face is not None
    assert hugging_face.meta_folder is None
    assert meta is not None
    assert meta.meta_folder == "original/"
    assert meta.names == [f"original/{name}" for name in META[:4]]


@pytest.mark.parametrize(
    "names", [[], ["pytorch_model.bin", "config.json"], ["consolidated.00.pth"], ["params.json"]]
)
def test_neither_layout_is_whole(names: list[str]) -> None:
    assert files_of(names, model()) is None


def test_provider_meta_means_metas_layout() -> None:
    assert files_of(HUGGING_FACE, model(provider="meta")) is None
