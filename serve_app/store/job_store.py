"""The job store: the one truth about jobs. Actors and replicas forget; this does not.

Every change of a job is a compare-and-set on its row. Called by the API's routes and the tracker,
from many threads and processes at once. What a change means is decided in `lifecycle.py`.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import sqlalchemy as sa

from configs.errors import InternalError, JobNotFound
from configs.job import Event, EventRecord, Job, JobPage, JobStatus, Progressed
from configs.names import Backend
from serve_app.lifecycle import apply
from serve_app.secret_box import SecretBox
from serve_app.store import submission
from serve_app.store.engine import Database, parse_url
from serve_app.store.migrations import migrate
from serve_app.store.outbox import Outbox
from serve_app.store.rows import (
    decode_cursor,
    encode_cursor,
    event_row,
    mutable_columns,
    secret_context,
)
from serve_app.store.tables import IS_ACTIVE, cluster, events, jobs, secrets

_RACES = 20
"""Times that `record` reads again after another writer came first."""

_BY_ID = sa.select(jobs.c.document, jobs.c.backend, jobs.c.version).where(
    jobs.c.job_id == sa.bindparam("id")
)
_ACTIVE = sa.select(jobs.c.document).where(IS_ACTIVE).order_by(jobs.c.created_us, jobs.c.job_id)
_REPLACE = sa.update(jobs).where(
    jobs.c.job_id == sa.bindparam("id"),
    jobs.c.version == sa.bindparam("old_version"),
    jobs.c.attempt == sa.bindparam("old_attempt"),
    jobs.c.status == sa.bindparam("old_status"),
)
_ADD_EVENT = sa.insert(events)
_EVENTS = (
    sa.select(events.c.document)
    .where(events.c.job_id == sa.bindparam("id"), events.c.seq > sa.bindparam("after"))
    .order_by(events.c.seq)
)
_SECRETS = sa.select(secrets.c.name, secrets.c.sealed).where(secrets.c.job_id == sa.bindparam("id"))
_DROP_SECRETS = sa.delete(secrets).where(secrets.c.job_id == sa.bindparam("id"))
_CAPACITY = sa.select(cluster.c.capacity).where(cluster.c.id == 1)


class _Row(NamedTuple):
    document: str
    backend: str
    version: int


class JobStore(Outbox):
    """Jobs, their history and their secrets, in SQLite or PostgreSQL."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database = database
        self._box = box
        self._by_id = database.lookup(_BY_ID)

    @classmethod
    def open(cls, url: str, box: SecretBox) -> "JobStore":
        """Connect, after bringing the database to the present schema."""
        database = Database(parse_url(url))
        migrate(database)
        return cls(database, box)

    def submit(
        self,
        job: Job,
        *,
        digest: str,
        idempotency_key: str | None,
        secrets: Mapping[str, str],
        max_queued: int,
    ) -> tuple[Job, bool]:
        """Store a new job, or find the one that the same request made; True when it is new.

        Raises:
            JobConflict: the id or the key belongs to another body.
            QueueFull: it would be new, and `max_queued` jobs wait.
        """
        posted = submission.Submission(job, digest, idempotency_key, secrets)
        return self._database.grouped(
            lambda connection: submission.submit(connection, posted, self._box, max_queued)
        )

    def get(self, job_id: str, backend: Backend | None = None) -> Job:
        """The job.

        Raises:
            JobNotFound: there is none, or it belongs to another API than `backend`.
        """
        return Job.model_validate_json(self._row(job_id, backend).document)

    def get_document(self, job_id: str, backend: Backend) -> str:
        """The job as JSON text, as `get` finds it but without parsing it."""
        return self._row(job_id, backend).document

    def record(self, job_id: str, event: Event) -> Job:
        """Apply `event` to the job and append it to the history; returns the job after it.

        Raises:
            JobNotFound: there is no such job.
            StaleAttempt, JobStateConflict: the event is not allowed now (see `lifecycle.apply`).
        """
        for _ in range(_RACES):
            row = self._row(job_id, None)
            before = Job.model_validate_json(row.document)
            after = apply(before, event)
            if after is before or self._replace(before, after, row.version, event):
                return after
        raise InternalError(f"job {job_id!r} changed {_RACES} times while {event.type!r} was tried")

    def events(self, job_id: str, after_seq: int = 0) -> list[EventRecord]:
        """The job's history after event `after_seq`, in order."""
        with self._database.reading() as connection:
            documents = connection.execute(_EVENTS, {"id": job_id, "after": after_seq}).scalars()
            return [EventRecord.model_validate_json(document) for document in documents]

    def active(self) -> list[Job]:
        """All jobs that have not ended, oldest first."""
        return self._jobs(_ACTIVE, {})

    def secrets(self, job_id: str) -> dict[str, str]:
        """The job's secrets in clear, by request field; none once it has ended."""
        with self._database.reading() as connection:
            rows = connection.execute(_SECRETS, {"id": job_id}).all()
        return {
            row.name: self._box.unseal(row.sealed, secret_context(job_id, row.name)) for row in rows
        }

    def set_capacity(self, document: str) -> None:
        """Remember what the cluster has, for replicas that may not ask Ray."""
        try:
            with self._database.writing() as connection:
                if not connection.execute(sa.update(cluster).values(capacity=document)).rowcount:
                    connection.execute(sa.insert(cluster).values(id=1, capacity=document))
        except sa.exc.IntegrityError:
            # Another tracker made the row first; both read the same cluster.
            return

    def capacity(self) -> str | None:
        """What `set_capacity` was given last."""
        with self._database.reading() as connection:
            return connection.execute(_CAPACITY).scalar()

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def list(
        self,
        backend: Backend,
        *,
        statuses: Collection[JobStatus] = (),
        cursor: str | None = None,
        limit: int = 20,
    ) -> JobPage:
        """One page of an API's jobs, newest first.

        Raises:
            RequestInvalid: the cursor is none of ours.
        """
        place = sa.tuple_(jobs.c.created_us, jobs.c.job_id)
        query = sa.select(jobs.c.document, jobs.c.created_us, jobs.c.job_id)
        query = query.where(jobs.c.backend == backend)
        if statuses:
            query = query.where(jobs.c.status.in_([status.value for status in statuses]))
        if cursor is not None:
            query = query.where(place < decode_cursor(cursor))
        query = query.order_by(jobs.c.created_us.desc(), jobs.c.job_id.desc()).limit(limit + 1)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        page = rows[:limit]
        more = len(rows) > limit and page
        return JobPage(
            jobs=[Job.model_validate_json(row.document) for row in page],
            next_cursor=encode_cursor(page[-1].created_us, page[-1].job_id) if more else None,
        )

    def _row(self, job_id: str, backend: Backend | None) -> _Row:
        # No id has other characters, and PostgreSQL would refuse a NUL with an error of its own.
        found = self._by_id(job_id) if job_id.isascii() and "\0" not in job_id else None
        if found is None or backend not in (None, found[1]):
            raise JobNotFound(f"there is no job {job_id[:64]!r} on this API")
        return _Row(*found)

    def _replace(self, before: Job, after: Job, version: int, event: Event) -> bool:
        """Write `after` and its event if nobody has written since `before` was read."""
        expected = {
            "id": before.job_id,
            "old_version": version,
            "old_attempt": before.attempt,
            "old_status": before.status.value,
        }
        values = mutable_columns(after) | {"version": version + 1}
        with self._database.writing() as connection:
            if connection.execute(_REPLACE, expected | values).rowcount != 1:
                return False
            if not isinstance(event, Progressed):
                connection.execute(_ADD_EVENT, event_row(after, event))
            if after.status.terminal:
                connection.execute(_DROP_SECRETS, {"id": after.job_id})
        return True
