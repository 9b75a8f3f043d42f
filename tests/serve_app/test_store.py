"""The job store on SQLite and PostgreSQL: what is submitted, found, changed and handed on."""

from typing import Any

import pytest

from configs.errors import (
    InternalError,
    JobConflict,
    JobNotFound,
    JobStateConflict,
    QueueFull,
    RequestInvalid,
    StaleAttempt,
)
from configs.job import (
    Job,
    JobStatus,
    Progress,
    Progressed,
    StopRequested,
    Submitted,
    Succeeded,
    Waiting,
)
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore
from tests.serve_app.conftest import LATER, T0, make_job, start, submit, succeed


def test_a_submitted_job_is_found_again(store: JobStore) -> None:
    job, created = submit(store)
    assert created
    assert (job.status, job.seq) == (JobStatus.QUEUED, 1)
    assert store.get("job-1") == store.get("job-1", "hf-unsloth") == job
    assert Job.model_validate_json(store.get_document("job-1", "hf-unsloth")) == job
    assert [record.event for record in store.events("job-1")] == [Submitted(at=T0)]


def test_it_is_found_after_reopening(store: JobStore, store_url: str, box: SecretBox) -> None:
    job, _ = submit(store)
    again = JobStore.open(store_url, box)
    assert again.get("job-1") == job
    again.close()


@pytest.mark.parametrize("job_id", ["nope", "", "a\0b", "jöb-1", "x" * 10_000, "' OR 1=1 --"])
def test_an_unknown_job_is_not_found(store: JobStore, job_id: str) -> None:
    submit(store)
    with pytest.raises(JobNotFound):
        store.get(job_id)
    with pytest.raises(JobNotFound):
        store.record(job_id, Waiting(at=T0, detail=""))


def test_a_job_of_another_api_is_not_found(store: JobStore) -> None:
    submit(store)
    with pytest.raises(JobNotFound):
        store.get("job-1", "nemo")
    with pytest.raises(JobNotFound):
        store.get_document("job-1", "meta")
    assert store.list("nemo").jobs == []


def test_the_same_id_and_body_give_the_same_job(store: JobStore) -> None:
    first, _ = submit(store)
    start(store)
    again, created = submit(store, make_job(age=-60))
    assert not created
    assert (again.created_at, again.status) == (first.created_at, JobStatus.RUNNING)


def test_the_same_key_and_body_give_the_same_job(store: JobStore) -> None:
    submit(store, make_job("made-1"), idempotency_key="key")
    again, created = submit(store, make_job("made-2"), idempotency_key="key")
    assert (again.job_id, created) == ("made-1", False)
    with pytest.raises(JobNotFound):
        store.get("made-2")


def test_a_key_counts_for_one_api(store: JobStore) -> None:
    submit(store, make_job("job-1"), idempotency_key="key")
    _, created = submit(store, make_job("job-2", backend="nemo"), idempotency_key="key")
    assert created


def test_a_key_first_seen_with_a_known_job_is_remembered(store: JobStore) -> None:
    submit(store)
    assert submit(store, idempotency_key="key")[1] is False
    with pytest.raises(JobConflict, match="Idempotency-Key"):
        submit(store, make_job("job-2"), digest="other", idempotency_key="key")


@pytest.mark.parametrize("key", ["", "k" * 100_000, "schlüssel", "nul\0", "\udc80"])
def test_any_text_can_be_a_key(store: JobStore, key: str) -> None:
    submit(store, make_job("made-1"), idempotency_key=key)
    assert submit(store, make_job("made-2"), idempotency_key=key)[0].job_id == "made-1"


def test_the_same_id_with_another_body_is_a_conflict(store: JobStore) -> None:
    submit(store, make_job(request={"metadata": {"team": "red"}}))
    with pytest.raises(JobConflict, match="job-1") as caught:
        submit(store, digest="other")
    assert caught.value.param == "job_id"
    assert "red" not in str(caught.value.args)


def test_an_id_taken_on_another_api_is_the_same_conflict(store: JobStore) -> None:
    submit(store)
    with pytest.raises(JobConflict) as same_api:
        submit(store, digest="other")
    with pytest.raises(JobConflict) as other_api:
        submit(store, make_job(backend="nemo"))
    assert other_api.value.args == same_api.value.args


def test_a_full_queue_refuses_only_what_is_new(store: JobStore) -> None:
    submit(store, make_job("job-1"), max_queued=2)
    submit(store, make_job("job-2"), max_queued=2)
    with pytest.raises(QueueFull, match="2 jobs"):
        submit(store, make_job("job-3"), max_queued=2)
    assert submit(store, make_job("job-2"), max_queued=2)[1] is False
    start(store, "job-1")
    assert submit(store, make_job("job-3"), max_queued=2)[1] is True


def test_a_refused_submit_leaves_nothing(store: JobStore) -> None:
    with pytest.raises(QueueFull):
        submit(store, idempotency_key="key", secrets={"base_model.auth_token": "t"}, max_queued=0)
    assert submit(store, make_job("job-2"), digest="other", idempotency_key="key")[1] is True
    assert store.secrets("job-1") == {}


