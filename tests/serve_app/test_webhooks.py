"""Callbacks, delivered to real receivers on loopback: each event once and in order, progress
between, nothing lost when a receiver or the service fails, and nobody delayed by another."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import pytest

from configs.job import Admitted, Failed, Job, JobError, Progress, Progressed, StopRequested
from configs.settings import Settings
from serve_app import webhooks
from serve_app.local.receiver import WebhookReceiver
from serve_app.store import JobStore
from serve_app.webhooks import Webhooks, retry_delay_s
from tests.serve_app.conftest import LATER, make_job, start, submit, succeed

PATIENCE_S = 60.0
CANARY = "canary-77ab"
KEYS = {
    "event", "seq", "job_id", "backend", "backend_job_id", "attempt", "status", "phase", "detail",
    "timestamp", "progress", "error",
}  # fmt: skip


class BadReceiver:
    """Context: listens on a free port, counts the posts, and answers as a subclass says."""

    def __init__(self) -> None:
        self.posts = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.posts += 1
                receiver.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        return Handler


class FailingReceiver(BadReceiver):
    """Answers every post with 500."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(500)
        request.end_headers()


class RedirectingReceiver(BadReceiver):
    """Sends every post on to another address."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(307)
        request.send_header("Location", self._target)
        request.end_headers()


class HangingReceiver(BadReceiver):
    """Takes a post and does not answer until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.released.wait(PATIENCE_S)
        request.close_connection = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.released.set()
        super().__exit__(kind, error, trace)


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as listening:
        yield listening


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed delivery is due again at once."""
    monkeypatch.setattr(webhooks, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(webhooks, "LONGEST_DELAY_S", 0.02)


def submit_to(store: JobStore, url: str, job_id: str = "job-1", **given: Any) -> Job:
    request = {"callbacks": {"webhook_url": url}}
    return submit(store, make_job(job_id, request=request), digest=job_id, **given)[0]


def move(store: JobStore, url: str, job_id: str = "job-1") -> None:
    """The job's receiver is at another address now."""
    import sqlalchemy as sa

    from serve_app.store.tables import jobs

    job = store.get(job_id)
    request = {**job.request, "callbacks": {"webhook_url": url}}
    document = job.model_copy(update={"request": request}).model_dump_json()
    with store._database.writing() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.job_id == job_id).values(document=document))


def deliver(store: JobStore, until: Callable[[], bool], *, interval_s: float = 3600.0) -> None:
    """One service's deliveries until something has happened; then it is gone."""

    async def loop() -> None:
        service = Webhooks(store, Settings(callback_interval_seconds=interval_s))
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < deadline, "it did not happen"
            await service.deliver_due()
            await asyncio.sleep(0.01)
        await service.close()

    asyncio.run(loop())


def deliver_for(store: JobStore, seconds: float, *, interval_s: float = 3600.0) -> None:
    end = time.monotonic() + seconds
    deliver(store, lambda: time.monotonic() > end, interval_s=interval_s)


def nothing_is_due(store: JobStore) -> bool:
    return store.callbacks_due(datetime.now(UTC) + timedelta(days=1)) == []


def told(receiver: WebhookReceiver) -> list[tuple[str, int, str]]:
    return [(body["event"], body["seq"], body["status"]) for body in receiver.bodies]


WHOLE_LIFE = [
    ("submitted", 1, "queued"),
    ("admitted", 2, "provisioning"),
    ("succeeded", 3, "succeeded"),
]


def test_every_event_is_told_once_and_in_order(store: JobStore, receiver: WebhookReceiver) -> None:
    submit_to(store, receiver.url)
    succeed(store)
    deliver(store, lambda: nothing_is_due(store))
    deliver_for(store, 0.2)
    assert told(receiver) == WHOLE_LIFE


