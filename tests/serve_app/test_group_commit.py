"""Writers that share a transaction: each gets its own outcome, and none a lost write."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.store.engine import _begin_immediate, _set_pragmas
from serve_app.store.group_commit import GroupCommit

WRITERS = 12


class Journal:
    """A table of numbers, its lock, and how many transactions were made."""

    def __init__(self, path: Path) -> None:
        self.engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self.engine, "connect", _set_pragmas)
        sa.event.listen(self.engine, "begin", _begin_immediate)
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE numbers (n INTEGER PRIMARY KEY)")
        self.lock = threading.Lock()
        self.transactions = 0
        self.refuses_commit = False
        self.group = GroupCommit(self.lock, self.begin)

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        self.transactions += 1
        with self.engine.begin() as connection:
            yield connection
            if self.refuses_commit:
                raise OSError("the disk is full")

    def add(self, number: int) -> int:
        def work(connection: sa.Connection) -> int:
            connection.exec_driver_sql("INSERT INTO numbers VALUES (?)", (number,))
            return number

        return self.group.do(work)

    def together(self, numbers: list[int]) -> list[int | Exception]:
        """Every number added by a thread of its own, while all wait for the same lock."""
        with ThreadPoolExecutor(len(numbers)) as threads:
            with self.lock:
                futures = [threads.submit(self.add, number) for number in numbers]
                while len(self.group._waiting) < len(numbers):
                    pass
            return [f.exception() or f.result() for f in futures]  # type: ignore[misc]

    @property
    def stored(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT n FROM numbers ORDER BY n").scalars())


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


def test_those_that_wait_share_one_transaction(journal: Journal) -> None:
    assert journal.together(list(range(WRITERS))) == list(range(WRITERS))
    assert journal.stored == list(range(WRITERS))
    assert journal.transactions == 1


def test_one_that_fails_takes_no_other_with_it(journal: Journal) -> None:
    outcomes = journal.together([1, 2, 2, 3])
    assert sum(isinstance(outcome, sa.exc.IntegrityError) for outcome in outcomes) == 1
    assert journal.stored == [1, 2, 3]


def test_a_commit_that_fails_is_told_to_every_writer(journal: Journal) -> None:
    journal.refuses_commit = True
    outcomes = journal.together([1, 2, 3])
    assert all(isinstance(outcome, OSError) for outcome in outcomes)
    assert journal.stored == []


def test_a_writer_alone_waits_for_nobody(journal: Journal) -> None:
    assert [journal.add(n) for n in (1, 2)] == [1, 2]
    assert journal.transactions == 2
