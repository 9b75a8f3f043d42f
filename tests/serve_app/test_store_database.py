"""The database under the job store: migrations, indexes, what lies on disk, what URLs are taken."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from configs.errors import ConfigInvalid
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore, job_store, outbox
from serve_app.store.engine import parse_url
from serve_app.store.tables import metadata
from tests.serve_app.conftest import make_job, submit


def test_secrets_never_lie_in_clear(tmp_path: Path, box: SecretBox) -> None:
    store = JobStore.open(f"sqlite:///{tmp_path / 'trainer.db'}", box)
    submit(store, make_job("marker-job"), secrets={"base_model.auth_token": "hf_secret_of_ours"})
    # With the store still open, the write-ahead log is there too.
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    store.close()
    assert b"marker-job" in stored
    assert b"hf_secret_of_ours" not in stored


def test_sqlite_uses_the_indexes_of_work(tmp_path: Path, box: SecretBox) -> None:
    url = f"sqlite:///{tmp_path / 'trainer.db'}"
    JobStore.open(url, box).close()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        for query, index in (
            (job_store._ACTIVE, "jobs_active"),
            (outbox._CALLBACKS_DUE, "jobs_callback"),
            (outbox._EXPORTS_DUE, "jobs_export"),
        ):
            text = query.compile(engine).string
            values = (1,) * text.count("?")
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values).all()
            assert index in str(plan)
    engine.dispose()


def test_migrations_and_tables_agree(store: JobStore, store_url: str) -> None:
    engine = sa.create_engine(parse_url(store_url))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused(
    store: JobStore, store_url: str, box: SecretBox
) -> None:
    engine = sa.create_engine(parse_url(store_url))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigInvalid, match="9999"):
        JobStore.open(store_url, box)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://u:hunter2@h/d", "hunter2", ""]
)
def test_other_databases_are_refused_without_naming_the_password(url: str, box: SecretBox) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        JobStore.open(url, box)
    assert "hunter2" not in str(caught.value.args)


def test_reads_leave_no_transaction_open(store: JobStore, store_url: str) -> None:
    submit(store)
    store.get("job-1")
    store.list("hf-unsloth")
    engine = sa.create_engine(parse_url(store_url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if store_url.startswith("sqlite"):
            # An open snapshot would keep the log from being emptied.
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()[0][0]
        else:
            idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction'"
            busy = connection.execute(sa.text(idle)).scalar()
    engine.dispose()
    assert busy == 0


def test_the_sqlite_file_is_for_its_owner_only(tmp_path: Path, box: SecretBox) -> None:
    path = tmp_path / "new" / "trainer.db"
    JobStore.open(f"sqlite:///{path}", box).close()
    assert path.stat().st_mode & 0o077 == 0
