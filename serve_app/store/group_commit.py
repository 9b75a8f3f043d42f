"""Several writers' work in one transaction, so that one wait for the disk serves them all.

Called by `Database.grouped` for submits, the only writes that come many at a time. Each piece of
work has a savepoint of its own: where one fails, the others are committed.
Source: group commit (DeWitt et al. 1984, "Implementation techniques for main memory database
systems").
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

T = TypeVar("T")
MOST_TOGETHER = 64


class _Write(Generic[T]):
    """One writer's work, and what came of it."""

    def __init__(self, work: Callable[[sa.Connection], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self.error: BaseException | None = None
        self.turn = threading.Event()
        """Set when the work is settled, or when its thread must run the next transaction."""

    @property
    def settled(self) -> bool:
        return bool(self._results) or self.error is not None

    def run(self, connection: sa.Connection) -> None:
        """Do the work, all of it or nothing."""
        try:
            with connection.begin_nested():
                self._results.append(self._work(connection))
        except BaseException as error:
            # Whatever it is, it belongs to the writer that waits for it, not to the one that runs.
            self.error = error

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self._results[0]

    def fail(self, error: BaseException) -> None:
        self._results.clear()
        self.error = self.error or error


class GroupCommit:
    """Runs what waits in one transaction; the thread that comes first does it for the others."""

    def __init__(
        self, lock: threading.Lock, begin: Callable[[], AbstractContextManager[sa.Connection]]
    ) -> None:
        """`lock` is held during every write; `begin` opens a transaction."""
        self._lock = lock
        self._begin = begin
        self._queue = threading.Lock()
        self._waiting: deque[_Write[Any]] = deque()
        self._led = False

    def do(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction with others'; return once it is on disk, or raise as it
        raised."""
        write = _Write(work)
        with self._queue:
            self._waiting.append(write)
            leads, self._led = not self._led, True
        if not leads:
            # Not for the lock: a queue at it would let the next transaction begin half empty.
            write.turn.wait()
        if not write.settled:
            self._lead()
        return write.outcome()

    def _lead(self) -> None:
        """One transaction for those that wait, this thread's write too; then the next leads."""
        with self._lock:
            together = self._taken()
            try:
                with self._begin() as connection:
                    for write in together:
                        write.run(connection)
            except BaseException as error:
                for write in together:
                    write.fail(error)
        with self._queue:
            self._led = bool(self._waiting)
            following = list(self._waiting)[:1]
        for write in (*following, *together):
            write.turn.set()

    def _taken(self) -> list[_Write[Any]]:
        with self._queue:
            count = min(len(self._waiting), MOST_TOGETHER)
            return [self._waiting.popleft() for _ in range(count)]
