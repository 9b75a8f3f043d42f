"""NVIDIA's names of a job's fields become ours, or are refused by name."""

from typing import Any

import pytest

from configs.errors import RequestInvalid
from configs.nemo_names import LAYERS, MAPPING, REFUSED, translated
from configs.request import TrainRequest

SOURCE = "file:///data/users/u1/projects/p1/ingestion/rows.jsonl"


def nvidia(**hyperparameters: Any) -> dict[str, Any]:
    """A job as NVIDIA's documentation posts it, but for where its rows lie."""
    return {
        "name": "my-model",
        "config": "meta-llama/Llama-3.2-1B-Instruct",
        "dataset": SOURCE,
        "hyperparameters": {
            "training_type": "sft",
            "finetuning_type": "lora",
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "lora": {"adapter_dim": 8, "adapter_dropout": 0.1, "alpha": 16},
            **hyperparameters,
        },
    }


def at(body: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        body = body[part]
    return body


def placed(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def test_a_job_of_nvidias_is_a_request_of_ours() -> None:
    request = TrainRequest.model_validate(translated(nvidia()))
    assert request.job_id == "my-model"
    assert request.base_model.model_name == "meta-llama/Llama-3.2-1B-Instruct"
    assert request.base_model.provider == "huggingface"
    assert [dataset.source for dataset in request.datasets] == [SOURCE]
    custom, tuning = request.customization, request.tuning_parameters
    assert (custom.method, custom.objective) == ("lora", "sft")
    assert custom.lora is not None
    assert (custom.lora.rank, custom.lora.alpha, custom.lora.dropout) == (8, 16, 0.1)
    assert (tuning.num_epochs, tuning.batch_size, tuning.learning_rate) == (2, 8, 1e-4)


def test_our_own_words_stay_as_they_are() -> None:
    body = {"base_model": {"provider": "local", "model_name": "tiny"}, "metadata": {"a": "b"}}
    assert translated(body) == body


def test_both_vocabularies_may_be_mixed() -> None:
    body = nvidia() | {"base_model": {"provider": "local"}, "resources": {"gpus": 1}}
    ours = translated(body | {"config": "tiny"})
    assert ours["base_model"] == {"provider": "local", "model_name": "tiny"}
    assert ours["resources"] == {"gpus": 1}


def test_the_posted_body_is_not_changed() -> None:
    body = nvidia()
    translated(body)
    assert body == nvidia()


@pytest.mark.parametrize("name", [n for n in MAPPING if n.values], ids=lambda name: name.nemo)
def test_each_listed_value_is_translated(name: Any) -> None:
    for theirs, ours in name.values:
        result = translated(placed(name.nemo, theirs))
        if name.ours is None:
            assert result == {}
        else:
            assert at(result, name.ours) == ours


@pytest.mark.parametrize("name", [n for n in MAPPING if n.values], ids=lambda name: name.nemo)
def test_any_other_value_is_refused_without_repeating_it(name: Any) -> None:
    with pytest.raises(RequestInvalid, match="accepted") as refusal:
        translated(placed(name.nemo, "hf_secret"))
    assert refusal.value.param == name.nemo
    assert "hf_secret" not in str(refusal.value.args)


PLAIN = [n for n in MAPPING if not n.values and n.ours and n.ours.startswith("tuning_parameters")]


@pytest.mark.parametrize("name", PLAIN, ids=lambda name: name.nemo)
def test_each_number_goes_where_the_table_says(name: Any) -> None:
    assert at(translated(placed(name.nemo, 3)), name.ours) == 3


@pytest.mark.parametrize("name", [n for n in MAPPING if n.ours], ids=lambda name: name.nemo)
def test_every_target_is_a_field_of_the_request(name: Any) -> None:
    schema = TrainRequest.model_json_schema()
    fields = schema["properties"]
    for part in name.ours.split("."):
        assert part in fields or name.ours.startswith("metadata."), name.ours
        if name.ours.startswith("metadata."):
            return
        branches = [fields[part], *fields[part].get("anyOf", [])]
        reference = next((b["$ref"] for b in branches if "$ref" in b), None)
        fields = schema["$defs"][reference.split("/")[-1]]["properties"] if reference else {}


@pytest.mark.parametrize("path", sorted(REFUSED))
def test_what_has_no_meaning_is_refused_with_a_remedy(path: str) -> None:
    with pytest.raises(RequestInvalid) as refusal:
        translated(placed(path, "x"))
    assert (refusal.value.param, refusal.value.hint) == (path, REFUSED[path])


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(RequestInvalid, match=r"hyperparameters\.lora\.dim: unknown") as refusal:
        translated(nvidia(lora={"dim": 8}))
    assert refusal.value.hint == (
        "Accepted here: adapter_dim, alpha, adapter_dropout, target_modules."
    )


def test_one_value_under_both_names_is_refused() -> None:
    body = nvidia() | {"tuning_parameters": {"batch_size": 8}}
    with pytest.raises(RequestInvalid, match="both names") as refusal:
        translated(body)
    assert refusal.value.param == "hyperparameters.batch_size"


def test_a_section_that_is_no_object_is_left_to_validation() -> None:
    body = nvidia() | {"tuning_parameters": "fast"}
    assert translated(body)["tuning_parameters"] == "fast"


def test_a_base_model_that_is_no_object_is_left_to_validation() -> None:
    assert translated(nvidia() | {"base_model": "tiny"})["base_model"] == "tiny"


def test_hyperparameters_that_are_no_object_are_refused() -> None:
    with pytest.raises(RequestInvalid, match="unknown field"):
        translated({"hyperparameters": [1]})


def test_fused_layers_become_the_layers_that_they_fuse() -> None:
    ours = translated(nvidia(lora={"target_modules": ["linear_qkv", "down_proj"]}))
    layers = ours["customization"]["lora"]["target_modules"]
    assert layers == [*LAYERS["linear_qkv"], "down_proj"]


@pytest.mark.parametrize("no_limit", [-1, 0])
def test_no_limit_of_steps_is_none(no_limit: int) -> None:
    assert "max_steps" not in translated(nvidia(max_steps=no_limit))["tuning_parameters"]


def test_the_version_of_a_configuration_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="version") as refusal:
        translated(nvidia() | {"config": "meta/llama-3.2-1b-instruct@v1.0.0+A100"})
    assert refusal.value.param == "config"


def test_null_is_as_if_left_out() -> None:
    assert translated({"description": None, "hyperparameters": {"lora": None}}) == {}
