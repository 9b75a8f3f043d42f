"""The token: which routes ask for it, and what is answered to everything that is not it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.serve_app.api_kit import Api, error_of, good_request, make_api, raw_call, served

TOKEN = "s3cret-tökén"
GUARDED = [
    ("GET", "/train"),
    ("GET", "/train/some-job"),
    ("POST", "/train"),
    ("POST", "/train/some-job/cancel"),
    ("GET", "/capabilities"),
]
OPEN = ["/healthz", "/readyz", "/docs", "/openapi.json"]


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return make_api(tmp_path, api_token=TOKEN)


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_route_without_the_token(api: Api, method: str, path: str) -> None:
    error = error_of(api.http.request(method, path), 401)
    assert (error["type"], error["code"]) == ("authentication_error", "unauthorized")


@pytest.mark.parametrize("path", OPEN)
def test_health_and_docs_need_no_token(api: Api, path: str) -> None:
    assert api.http.get(path).status_code == 200


def test_every_route_is_either_open_or_guarded(api: Api) -> None:
    paths = api.app.openapi()["paths"]
    routes = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    guarded = {(method, path.replace("some-job", "{job_id}")) for method, path in GUARDED}
    assert routes == guarded | {("GET", path) for path in OPEN[:2]}


def test_the_token_opens_every_guarded_route(api: Api) -> None:
    headers = {b"x-trainer-token": TOKEN.encode()}
    for method, path in GUARDED:
        assert raw_call(api.app, method, path, headers)[0] != 401


@pytest.mark.parametrize(
    "token",
    [b"", b" ", b"wrong", TOKEN.encode()[:-1], TOKEN.encode() + b"x", TOKEN.encode("latin-1"),
     bytes(range(128, 256)), b"\xff\xfe", b"\xc3\x28", b"x" * 60_000],
    ids=repr,
)  # fmt: skip
def test_whatever_bytes_are_sent(api: Api, token: bytes) -> None:
    status, body = raw_call(api.app, "GET", "/train", {b"x-trainer-token": token})
    assert status == 401
    assert json.loads(body)["error"]["code"] == "unauthorized"


def test_the_token_is_compared_as_utf_8(api: Api) -> None:
    headers = {b"x-trainer-token": TOKEN.encode()}
    assert raw_call(api.app, "GET", "/train", headers)[0] == 200


def test_without_a_token_set_everybody_may(tmp_path: Path) -> None:
    assert make_api(tmp_path / "a").http.get("/train").status_code == 200
    assert make_api(tmp_path / "b", api_token="").http.get("/train").status_code == 200


def test_the_token_is_asked_for_before_the_body_is_read(api: Api) -> None:
    received = 0

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b" " * 65536, "more_body": True}

    headers = {b"content-type": b"application/json"}
    assert raw_call(api.app, "POST", "/train", headers, receive)[0] == 401
    assert received == 0


def test_an_endless_body_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    sent_chunks = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent_chunks
        for _ in range(4096):
            sent_chunks += 1
            yield b" " * 65536

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(make_api(tmp_path).app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
            headers = {"Content-Type": "application/json"}
            return await http.post("/train", content=endless(), headers=headers)

    assert anyio.run(post).status_code == 413
    assert sent_chunks <= 17


def test_a_real_server_refuses_any_bytes(api: Api) -> None:
    with served(api.app, "/hf-unsloth") as address:
        headers = {b"X-TRAINER-TOKEN": bytes(range(128, 256)), b"Content-Type": b"application/json"}
        body = json.dumps(good_request())
        response = httpx.post(f"{address}/hf-unsloth/train", content=body, headers=headers)
        error_of(response, 401)
