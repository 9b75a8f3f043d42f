"""The submit transaction: job, idempotency key, first event and sealed secrets, all or nothing.

`JobStore.submit` calls it inside a write transaction. Not for later changes of a job.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from configs.errors import JobConflict, QueueFull
from configs.job import Job, Submitted
from serve_app.lifecycle import apply
from serve_app.secret_box import SecretBox
from serve_app.store.rows import event_row, new_row, secret_context
from serve_app.store.tables import IS_ACTIVE, events, idempotency_keys, jobs, secrets

_PG_LOCK = 7_216_401_002
"""Advisory lock of submits on PostgreSQL: one at a time, as on SQLite, so that what is looked up
still holds when it is acted on and the queue's limit is exact."""

_BY_KEY = (
    sa.select(idempotency_keys.c.digest, jobs.c.backend, jobs.c.document)
    .join(jobs, jobs.c.job_id == idempotency_keys.c.job_id)
    .where(
        idempotency_keys.c.backend == sa.bindparam("backend"),
        idempotency_keys.c.key_sha256 == sa.bindparam("key"),
    )
)
_BY_ID = sa.select(jobs.c.digest, jobs.c.backend, jobs.c.document).where(
    jobs.c.job_id == sa.bindparam("id")
)
_QUEUED = (
    sa.select(sa.func.count())
    .select_from(jobs)
    .where(IS_ACTIVE, jobs.c.status == sa.bindparam("status"))
)
_ADD_JOB = sa.insert(jobs)
_ADD_EVENT = sa.insert(events)
_ADD_KEY = sa.insert(idempotency_keys)
_ADD_SECRET = sa.insert(secrets)


class Submission(NamedTuple):
    """What a client posted."""

    job: Job
    digest: str
    idempotency_key: str | None
    secrets: Mapping[str, str]


def submit(
    connection: sa.Connection, posted: Submission, box: SecretBox, max_queued: int
) -> tuple[Job, bool]:
    """The job of this submission and whether it is new.

    Raises:
        JobConflict: the id or the key belongs to another body.
        QueueFull: it would be new, and `max_queued` jobs wait.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_PG_LOCK})")
    if (existing := _by_key(connection, posted)) is not None:
        return existing, False
    if (existing := _by_id(connection, posted)) is not None:
        _remember_key(connection, posted, existing.job_id)
        return existing, False
    _refuse_when_full(connection, max_queued)
    return _insert(connection, posted, box), True


def _by_key(connection: sa.Connection, posted: Submission) -> Job | None:
    if posted.idempotency_key is None:
        return None
    values = {"backend": posted.job.backend, "key": _hash(posted.idempotency_key)}
    found = connection.execute(_BY_KEY, values).first()
    return _same_body(found, posted, "Idempotency-Key", "this Idempotency-Key")


def _by_id(connection: sa.Connection, posted: Submission) -> Job | None:
    found = connection.execute(_BY_ID, {"id": posted.job.job_id}).first()
    return _same_body(found, posted, "job_id", f"job_id {posted.job.job_id!r}")


def _same_body(
    found: sa.Row[str, str, str] | None, posted: Submission, param: str, name: str
) -> Job | None:
    """The job found, if it was made by the same body on the same API. The refusal is the same for
    either difference: it must not tell what the other job is, or whose."""
    if found is None:
        return None
    if (found.digest, found.backend) != (posted.digest, posted.job.backend):
        raise JobConflict(
            f"{name} was already used for another request",
            param=param,
            hint=f"Choose another {param}, or repeat the first request unchanged.",
        )
    return Job.model_validate_json(found.document)


def _refuse_when_full(connection: sa.Connection, max_queued: int) -> None:
    queued = connection.execute(_QUEUED, {"status": "queued"}).scalar_one()
    if queued >= max_queued:
        raise QueueFull(
            f"{queued} jobs are waiting, and no more than {max_queued} may",
            hint="Post again later; nothing was stored.",
        )


def _insert(connection: sa.Connection, posted: Submission, box: SecretBox) -> Job:
    event = Submitted(at=posted.job.created_at)
    job = apply(posted.job, event)
    connection.execute(_ADD_JOB, new_row(job, posted.digest))
    connection.execute(_ADD_EVENT, event_row(job, event))
    for name, plain in posted.secrets.items():
        sealed = box.seal(plain, secret_context(job.job_id, name))
        connection.execute(_ADD_SECRET, {"job_id": job.job_id, "name": name, "sealed": sealed})
    _remember_key(connection, posted, job.job_id)
    return job


def _remember_key(connection: sa.Connection, posted: Submission, job_id: str) -> None:
    if posted.idempotency_key is not None:
        row = {
            "backend": posted.job.backend,
            "key_sha256": _hash(posted.idempotency_key),
            "job_id": job_id,
            "digest": posted.digest,
        }
        connection.execute(_ADD_KEY, row)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
