"""Stores to test against: every test that takes `store` or `store_url` runs on both databases."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from configs.job import Admitted, Job, Started, Succeeded
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore
from tests.serve_app.postgres import postgres

KEY_MATERIAL = b"key material of the tests"
T0 = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LATER = T0 + timedelta(minutes=1)

_numbers = itertools.count(1)


def make_job(job_id: str = "job-1", *, age: int = 0, **changes: Any) -> Job:
    """A job as the submit route makes it, `age` seconds older than T0."""
    values: dict[str, Any] = {
        "job_id": job_id,
        "backend": "hf-unsloth",
        "engine": "simulated",
        "engine_reason": "asked for",
        "created_at": T0 - timedelta(seconds=age),
        "log_uri": f"s3://bucket/logs/{job_id}/",
        "output_uri": f"s3://bucket/results/{job_id}/",
        "request": {},
    }
    return Job(**(values | changes))


def submit(store: JobStore, job: Job | None = None, **given: Any) -> tuple[Job, bool]:
    values: dict[str, Any] = {
        "digest": "body",
        "idempotency_key": None,
        "secrets": {},
        "max_queued": 1000,
    }
    return store.submit(job or make_job(), **(values | given))


def start(store: JobStore, job_id: str = "job-1") -> Job:
    store.record(job_id, Admitted(at=LATER, attempt=1, backend_job_id=f"{job_id}-1"))
    return store.record(job_id, Started(at=LATER, attempt=1, total_steps=10))


def succeed(store: JobStore, job_id: str = "job-1") -> Job:
    store.record(job_id, Admitted(at=LATER, attempt=1, backend_job_id=f"{job_id}-1"))
    return store.record(job_id, Succeeded(at=LATER, attempt=1, artifacts=[]))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'trainer.db'}"
    server: str = request.getfixturevalue("postgres_url")
    # A schema each: a database each would be hundreds of files.
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    return f"{server}&options=-csearch_path%3D{name}"


@pytest.fixture
def box() -> SecretBox:
    return SecretBox(KEY_MATERIAL)


@pytest.fixture
def store(store_url: str, box: SecretBox) -> Iterator[JobStore]:
    opened = JobStore.open(store_url, box)
    yield opened
    opened.close()
