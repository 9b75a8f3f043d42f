"""What the API tests stand on: a request that is good, canaries, an API on a real SQLite store."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from configs.names import Backend
from configs.settings import Settings
from serve_app.api import create_app
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore

CANARY = "canary_hf_7Qx2vB9z"
BASE_URI = "s3://tests/users/u1/projects/p1"

README_REQUEST = json.loads(
    """
{"job_id": "hf-demo-001",
 "base_model": {"provider": "huggingface", "model_name": "meta-llama/Llama-2-7b",
   "auth_token": "hf_token", "huggingface_token": "hf_launchpad_token"},
 "datasets": [{"source": "s3://deepfinery-training-data-123456/users/e468b458-c061-70ca-966f-bb439ffde5e3/projects/6925ccd958905b1e58631d2c/ingestion/1764106730023-tx_aml_dataset.jsonl",
   "format": "jsonl"}],
 "customization": {"method": "qlora", "precision": "bf16", "gradient_checkpointing": true},
 "resources": {"gpus": 4, "gpu_type": "A100", "cpus": 32, "memory_gb": 256,
   "max_duration_minutes": 720},
 "artifacts": {"log_uri": "s3://deepfinery-training-data-123456/users/e468b458-c061-70ca-966f-bb439ffde5e3/projects/6925ccd958905b1e58631d2c/logs/hf-demo-001/",
   "output_uri": "s3://deepfinery-training-data-123456/users/e468b458-c061-70ca-966f-bb439ffde5e3/projects/6925ccd958905b1e58631d2c/results/"},
 "tuning_parameters": {"learning_rate": 0.0002, "batch_size": 64, "num_epochs": 3,
   "warmup_ratio": 0.1, "max_sequence_length": 4096},
 "callbacks": {"webhook_url": "https://studio.example/hooks/trainer"}}
"""
)


def good_request(**sections: Any) -> dict[str, Any]:
    """A small request that hf-unsloth accepts, with `sections` replaced."""
    request: dict[str, Any] = {
        "base_model": {"provider": "huggingface", "model_name": "org/model"},
        "datasets": [{"source": f"{BASE_URI}/ingestion/rows.jsonl"}],
        "customization": {"method": "lora"},
    }
    return copy.deepcopy(request | sections)


class GivenSettings(Settings):
    """Settings from arguments alone: no environment, no `.env`, no database of somebody's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: Any,  # noqa: ARG003
        init_settings: Any,
        *_: Any,
        **__: Any,
    ) -> tuple[Any, ...]:
        return (init_settings,)


class Nudges:
    """Counts calls; raises, if told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.count = 0
        self._error = error

    def __call__(self) -> None:
        self.count += 1
        if self._error is not None:
            raise self._error


class Api:
    """One API with its parts at hand."""

    def __init__(self, app: FastAPI, store: JobStore, nudges: Nudges) -> None:
        self.app, self.store, self.nudges = app, store, nudges
        self.http = TestClient(app)

    def post(self, request: Any, **headers: str) -> Any:
        """POST /train."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post("/train", json=request, headers=named)

    def post_bytes(self, body: bytes, content_type: str = "application/json") -> Any:
        """POST /train with this body as it is."""
        return self.http.post("/train", content=body, headers={"Content-Type": content_type})

    def refusal(self, request: Any, status: int = 422) -> dict[str, Any]:
        """The error that `request` is answered with."""
        return error_of(self.post(request), status)


def make_api(
    home: Path, backend: Backend = "hf-unsloth", nudges: Nudges | None = None, **settings: Any
) -> Api:
    """An API on a store below `home`; a second one there shares it."""
    chosen = GivenSettings(home=home, **settings)
    box = SecretBox.open(chosen)
    store = JobStore.open(chosen.store_url, box)
    nudges = nudges or Nudges()
    app = create_app(backend, settings=chosen, store=store, box=box, nudge=nudges)
    return Api(app, store, nudges)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error in `response`, after a look at its status and shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"type", "code", "message", "param", "details"}
    assert error["type"] and error["code"] and error["message"] and error["details"]
    assert all(set(detail) == {"param", "message", "hint"} for detail in error["details"])
    return error


def raw_call(
    app: FastAPI, method: str, path: str, headers: dict[bytes, bytes], receive: Any = None
) -> tuple[int, bytes]:
    """Status and body without an HTTP client in between, which would rewrite odd header bytes."""
    sent: list[dict[str, Any]] = []

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": list(headers.items()), "root_path": "", "scheme": "http",
        "server": ("api", 80), "client": ("test", 1), "http_version": "1.1",
    }  # fmt: skip
    anyio.run(lambda: app(scope, receive or nothing, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@contextmanager
def served(app: FastAPI, prefix: str) -> Iterator[str]:
    """A real server on a free loopback port with `app` below `prefix`; yields its address."""
    config = uvicorn.Config(
        Starlette(routes=[Mount(prefix, app)]), port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    _wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def _wait_until(true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if true():
            return
        pause.wait(0.01)
    raise TimeoutError
