"""The tables of the job store. `migrations/` creates them; a test proves that both agree.

A job is one row: the columns that queries need, and `document`, the whole job as JSON. Times are
whole microseconds since 1970 (UTC), so that SQLite and PostgreSQL order them alike.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    # Counts every write of the document: what compare-and-set compares.
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    # Keyed fingerprint of the request.
    sa.Column("digest", sa.Text, nullable=False),
    # 1 until the status is terminal.
    sa.Column("active", sa.SmallInteger, nullable=False),
    # 1 while the webhook has something to be told, now or later; 0 also when there is none.
    sa.Column("callback_open", sa.SmallInteger, nullable=False),
    sa.Column("callback_seq", sa.Integer, nullable=False, server_default="0"),
    sa.Column("callback_failures", sa.Integer, nullable=False, server_default="0"),
    # No try before this time; 0: at once.
    sa.Column("callback_retry_us", sa.BigInteger, nullable=False, server_default="0"),
    # When progress is to be told although nothing has happened.
    sa.Column("callback_due_us", sa.BigInteger),
    # 1 until the whole history of the ended job lies on the object store.
    sa.Column("export_open", sa.SmallInteger, nullable=False),
    sa.Column("exported_seq", sa.Integer, nullable=False, server_default="0"),
    sa.Column("document", sa.Text, nullable=False),
)

# Partial indexes: what is over costs nothing. Queries must say `active = 1` literally, since
# SQLite does not match a bound parameter with an index condition.
IS_ACTIVE = sa.text("active = 1")
CALLBACK_IS_OPEN = sa.text("callback_open = 1")
EXPORT_IS_OPEN = sa.text("export_open = 1")
sa.Index(
    "jobs_active",
    jobs.c.created_us,
    jobs.c.status,
    sqlite_where=IS_ACTIVE,
    postgresql_where=IS_ACTIVE,
)
sa.Index(
    "jobs_callback",
    jobs.c.callback_retry_us,
    sqlite_where=CALLBACK_IS_OPEN,
    postgresql_where=CALLBACK_IS_OPEN,
)
sa.Index(
    "jobs_export",
    jobs.c.created_us,
    sqlite_where=EXPORT_IS_OPEN,
    postgresql_where=EXPORT_IS_OPEN,
)
sa.Index("jobs_page", jobs.c.backend, jobs.c.created_us, jobs.c.job_id)
sa.Index("jobs_page_by_status", jobs.c.backend, jobs.c.status, jobs.c.created_us, jobs.c.job_id)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("backend", sa.Text, primary_key=True),
    # SHA-256 of the client's key: of fixed length whatever was sent.
    sa.Column("key_sha256", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    # The EventRecord as JSON.
    sa.Column("document", sa.Text, nullable=False),
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
    # Dotted path of the request field.
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
)

cluster = sa.Table(
    "cluster",
    metadata,
    # Always 1: there is one row.
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("capacity", sa.Text, nullable=False),
)