def test_events_are_told_as_they_come(store: JobStore, receiver: WebhookReceiver) -> None:
    submit_to(store, receiver.url)
    deliver(store, lambda: len(receiver.bodies) == 1)
    succeed(store)
    deliver(store, lambda: nothing_is_due(store))
    assert told(receiver) == WHOLE_LIFE


def test_a_body_has_the_documented_keys(store: JobStore, receiver: WebhookReceiver) -> None:
    submit_to(store, receiver.url)
    start(store)
    deliver(store, lambda: any(b["event"] == "progress" for b in receiver.bodies), interval_s=0.05)
    assert {frozenset(body) for body in receiver.bodies} == {frozenset(KEYS)}
    last = receiver.bodies[-1]
    assert (last["job_id"], last["backend"]) == ("job-1", "hf-unsloth")
    assert (last["backend_job_id"], last["attempt"]) == ("job-1-1", 1)
    assert set(last["progress"]) == set(Progress.model_fields)
    for body in receiver.bodies:
        assert datetime.fromisoformat(body["timestamp"]).utcoffset() == timedelta(0)


def test_a_failure_is_told_with_its_error_and_earlier_events_without(
    store: JobStore, receiver: WebhookReceiver
) -> None:
    submit_to(store, receiver.url)
    start(store)
    error = JobError(code="dataset_invalid", message="line 3 is none", hint="Fix it.")
    store.record("job-1", Failed(at=LATER, attempt=1, error=error))
    deliver(store, lambda: nothing_is_due(store))
    *earlier, last = receiver.bodies
    assert last["error"] == error.model_dump(mode="json")
    assert last["detail"] == "line 3 is none"
    assert {body["error"] for body in earlier} == {None}


def test_progress_is_told_at_the_interval_until_the_end(
    store: JobStore, receiver: WebhookReceiver
) -> None:
    interval_s = 0.1
    submit_to(store, receiver.url)
    start(store)
    progress = Progress(step=4, total_steps=10, percent=40.0, loss=2.5)
    store.record("job-1", Progressed(at=LATER, attempt=1, progress=progress))
    deliver(store, lambda: len(told(receiver)) >= 3 + 3, interval_s=interval_s)
    reports = [body for body in receiver.bodies if body["event"] == "progress"]
    assert {body["progress"]["step"] for body in reports} == {4}
    assert {body["status"] for body in reports} == {"running"}
    times = [datetime.fromisoformat(body["timestamp"]).timestamp() for body in reports]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert min(pauses) >= interval_s
    store.record("job-1", StopRequested(at=LATER, reason="cancel"))
    store.record("job-1", Failed(at=LATER, attempt=1, error=JobError(code="x", message="x")))
    deliver(store, lambda: nothing_is_due(store), interval_s=interval_s)
    deliver_for(store, 4 * interval_s, interval_s=interval_s)
    assert told(receiver)[-1][2] == "cancelled"
    assert [status for _, _, status in told(receiver)].count("cancelled") == 1


@pytest.mark.usefixtures("quick_retries")
def test_what_a_receiver_missed_is_told_later_and_in_order(
    store: JobStore, receiver: WebhookReceiver
) -> None:
    with FailingReceiver() as failing:
        submit_to(store, failing.url)
        start(store)
        deliver(store, lambda: failing.posts >= 3)
    assert not nothing_is_due(store)
    store.record("job-1", StopRequested(at=LATER, reason="cancel"))
    move(store, receiver.url)
    deliver(store, lambda: len(receiver.bodies) >= 4)
    assert [event for event, _, _ in told(receiver)] == [
        "submitted", "admitted", "started", "stop_requested",
    ]  # fmt: skip


def test_a_failure_is_not_tried_again_at_once(store: JobStore) -> None:
    with FailingReceiver() as failing:
        submit_to(store, failing.url)
        deliver(store, lambda: failing.posts == 1)
        due = store.callbacks_due(datetime.now(UTC))
    assert due == []
    assert store.callbacks_due(datetime.now(UTC) + timedelta(minutes=1)) != []


