"""A Python client of one API. Not part of the service: scripts, the command line and tests call it.

    with TrainerClient("http://127.0.0.1:8000", token="…") as client:
        job = client.submit({"base_model": …, "datasets": …, "customization": …})
        job = client.wait(job.job_id, on_change=lambda job: print(job.status, job.progress.percent))

An error answer is raised as what the service raised: `except JobNotFound` works here as there, and
`except TrainerApiError` catches all of them, with the HTTP status.
"""

import time
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import Any, Self

import httpx

from configs.errors import RunError, TrainerError
from configs.job import Job, JobPage, JobStatus
from configs.names import Backend
from configs.request import TrainRequest

_OUTAGE_S = 60.0
"""How long `wait` tries again while the service does not answer, as when it is restarted."""


class TrainerApiError(TrainerError):
    """The service answered with an error. Also an instance of the class that the service raised."""

    status: int = 0

    @property
    def body(self) -> dict[str, Any]:
        """The error as the service sent it."""
        found: dict[str, Any] = self.args[4]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return api_error, (self.status, self.body)


def api_error(status: int, body: dict[str, Any]) -> TrainerApiError:
    """The error behind an answer's `{"error": {…}}`."""
    found = {"code": "unknown", "message": f"HTTP {status}", "param": None, "details": []} | body
    cls = _error_class(found["code"], status)
    hint = next((detail["hint"] for detail in found["details"] if detail.get("hint")), None)
    error = cls(found["message"], found["param"], hint, found["details"])
    error.args = (*error.args, body)
    return error


class TrainerClient:
    """Synchronous; safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        backend: Backend = "hf-unsloth",
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=f"{base_url.rstrip('/')}/{backend}",
            headers={"X-TRAINER-TOKEN": token} if token else {},
            timeout=timeout_s,
            transport=transport,
        )

    def submit(
        self, request: TrainRequest | dict[str, Any], *, idempotency_key: str | None = None
    ) -> Job:
        """Submit a job; the same request again, with the same id or key, returns the same job."""
        body = _plain(request) if isinstance(request, TrainRequest) else request
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
        return self._job("POST", "/train", json=body, headers=headers)

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._job("GET", f"/train/{job_id}")

    def cancel(self, job_id: str) -> Job:
        """Ask the job to stop; it is `cancelling`, or `cancelled` if it had not begun."""
        return self._job("POST", f"/train/{job_id}/cancel")

    def list(
        self,
        *,
        statuses: Collection[JobStatus] = (),
        cursor: str | None = None,
        limit: int = 20,
    ) -> JobPage:
        """One page of jobs, newest first."""
        query: dict[str, Any] = {"status": [status.value for status in statuses], "limit": limit}
        if cursor is not None:
            query["cursor"] = cursor
        return JobPage.model_validate_json(self._send("GET", "/train", params=query).content)

    def iterate(self, *, statuses: Collection[JobStatus] = ()) -> Iterator[Job]:
        """All jobs, newest first, page by page."""
        cursor: str | None = None
        while True:
            page = self.list(statuses=statuses, cursor=cursor, limit=100)
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def wait(
        self,
        job_id: str,
        on_change: Callable[[Job], None] | None = None,
        timeout_s: float | None = None,
        poll_s: float = 1.0,
    ) -> Job:
        """The job once it has ended; `on_change` gets it at first and whenever it differs.

        Raises:
            TimeoutError: it has not ended after `timeout_s`.
        """
        deadline = time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
        seen: Job | None = None
        while True:
            job = self._get_through_outages(job_id, deadline, poll_s)
            if job != seen and on_change is not None:
                on_change(job)
            seen = job
            if job.status.terminal:
                return job
            if time.monotonic() + poll_s > deadline:
                raise TimeoutError(f"job {job_id!r} is {job.status.value} after {timeout_s} s")
            time.sleep(poll_s)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get_through_outages(self, job_id: str, deadline: float, poll_s: float) -> Job:
        give_up = min(deadline, time.monotonic() + _OUTAGE_S)
        while True:
            try:
                return self.get(job_id)
            except (httpx.TransportError, TrainerApiError) as error:
                passing = not isinstance(error, TrainerApiError) or error.status in (502, 503, 504)
                if not passing or time.monotonic() + poll_s > give_up:
                    raise
            time.sleep(poll_s)

    def _job(self, method: str, path: str, **options: Any) -> Job:
        return Job.model_validate_json(self._send(method, path, **options).content)

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._http.request(method, path, **options)
        if response.is_success:
            return response
        raise api_error(response.status_code, _error_of(response))


def _plain(request: TrainRequest) -> dict[str, Any]:
    """The request as it is posted: what was set, secrets in clear."""
    body = request.model_dump(mode="json", exclude_unset=True)
    for path, secret in request.secrets().items():
        section, field = path.split(".")
        body[section][field] = secret
    return body


def _error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in the body; empty when something else than the service answered."""
    try:
        found = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


@cache
def _error_class(code: str, status: int) -> type[TrainerApiError]:
    """`TrainerApiError` and the class of this code in one, so that either can be caught."""
    direct = (cls for cls in TrainerError.__subclasses__() if not issubclass(cls, RunError))
    known = next((cls for cls in direct if cls.__dict__.get("code") == code), None)
    bases = (TrainerApiError, known) if known else (TrainerApiError,)
    name = known.__name__ if known else TrainerApiError.__name__
    return type(name, bases, {"code": code, "status": status})
