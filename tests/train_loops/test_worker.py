"""One rank of a run: what it says, when it stops, what it saves and what it publishes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import LossNotFinite, StorageFailed
from configs.job import Order
from tests.train_loops.plans import EngineOf, GivenLosses, MemoryStore, OrderingReporter, plan
from train_loops.checkpoint import FolderCheckpoints
from train_loops.data.encoders import TOKEN_COLUMNS
from train_loops.data.prepare import ROW_FILES
from train_loops.data.row_file import open_row_file
from train_loops.engines import simulated
from train_loops.engines.base import Engine, Inputs, Metrics
from train_loops.plan import Plan
from train_loops.sinks.base import FanOut
from train_loops.worker import Seat, result_folder, train


class KeepingSink:
    """Keeps every record."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def open(self) -> None: ...

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None: ...


class FailingSink(KeepingSink):
    """Loses every record, loudly."""

    def log(self, record: dict[str, Any]) -> None:
        raise ConnectionError("gone")


class FailingStore(MemoryStore):
    """Takes no file."""

    def put(self, path: Path, uri: str) -> None:
        raise StorageFailed("the object store answered 'AccessDenied'")


class BreakingLoop(GivenLosses):
    """Fails in its second step."""

    def steps(self) -> Iterator[Metrics]:
        yield Metrics(1, 0.1, 2.0, 1e-3, None, 100)
        raise RuntimeError("a step failed")


class Run:
    """One rank on one disk, whose attempts can follow each other."""

    def __init__(self, folder: Path) -> None:
        self.inputs = Inputs(folder / "model", folder / "data", folder / "scratch")
        self.checkpoints_folder = folder / "checkpoints"
        self.store = MemoryStore()
        self.sink = KeepingSink()

    def attempt(
        self,
        ours: Plan,
        reporter: OrderingReporter | None = None,
        *,
        engine: Engine = simulated.ENGINE,
        rank: int = 0,
        agreed: Order | None = None,
    ) -> Order:
        seat = Seat(
            rank=rank,
            world_size=1,
            reporter=reporter or OrderingReporter(),
            checkpoints=FolderCheckpoints(ours.attempt, self.checkpoints_folder),
            sinks=FanOut([self.sink]),
            store=self.store,
            agree=lambda order: agreed or order,
        )
        return train(ours, engine, self.inputs, seat)

    @property
    def checkpoint(self) -> dict[str, int]:
        """Which attempt wrote the newest checkpoint, after which step."""
        newest = FolderCheckpoints(0, self.checkpoints_folder).latest()
        assert newest is not None
        written: dict[str, int] = json.loads((newest / "attempt.json").read_text())
        return written


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(simulated, "STEP_SECONDS", 0)
    return Run(tmp_path)


def steps(reporter: OrderingReporter) -> list[int]:
    return [event.progress.step for event in reporter.events if event.type == "progress"]


def started(reporter: OrderingReporter) -> Any:
    (event,) = (event for event in reporter.events if event.type == "started")
    return event


def test_a_run_tells_that_it_started_each_step_and_that_it_ends(on: Run) -> None:
    reporter = OrderingReporter()
    assert on.attempt(plan(), reporter) == Order()
    # The last step is told twice: in passing, and then surely.
    assert reporter.types == ["started", *["progress"] * 4, "finalizing"]
    assert started(reporter).total_steps == 3
    assert steps(reporter) == [1, 2, 3, 3]


@pytest.fixture
def with_validation_rows(on: Run) -> Run:
    """Rows that were held back lie beside the training rows."""
    folder = on.inputs.data_folder
    folder.mkdir(parents=True)
    with open_row_file(folder / ROW_FILES["validation"], TOKEN_COLUMNS) as file:
        file.write([[[1, 2]], [[-100, 2]]])
    return on


def test_validation_comes_with_each_checkpoint_and_after_the_last_step(
    with_validation_rows: Run,
) -> None:
    reporter = OrderingReporter()
    tuning = {"checkpoint_every_steps": 2, "max_steps": 3}
    engine = EngineOf(GivenLosses([3.0, 2.0, 1.0]), uses_torch=True)
    with_validation_rows.attempt(plan(tuning_parameters=tuning), reporter, engine=engine)
    records = with_validation_rows.sink.records
    assert [r["step"] for r in records if "validation_loss" in r] == [2, 3]
    last = [event.progress for event in reporter.events if event.type == "progress"][-1]
    assert (last.step, last.validation_loss) == (3, 1.0)


def test_every_event_carries_the_attempt(on: Run) -> None:
    reporter = OrderingReporter()
    on.attempt(plan(attempt=4), reporter)
    assert {event.attempt for event in reporter.events} == {4}  # type: ignore[union-attr]