def test_an_event_changes_the_job_and_its_history(store: JobStore) -> None:
    submit(store)
    job = start(store)
    assert store.get("job-1") == job
    history = store.events("job-1")
    assert [(record.seq, record.status, record.event.type) for record in history] == [
        (1, JobStatus.QUEUED, "submitted"),
        (2, JobStatus.PROVISIONING, "admitted"),
        (3, JobStatus.RUNNING, "started"),
    ]
    assert store.events("job-1", after_seq=2) == history[2:]
    assert store.events("job-1", after_seq=3) == []


def test_progress_is_shown_but_not_history(store: JobStore) -> None:
    submit(store)
    start(store)
    progress = Progress(step=3, total_steps=10, percent=30, loss=2.5)
    store.record("job-1", Progressed(at=LATER, attempt=1, progress=progress))
    assert store.get("job-1").progress == progress
    assert len(store.events("job-1")) == 3


def test_a_refused_event_leaves_no_trace(store: JobStore) -> None:
    submit(store)
    job = start(store)
    with pytest.raises(StaleAttempt):
        store.record("job-1", Succeeded(at=LATER, attempt=7, artifacts=[]))
    with pytest.raises(JobStateConflict):
        store.record("job-1", Waiting(at=LATER, detail=""))
    assert store.get("job-1") == job
    assert len(store.events("job-1")) == 3


def test_cancelling_again_writes_nothing(store: JobStore) -> None:
    submit(store)
    start(store)
    job = store.record("job-1", StopRequested(at=LATER, reason="cancel"))
    assert store.record("job-1", StopRequested(at=LATER, reason="cancel")) == job
    assert len(store.events("job-1")) == job.seq == 4


def test_active_jobs_come_oldest_first_and_without_ended_ones(store: JobStore) -> None:
    for name, age in (("young", 1), ("old", 3), ("ended", 2)):
        submit(store, make_job(name, age=age))
    succeed(store, "ended")
    assert [job.job_id for job in store.active()] == ["old", "young"]


def test_secrets_open_only_through_the_store(store: JobStore, store_url: str) -> None:
    secrets = {"base_model.auth_token": "tok-1", "base_model.huggingface_token": "hf_ünïcode"}
    submit(store, secrets=secrets)
    submit(store, make_job("job-2"))
    assert store.secrets("job-1") == secrets
    assert store.secrets("job-2") == {}
    other_key = JobStore.open(store_url, SecretBox(b"another key"))
    with pytest.raises(InternalError, match="cannot be opened"):
        other_key.secrets("job-1")
    other_key.close()


@pytest.mark.parametrize("ending", ["succeeded", "cancelled"])
def test_secrets_are_gone_when_the_job_has_ended(store: JobStore, ending: str) -> None:
    submit(store, secrets={"base_model.auth_token": "tok"})
    if ending == "succeeded":
        succeed(store)
    else:
        store.record("job-1", StopRequested(at=LATER, reason="cancel"))
    assert store.secrets("job-1") == {}


def pages(store: JobStore, limit: int, **given: Any) -> list[list[str]]:
    found, cursor = [], None
    while True:
        page = store.list("hf-unsloth", cursor=cursor, limit=limit, **given)
        found.append([job.job_id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_pages_go_from_new_to_old(store: JobStore) -> None:
    # Two of the same age: the id decides, and none is lost or shown twice.
    for name, age in (("a", 4), ("b", 3), ("c", 3), ("d", 1), ("e", 0)):
        submit(store, make_job(name, age=age))
    assert pages(store, 2) == [["e", "d"], ["c", "b"], ["a"]]
    assert pages(store, 1) == [["e"], ["d"], ["c"], ["b"], ["a"]]
    assert pages(store, 5) == [["e", "d", "c", "b", "a"]]


def test_new_jobs_do_not_shift_a_page(store: JobStore) -> None:
    for name, age in (("a", 2), ("b", 1)):
        submit(store, make_job(name, age=age))
    cursor = store.list("hf-unsloth", limit=1).next_cursor
    submit(store, make_job("newest"))
    page = store.list("hf-unsloth", cursor=cursor, limit=1)
    assert [job.job_id for job in page.jobs] == ["a"]


def test_pages_can_be_of_some_statuses(store: JobStore) -> None:
    for name, age in (("a", 3), ("b", 2), ("c", 1)):
        submit(store, make_job(name, age=age))
    succeed(store, "b")
    assert pages(store, 1, statuses=[JobStatus.QUEUED]) == [["c"], ["a"]]
    assert pages(store, 9, statuses=[JobStatus.QUEUED, JobStatus.SUCCEEDED]) == [["c", "b", "a"]]
    assert pages(store, 9, statuses=[JobStatus.FAILED]) == [[]]


@pytest.mark.parametrize(
    "cursor", ["", "x", "nonsense!", "ümlaut", "MTIz", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5Omo", "MTphAGI"]
)
def test_a_cursor_of_nobody_is_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        store.list("hf-unsloth", cursor=cursor)
    assert caught.value.param == "cursor"


def test_the_capacity_is_remembered(store: JobStore) -> None:
    assert store.capacity() is None
    store.set_capacity('{"nodes": []}')
    store.set_capacity('{"nodes": [1]}')
    assert store.capacity() == '{"nodes": [1]}'
