"""From a job to its row, and back from what a client sends to what a query can take."""

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from configs.errors import RequestInvalid
from configs.job import Event, EventRecord, Job

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = re.compile(r"^(\d{1,18}):([a-z0-9._-]{1,64})$", re.ASCII)


def microseconds(at: datetime) -> int:
    """Exact microseconds since 1970; `at` must carry its time zone."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def mutable_columns(job: Job) -> dict[str, Any]:
    """The columns that follow from the job's document and change with it."""
    return {
        "status": job.status.value,
        "attempt": job.attempt,
        "seq": job.seq,
        "active": int(not job.status.terminal),
        "document": job.model_dump_json(),
    }


def new_row(job: Job, digest: str) -> dict[str, Any]:
    """The first row of a job."""
    callbacks = job.request.get("callbacks") or {}
    return mutable_columns(job) | {
        "job_id": job.job_id,
        "backend": job.backend,
        "version": 1,
        "created_us": microseconds(job.created_at),
        "digest": digest,
        "callback_open": int(bool(callbacks.get("webhook_url"))),
        "export_open": 1,
    }


def event_row(job: Job, event: Event) -> dict[str, Any]:
    """The row of `event`, which made `job` what it is now."""
    record = EventRecord(seq=job.seq, status=job.status, event=event)
    return {"job_id": job.job_id, "seq": job.seq, "document": record.model_dump_json()}


def secret_context(job_id: str, name: str) -> str:
    """What a sealed secret is bound to: it opens for no other job and no other field."""
    return f"{job_id}/{name}"


def encode_cursor(created_us: int, job_id: str) -> str:
    """An opaque place in the list of jobs."""
    return base64.urlsafe_b64encode(f"{created_us}:{job_id}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, str]:
    """The place that `encode_cursor` wrote.

    Raises:
        RequestInvalid: it is none of ours.
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        match = _CURSOR.match(base64.b64decode(padded, altchars=b"-_", validate=True).decode())
    except (UnicodeError, binascii.Error):
        match = None
    if match is None:
        raise RequestInvalid(
            "cursor is not one that this API gave out",
            param="cursor",
            hint="Use next_cursor of the page before, or leave cursor out for the first page.",
        )
    return int(match[1]), match[2]
