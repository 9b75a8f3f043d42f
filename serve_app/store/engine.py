"""Connections to the database: SQLite or PostgreSQL, one engine for reads and one for writes.

Reads run in autocommit (one statement is one snapshot, no BEGIN and COMMIT around it). Writes run
in a transaction that holds its lock from the start. `JobStore` calls it; no SQL of jobs in here.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from configs.errors import ConfigInvalid
from serve_app.store.group_commit import GroupCommit

_BUSY_TIMEOUT_S = 30
_POOL: dict[str, dict[str, Any]] = {
    # A SQLite connection is an open file: let as many threads read as there are.
    "sqlite": {"pool_size": 8, "max_overflow": -1},
    # PostgreSQL allows 100 connections by default, for all processes together.
    "postgresql": {"pool_size": 4, "max_overflow": 8, "pool_pre_ping": True},
}

T = TypeVar("T")
Lookup = Callable[[str], tuple[Any, ...] | None]


class Database:
    """The two engines of one database. Thread-safe; not to be used across a fork."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        pool = _POOL[url.get_backend_name()]
        # Nothing to reset after a read: there was no transaction.
        self._reads = sa.create_engine(
            url, isolation_level="AUTOCOMMIT", pool_reset_on_return=None, **pool
        )
        self._writes = sa.create_engine(url, **pool)
        # Threads queue here fairly; SQLite's own waiting is a sleep that late comers overtake.
        self._one_writer = threading.Lock()
        self._group = GroupCommit(self._one_writer, self._writes.begin)
        if self.is_sqlite:
            sa.event.listen(self._reads, "connect", _set_pragmas)
            sa.event.listen(self._writes, "connect", _set_pragmas)
            sa.event.listen(self._writes, "begin", _begin_immediate)

    def reading(self) -> sa.Connection:
        """A connection for single SELECT statements; use it in a `with`."""
        return self._reads.connect()

    def lookup(self, query: sa.Select[str, str, int]) -> Lookup:
        """The first row of `query` for its one parameter, as a function.

        Compiled once and run on the driver's own cursor: SQLAlchemy's general path takes several
        times as long as the query itself, and status reads are most of what the service does.
        """
        compiled = query.compile(dialect=self._reads.dialect)
        (name,) = compiled.params
        by_position = bool(compiled.positional)

        def first(key: str) -> tuple[Any, ...] | None:
            connection = self._reads.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(compiled.string, (key,) if by_position else {name: key})
                row: tuple[Any, ...] | None = cursor.fetchone()
                # An open cursor would hold SQLite's snapshot, and with it the log, in the pool.
                cursor.close()
                return row
            finally:
                connection.close()

        return first

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end, rolled back on an error."""
        if not self.is_sqlite:
            with self._writes.begin() as connection:
                yield connection
            return
        with self._one_writer, self._writes.begin() as connection:
            yield connection

    def grouped(self, work: Callable[[sa.Connection], T]) -> T:
        """The result of `work`, which runs in a transaction and is on disk when this returns.

        On SQLite, writers that wait at the same time share one transaction: the disk's answer is
        most of what a small write costs. PostgreSQL does the like by itself (`commit_delay`).
        """
        if self.is_sqlite:
            return self._group.do(work)
        with self.writing() as connection:
            return work(connection)

    def close(self) -> None:
        """Close all idle connections."""
        self._reads.dispose()
        self._writes.dispose()


def parse_url(text: str) -> sa.URL:
    """The URL with this project's driver.

    Raises:
        ConfigInvalid: neither a SQLite file nor PostgreSQL. The message does not repeat the URL,
            which may hold a password.
    """
    try:
        url = sa.make_url(text)
        name = url.get_backend_name()
    except sa.exc.ArgumentError:
        name = "what it names"
    if name in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if name == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    raise ConfigInvalid(
        f"DATABASE_URL: {name} cannot hold the jobs",
        hint="Use postgresql://user@host/database or sqlite:////absolute/path.db.",
    )


def create_file(url: sa.URL) -> Path:
    """The file of a SQLite database, made if missing, readable by its owner only."""
    path = Path(str(url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    return path


def _set_pragmas(connection: Any, _: object) -> None:
    # The sqlite3 module's own implicit BEGIN would be a deferred one.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000}")
    # In WAL mode, FULL is what makes an acknowledged commit survive a power cut.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    # Taking the write lock at once lets waiting work: a read lock cannot be upgraded under WAL
    # when another process has written in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
