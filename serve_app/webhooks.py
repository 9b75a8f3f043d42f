"""Callbacks to `callbacks.webhook_url`: every change of a job in order, and its progress between.

What is owed lies in the store (a cursor over the job's events), so nothing is forgotten when the
tracker dies. A receiver that hangs delays nobody else's.
"""

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx

from configs.job import EventRecord, Job, JobStatus
from configs.settings import Settings
from serve_app.store.job_store import JobStore

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 300.0
MOST_FAILURES = 20


class Webhooks:
    """Delivers what is due. One task a job, so that its events stay in order."""

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store = store
        self._interval = timedelta(seconds=settings.callback_interval_seconds)
        # No redirects and no proxy from the environment: the URL is a stranger's.
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, int] = {}

    async def deliver_due(self) -> None:
        """Start a delivery for every job that is owed one and has none under way."""
        # Known before the question: what they deliver meanwhile is in the answer, as still owed.
        busy = set(self._tasks)
        due = await asyncio.to_thread(self._store.callbacks_due, datetime.now(UTC))
        for job in due:
            if job.job_id not in busy:
                task = asyncio.create_task(self._deliver(job.job_id))
                self._tasks[job.job_id] = task
                task.add_done_callback(partial(self._delivered, job.job_id))

    def _delivered(self, job_id: str, _: asyncio.Task[None]) -> None:
        del self._tasks[job_id]

    async def settle(self) -> None:
        """Wait for the deliveries under way."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """End the connections. What is still owed lies in the store."""
        await self.settle()
        await self._client.aclose()

    async def _deliver(self, job_id: str) -> None:
        job, records = await asyncio.to_thread(self._owed, job_id)
        url = job.request["callbacks"]["webhook_url"]
        try:
            for record in records:
                await self._post(url, change_body(job, record))
                await self._done(job, record.seq)
            if not records and not job.status.terminal:
                await self._post(url, progress_body(job, datetime.now(UTC)))
                await self._done(job, job.seq)
        except Exception as error:
            await asyncio.to_thread(self._failed, job, error)

    def _owed(self, job_id: str) -> tuple[Job, list[EventRecord]]:
        job = self._store.get(job_id)
        records = self._store.events(job_id, after_seq=self._store.callback_seq(job_id))
        # What has happened since is left for the next delivery: `job` does not know of it.
        return job, [record for record in records if record.seq <= job.seq]

    async def _post(self, url: str, body: dict[str, Any]) -> None:
        # Only the status is read, and for so long at most: the answer is a stranger's, too.
        async with (
            asyncio.timeout(TIMEOUT_S),
            self._client.stream("POST", url, json=body) as answer,
        ):
            if not answer.is_success:
                raise httpx.HTTPError(f"the receiver answered {answer.status_code}")

    async def _done(self, job: Job, seq: int) -> None:
        last = job.status.terminal and seq >= job.seq
        next_due = None if last else datetime.now(UTC) + self._interval
        await asyncio.to_thread(self._store.callback_delivered, job.job_id, seq, next_due)
        self._failures.pop(job.job_id, None)

    def _failed(self, job: Job, error: Exception) -> None:
        # The count that decides is the store's; this one only spaces the tries.
        delay = retry_delay_s(self._failures.get(job.job_id, 0) + 1)
        next_try = datetime.now(UTC) + timedelta(seconds=delay)
        failures = self._store.callback_failed(job.job_id, next_try)
        self._failures[job.job_id] = failures
        if failures >= MOST_FAILURES:
            logger.warning("%s: webhook given up after %d failures", job.job_id, failures)
            self._store.callback_abandoned(job.job_id, job.seq)
            self._failures.pop(job.job_id)
        else:
            logger.info("%s: webhook failed (%s), again in %.0f s", job.job_id, error, delay)


def retry_delay_s(failures: int) -> float:
    """Exponential back-off with jitter: 1, 2, 4, … up to 300 s, ± 20 %."""
    delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (failures - 1))
    return delay * random.uniform(0.8, 1.2)


def change_body(job: Job, record: EventRecord) -> dict[str, Any]:
    """The body for one event of the job's history, with the status it led to."""
    detail = getattr(record.event, "detail", None) or job.detail
    changes: dict[str, Any] = {
        "event": record.event.type,
        "seq": record.seq,
        "status": record.status.value,
        "detail": detail,
        "timestamp": record.event.at.isoformat(),
    }
    if record.status is not JobStatus.FAILED:
        # Told late (the receiver was down), an early event must not carry the job's end.
        changes["error"] = None
    return _body(job) | changes


def progress_body(job: Job, at: datetime) -> dict[str, Any]:
    """The body that tells how far the job is."""
    return _body(job) | {"event": "progress", "timestamp": at.isoformat()}


def _body(job: Job) -> dict[str, Any]:
    return {
        "event": None,
        "seq": job.seq,
        "job_id": job.job_id,
        "backend": job.backend,
        "backend_job_id": job.backend_job_id,
        "attempt": job.attempt,
        "status": job.status.value,
        "phase": job.phase,
        "detail": job.detail,
        "timestamp": None,
        "progress": job.progress.model_dump(mode="json"),
        "error": job.error.model_dump(mode="json") if job.error else None,
    }
