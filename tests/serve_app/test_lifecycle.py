"""The table of status changes, whole, and that no sequence of events gets out of it."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import JobStateConflict, StaleAttempt, TrainerError
from configs.job import (
    Admitted,
    Artifact,
    DataCounts,
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
from serve_app.lifecycle import CHECKPOINT_SAVED, apply
from tests.serve_app.conftest import T0, make_job

AT = T0 + timedelta(minutes=5)
ARTIFACT = Artifact(name="adapter.safetensors", uri="s3://b/a", size_bytes=1, sha256="0" * 64)
ERROR = JobError(code="dataset_invalid", message="line 3: no 'messages'")
DATA = DataCounts(rows=8, truncated_rows=1, dropped_rows=2, tokens=99, trainable_tokens=33)

EVENTS: dict[str, Event] = {
    "submitted": Submitted(at=AT),
    "waiting": Waiting(at=AT, detail="4 × A100; the cluster has 0"),
    "admitted": Admitted(at=AT, attempt=2, backend_job_id="job-1-2"),
    "phase": PhaseChanged(at=AT, attempt=1, phase="loading_model", detail="3 GB"),
    "data": DataPrepared(at=AT, attempt=1, data=DATA),
    "engine": EngineChanged(
        at=AT, attempt=1, engine="automodel", engine_reason="no llama", proxied_to="nemo"
    ),
    "started": Started(at=AT, attempt=1, total_steps=40, resumed_from_step=10),
    "progress": Progressed(at=AT, attempt=1, progress=Progress(step=20, total_steps=40)),
    "finalizing": Finalizing(at=AT, attempt=1),
    "succeeded": Succeeded(at=AT, attempt=1, artifacts=[ARTIFACT]),
    "failed": Failed(at=AT, attempt=1, error=ERROR),
    "lost": Lost(at=AT, attempt=1, detail="the driver has gone"),
    "stop:cancel": StopRequested(at=AT, reason="cancel"),
    "stop:deadline": StopRequested(at=AT, reason="deadline"),
    "stopped": Stopped(at=AT, attempt=1),
}
# Columns: the status before. "=" keeps it, "-" is refused; (c) and (d): stopping for a cancel and
# for the deadline.
TABLE = """
               queued       recovering   provisioning running    finalizing cancelling(c) cancelling(d)
