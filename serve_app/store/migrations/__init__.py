"""Bring a database to the present schema, once, however many processes start together.

`JobStore.open` calls it. Revisions are in `versions/`, run by Alembic from these package files; a
user needs no alembic.ini.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from configs.errors import ConfigInvalid
from serve_app.store.engine import Database, create_file

_PG_LOCK = 7_216_401_001
"""Any number that no other program on the database takes as its advisory lock."""


def migrate(database: Database) -> None:
    """Create or upgrade the tables; does nothing when they are up to date.

    Raises:
        ConfigInvalid: a newer version of this service has upgraded the database.
    """
    with _alone(database), database.writing() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_PG_LOCK})")
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigInvalid(
                f"the job store cannot be upgraded: {error}",
                hint="The database was made by a newer version: run that, or use another one.",
            ) from error


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """For SQLite, hold a lock file: switching a new database to WAL fails under concurrency."""
    if not database.is_sqlite:
        yield
        return
    path = create_file(database.url)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with database.reading() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        yield
