"""The request schema: what it accepts, what it refuses, and where its secrets go."""

from typing import Any

import pytest
from pydantic import ValidationError

from configs.errors import RequestInvalid
from configs.names import locations
from configs.request import TrainRequest
from configs.resources import ResourcesSpec
from tests.serve_app.api_kit import BASE_URI, CANARY, README_REQUEST, good_request


def parsed(request: dict[str, Any]) -> TrainRequest:
    return TrainRequest.model_validate(request)


def refused(request: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        parsed(request)
    return str(caught.value.errors(include_url=False, include_input=False))


def with_model(**fields: Any) -> dict[str, Any]:
    model = {"provider": "huggingface", "model_name": "org/model"}
    return good_request(base_model=model | fields)


def test_the_request_of_the_readme_is_valid() -> None:
    request = parsed(README_REQUEST)
    assert request.base_model.hub_token is not None
    assert request.base_model.hub_token.get_secret_value() == "hf_launchpad_token"


def test_the_auth_token_opens_the_hub_when_there_is_no_other() -> None:
    token = parsed(with_model(auth_token="a")).base_model.hub_token
    assert token is not None and token.get_secret_value() == "a"


def test_secrets_are_masked_and_can_be_put_back() -> None:
    request = parsed(with_model(auth_token=CANARY, huggingface_token=CANARY))
    assert CANARY not in str(request.public())
    assert CANARY not in repr(request)
    masked = TrainRequest.model_validate(request.public())
    assert masked.with_secrets(request.secrets()) == request
    assert masked.with_secrets({}).secrets() == {}


@pytest.mark.parametrize(
    "job_id", ["", "A", "-a", ".a", "a b", "a/b", "a" * 64, "é", "a\n", "..", "a\0"]
)
def test_job_ids_that_are_refused(job_id: str) -> None:
    assert "job_id" in refused(good_request(job_id=job_id))


@pytest.mark.parametrize("job_id", ["a", "0", "a.b_c-d", "a" * 63, "hf-demo-001"])
def test_job_ids_that_are_accepted(job_id: str) -> None:
    assert parsed(good_request(job_id=job_id)).job_id == job_id


@pytest.mark.parametrize(
    "source",
    ["", "rows.jsonl", "/etc/passwd", "http://host/rows", "s3://bucket", "s3://bucket/",
     "s3://Bucket/key", "s3://b/key", "s3://bucket/../key", "s3://bucket/a b", "s3://bucket/a?b",
     "s3://bucket/a#b", "s3://bucket/a%2e%2e", "file://host/rows", "file:///a/../b",
     "file:///a\\b", "s3://bucket/key\n", "s3://bucket/k\0ey", "S3://bucket/key"],
)  # fmt: skip
def test_sources_that_are_refused(source: str) -> None:
    assert "source" in refused(good_request(datasets=[{"source": source}]))


@pytest.mark.parametrize(
    ("provider", "name"),
    [("huggingface", "../x"), ("huggingface", "a/b/c"), ("huggingface", "org/model\n"),
     ("s3", "bucket/folder"), ("s3", "s3://bucket"), ("s3", "s3://bucket/folder\n"),
     ("local", "/etc"), ("local", "a/../b"), ("local", "~root"), ("local", "demo\n")],
)  # fmt: skip
def test_model_names_that_are_refused(provider: str, name: str) -> None:
    assert "accepted:" in refused(with_model(provider=provider, model_name=name))


def test_a_revision_is_a_hub_term() -> None:
    assert "hub term" in refused(with_model(provider="local", model_name="m", revision="main"))


@pytest.mark.parametrize("url", ["https://u:p@host/x", "https://u@host/x", "ftp://host", "host"])
def test_webhook_urls_that_are_refused(url: str) -> None:
    assert "webhook_url" in refused(good_request(callbacks={"webhook_url": url}))


def test_lora_settings_need_a_lora_method() -> None:
    request = good_request(customization={"method": "full", "lora": {"rank": 8}})
    assert "no meaning for method 'full'" in refused(request)


def test_something_must_be_trained_on() -> None:
    source = f"{BASE_URI}/ingestion/rows.jsonl"
    request = good_request(datasets=[{"source": source, "split": "validation"}])
    assert "split 'train'" in refused(request)


def test_the_batch_is_shared_evenly() -> None:
    request = good_request(resources={"workers": 3}, tuning_parameters={"batch_size": 16})
    assert "multiple of the workers (3)" in refused(request)
    micro = {"batch_size": 16, "micro_batch_size": 8}
    request = good_request(resources={"workers": 4}, tuning_parameters=micro)
    assert "must divide each worker's share" in refused(request)


@pytest.mark.parametrize(
    "resources",
    [{"gpu_type": "A100"}, {"gpus": 2, "workers": 1}, {"gpus": 3, "nodes": 2},
     {"gpus": 2, "cpus": 3}, {"nodes": 2}],
)  # fmt: skip
def test_resources_that_do_not_add_up(resources: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResourcesSpec.model_validate(resources)


def test_one_worker_on_each_gpu_and_one_on_a_cpu() -> None:
    assert ResourcesSpec(gpus=4, cpus=32).worker_count == 4
    assert ResourcesSpec(gpus=4, cpus=32).cpus_per_worker == 8
    assert ResourcesSpec().worker_count == ResourcesSpec().cpus_per_worker == 1


def test_a_folder_that_ends_with_the_job_id_is_kept_and_another_gets_it() -> None:
    places = locations(parsed(README_REQUEST), "hf-demo-001")
    assert places.log_uri == README_REQUEST["artifacts"]["log_uri"]
    assert places.output_uri == README_REQUEST["artifacts"]["output_uri"] + "hf-demo-001/"


def test_folders_follow_from_the_first_dataset() -> None:
    assert locations(parsed(good_request()), "j") == (
        f"{BASE_URI}/logs/j/",
        f"{BASE_URI}/results/j/",
    )


def test_folders_that_cannot_be_derived_are_asked_for() -> None:
    request = parsed(good_request(datasets=[{"source": "s3://tests/rows.jsonl"}]))
    with pytest.raises(RequestInvalid) as caught:
        locations(request, "j")
    assert caught.value.param == "artifacts.log_uri"
