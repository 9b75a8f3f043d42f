"""The worker boundary, and the way to the tracker when it is away."""

from typing import Any

import pytest

from configs.errors import StorageFailed
from configs.job import Event, Failed, Order, PhaseChanged, Progress
from tests.train_loops.plans import OrderingReporter, plan
from train_loops import ray_worker, report
from train_loops.report import TrackerReporter, now


class MutedReporter(OrderingReporter):
    """Reaches nobody."""

    def send(self, event: Event) -> Order:
        raise StorageFailed("the job tracker did not answer for 120 s")


@pytest.fixture
def no_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> None:
        raise LookupError("no job tracker is running")

    monkeypatch.setattr(report, "find_tracker", nobody)


def boundary(reporter: OrderingReporter, attempt: int = 1) -> Any:
    return ray_worker.failures_reported(reporter, plan(attempt=attempt))  # type: ignore[arg-type]


def test_a_failure_is_told_with_its_code_and_then_raised() -> None:
    reporter = OrderingReporter()
    with pytest.raises(MemoryError), boundary(reporter, attempt=2):
        raise MemoryError
    (event,) = reporter.events
    assert isinstance(event, Failed)
    assert (event.attempt, event.error.code, event.error.retryable) == (2, "out_of_memory", False)


def test_a_failure_that_nobody_hears_is_raised_all_the_same() -> None:
    with pytest.raises(ZeroDivisionError), boundary(MutedReporter()):
        _ = 1 / 0


def test_no_failure_tells_nothing() -> None:
    reporter = OrderingReporter()
    with boundary(reporter):
        pass
    assert reporter.events == []


@pytest.mark.parametrize("stop", [None, "cancel", "deadline", "stale"])
def test_one_worker_agrees_with_itself(stop: Any) -> None:
    assert ray_worker.agreement(0, 1, plan())(Order(stop=stop)).stop == stop


@pytest.mark.usefixtures("no_tracker")
def test_a_run_makes_progress_while_there_is_no_tracker() -> None:
    reporter = TrackerReporter("job-1")
    assert [reporter.progress(1, Progress(step=step)).stop for step in (1, 2, 3)] == [None] * 3


@pytest.mark.usefixtures("no_tracker")
def test_a_tracker_that_stays_away_is_a_storage_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PATIENCE_S", 0.01)
    with pytest.raises(StorageFailed, match="the job tracker did not answer"):
        TrackerReporter("job-1").send(PhaseChanged(at=now(), attempt=1, phase="loading_model"))
