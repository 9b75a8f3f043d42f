"""The contract of a metric sink, and the fan-out to several."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """A place that metrics go to. `open` may raise and so stop the run before it starts."""

    def open(self) -> None:
        """Connect, or raise a `RunError`."""

    def log(self, record: dict[str, Any]) -> None:
        """Take one step's metrics."""

    def close(self) -> None:
        """Flush."""


class FanOut:
    """Every record to every sink. After `open`, a sink that breaks loses records, never the run."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self.lost_records = 0

    def open(self) -> None:
        for sink in self._sinks:
            sink.open()

    def log(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            try:
                sink.log(record)
            except Exception:
                self.lost_records += 1
                if self.lost_records == 1:
                    logger.exception("sink %s lost a record", type(sink).__name__)

    def close(self) -> None:
        for sink in self._sinks:
            try:
                sink.close()
            except Exception:
                logger.exception("sink %s did not close", type(sink).__name__)