submitted      -            -            -            -          -          -             -
waiting        =            =            -            -          -          -             -
admitted       provisioning provisioning -            -          -          -             -
phase          -            -            =            =          =          =             =
data           -            -            =            =          =          =             =
engine         -            -            =            -          -          =             =
started        -            -            running      -          -          =             =
progress       -            -            -            =          =          =             =
finalizing     -            -            -            finalizing -          =             =
succeeded      -            -            succeeded    succeeded  succeeded  cancelled     succeeded
failed         -            failed       failed       failed     failed     cancelled     failed
lost           -            -            recovering   recovering recovering cancelled     failed
stop:cancel    cancelled    cancelled    cancelling   cancelling cancelling =             =
stop:deadline  -            -            cancelling   cancelling cancelling =             =
stopped        -            -            -            -          -          cancelled     failed
"""  # noqa: E501


def job_in(column: str, **changes: Any) -> Job:
    """A job at attempt 1 with three events behind it."""
    status, _, reason = column.rstrip(")").partition("(")
    stopping = {"c": "cancel", "d": "deadline"}.get(reason)
    values: dict[str, Any] = {
        "status": JobStatus(status),
        "attempt": 1,
        "seq": 3,
        "stop_reason": stopping,
    }
    return make_job(**(values | changes))


def rows() -> list[tuple[str, str, str]]:
    header, *lines = (line.split() for line in TABLE.strip().splitlines())
    return [
        (event, column, after)
        for event, *cells in lines
        for column, after in zip(header, cells, strict=True)
    ]


@pytest.mark.parametrize(("event", "column", "after"), rows())
def test_every_cell_of_the_table(event: str, column: str, after: str) -> None:
    job = job_in(column)
    if after == "-":
        with pytest.raises((JobStateConflict, StaleAttempt)):
            apply(job, EVENTS[event])
        return
    changed = apply(job, EVENTS[event])
    assert changed.status == (job.status if after == "=" else JobStatus(after))
    assert (changed.finished_at is not None) == changed.status.terminal


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_terminal_statuses_absorb(event: str, status: str) -> None:
    with pytest.raises(JobStateConflict, match=status):
        apply(job_in(status), EVENTS[event])


def test_the_table_covers_every_event_and_status() -> None:
    assert {type(event) for event in EVENTS.values()} == {
        Submitted, Waiting, Admitted, PhaseChanged, DataPrepared, EngineChanged, Started,
        Progressed, Finalizing, Succeeded, Failed, Lost, StopRequested, Stopped,
    }  # fmt: skip
    columns = {column.split("(")[0] for _, column, _ in rows()}
    assert columns == {s.value for s in JobStatus if not s.terminal} - {"paused"}


@pytest.mark.parametrize("name", [n for n, e in EVENTS.items() if hasattr(e, "attempt")])
@pytest.mark.parametrize("offset", [-1, 1])
def test_another_attempt_is_refused(name: str, offset: int) -> None:
    event = EVENTS[name]
    event = event.model_copy(update={"attempt": event.attempt + offset})  # type: ignore[union-attr]
    status = "queued" if name == "admitted" else "running"
    with pytest.raises(StaleAttempt, match="attempt 1"):
        apply(job_in(status), event)


def test_submitted_is_the_first_event_and_only_that() -> None:
    assert apply(make_job(), Submitted(at=T0)).seq == 1
    with pytest.raises(JobStateConflict):
        apply(make_job(seq=1), Submitted(at=T0))


def test_every_event_but_progress_counts() -> None:
    assert apply(job_in("running"), EVENTS["phase"]).seq == 4
    assert apply(job_in("running"), EVENTS["progress"]).seq == 3


def test_admission_starts_a_clean_attempt() -> None:
    before = job_in("recovering", detail="lost", attempt_started_at=T0, stop_reason="deadline")
    job = apply(before, EVENTS["admitted"])
    assert (job.attempt, job.backend_job_id, job.phase, job.detail) == (
        2,
        "job-1-2",
        "starting",
        "",
    )
    assert (job.attempt_started_at, job.stop_reason, job.stop_requested_at) == (None, None, None)


def test_the_start_of_training_is_kept_over_attempts() -> None:
    first = apply(job_in("provisioning"), EVENTS["started"])
    assert (first.started_at, first.attempt_started_at) == (AT, AT)
    assert (first.progress.step, first.progress.total_steps, first.progress.percent) == (10, 40, 25)
    again = job_in("provisioning", started_at=T0)
    second = apply(again, EVENTS["started"])
    assert (second.started_at, second.attempt_started_at) == (T0, AT)


def test_success_completes_the_progress() -> None:
    before = job_in("finalizing", progress=Progress(step=38, total_steps=40, eta_seconds=3, loss=1))
    job = apply(before, EVENTS["succeeded"])
    assert (job.progress.percent, job.progress.eta_seconds, job.progress.loss) == (100, 0, 1)
    assert (job.artifacts, job.phase, job.finished_at) == ([ARTIFACT], "done", AT)


def test_a_job_without_known_steps_claims_no_progress() -> None:
    assert apply(job_in("running"), EVENTS["succeeded"]).progress == Progress()


def test_a_cancelled_job_that_made_it_names_its_artifacts() -> None:
    job = apply(job_in("cancelling(c)"), EVENTS["succeeded"])
    assert (job.status, job.artifacts) == (JobStatus.CANCELLED, [ARTIFACT])


def test_a_failure_is_told_as_error_and_detail() -> None:
    job = apply(job_in("running"), EVENTS["failed"])
    assert (job.error, job.detail) == (ERROR, ERROR.message)


def test_cancelling_twice_changes_nothing() -> None:
    job = apply(job_in("running"), EVENTS["stop:cancel"])
    assert (job.stop_reason, job.stop_requested_at) == ("cancel", AT)
    assert apply(job, EVENTS["stop:cancel"]) is job


def test_the_first_reason_to_stop_is_kept() -> None:
    job = apply(job_in("running"), EVENTS["stop:deadline"])
    assert apply(job, EVENTS["stop:cancel"]).stop_reason == "deadline"


@pytest.mark.parametrize("ending", ["stopped", "lost"])
def test_the_deadline_error_says_what_to_change(ending: str) -> None:
    request = {"resources": {"max_duration_minutes": 30}}
    progress = Progress(step=7, total_steps=40)
    before = job_in("cancelling(d)", request=request, progress=progress, phase=CHECKPOINT_SAVED)
    error = apply(before, EVENTS[ending]).error
    assert error is not None
    assert (error.code, error.retryable) == ("deadline", False)
    assert error.message == (
        "stopped after max_duration_minutes (30) at step 7 of 40; a checkpoint was saved"
    )
    assert error.hint is not None
    assert "max_duration_minutes" in error.hint


def test_no_checkpoint_is_claimed_that_was_not_reported() -> None:
    error = apply(job_in("cancelling(d)"), EVENTS["stopped"]).error
    assert error is not None
    assert "checkpoint" not in error.message


def test_clocks_that_differ_give_no_negative_durations() -> None:
    early = T0 - timedelta(hours=1)
    job = make_job()
    for event in (
        Submitted(at=T0),
        Admitted(at=early, attempt=1, backend_job_id="x"),
        Started(at=early, attempt=1, total_steps=2),
        StopRequested(at=early, reason="cancel"),
        Stopped(at=early, attempt=1),
    ):
        job = apply(job, event)
    assert job.created_at == job.started_at == job.attempt_started_at == job.finished_at


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(EVENTS.values())), st.integers(0, 4), st.integers(-3600, 3600)
        ),
        max_size=30,
    )
)
def test_no_sequence_leaves_a_terminal_status(steps: list[tuple[Event, int, int]]) -> None:
    job = apply(make_job(), Submitted(at=T0))
    for template, attempt, seconds in steps:
        at = T0 + timedelta(seconds=seconds)
        event = template.model_copy(update={"at": at} | _attempt(template, attempt))
        try:
            after = apply(job, event)
        except TrainerError:
            continue
        assert not job.status.terminal
        assert after.seq - job.seq in (0, 1)
        assert after.attempt >= job.attempt
        assert after.status.terminal == (after.finished_at is not None)
        assert after.created_at <= (after.started_at or T0) <= (after.finished_at or T0 + DAY)
        job = after


DAY = timedelta(days=1)


def _attempt(event: Event, attempt: int) -> dict[str, int]:
    return {"attempt": attempt} if hasattr(event, "attempt") else {}
