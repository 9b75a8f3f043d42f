"""A repeated post makes no second job, whatever repeats it and however many at once."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve_app.api_kit import (
    CANARY,
    README_REQUEST,
    Api,
    error_of,
    good_request,
    make_api,
    raw_call,
    served,
)


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def test_the_same_id_and_body_answer_with_the_same_job(api: Api) -> None:
    first, second = api.post(README_REQUEST), api.post(README_REQUEST)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"


def test_the_same_key_and_body_answer_with_the_same_job(api: Api) -> None:
    first, second = (api.post(good_request(), Idempotency_Key="k") for _ in range(2))
    assert first.json()["job_id"] == second.json()["job_id"]
    other = api.post(good_request(), Idempotency_Key="k2")
    assert other.json()["job_id"] != first.json()["job_id"]


def test_a_body_written_otherwise_is_the_same_body(api: Api) -> None:
    first = api.post(good_request(metadata={"a": "1", "b": "2"}), Idempotency_Key="k")
    reordered = dict(reversed(good_request(metadata={"b": "2", "a": "1"}).items()))
    spelled_out = reordered | {"tuning_parameters": {"batch_size": 16}, "logging": []}
    second = api.http.post(
        "/train",
        content=json.dumps(spelled_out, indent=4),
        headers={"Content-Type": "application/json", "Idempotency-Key": "k"},
    )
    assert second.status_code == 202, second.text
    assert first.json()["job_id"] == second.json()["job_id"]


@pytest.mark.parametrize(
    "change",
    [
        {"tuning_parameters": {"batch_size": 8}},
        {"metadata": {"a": "b"}},
        {"base_model": {"provider": "huggingface", "model_name": "org/model", "auth_token": "x"}},
    ],
    ids=str,
)
def test_another_body_is_a_conflict(api: Api, change: dict[str, Any]) -> None:
    api.post(good_request(job_id="j"), Idempotency_Key="k")
    error = api.refusal(good_request(job_id="j", **change), status=409)
    assert (error["type"], error["code"], error["param"]) == (
        "conflict_error",
        "job_conflict",
        "job_id",
    )
    response = api.post(good_request(**change), Idempotency_Key="k")
    assert error_of(response, 409)["param"] == "Idempotency-Key"


def test_another_secret_is_another_body(api: Api) -> None:
    def request(token: str) -> dict[str, Any]:
        model = {"provider": "huggingface", "model_name": "org/model", "auth_token": token}
        return good_request(job_id="j", base_model=model)

    assert api.post(request(CANARY)).status_code == 202
    assert api.post(request(CANARY)).status_code == 202
    assert api.post(request(f"{CANARY}2")).status_code == 409


def test_a_job_id_of_another_api_is_taken_and_not_shown(tmp_path: Path) -> None:
    hf, nemo = make_api(tmp_path), make_api(tmp_path, "nemo", engine="simulated")
    hf.post(good_request(job_id="j"))
    assert nemo.http.get("/train/j").status_code == 404
    assert nemo.http.post("/train/j/cancel").status_code == 404
    assert nemo.post(good_request(job_id="j")).status_code == 409


@pytest.mark.parametrize("key", [b"", b"k" * 256, b"\xe9", b"tab\tinside", b"\x7f"], ids=repr)
def test_a_key_is_1_to_255_printable_ascii_characters(api: Api, key: bytes) -> None:
    headers = {b"content-type": b"application/json", b"idempotency-key": key}
    status, body = raw_call(api.app, "POST", "/train", headers)
    assert (status, json.loads(body)["error"]["param"]) == (422, "Idempotency-Key")


def test_a_key_of_255_characters_is_accepted(api: Api) -> None:
    assert api.post(good_request(), Idempotency_Key="k" * 255).status_code == 202


def test_100_keys_and_10_posts_of_each_at_once_make_100_jobs(api: Api) -> None:
    keys = [f"key-{i % 100}" for i in range(1000)]
    local = threading.local()

    with served(api.app, "/hf-unsloth") as address, ThreadPoolExecutor(16) as pool:

        def post(key: str) -> tuple[str, str, bool]:
            if not hasattr(local, "http"):
                local.http = httpx.Client(base_url=f"{address}/hf-unsloth", timeout=60)
            response = local.http.post(
                "/train", json=good_request(metadata={"k": key}), headers={"Idempotency-Key": key}
            )
            assert response.status_code == 202, response.text
            replayed = response.headers.get("Idempotency-Replayed") == "true"
            return key, response.json()["job_id"], replayed

        answers = list(pool.map(post, keys))
    assert len({job_id for _, job_id, _ in answers}) == 100
    assert len({(key, job_id) for key, job_id, _ in answers}) == 100
    assert sum(not replayed for _, _, replayed in answers) == 100
    assert len(api.store.active()) == 100
    assert api.nudges.count == 100
