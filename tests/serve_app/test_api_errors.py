"""Every wrong request: a 4xx of one shape, with the field at fault, and never a secret."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.request import TrainRequest
from tests.serve_app.api_kit import (
    CANARY,
    README_REQUEST,
    Api,
    error_of,
    good_request,
    make_api,
    raw_call,
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return make_api(tmp_path_factory.mktemp("api"), max_queued_jobs=100_000)


def test_an_unknown_field_is_named_with_the_known_ones(api: Api) -> None:
    request = good_request(customization={"method": "lora", "lora": {"rnak": 8}})
    error = api.refusal(request)
    assert (error["type"], error["code"]) == ("invalid_request_error", "request_invalid")
    assert error["param"] == "customization.lora.rnak"
    assert "rank, alpha, dropout" in error["details"][0]["hint"]


def test_every_problem_is_listed(api: Api) -> None:
    request = good_request(tuning_parameters={"batch_size": 0, "seed": "7"})
    params = [detail["param"] for detail in api.refusal(request)["details"]]
    assert params == ["tuning_parameters.batch_size", "tuning_parameters.seed"]


def test_a_missing_field_is_named(api: Api) -> None:
    request = good_request()
    del request["datasets"]
    error = api.refusal(request)
    assert (error["param"], error["message"]) == ("datasets", "datasets: this field is required")


def test_a_place_inside_a_list_has_its_number(api: Api) -> None:
    request = good_request()
    request["datasets"].append({"source": "ftp://x"})
    assert api.refusal(request)["param"] == "datasets[1].source"


def test_a_branch_of_a_union_is_no_part_of_the_param(api: Api) -> None:
    request = good_request(customization={"method": "lora", "lora": {"target_modules": ["$"]}})
    assert api.refusal(request)["param"] == "customization.lora.target_modules[0]"


def test_a_rule_over_several_fields_is_told_in_words(api: Api) -> None:
    request = good_request(resources={"gpus": 3}, tuning_parameters={"batch_size": 4})
    assert "must be a multiple of the workers (3)" in api.refusal(request)["message"]


@pytest.mark.parametrize(
    "value",
    ["4", 4.5, True, None, [4], {"a": 4}, 0, 65537, 10**400],
)
def test_a_number_is_a_number_within_its_bounds(api: Api, value: Any) -> None:
    error = api.refusal(good_request(tuning_parameters={"batch_size": value}))
    assert error["type"] == "invalid_request_error"


def test_long_names_are_cut(api: Api) -> None:
    error = api.refusal(good_request() | {"n" * 5000: 1})
    assert len(error["param"]) == 128


def test_a_thousand_problems_do_not_make_a_huge_answer(api: Api) -> None:
    error = api.refusal(good_request() | {f"field_{i}": 1 for i in range(1000)})
    assert len(error["details"]) == 20
    assert "(and 999 more)" in error["message"]


def test_a_field_given_twice_is_refused(api: Api) -> None:
    body = json.dumps(good_request())[:-1] + ', "metadata": {"a": "1", "a": "2"}}'
    assert "'a' is given twice" in error_of(api.post_bytes(body.encode()), 422)["message"]


BAD_BODIES = [
    b"", b" ", b"null", b"1", b'"text"', b"[]", b"{", b"{}{}", b"{'a': 1}", b"NaN", b"Infinity",
    b'{"a": NaN}', b'{"tuning_parameters": {"learning_rate": NaN}}',
    b'{"tuning_parameters": {"learning_rate": -Infinity}}',
    b"[" * 20_000, b'{"a":' * 20_000, b'{"metadata":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    b"\xff\xfe{\x00}\x00", b'{"job_id": "\xff"}', b'{"job_id": "\\ud800"}', b"\xef\xbb\xbf{}",
    b'{"tuning_parameters": {"seed": ' + b"9" * 5000 + b"}}", b'{"job_id": "a\\u0000b"}', b"\x00",
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: repr(body[:24]))
def test_a_body_that_is_no_request(api: Api, body: bytes) -> None:
    assert error_of(api.post_bytes(body), 422)["code"] == "request_invalid"


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_declared_as_json(api: Api, content_type: str) -> None:
    body = json.dumps(good_request()).encode()
    assert error_of(api.post_bytes(body, content_type), 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
def test_the_ways_to_declare_json(api: Api, content_type: str) -> None:
    assert api.post_bytes(json.dumps(good_request()).encode(), content_type).status_code == 202


def test_a_body_over_the_limit(api: Api) -> None:
    assert error_of(api.post_bytes(b" " * (1024 * 1024 + 1)), 413)["code"] == "body_too_large"


def test_a_body_over_the_limit_that_does_not_say_so(api: Api) -> None:
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield b" " * 65536

    response = api.http.post(
        "/train", content=chunks(), headers={"Content-Type": "application/json"}
    )
    assert error_of(response, 413)["code"] == "body_too_large"


def test_a_body_at_the_limit_is_read(api: Api) -> None:
    body = json.dumps(good_request()).encode()
    assert api.post_bytes(body + b" " * (1024 * 1024 - len(body))).status_code == 202


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/train/", 404, "not_found"),
        ("DELETE", "/train", 405, "method_not_allowed"),
        ("PUT", "/train/some-job", 405, "method_not_allowed"),
        ("GET", "/train/no-such-job", 404, "job_not_found"),
        ("GET", "/train/%00%F0%9F%92%A3", 404, "job_not_found"),
        ("GET", "/train/" + "x" * 5000, 404, "job_not_found"),
        ("POST", "/train/no-such-job/cancel", 404, "job_not_found"),
        ("GET", "/train?limit=0", 422, "request_invalid"),
        ("GET", "/train?limit=101", 422, "request_invalid"),
        ("GET", "/train?limit=ten", 422, "request_invalid"),
        ("GET", "/train?status=happy", 422, "request_invalid"),
        ("GET", "/train?state=running", 422, "request_invalid"),
        ("GET", "/train?cursor=none-of-ours", 422, "request_invalid"),
        ("GET", "/train?cursor=%FF%00", 422, "request_invalid"),
    ],
)
def test_wrong_paths_methods_and_queries(
    api: Api, method: str, path: str, status: int, code: str
) -> None:
    assert error_of(api.http.request(method, path), status)["code"] == code


def test_the_query_parameter_at_fault_is_named(api: Api) -> None:
    assert error_of(api.http.get("/train?limit=0"), 422)["param"] == "limit"
    assert error_of(api.http.get("/train?status=happy"), 422)["param"] == "status[0]"
    assert error_of(api.http.get("/train?state=running"), 422)["param"] == "state"


def test_405_says_what_is_allowed(api: Api) -> None:
    assert "POST" in api.http.delete("/train").headers["Allow"]


def test_a_defect_says_nothing_to_the_client_and_all_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = make_api(tmp_path)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(api.store, "submit", broken)
    monkeypatch.setattr(api.store, "get_document", broken)
    for response in (api.post(secret_request()), api.http.get("/train/some-job")):
        error = error_of(response, 500)
        assert (error["type"], error["code"]) == ("internal_error", "internal")
        assert "fire" not in response.text and "Traceback" not in response.text
    assert "disk on fire" in caplog.text
    assert CANARY not in caplog.text


def test_a_store_that_does_not_answer_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make_api(tmp_path)

    def gone() -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(api.store, "capacity", gone)
    assert error_of(api.http.get("/readyz"), 503)["code"] == "not_ready"
    assert api.http.get("/healthz").status_code == 200


def secret_request() -> dict[str, Any]:
    """A good request with a canary for each secret."""
    request: dict[str, Any] = good_request()
    request["base_model"] |= {"auth_token": CANARY, "huggingface_token": CANARY}
    return request


def _places(schema: dict[str, Any], whole: dict[str, Any]) -> Iterator[list[Any]]:
    """The path of every field of the request, from its schema."""
    for branch in [schema, *schema.get("anyOf", [])]:
        if "$ref" in branch:
            yield from _places(whole["$defs"][branch["$ref"].rsplit("/", 1)[-1]], whole)
        for name, inner in branch.get("properties", {}).items():
            yield [name]
            yield from ([name, *rest] for rest in _places(inner, whole))
        if "items" in branch:
            yield [0]
            yield from ([0, *rest] for rest in _places(branch["items"], whole))


ALL_PLACES = list(_places(TrainRequest.model_json_schema(), TrainRequest.model_json_schema()))
# What a client writes into these is shown by design.
SHOWN = {"model_name", "revision", "metadata"}


def _with_value(place: list[Any], value: Any) -> dict[str, Any]:
    """The request of the README with `value` at `place`."""
    request: dict[str, Any] = json.loads(json.dumps(README_REQUEST))
    request["logging"] = [{"type": "jsonl"}]
    request["base_model"] |= {"auth_token": CANARY, "huggingface_token": CANARY}
    at: Any = request
    for part in place[:-1]:
        if isinstance(at, dict) and not isinstance(at.get(part), dict | list):
            at[part] = {}
        at = at[part] if isinstance(at, dict) or part < len(at) else {}
    if isinstance(at, list) and not at:
        at.append(value)
    else:
        at[place[-1]] = value
    return request


@pytest.mark.parametrize("wrap", [str, lambda v: [v], lambda v: {"a": v}, lambda v: f"{v} "])
@pytest.mark.parametrize("place", ALL_PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_secret_in_a_wrong_place_is_never_repeated(
    api: Api, place: list[Any], wrap: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    value = wrap(f"{CANARY}://?%$\n")
    response = api.post(_with_value(place, value))
    assert response.status_code < 500
    if not SHOWN & set(map(str, place)) or response.status_code != 202:
        assert CANARY not in response.text, response.text
    assert CANARY not in caplog.text


def test_no_secret_in_a_job_the_listing_or_the_log(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    posted = api.post(secret_request() | {"job_id": "with-secrets"})
    conflict = api.post(good_request(job_id="with-secrets"))
    cancelled = api.http.post("/train/with-secrets/cancel")
    shown = api.http.get("/train/with-secrets")
    listed = api.http.get("/train?limit=100")
    assert "with-secrets" in listed.text and conflict.status_code == 409
    for response in (posted, conflict, cancelled, shown, listed):
        assert CANARY not in response.text
    assert CANARY not in caplog.text


def test_a_secret_in_the_query_or_a_header_is_never_repeated(api: Api) -> None:
    for query in (f"limit={CANARY}", f"status={CANARY}", f"cursor={CANARY}"):
        assert CANARY not in api.http.get(f"/train?{query}").text
    headers = {
        b"content-type": b"application/json",
        b"idempotency-key": CANARY.encode() + b"\xe9",
        b"x-trainer-token": CANARY.encode(),
    }
    status, body = raw_call(api.app, "POST", "/train", headers)
    assert (status, json.loads(body)["error"]["param"]) == (422, "Idempotency-Key")
    assert CANARY.encode() not in body


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
replaced_fields = st.tuples(st.sampled_from(ALL_PLACES), json_values).map(
    lambda change: json.dumps(_with_value(*change)).encode("utf-8", "surrogatepass")
)
hostile_bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    replaced_fields,
    st.tuples(replaced_fields, st.integers(0, 900), st.binary(max_size=3)).map(
        lambda cut: cut[0][: cut[1]] + cut[2] + cut[0][cut[1] + 1 :]
    ),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=hostile_bodies)
def test_no_body_whatever_breaks_the_service(api: Api, body: bytes) -> None:
    response = api.post_bytes(body)
    if response.status_code != 202:
        error_of(response, response.status_code)
        assert response.status_code in (409, 413, 422)
