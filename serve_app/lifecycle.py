"""The table of status changes: which event is allowed in which status, and what it then does.

Pure: no clock, no database. `JobStore.record` applies it inside a compare-and-set; nothing else
changes a job. Each rule below names its event and the statuses that allow it; what is not in the
table is refused, and terminal statuses have no rules at all.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol, TypeVar

from configs.errors import DeadlineReached, JobStateConflict, StaleAttempt
from configs.job import (
    Admitted,
    DataPrepared,
    EngineChanged,
    Event,
    Failed,
    Finalizing,
    Job,
    JobError,
    JobStatus,
    Lost,
    PhaseChanged,
    Progress,
    Progressed,
    Started,
    Stopped,
    StopRequested,
    Submitted,
    Succeeded,
    Waiting,
)

CHECKPOINT_SAVED = "checkpoint_saved"
"""Phase that a stopping attempt reports once its checkpoint is safe; the deadline error says so."""

_ALIVE = (JobStatus.PROVISIONING, JobStatus.RUNNING, JobStatus.FINALIZING)

Changes = dict[str, Any]
E_contra = TypeVar("E_contra", contravariant=True)


class _Rule(Protocol[E_contra]):
    def __call__(self, job: Job, event: E_contra, /) -> Changes: ...


_TABLE: dict[tuple[type, JobStatus], Callable[[Job, Any], Changes]] = {}


def apply(job: Job, event: Event) -> Job:
    """The job after `event`; the same object when the event changes nothing.

    Raises:
        StaleAttempt: the event comes from another attempt than the present one.
        JobStateConflict: the job's status does not allow it.
    """
    _refuse_stale(job, event)
    rule = _TABLE.get((type(event), job.status))
    if rule is None:
        raise _conflict(job, event)
    changes = rule(job, event)
    if not changes:
        return job
    if not isinstance(event, Progressed):
        changes["seq"] = job.seq + 1
    return job.model_copy(update=changes)


def _on(event: type, *statuses: JobStatus) -> Callable[[_Rule[E_contra]], _Rule[E_contra]]:
    """Enter the decorated rule into the table for `event` in each of `statuses`."""

    def enter(rule: _Rule[E_contra]) -> _Rule[E_contra]:
        for status in statuses:
            _TABLE[event, status] = rule
        return rule

    return enter


def _refuse_stale(job: Job, event: Event) -> None:
    attempt = getattr(event, "attempt", None)
    expected = job.attempt + 1 if isinstance(event, Admitted) else job.attempt
    if attempt is not None and attempt != expected:
        raise StaleAttempt(
            f"job {job.job_id!r} is at attempt {job.attempt}: "
            f"{event.type!r} of attempt {attempt} is refused"
        )


def _conflict(job: Job, event: Event) -> JobStateConflict:
    return JobStateConflict(f"job {job.job_id!r} is {job.status.value}: {event.type!r} is refused")


@_on(Submitted, JobStatus.QUEUED)
def _submitted(job: Job, event: Submitted) -> Changes:
    if job.seq != 0:
        raise _conflict(job, event)
    return {"status": JobStatus.QUEUED}


@_on(Waiting, JobStatus.QUEUED, JobStatus.RECOVERING)
def _waiting(_: Job, event: Waiting) -> Changes:
    return {"detail": event.detail}


@_on(Admitted, JobStatus.QUEUED, JobStatus.RECOVERING)
def _admitted(_: Job, event: Admitted) -> Changes:
    return {
        "status": JobStatus.PROVISIONING,
        "attempt": event.attempt,
        "backend_job_id": event.backend_job_id,
        "phase": "starting",
        "detail": "",
        "admitted_at": event.at,
        "attempt_started_at": None,
        "stop_reason": None,
        "stop_requested_at": None,
    }


@_on(PhaseChanged, *_ALIVE, JobStatus.CANCELLING)
def _phase_changed(_: Job, event: PhaseChanged) -> Changes:
    return {"phase": event.phase, "detail": event.detail}


@_on(DataPrepared, *_ALIVE, JobStatus.CANCELLING)
def _data_prepared(_: Job, event: DataPrepared) -> Changes:
    return {"data": event.data}


@_on(EngineChanged, JobStatus.PROVISIONING, JobStatus.CANCELLING)
def _engine_changed(_: Job, event: EngineChanged) -> Changes:
    return {
        "engine": event.engine,
        "engine_reason": event.engine_reason,
        "proxied_to": event.proxied_to,
    }


@_on(Started, JobStatus.PROVISIONING, JobStatus.CANCELLING)
def _started(job: Job, event: Started) -> Changes:
    step, total = event.resumed_from_step, event.total_steps
    at = _not_before(event.at, job.created_at)
    return {
        "status": _unless_stopping(job, JobStatus.RUNNING),
        "phase": "training",
        "detail": "",
        "started_at": job.started_at or at,
        "attempt_started_at": _not_before(at, job.started_at),
        "progress": Progress(
            step=step, total_steps=total, percent=100 * step / total if total else 0.0
        ),
    }


@_on(Progressed, JobStatus.RUNNING, JobStatus.FINALIZING, JobStatus.CANCELLING)
def _progressed(_: Job, event: Progressed) -> Changes:
    return {"progress": event.progress}


@_on(Finalizing, JobStatus.RUNNING, JobStatus.CANCELLING)
def _finalizing(job: Job, _: Finalizing) -> Changes:
    return {
        "status": _unless_stopping(job, JobStatus.FINALIZING),
        "phase": "saving_results",
        "detail": "",
    }


@_on(Succeeded, *_ALIVE)
def _succeeded(job: Job, event: Succeeded) -> Changes:
    changes = _ended(job, JobStatus.SUCCEEDED, event.at, "")
    changes["artifacts"] = event.artifacts
    total = job.progress.total_steps
    if total:
        whole = {"step": total, "percent": 100.0, "eta_seconds": 0.0}
        changes["progress"] = job.progress.model_copy(update=whole)
    return changes


@_on(Succeeded, JobStatus.CANCELLING)
def _succeeded_while_stopping(job: Job, event: Succeeded) -> Changes:
    changes = _succeeded(job, event)
    if job.stop_reason == "cancel":
        # The user was told that the job is being cancelled; the finished files are still named.
        changes["status"] = JobStatus.CANCELLED
        changes["detail"] = "cancelled on request, after the results had been written"
    return changes


@_on(Failed, *_ALIVE, JobStatus.RECOVERING)
def _failed(job: Job, event: Failed) -> Changes:
    return _with_error(job, event.at, event.error)


@_on(Failed, JobStatus.CANCELLING)
def _failed_while_stopping(job: Job, event: Failed) -> Changes:
    return _cancelled(job, event.at) if job.stop_reason == "cancel" else _failed(job, event)


@_on(Lost, *_ALIVE)
def _lost(_: Job, event: Lost) -> Changes:
    return {"status": JobStatus.RECOVERING, "phase": "waiting", "detail": event.detail}


@_on(StopRequested, JobStatus.QUEUED, JobStatus.RECOVERING)
def _stop_requested_at_rest(job: Job, event: StopRequested) -> Changes:
    if event.reason == "deadline":
        raise _conflict(job, event)
    return _cancelled(job, event.at) | _stop(job, event)


@_on(StopRequested, *_ALIVE)
def _stop_requested(job: Job, event: StopRequested) -> Changes:
    reason = "cancel requested" if event.reason == "cancel" else "time limit reached"
    return {
        "status": JobStatus.CANCELLING,
        "detail": f"{reason}; the attempt is stopping",
        **_stop(job, event),
    }


@_on(StopRequested, JobStatus.CANCELLING)
def _stop_requested_again(_job: Job, _event: StopRequested) -> Changes:
    return {}


@_on(Stopped, JobStatus.CANCELLING)
@_on(Lost, JobStatus.CANCELLING)
def _stopped(job: Job, event: Stopped | Lost) -> Changes:
    if job.stop_reason == "cancel":
        return _cancelled(job, event.at)
    return _with_error(job, event.at, _deadline_error(job))


def _unless_stopping(job: Job, status: JobStatus) -> JobStatus:
    return job.status if job.status is JobStatus.CANCELLING else status


def _stop(job: Job, event: StopRequested) -> Changes:
    at = _not_before(event.at, job.attempt_started_at or job.created_at)
    return {"stop_reason": event.reason, "stop_requested_at": at}


def _cancelled(job: Job, at: datetime) -> Changes:
    return _ended(job, JobStatus.CANCELLED, at, "cancelled on request")


def _with_error(job: Job, at: datetime, error: JobError) -> Changes:
    return _ended(job, JobStatus.FAILED, at, error.message) | {"error": error}


def _ended(job: Job, status: JobStatus, at: datetime, detail: str) -> Changes:
    earliest = job.stop_requested_at or job.attempt_started_at or job.started_at or job.created_at
    finished_at = _not_before(at, earliest)
    return {"status": status, "phase": "done", "detail": detail, "finished_at": finished_at}


def _deadline_error(job: Job) -> JobError:
    limit = job.resources.max_duration_minutes
    saved = "; a checkpoint was saved" if job.phase == CHECKPOINT_SAVED else ""
    progress = f" at step {job.progress.step} of {job.progress.total_steps}"
    return JobError(
        code=DeadlineReached.code,
        message=f"stopped after max_duration_minutes ({limit})"
        f"{progress if job.progress.total_steps else ''}{saved}",
        hint="Raise resources.max_duration_minutes, or ask for fewer steps.",
    )


def _not_before(at: datetime, earliest: datetime | None) -> datetime:
    """Clocks of two machines differ: no duration of a job may come out negative."""
    return at if earliest is None else max(at, earliest)
