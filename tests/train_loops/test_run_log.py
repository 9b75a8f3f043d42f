"""The run's log and metrics: in the store while it runs, over all attempts, never in its way."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.errors import StorageFailed
from tests.train_loops.plans import MemoryStore
from tests.train_loops.plans import plan as resolved
from train_loops import run_log
from train_loops.run_log import RunLog

logger = logging.getLogger("train_loops.a_test")
LOG_URI = resolved().log_uri


class RefusingStore(MemoryStore):
    """Has nothing and takes nothing."""

    def put(self, path: Path, uri: str) -> None:
        raise StorageFailed(f"{uri}: the object store answered 'SlowDown'")


class OnceRefusingStore(MemoryStore):
    """Refuses the first write."""

    refused = False

    def put(self, path: Path, uri: str) -> None:
        if not self.refused:
            self.refused = True
            raise StorageFailed(f"{uri}: the object store answered 'SlowDown'")
        super().put(path, uri)


class UnreadableStore(MemoryStore):
    """Does not answer reads."""

    def get_bytes(self, uri: str) -> bytes:
        raise StorageFailed(f"{uri}: the object store could not be used")


@pytest.fixture(autouse=True)
def quiet_root() -> Iterator[None]:
    """The root logger as a new process has it: warnings only."""
    root, ours = logging.getLogger(), logging.getLogger("train_loops")
    levels = root.level, ours.level
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.NOTSET)
    yield
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def text(store: MemoryStore, name: str = "train.log") -> str:
    return store.objects.get(LOG_URI + name, b"").decode()


def within_seconds(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_log_lines_and_metrics_are_in_the_store_at_the_end(tmp_path: Path) -> None:
    store = MemoryStore()
    with RunLog(resolved(), tmp_path, store) as log:
        logger.warning("a warning")
        log.sinks.log({"step": 1})
    assert "WARNING attempt=1 rank=0 train_loops.a_test: a warning" in text(store)
    assert text(store, "metrics.jsonl") == '{"step": 1}\n'


def test_the_runs_own_lines_are_kept_where_nobody_set_up_logging(tmp_path: Path) -> None:
    store = MemoryStore()
    with RunLog(resolved(), tmp_path, store):
        logger.info("training from step 0 to 3")
        logging.getLogger("somebody.else").info("chatter")
    assert "training from step 0 to 3" in text(store)
    assert "chatter" not in text(store)


def test_while_the_run_goes_on_its_log_reaches_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "UPLOAD_INTERVAL_S", 0.01)
    store = MemoryStore()
    with RunLog(resolved(), tmp_path, store) as log:
        logger.warning("still running")
        log.sinks.log({"step": 7})
        assert within_seconds(lambda: "still running" in text(store))
        assert within_seconds(lambda: '{"step": 7}' in text(store, "metrics.jsonl"))


def test_a_file_that_has_not_grown_is_not_sent_again(tmp_path: Path) -> None:
    store = MemoryStore()
    with RunLog(resolved(), tmp_path, store) as log:
        logger.warning("one line")
        log.upload()
        sent = len(store.writes)
        log.upload()
    assert len(store.writes) == sent


def test_a_second_attempt_on_another_machine_appends(tmp_path: Path) -> None:
    store = MemoryStore()
    for attempt in (1, 2):
        folder = tmp_path / f"machine-{attempt}"
        with RunLog(resolved(attempt=attempt), folder, store) as log:
            logger.warning("attempt %d speaks", attempt)
            log.sinks.log({"attempt": attempt})
    lines = text(store).splitlines()
    assert [line.split("attempt=")[1][0] for line in lines] == ["1", "2"]
    assert text(store, "metrics.jsonl") == '{"attempt": 1}\n{"attempt": 2}\n'


def test_the_traceback_of_what_ended_the_attempt_is_in_the_log(tmp_path: Path) -> None:
    store = MemoryStore()
    with pytest.raises(ZeroDivisionError), RunLog(resolved(), tmp_path, store):
        _ = 1 / 0
    assert "the attempt ended: division by zero" in text(store)
    assert "Traceback" in text(store)
    assert "ZeroDivisionError" in text(store)


def test_an_upload_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    store = RefusingStore()
    with RunLog(resolved(), tmp_path, store) as log:
        logger.warning("a warning")
        log.upload()
    assert store.objects == {}
    assert "log upload" in (tmp_path / "train.log").read_text()


def test_an_upload_that_failed_is_tried_again(tmp_path: Path) -> None:
    store = OnceRefusingStore()
    with RunLog(resolved(), tmp_path, store) as log:
        logger.warning("a warning")
        log.upload()
    assert "a warning" in text(store)


def test_a_store_that_cannot_be_read_stops_the_attempt_before_it_starts(tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(StorageFailed), RunLog(resolved(), tmp_path, UnreadableStore()):
        pass
    assert logging.getLogger().handlers == handlers


def test_no_log_handler_is_left_behind(tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    with RunLog(resolved(), tmp_path, MemoryStore()):
        assert len(logging.getLogger().handlers) == len(handlers) + 1
    assert logging.getLogger().handlers == handlers
