"""Jobs, idempotency keys, events, sealed secrets, the cluster's capacity."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("active", sa.SmallInteger, nullable=False),
        sa.Column("callback_open", sa.SmallInteger, nullable=False),
        sa.Column("callback_seq", sa.Integer, nullable=False, server_default="0"),
        sa.Column("callback_failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("callback_retry_us", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("callback_due_us", sa.BigInteger),
        sa.Column("export_open", sa.SmallInteger, nullable=False),
        sa.Column("exported_seq", sa.Integer, nullable=False, server_default="0"),
        sa.Column("document", sa.Text, nullable=False),
    )
    _create_indexes()
    op.create_table(
        "idempotency_keys",
        sa.Column("backend", sa.Text, primary_key=True),
        sa.Column("key_sha256", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "cluster",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("capacity", sa.Text, nullable=False),
    )


def _create_indexes() -> None:
    _partial("jobs_active", ["created_us", "status"], "active = 1")
    _partial("jobs_callback", ["callback_retry_us"], "callback_open = 1")
    _partial("jobs_export", ["created_us"], "export_open = 1")
    op.create_index("jobs_page", "jobs", ["backend", "created_us", "job_id"])
    op.create_index("jobs_page_by_status", "jobs", ["backend", "status", "created_us", "job_id"])


def _partial(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for table in ("cluster", "secrets", "events", "idempotency_keys", "jobs"):
        op.drop_table(table)
