"""Metric sinks: opening one may stop a run, losing a record never does."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigInvalid
from train_loops.sinks.base import FanOut
from train_loops.sinks.jsonl import JsonlSink


class KeepingSink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.closed = False

    def open(self) -> None: ...

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed = True


class FailingSink(KeepingSink):
    """Opens, and then takes nothing."""

    def log(self, record: dict[str, Any]) -> None:
        raise ConnectionError("the metrics server is away")

    def close(self) -> None:
        raise ConnectionError("the metrics server is away")


class MisconfiguredSink(KeepingSink):
    """Does not open."""

    def open(self) -> None:
        raise ConfigInvalid("no key for the metrics server", param="logging[0]")


def test_every_record_goes_to_every_sink() -> None:
    first, second = KeepingSink(), KeepingSink()
    FanOut([first, second]).log({"step": 1})
    assert first.records == second.records == [{"step": 1}]


def test_a_failing_sink_takes_nothing_from_the_others() -> None:
    keeping = KeepingSink()
    fan_out = FanOut([FailingSink(), keeping])
    fan_out.log({"step": 1})
    assert keeping.records == [{"step": 1}]


def test_lost_records_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fan_out = FanOut([FailingSink(), KeepingSink()])
    for step in range(3):
        fan_out.log({"step": step})
    assert fan_out.lost_records == 3
    assert [r.getMessage() for r in caplog.records] == ["sink FailingSink lost a record"]


def test_a_sink_that_does_not_close_keeps_no_other_open() -> None:
    keeping = KeepingSink()
    FanOut([FailingSink(), keeping]).close()
    assert keeping.closed


def test_a_sink_that_does_not_open_stops_the_run_before_it_starts() -> None:
    with pytest.raises(ConfigInvalid, match="no key for the metrics server"):
        FanOut([KeepingSink(), MisconfiguredSink()]).open()


def test_metrics_are_one_json_object_a_line_readable_at_once(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.open()
    sink.log({"step": 1, "train_loss": 2.5})
    sink.log({"step": 2, "train_loss": 2.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    sink.close()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_metrics_of_a_later_attempt_are_appended(tmp_path: Path) -> None:
    for step in (1, 2):
        sink = JsonlSink(tmp_path / "metrics.jsonl")
        sink.open()
        sink.log({"step": step})
        sink.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