def test_the_pause_between_tries_grows_to_five_minutes_at_most() -> None:
    for failures, seconds in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (1000, 300)]:
        assert 0.8 * seconds <= retry_delay_s(failures) <= 1.2 * seconds


def test_a_restarted_service_goes_on_where_the_last_one_was(
    store: JobStore, receiver: WebhookReceiver
) -> None:
    submit_to(store, receiver.url)
    deliver(store, lambda: nothing_is_due_now(store))
    store.record("job-1", Admitted(at=LATER, attempt=1, backend_job_id="job-1-1"))
    deliver(store, lambda: nothing_is_due_now(store))
    error = JobError(code="internal", message="x")
    store.record("job-1", Failed(at=LATER, attempt=1, error=error))
    deliver(store, lambda: nothing_is_due(store))
    assert [event for event, _, _ in told(receiver)] == ["submitted", "admitted", "failed"]


def nothing_is_due_now(store: JobStore) -> bool:
    return store.callbacks_due(datetime.now(UTC)) == []


def test_a_receiver_that_hangs_delays_no_other_job(
    store: JobStore, receiver: WebhookReceiver
) -> None:
    with HangingReceiver() as hanging:
        submit_to(store, hanging.url, "hangs")
        submit_to(store, receiver.url, "job-1")
        succeed(store, "job-1")

        def others_are_told() -> bool:
            if told(receiver) == WHOLE_LIFE and hanging.posts:
                hanging.released.set()
            return hanging.released.is_set()

        deliver(store, others_are_told)
        assert hanging.posts == 1, "one delivery of a job at a time"


@pytest.mark.usefixtures("quick_retries")
def test_a_receiver_that_does_not_answer_is_left_and_tried_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.1)
    with HangingReceiver() as hanging:
        submit_to(store, hanging.url)
        deliver(store, lambda: hanging.posts >= 2)
    assert not nothing_is_due(store)


@pytest.mark.usefixtures("quick_retries")
def test_redirects_are_not_followed(store: JobStore, receiver: WebhookReceiver) -> None:
    with RedirectingReceiver(receiver.url) as redirecting:
        submit_to(store, redirecting.url)
        deliver(store, lambda: redirecting.posts >= 2)
    assert receiver.bodies == []
    assert not nothing_is_due(store), "a redirect is no delivery"


def test_no_secret_is_told(store: JobStore, receiver: WebhookReceiver) -> None:
    submit_to(store, receiver.url, secrets={"base_model.huggingface_token": CANARY})
    start(store)
    deliver(store, lambda: any(b["event"] == "progress" for b in receiver.bodies), interval_s=0.05)
    assert store.secrets("job-1") == {"base_model.huggingface_token": CANARY}
    assert CANARY not in repr(receiver.bodies)


@pytest.mark.usefixtures("quick_retries")
def test_a_receiver_that_fails_again_and_again_is_given_up(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_FAILURES", 4)
    with FailingReceiver() as failing:
        submit_to(store, failing.url)
        deliver(store, lambda: nothing_is_due(store))
        assert failing.posts == 4


@pytest.mark.usefixtures("quick_retries")
def test_a_receiver_that_was_given_up_hears_of_the_next_event(
    store: JobStore, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_FAILURES", 2)
    with FailingReceiver() as failing:
        submit_to(store, failing.url)
        deliver(store, lambda: nothing_is_due(store))
    move(store, receiver.url)
    succeed(store)
    deliver(store, lambda: nothing_is_due(store))
    assert told(receiver) == WHOLE_LIFE[1:]


@pytest.mark.usefixtures("quick_retries")
def test_tries_are_counted_across_restarts(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_FAILURES", 4)
    with FailingReceiver() as failing:
        submit_to(store, failing.url)
        deliver(store, lambda: failing.posts >= 2)
        deliver(store, lambda: nothing_is_due(store))
        assert failing.posts == 4
