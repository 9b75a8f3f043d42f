"""`train.log` and `metrics.jsonl` of a job, carried to `logs/<job_id>/` while it runs.

A later attempt goes on in the same files. `events.jsonl` is the service's: it alone knows them all.
"""

import logging
import threading
from pathlib import Path
from types import TracebackType

from configs.errors import StorageFailed
from configs.names import METRICS_FILE, TRAIN_LOG
from train_loops.plan import Plan
from train_loops.sinks.base import FanOut
from train_loops.sinks.jsonl import JsonlSink
from train_loops.stores.base import ObjectStore

UPLOAD_INTERVAL_S = 3.0
_FORMAT = "%(asctime)s %(levelname)s attempt=%(attempt)s rank=%(rank)s %(name)s: %(message)s"

logger = logging.getLogger(__name__)


class RunLog:
    """Context of a driver or of rank 0: collects log records and metrics, uploads both."""

    def __init__(self, plan: Plan, folder: Path, store: ObjectStore, rank: int = 0) -> None:
        self._plan, self._store, self._folder = plan, store, folder
        self._sizes: dict[str, int] = {}
        self._ended = threading.Event()
        self._uploader = threading.Thread(target=self._upload_often, daemon=True)
        self._extra = {"attempt": plan.attempt, "rank": rank}
        self.sinks = FanOut([JsonlSink(folder / METRICS_FILE)])

    def __enter__(self) -> "RunLog":
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (TRAIN_LOG, METRICS_FILE):
            self._fetch(name)
        self._handler = _handler(self._folder / TRAIN_LOG, self._extra)
        logging.getLogger().addHandler(self._handler)
        # A Ray worker's root logger keeps to warnings; the run's own lines belong in its log.
        logging.getLogger("train_loops").setLevel(logging.INFO)
        self.sinks.open()
        self._uploader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if error is not None:
            logger.error("the attempt ended: %s", error, exc_info=error)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()
        self.sinks.close()
        self._ended.set()
        self._uploader.join()
        self.upload()

    def upload(self) -> None:
        """Carry over each file that has grown."""
        for name in (TRAIN_LOG, METRICS_FILE):
            path = self._folder / name
            size = path.stat().st_size if path.exists() else 0
            if size == self._sizes.get(name, 0):
                continue
            try:
                self._store.put(path, self._plan.log_uri + name)
                self._sizes[name] = size
            except StorageFailed as error:
                # Telemetry never ends a run; the next round tries again.
                logger.warning("log upload: %s", error)

    def _fetch(self, name: str) -> None:
        path = self._folder / name
        if path.exists():
            return
        try:
            self._store.get(self._plan.log_uri + name, path)
            self._sizes[name] = path.stat().st_size
        except FileNotFoundError:
            path.touch()

    def _upload_often(self) -> None:
        while not self._ended.wait(UPLOAD_INTERVAL_S):
            self.upload()


def _handler(path: Path, extra: dict[str, int]) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(_FORMAT, defaults=extra))
    return handler
