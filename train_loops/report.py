"""How an attempt speaks to the service: events out, orders back. Called by driver and worker.

A report never decides anything; the service answers each with an `Order`: go on, or stop and why.
"""

import time
from datetime import UTC, datetime
from typing import Any, Protocol

from configs.errors import (
    InternalError,
    OutOfMemory,
    RunError,
    StorageFailed,
    TrainerError,
    WorkerLost,
)
from configs.job import Event, Order, Progress, Progressed
from configs.names import RAY_NAMESPACE, TRACKER_PREFIX

PROGRESS_INTERVAL_S = 1.0
PATIENCE_S = 120.0
# torch has no class of its own for main memory.
_CPU_ALLOCATION = "DefaultCPUAllocator: can't allocate memory"
# How gloo and NCCL put it when the process at the other end has died.
_PEER_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "remote process exited",
)


class Reporter(Protocol):
    """Where an attempt's events go."""

    def send(self, event: Event) -> Order:
        """Deliver `event` surely, however long it takes within two minutes."""

    def progress(self, attempt: int, progress: Progress) -> Order:
        """Deliver at most one progress event a second, never waiting; the last known order."""


def now() -> datetime:
    """The time of an event (UTC)."""
    return datetime.now(UTC)


class SilentReporter:
    """Nobody listens: for runs without the service. Keeps what was said."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> Order:
        self.events.append(event)
        return Order()

    def progress(self, attempt: int, progress: Progress) -> Order:
        return self.send(Progressed(at=now(), attempt=attempt, progress=progress))


class TrackerReporter:
    """Speaks to the JobTracker actor by name, so that it survives the tracker's restarts."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._order = Order()
        self._pending: Any = None
        self._sent_at = 0.0
        self._tracker: Any = None

    def send(self, event: Event) -> Order:
        self._order = Order.model_validate_json(
            self.call("record", self._job_id, event.model_dump_json())
        )
        return self._order

    def progress(self, attempt: int, progress: Progress) -> Order:
        import ray

        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            self._take_answer()
        if self._pending is None and time.monotonic() - self._sent_at >= PROGRESS_INTERVAL_S:
            event = Progressed(at=now(), attempt=attempt, progress=progress)
            self._pending = self._post(event.model_dump_json())
            self._sent_at = time.monotonic()
        return self._order

    def call(self, method: str, *args: Any) -> Any:
        """Call the tracker and wait, over its restarts.

        Raises:
            StorageFailed: the tracker did not answer for two minutes.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                return ray.get(getattr(find_tracker(), method).remote(*args), timeout=15)
            except (RayActorError, GetTimeoutError, LookupError):
                time.sleep(1.0)
        raise StorageFailed(f"the job tracker did not answer for {PATIENCE_S:.0f} s")

    def _post(self, event_json: str) -> Any:
        try:
            self._tracker = self._tracker or find_tracker()
            return self._tracker.record.remote(self._job_id, event_json)
        except LookupError:
            return None

    def _take_answer(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            self._order = Order.model_validate_json(ray.get(self._pending))
        except RayError:
            # Telemetry never ends a run: the tracker restarts, and the next report finds it anew.
            self._tracker = None
        self._pending = None


def find_tracker() -> Any:
    """The tracker actor, whatever version of the code it runs.

    Raises:
        LookupError: none is alive under its name.
    """
    import ray

    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == RAY_NAMESPACE and actor["name"].startswith(TRACKER_PREFIX):
            try:
                return ray.get_actor(actor["name"], namespace=RAY_NAMESPACE)
            except ValueError:
                continue
    raise LookupError("no job tracker is running")


def as_run_error(error: BaseException) -> RunError:
    """Any exception of a run as one of ours; what is not known is an internal error."""
    if isinstance(error, RunError):
        return error
    if _out_of_memory(error):
        return OutOfMemory(
            f"a worker ran out of memory: {_first_line(error)}",
            hint="Lower micro_batch_size or max_sequence_length, set gradient_checkpointing, "
            "or ask for more GPUs.",
        )
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _PEER_LOST):
        return WorkerLost(f"another worker went away: {_first_line(error)}")
    if isinstance(error, TrainerError):
        return InternalError(error.message, error.param, error.hint)
    return InternalError(f"{type(error).__name__}: {_first_line(error)}", hint="See train.log.")


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATION in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]
