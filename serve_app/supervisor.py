"""The job's life, one turn at a time: watch what runs, settle what ended, admit what fits.

No ray in here: it reads and writes the store, and asks a `Launcher`. The tracker actor turns it.
Everything it knows lies in the store, so a new one goes on where the last one was killed.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from configs.errors import (
    InternalError,
    JobStateConflict,
    StaleAttempt,
    StorageFailed,
    TrainerError,
)
from configs.job import (
    EVENT,
    Admitted,
    Failed,
    Finalizing,
    Job,
    JobError,
    JobStatus,
    Lost,
    Order,
    PhaseChanged,
    Progressed,
    Started,
    Stopped,
    StopRequested,
    Succeeded,
    Waiting,
)
from configs.names import EVENTS_FILE, submission_id
from configs.settings import Settings
from serve_app.capacity import Capacity
from serve_app.launcher import Launcher, RunState, RunStatus
from serve_app.scheduler import Admit, Wait, decide
from serve_app.store.job_store import JobStore
from train_loops.artifact import accept
from train_loops.plan import resolve
from train_loops.stores.open import open_store

logger = logging.getLogger(__name__)

SWEEP_INTERVAL = timedelta(seconds=30)
# What an attempt may say of itself.
ATTEMPT_EVENTS = (PhaseChanged, Started, Progressed, Finalizing, Failed)
# A finished run's results may be out of reach for this long before it counts as lost.
RESULTS_PATIENCE = timedelta(minutes=10)


class Supervisor:
    """Turns the store's jobs forward. One instance acts; every write is a compare-and-set, so a
    second one (an upgrade) does no harm."""

    def __init__(
        self,
        store: JobStore,
        launcher: Launcher,
        capacity: Callable[[], Capacity],
        settings: Settings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._launcher, self._settings = store, launcher, settings
        self._capacity, self._clock = capacity, clock
        self._swept_at = clock()
        self._capacity_text = ""
        self._unreadable_since: dict[str, datetime] = {}

    # What attempts ask and tell

    def plan(self, job_id: str, attempt: int) -> str | None:
        """The plan of an attempt as JSON; None when it does not own the job."""
        job = self._store.get(job_id)
        return resolve(job, attempt).model_dump_json() if _owns(attempt, job) else None

    def secrets(self, job_id: str, attempt: int) -> dict[str, str]:
        """What the attempt needs to open its model: `hub_token`, when the request brought one."""
        if not _owns(attempt, self._store.get(job_id)):
            return {}
        secrets = self._store.secrets(job_id)
        token = secrets.get("base_model.huggingface_token") or secrets.get("base_model.auth_token")
        return {"hub_token": token} if token else {}

    def record(self, job_id: str, event_json: str) -> Order:
        """Take an attempt's event; the answer tells it to go on or to stop."""
        event = EVENT.validate_json(event_json)
        if not isinstance(event, ATTEMPT_EVENTS):
            # That a job has succeeded is said here alone, after its manifest was read back.
            return Order(stop="stale")
        if isinstance(event, Failed):
            return self._failed(self._store.get(job_id), event)
        try:
            job = self._store.record(job_id, event)
        except (StaleAttempt, JobStateConflict):
            # Or told twice: the tracker died after it wrote and before it answered.
            job = self._store.get(job_id)
        owner = _owns(getattr(event, "attempt", None), job)
        return Order(stop=job.stop_reason if owner else "stale")

    def _failed(self, job: Job, event: Failed) -> Order:
        """A failure told by the attempt: another try when its cause may pass, else the end."""
        if _owns(event.attempt, job):
            if event.error.retryable and job.attempt < self._settings.max_attempts:
                detail = f"attempt {job.attempt} ended: {event.error.message}"
                self._try_record(job, Lost(at=event.at, attempt=job.attempt, detail=detail))
            else:
                self._try_record(job, event)
        return Order(stop="stale")

    # One turn

    def turn(self) -> None:
        """Watch, settle, admit, export. What cannot be done now is done on the next turn."""
        capacity = self._read_capacity()
        for job in self._store.active():
            if job.status.holds_resources:
                with _alone(job.job_id):
                    self._watch(job)
        self._admit(capacity)
        self._export()
        if self._clock() - self._swept_at >= SWEEP_INTERVAL:
            self._sweep()

    def _read_capacity(self) -> Capacity:
        capacity = self._capacity()
        text = capacity.model_dump_json()
        if text != self._capacity_text:
            self._store.set_capacity(text)
            self._capacity_text = text
        return capacity

    def _watch(self, job: Job) -> None:
        run_id = submission_id(job.job_id, job.attempt)
        run = self._launcher.status(run_id)
        never_ran = run.state is RunState.UNKNOWN and job.phase == "starting"
        if never_ran and job.stop_reason is None:
            # Killed between the admission and the launch: the id makes the launch idempotent.
            self._start(job, job.attempt)
        elif run.state is RunState.ALIVE:
            self._limit(job, run_id)
        else:
            self._settle(job, run)

    def _limit(self, job: Job, run_id: str) -> None:
        """Deadline and grace of an attempt that is alive."""
        now = self._clock()
        minutes = job.resources.max_duration_minutes
        launched, stopping = job.admitted_at, job.stop_requested_at
        if stopping is not None:
            grace = timedelta(seconds=self._settings.cancel_grace_seconds)
            # Before it trains there is nothing to save.
            if now - stopping >= grace or job.attempt_started_at is None:
                self._launcher.stop(run_id)
        elif minutes and launched and now - launched >= timedelta(minutes=minutes):
            self._try_record(job, StopRequested(at=now, reason="deadline"))

    def _settle(self, job: Job, run: RunStatus) -> None:
        """The attempt's processes are gone: what became of the job?"""
        if run.state is RunState.ENDED:
            self._collect(job)
        else:
            self._gone(job, run.message or "the cluster no longer knows its process")

    def _collect(self, job: Job) -> None:
        """A run that finished has left a manifest, and it must hold. One that finished just when
        it was asked to stop has left one too, and `lifecycle` says what that makes of the job."""
        store = open_store(job.output_uri, self._settings)
        try:
            artifacts = accept(store, job.output_uri, job.attempt)
        except FileNotFoundError:
            self._gone(job, "it ended without a manifest")
        except StorageFailed as error:
            logger.warning("%s: results not readable yet: %s", job.job_id, error)
            since = self._unreadable_since.setdefault(job.job_id, self._clock())
            if job.stop_reason == "cancel" or self._clock() - since >= RESULTS_PATIENCE:
                del self._unreadable_since[job.job_id]
                self._gone(job, f"its results could not be read back: {error}")
        else:
            self._unreadable_since.pop(job.job_id, None)
            done = Succeeded(at=self._clock(), attempt=job.attempt, artifacts=artifacts)
            self._try_record(job, done)

    def _gone(self, job: Job, why: str) -> None:
        """The attempt has left no results: it was asked to stop, or it was lost."""
        if job.stop_reason is not None:
            self._try_record(job, Stopped(at=self._clock(), attempt=job.attempt))
        else:
            self._lost(job, why)

    def _lost(self, job: Job, why: str) -> None:
        now, detail = self._clock(), f"attempt {job.attempt} was lost: {why}"
        if job.attempt < self._settings.max_attempts:
            self._try_record(job, Lost(at=now, attempt=job.attempt, detail=detail))
            return
        error = JobError(
            code="worker_lost",
            message=f"{detail} (the last of {job.attempt} attempts)",
            hint="See train.log; a worker that is killed again and again is often out of memory.",
            retryable=True,
        )
        self._try_record(job, Failed(at=now, attempt=job.attempt, error=error))

    def _admit(self, capacity: Capacity) -> None:
        active = self._store.active()
        jobs = {job.job_id: job for job in active}
        queue = [job for job in active if job.status in (JobStatus.QUEUED, JobStatus.RECOVERING)]
        holding = [job for job in active if job.status.holds_resources]
        for decision in decide(queue, holding, capacity):
            job = jobs[decision.job_id]
            if isinstance(decision, Admit):
                with _alone(job.job_id):
                    self._launch(job)
            elif isinstance(decision, Wait) and decision.detail != job.detail:
                self._try_record(job, Waiting(at=self._clock(), detail=decision.detail))

    def _launch(self, job: Job) -> None:
        """The next attempt, once the one before has left: both would write the same checkpoints
        and need the same place. What does not leave by itself is swept away."""
        attempt = job.attempt + 1
        if job.attempt and self._is_alive(submission_id(job.job_id, job.attempt)):
            return
        run_id = submission_id(job.job_id, attempt)
        admitted = Admitted(at=self._clock(), attempt=attempt, backend_job_id=run_id)
        if self._try_record(job, admitted):
            self._start(job, attempt)

    def _start(self, job: Job, attempt: int) -> None:
        """Launch an attempt; a request that an older version accepted may end here."""
        try:
            plan = resolve(job, attempt)
        except (ValidationError, TrainerError):
            error = JobError(
                code=InternalError.code,
                message="the stored request is none that this version of the service accepts",
                hint="Submit it again under another job_id; the answer says what is wrong.",
            )
            self._try_record(job, Failed(at=self._clock(), attempt=attempt, error=error))
        else:
            self._launcher.start(plan, submission_id(job.job_id, attempt))

    def _is_alive(self, run_id: str) -> bool:
        return self._launcher.status(run_id).state is RunState.ALIVE

    def _export(self) -> None:
        """Carry the history of each job that has news to its `events.jsonl`."""
        for job in self._store.exports_due():
            records = self._store.events(job.job_id)
            text = "".join(record.model_dump_json() + "\n" for record in records)
            try:
                store = open_store(job.log_uri, self._settings)
                store.put_bytes(text.encode(), job.log_uri + EVENTS_FILE)
            except (TrainerError, OSError) as error:
                # OSError: the bucket that the request named does not exist.
                logger.warning("%s: events not exported yet: %s", job.job_id, error)
            else:
                self._store.exported(job.job_id, records[-1].seq)

    def _sweep(self) -> None:
        """Stop whatever runs for a job that has ended or moved on to another attempt."""
        self._swept_at = self._clock()
        # In this order: what another supervisor launches in between is owned by then.
        alive = self._launcher.alive()
        owned = {
            submission_id(job.job_id, job.attempt)
            for job in self._store.active()
            if job.status.holds_resources
        }
        for run_id in set(alive) - owned:
            logger.warning("stopping %s: no job owns it", run_id)
            with _alone(run_id):
                self._launcher.stop(run_id)

    def _try_record(
        self, job: Job, event: Admitted | Waiting | Lost | Failed | Succeeded | Stopped
        | StopRequested,
    ) -> bool:  # fmt: skip
        """Write the event unless the job has moved on meanwhile; whether it was written."""
        try:
            self._store.record(job.job_id, event)
        except (StaleAttempt, JobStateConflict) as error:
            logger.info("%s: %s", job.job_id, error)
            return False
        return True


def _owns(attempt: int | None, job: Job) -> bool:
    """Whether this attempt is the one that has, or is about to have, the job's place."""
    return job.attempt == attempt and job.status.holds_resources


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """What goes wrong with one job (the cluster's API or the store refuses) is tried again on the
    next turn, and must not hold up the others."""
    try:
        yield
    except (TrainerError, RuntimeError, OSError, ValueError):
        logger.exception("%s: not moved on this turn", name)
