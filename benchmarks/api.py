"""Status reads and submits under load, beside a no-op route on the same proxy.

Routes take turns, so that what else the machine does meets all of them. The submitted jobs ask for
GPUs that are not there: they wait, and the queue grows with every one.
"""

import json
import sqlite3
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load import UNIQUE, Load, LoadResult, press
from serve_app.client import TrainerClient
from serve_app.local.demo import EXAMPLE, example
from serve_app.local.stack import StackState

NOOP_READ, READ, NOOP_WRITE, SUBMIT = "no-op GET", "job GET", "no-op POST", "submit POST"
NOTICE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ApiResult:
    """The rounds of each route, and the queue that they left behind."""

    rounds: dict[str, list[LoadResult]]
    queued_jobs: int
    seconds_to_notice: float | None
    """From the POST of one more job until the tracker has said what it waits for; None when that
    took longer than `NOTICE_TIMEOUT_S`."""

    def ratio(self, route: str, beside: str) -> float:
        """The route's rate over the other's in the same round: median over the rounds."""
        pairs = zip(self.rounds[route], self.rounds[beside], strict=True)
        return statistics.median(
            one.rate_per_s / other.rate_per_s if other.rate_per_s else 0.0 for one, other in pairs
        )


def measure(
    client: TrainerClient,
    state: StackState,
    home: Path,
    token: str,
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> ApiResult:
    """Press each route in turn, `rounds` times for `seconds` each."""
    job_id = client.submit(waiting_request("bench-read")).job_id
    loads = _loads(state, token, job_id, seconds)
    results: dict[str, list[LoadResult]] = {name: [] for name in loads}
    for number in range(1, rounds + 1):
        say(f"API, round {number} of {rounds}: {', '.join(loads)}")
        for name, load in loads.items():
            results[name].append(press(load))
    queued = _queued(home)
    say(f"{queued} jobs are queued; waiting until the tracker has seen one more")
    return ApiResult(results, queued, _seconds_to_notice(client))


def waiting_request(job_id: str) -> dict[str, Any]:
    """A valid job that waits for ever: four A100."""
    request = example(EXAMPLE)
    request["tuning_parameters"].pop("micro_batch_size", None)
    return {**request, "job_id": job_id, "resources": {"gpus": 4, "gpu_type": "A100"}}


def _loads(state: StackState, token: str, job_id: str, seconds: float) -> dict[str, Load]:
    body = json.dumps(waiting_request(f"bench-{UNIQUE}"))
    routes = {
        NOOP_READ: ("GET", "/bench/noop", ""),
        READ: ("GET", f"/hf-unsloth/train/{job_id}", ""),
        NOOP_WRITE: ("POST", "/bench/noop", body),
        SUBMIT: ("POST", "/hf-unsloth/train", body),
    }
    url = urlsplit(state.base_url)
    assert url.hostname is not None and url.port is not None
    return {
        name: Load(url.hostname, url.port, method, path, seconds, text, token)
        for name, (method, path, text) in routes.items()
    }


def _queued(home: Path) -> int:
    store = sqlite3.connect(f"file:{home / 'trainer.db'}?mode=ro", uri=True)
    try:
        (count,) = store.execute("SELECT count(*) FROM jobs WHERE status = 'queued'").fetchone()
    finally:
        store.close()
    return int(count)


def _seconds_to_notice(client: TrainerClient) -> float | None:
    started = time.monotonic()
    job = client.submit(waiting_request("bench-last"))
    while not job.detail:
        if time.monotonic() - started > NOTICE_TIMEOUT_S:
            return None
        time.sleep(0.05)
        job = client.get(job.job_id)
    return time.monotonic() - started
