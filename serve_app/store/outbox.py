"""What must still leave the service: webhook callbacks and each job's `events.jsonl`.

A durable cursor per job says up to which event the receiver has been told; the tracker asks what is
due, delivers, and moves the cursor. Nothing is sent from here. Delivery is at least once.
"""

from datetime import datetime

import sqlalchemy as sa

from configs.job import Job
from serve_app.store.engine import Database
from serve_app.store.rows import microseconds
from serve_app.store.tables import CALLBACK_IS_OPEN, EXPORT_IS_OPEN, IS_ACTIVE, jobs

_SEQ = sa.bindparam("new_seq", type_=sa.Integer)
_ENDED_AND_TOLD = sa.and_(jobs.c.active == 0, jobs.c.seq <= _SEQ)

_CALLBACKS_DUE = (
    sa.select(jobs.c.document)
    .where(
        CALLBACK_IS_OPEN,
        jobs.c.callback_retry_us <= sa.bindparam("now"),
        sa.or_(
            jobs.c.seq > jobs.c.callback_seq,
            sa.and_(IS_ACTIVE, jobs.c.callback_due_us <= sa.bindparam("now")),
        ),
    )
    .order_by(jobs.c.callback_retry_us, jobs.c.created_us)
)
_CALLBACK_SEQ = sa.select(jobs.c.callback_seq).where(jobs.c.job_id == sa.bindparam("id"))
_CALLBACK_TOLD = (
    sa.update(jobs)
    .where(jobs.c.job_id == sa.bindparam("id"))
    .values(
        callback_seq=sa.case((jobs.c.callback_seq > _SEQ, jobs.c.callback_seq), else_=_SEQ),
        callback_open=sa.case((_ENDED_AND_TOLD, 0), else_=jobs.c.callback_open),
        callback_due_us=sa.bindparam("due"),
        callback_retry_us=0,
        callback_failures=0,
    )
)
_CALLBACK_FAILED = (
    sa.update(jobs)
    .where(jobs.c.job_id == sa.bindparam("id"))
    .values(callback_failures=jobs.c.callback_failures + 1, callback_retry_us=sa.bindparam("retry"))
    .returning(jobs.c.callback_failures)
)
_EXPORTS_DUE = (
    sa.select(jobs.c.document)
    .where(EXPORT_IS_OPEN, jobs.c.seq > jobs.c.exported_seq)
    .order_by(jobs.c.created_us)
)
_EXPORTED = (
    sa.update(jobs)
    .where(jobs.c.job_id == sa.bindparam("id"))
    .values(
        exported_seq=sa.case((jobs.c.exported_seq > _SEQ, jobs.c.exported_seq), else_=_SEQ),
        export_open=sa.case((_ENDED_AND_TOLD, 0), else_=jobs.c.export_open),
    )
)


class Outbox:
    """The part of `JobStore` that deliveries use."""

    _database: Database

    def callbacks_due(self, now: datetime) -> list[Job]:
        """Jobs whose webhook is behind the last event, or due for word of progress."""
        return self._jobs(_CALLBACKS_DUE, {"now": microseconds(now)})

    def callback_seq(self, job_id: str) -> int:
        """The last event that the job's receiver knows; 0 before the first."""
        with self._database.reading() as connection:
            return connection.execute(_CALLBACK_SEQ, {"id": job_id}).scalar() or 0

    def callback_delivered(self, job_id: str, seq: int, next_due: datetime | None) -> None:
        """The receiver knows event `seq`; tell it of progress at `next_due`."""
        due = None if next_due is None else microseconds(next_due)
        with self._database.writing() as connection:
            connection.execute(_CALLBACK_TOLD, {"id": job_id, "new_seq": seq, "due": due})

    def callback_failed(self, job_id: str, next_try: datetime) -> int:
        """Note a failure, try again at `next_try`; returns the failures in a row."""
        values = {"id": job_id, "retry": microseconds(next_try)}
        with self._database.writing() as connection:
            return connection.execute(_CALLBACK_FAILED, values).scalar() or 0

    def callback_abandoned(self, job_id: str, seq: int) -> None:
        """Give up on everything up to `seq`; nothing is due until the job's next event."""
        self.callback_delivered(job_id, seq, None)

    def exports_due(self) -> list[Job]:
        """Jobs with events that their `events.jsonl` lacks."""
        return self._jobs(_EXPORTS_DUE, {})

    def exported(self, job_id: str, seq: int) -> None:
        """`events.jsonl` holds everything up to `seq`."""
        with self._database.writing() as connection:
            connection.execute(_EXPORTED, {"id": job_id, "new_seq": seq})

    def _jobs(self, query: sa.Select[str], values: dict[str, int]) -> list[Job]:
        with self._database.reading() as connection:
            documents = connection.execute(query, values).scalars().all()
        return [Job.model_validate_json(document) for document in documents]
