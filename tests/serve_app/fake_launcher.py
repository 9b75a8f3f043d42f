"""A cluster that only remembers what it was told, a clock that the test moves, and results that a
real publish wrote. For tests of the supervisor; nothing here starts a process."""

import tempfile
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.settings import Settings
from serve_app.launcher import RunState, RunStatus
from tests.serve_app.conftest import T0
from train_loops.artifact import publish
from train_loops.plan import Plan
from train_loops.stores.file import FileStore

WEIGHTS = b"weights of an adapter"


class Clock:
    """Stands still until it is moved forward."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


class FakeLauncher:
    """Records starts and stops, and ignores an id that it knows, as Ray does. The test says what
    becomes of each run."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.stops: list[str] = []
        self.plans: dict[str, Plan] = {}
        self._runs: dict[str, RunStatus] = {}
        self._lock = threading.Lock()

    def start(self, plan: Plan, submission_id: str) -> None:
        with self._lock:
            if submission_id not in self._runs:
                self.starts.append(submission_id)
                self.plans[submission_id] = plan
                self._runs[submission_id] = RunStatus(RunState.ALIVE)

    def status(self, submission_id: str) -> RunStatus:
        return self._runs.get(submission_id, RunStatus(RunState.UNKNOWN))

    def stop(self, submission_id: str) -> None:
        self.stops.append(submission_id)

    def alive(self) -> list[str]:
        return [run_id for run_id, run in self._runs.items() if run.state is RunState.ALIVE]

    def end(self, submission_id: str, state: RunState, message: str = "") -> None:
        """The run has ended so."""
        self._runs[submission_id] = RunStatus(state, message)

    def replace_cluster(self) -> None:
        """A new cluster in the place of the old one: it knows nothing of its runs."""
        self._runs.clear()


class DyingLauncher(FakeLauncher):
    """The tracker is killed in every `start`: after the admission, before the launch."""

    def start(self, plan: Plan, submission_id: str) -> None:
        raise KeyboardInterrupt


class RefusingLauncher(FakeLauncher):
    """The cluster's API refuses the runs of one job, and only those."""

    def __init__(self, job_id: str) -> None:
        super().__init__()
        self._job_id = job_id

    def start(self, plan: Plan, submission_id: str) -> None:
        if plan.job_id == self._job_id:
            raise RuntimeError("Request failed with status code 500: no.")
        super().start(plan, submission_id)


class Results:
    """What finished attempts leave on the object store: here, in a folder."""

    def __init__(self, settings: Settings) -> None:
        assert settings.file_root is not None
        self._store = FileStore(settings.file_root)

    def publish(self, plan: Plan) -> None:
        """Write an adapter and its manifest, as the attempt of `plan` does at its end."""
        with tempfile.TemporaryDirectory() as name:
            adapter = Path(name) / "adapter" / "adapter_model.safetensors"
            adapter.parent.mkdir()
            adapter.write_bytes(WEIGHTS)
            publish(plan, Path(name), self._store)

    @staticmethod
    def path(uri: str) -> Path:
        """The file of a URI."""
        return Path(urlsplit(uri).path)


class RunsThrough(FakeLauncher):
    """Every run ends at once: the first of a job in `unlucky` is lost, all others publish."""

    def __init__(self, results: Results, unlucky: set[str]) -> None:
        super().__init__()
        self._results, self._unlucky = results, unlucky

    def status(self, submission_id: str) -> RunStatus:
        with self._lock:
            if super().status(submission_id).state is RunState.ALIVE:
                plan = self.plans[submission_id]
                lost = plan.job_id in self._unlucky and plan.attempt == 1
                if not lost:
                    self._results.publish(plan)
                self.end(submission_id, RunState.FAILED if lost else RunState.ENDED)
            return super().status(submission_id)


class FailingStore:
    """An object store that fails so often, then is a folder again."""

    def __init__(self, root: Path, failures: int, error: Exception) -> None:
        self._store, self.failures, self._error = FileStore(root), failures, error

    def put_bytes(self, data: bytes, uri: str) -> None:
        if self.failures:
            self.failures -= 1
            raise self._error
        self._store.put_bytes(data, uri)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
