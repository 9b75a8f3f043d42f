"""The Python client against a real server."""

import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from configs.errors import JobConflict, JobNotFound, RequestInvalid, Unauthorized
from configs.job import Admitted, Job, JobStatus, Started, Stopped, StopRequested
from configs.request import TrainRequest
from serve_app.client import TrainerApiError, TrainerClient
from tests.serve_app.api_kit import CANARY, Api, good_request, make_api, served

TOKEN = "token-of-the-tests"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return make_api(tmp_path_factory.mktemp("api"), api_token=TOKEN)


@pytest.fixture(scope="module")
def address(api: Api) -> Iterator[str]:
    with served(api.app, "/hf-unsloth") as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[TrainerClient]:
    with TrainerClient(address, token=TOKEN) as client:
        yield client


def answering(status: int, body: str) -> TrainerClient:
    """A client whose service always answers this."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text=body))
    return TrainerClient("http://nowhere", transport=transport)


def test_submit_get_list_cancel(client: TrainerClient) -> None:
    job = client.submit(good_request(job_id="c-1"))
    assert client.get("c-1") == job
    assert [found.job_id for found in client.list().jobs] == ["c-1"]
    assert client.cancel("c-1").status is JobStatus.CANCELLED
    assert client.list(statuses=[JobStatus.QUEUED]).jobs == []


def test_a_request_object_is_posted_with_its_secrets(client: TrainerClient, api: Api) -> None:
    model = {"provider": "huggingface", "model_name": "org/model", "auth_token": CANARY}
    request = TrainRequest.model_validate(good_request(job_id="c-2", base_model=model))
    client.submit(request)
    assert api.store.secrets("c-2") == {"base_model.auth_token": CANARY}
    assert client.submit(good_request(job_id="c-2", base_model=model)).job_id == "c-2"


def test_an_idempotency_key_makes_a_retry_safe(client: TrainerClient) -> None:
    first, second = (client.submit(good_request(), idempotency_key="once") for _ in range(2))
    assert first == second


def test_every_job_page_by_page(client: TrainerClient) -> None:
    posted = {client.submit(good_request()).job_id for _ in range(3)}
    assert posted <= {job.job_id for job in client.iterate()}


def test_errors_are_those_of_the_service(client: TrainerClient, address: str) -> None:
    with pytest.raises(JobNotFound, match="no job 'nobody'"):
        client.get("nobody")
    with pytest.raises(RequestInvalid) as invalid:
        client.submit(good_request(tuning_parameters={"batch_size": 0}))
    assert invalid.value.param == "tuning_parameters.batch_size"
    client.submit(good_request(job_id="c-3"))
    with pytest.raises(JobConflict) as conflict:
        client.submit(good_request(job_id="c-3", metadata={"a": "b"}))
    assert conflict.value.hint
    with TrainerClient(address, token="wrong") as stranger, pytest.raises(Unauthorized):
        stranger.list()


def test_every_error_is_one_class_with_status_and_code(client: TrainerClient) -> None:
    with pytest.raises(TrainerApiError) as caught:
        client.get("nobody")
    error = caught.value
    assert (error.status, error.code) == (404, "job_not_found")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, JobNotFound) and isinstance(copy, TrainerApiError)
    assert (copy.status, copy.message) == (error.status, error.message)


@pytest.mark.parametrize("body", ["", "<html>Bad Gateway</html>", "[]", '{"error": "text"}'])
def test_an_answer_of_something_else_than_the_service(body: str) -> None:
    with pytest.raises(TrainerApiError, match="HTTP 502") as caught:
        answering(502, body).get("j")
    assert (caught.value.status, caught.value.code) == (502, "unknown")


def test_wait_tells_each_change_and_returns_the_ended_job(client: TrainerClient, api: Api) -> None:
    client.submit(good_request(job_id="c-4"))
    seen: list[JobStatus] = []

    def drive(job: Job) -> None:
        seen.append(job.status)
        if job.status is JobStatus.QUEUED:
            api.store.record("c-4", Admitted(at=NOW, attempt=1, backend_job_id="c-4-1"))
        elif job.status is JobStatus.PROVISIONING:
            api.store.record("c-4", Started(at=NOW, attempt=1, total_steps=3))
        elif job.status is JobStatus.RUNNING:
            api.store.record("c-4", StopRequested(at=NOW, reason="cancel"))
        elif job.status is JobStatus.CANCELLING:
            api.store.record("c-4", Stopped(at=NOW, attempt=1))

    ended = client.wait("c-4", on_change=drive, timeout_s=10, poll_s=0.01)
    assert ended.status is JobStatus.CANCELLED
    assert [status.value for status in seen] == [
        "queued", "provisioning", "running", "cancelling", "cancelled"
    ]  # fmt: skip


def test_wait_gives_up_in_time(client: TrainerClient) -> None:
    client.submit(good_request(job_id="c-5"))
    with pytest.raises(TimeoutError, match="queued"):
        client.wait("c-5", timeout_s=0.1, poll_s=0.02)


def test_wait_goes_on_when_the_service_is_back(tmp_path: Path) -> None:
    api = make_api(tmp_path)
    api.post(good_request(job_id="j"))
    api.http.post("/train/j/cancel")
    answers = iter([503, 502])

    def restarting(_: httpx.Request) -> httpx.Response:
        status = next(answers, None)
        if status is not None:
            return httpx.Response(status)
        return httpx.Response(200, text=api.http.get("/train/j").text)

    client = TrainerClient("http://nowhere", transport=httpx.MockTransport(restarting))
    assert client.wait("j", poll_s=0.01).status is JobStatus.CANCELLED


def test_wait_does_not_retry_what_will_not_change(client: TrainerClient) -> None:
    with pytest.raises(JobNotFound):
        client.wait("nobody", timeout_s=5)


def test_a_slow_nudge_makes_no_submit_slow(tmp_path: Path) -> None:
    released = threading.Event()
    api = make_api(tmp_path)
    service = api.app.state.service
    object.__setattr__(service, "nudge", lambda: released.wait(20))
    try:
        with served(api.app, "/hf-unsloth") as address, TrainerClient(address) as client:
            begin = time.monotonic()
            job = client.submit(good_request())
            assert client.get(job.job_id) == job
            assert time.monotonic() - begin < 10
            released.set()
    finally:
        released.set()