def test_each_step_is_one_record_of_metrics(on: Run) -> None:
    on.attempt(plan(attempt=2))
    assert [record["step"] for record in on.sink.records] == [1, 2, 3]
    assert on.sink.records[0].keys() == {
        "at", "attempt", "step", "epoch", "train_loss", "learning_rate", "grad_norm",
        "tokens", "tokens_per_second", "peak_memory_bytes",
    }  # fmt: skip
    assert {record["attempt"] for record in on.sink.records} == {2}


def test_a_finished_run_publishes_its_result_with_plan_and_versions(on: Run) -> None:
    ours = plan()
    on.attempt(ours)
    names = {uri.removeprefix(ours.results_uri) for uri in on.store.objects}
    assert names >= {"adapter/SIMULATED.json", "plan.json", "versions.json", "manifest.json"}
    assert on.store.writes[-1] == ours.results_uri + "manifest.json"


@pytest.mark.parametrize("reason", ["cancel", "deadline"])
def test_a_run_stops_at_the_step_of_the_order_and_saves_first(on: Run, reason: str) -> None:
    ours, reporter = plan(), OrderingReporter(stop=reason, at_step=2)
    assert on.attempt(ours, reporter).stop == reason
    assert reporter.types == ["started", "progress", "progress", "phase"]
    assert reporter.events[-1].phase == "checkpoint_saved"  # type: ignore[union-attr]
    assert on.checkpoint == {"attempt": 1, "step": 2}
    assert on.store.objects == {}


def test_an_attempt_that_is_stale_writes_nothing_more(on: Run) -> None:
    reporter = OrderingReporter(stop="stale", at_step=2)
    assert on.attempt(plan(), reporter).stop == "stale"
    assert reporter.types == ["started", "progress", "progress"]
    assert not on.checkpoints_folder.exists()
    assert on.store.objects == {}


def test_an_attempt_that_is_stale_at_the_end_publishes_nothing(on: Run) -> None:
    reporter = OrderingReporter(stop="stale", at_event="finalizing")
    assert on.attempt(plan(), reporter).stop == "stale"
    assert on.store.objects == {}


def test_a_cancel_that_comes_after_the_last_step_is_too_late(on: Run) -> None:
    ours, reporter = plan(), OrderingReporter(stop="cancel", at_event="finalizing")
    assert on.attempt(ours, reporter).stop is None
    assert ours.results_uri + "manifest.json" in on.store.objects


def test_a_later_attempt_goes_on_after_the_last_saved_step(on: Run) -> None:
    reporter = OrderingReporter()
    on.attempt(plan(), OrderingReporter(stop="cancel", at_step=2))
    assert on.attempt(plan(attempt=2), reporter).stop is None
    assert started(reporter).resumed_from_step == 2
    assert steps(reporter) == [3, 3]


def test_checkpoints_come_at_their_interval_and_not_after_the_last_step(on: Run) -> None:
    tuning = {"max_steps": 4, "checkpoint_every_steps": 2}
    on.attempt(plan(tuning_parameters=tuning))
    assert on.checkpoint == {"attempt": 1, "step": 2}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(on: Run, loss: float) -> None:
    loop, reporter = GivenLosses([2.0, loss, 1.0]), OrderingReporter()
    with pytest.raises(LossNotFinite, match="at step 2") as caught:
        on.attempt(plan(), reporter, engine=EngineOf(loop))
    assert "learning_rate" in str(caught.value.hint)
    assert steps(reporter) == [1]
    assert on.store.objects == {}
    assert loop.closed == 1


def test_a_failing_sink_never_ends_the_run(on: Run) -> None:
    ours, on.sink = plan(), FailingSink()
    assert on.attempt(ours).stop is None
    assert ours.results_uri + "manifest.json" in on.store.objects


def test_a_result_that_cannot_be_stored_ends_the_run_with_that_reason(on: Run) -> None:
    on.store = FailingStore()
    with pytest.raises(StorageFailed, match="AccessDenied"):
        on.attempt(plan())
    assert on.store.objects == {}


def test_the_loop_is_closed_however_the_run_ends(on: Run) -> None:
    finished, stopped, broken = GivenLosses([1.0]), GivenLosses([1.0, 1.0]), BreakingLoop([1.0])
    on.attempt(plan(), engine=EngineOf(finished))
    on.attempt(plan(), OrderingReporter(stop="cancel", at_step=1), engine=EngineOf(stopped))
    with pytest.raises(RuntimeError, match="a step failed"):
        on.attempt(plan(), engine=EngineOf(broken))
    assert all(loop.closed for loop in (finished, stopped, broken))


def test_only_rank_zero_publishes(on: Run) -> None:
    on.attempt(plan(), rank=1)
    assert on.store.objects == {}


def test_the_result_of_a_full_run_is_called_a_model() -> None:
    assert result_folder(plan().spec) == "adapter"
    assert result_folder(plan(customization={"method": "full"}).spec) == "model"


def test_a_rank_stops_where_the_first_rank_was_told_to(on: Run) -> None:
    order = on.attempt(plan(), rank=1, agreed=Order(stop="cancel"))
    assert order.stop == "cancel"
    assert on.checkpoint["step"] == 1
