"""GET /train, GET /train/{id} and cancel."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from configs.job import Admitted, Failed, Job, JobError, Started
from tests.serve_app.api_kit import Api, error_of, good_request, make_api

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return make_api(tmp_path)


def post_jobs(api: Api, count: int) -> list[str]:
    names = [f"job-{i}" for i in range(count)]
    for name in names:
        assert api.post(good_request(job_id=name)).status_code == 202
    return names


def run(api: Api, job_id: str) -> None:
    api.store.record(job_id, Admitted(at=NOW, attempt=1, backend_job_id=f"{job_id}-1"))
    api.store.record(job_id, Started(at=NOW, attempt=1, total_steps=10))


def fail(api: Api, job_id: str) -> None:
    run(api, job_id)
    error = JobError(code="out_of_memory", message="no room")
    api.store.record(job_id, Failed(at=NOW, attempt=1, error=error))


def names(response: object) -> list[str]:
    return [job["job_id"] for job in response.json()["jobs"]]  # type: ignore[attr-defined]


def test_pages_cover_every_job_once_newest_first(api: Api) -> None:
    posted = post_jobs(api, 7)
    found: list[str] = []
    query: dict[str, str] = {"limit": "3"}
    while True:
        page = api.http.get("/train", params=query)
        found += names(page)
        if page.json()["next_cursor"] is None:
            break
        query["cursor"] = page.json()["next_cursor"]
    assert found == posted[::-1]


def test_jobs_that_come_later_do_not_move_a_page(api: Api) -> None:
    post_jobs(api, 4)
    cursor = api.http.get("/train?limit=2").json()["next_cursor"]
    api.post(good_request(job_id="late"))
    assert names(api.http.get(f"/train?limit=2&cursor={cursor}")) == ["job-1", "job-0"]


def test_statuses_can_be_chosen_several_at_once(api: Api) -> None:
    post_jobs(api, 3)
    run(api, "job-0")
    fail(api, "job-1")
    assert names(api.http.get("/train?status=running")) == ["job-0"]
    assert names(api.http.get("/train?status=running&status=failed")) == ["job-1", "job-0"]
    assert names(api.http.get("/train?status=succeeded")) == []


def test_an_api_lists_its_own_jobs(tmp_path: Path) -> None:
    hf, nemo = make_api(tmp_path), make_api(tmp_path, "nemo", engine="simulated")
    hf.post(good_request(job_id="of-hf"))
    nemo.post(good_request(job_id="of-nemo"))
    assert names(hf.http.get("/train")) == ["of-hf"]
    assert names(nemo.http.get("/train")) == ["of-nemo"]


def test_a_shown_job_is_a_whole_job(api: Api) -> None:
    post_jobs(api, 1)
    fail(api, "job-0")
    job = Job.model_validate_json(api.http.get("/train/job-0").content)
    assert (job.status.value, job.backend_job_id, job.attempt) == ("failed", "job-0-1", 1)
    assert job.error is not None and job.error.code == "out_of_memory"
    assert job == api.store.get("job-0")


def test_a_waiting_job_is_cancelled_at_once_and_the_tracker_is_told(api: Api) -> None:
    post_jobs(api, 1)
    response = api.http.post("/train/job-0/cancel")
    assert (response.status_code, response.json()["status"]) == (202, "cancelled")
    assert api.nudges.count == 2


def test_a_running_job_is_cancelling_until_it_has_stopped(api: Api) -> None:
    post_jobs(api, 1)
    run(api, "job-0")
    for _ in range(2):
        response = api.http.post("/train/job-0/cancel")
        assert (response.status_code, response.json()["status"]) == (202, "cancelling")


def test_a_job_that_has_ended_cannot_be_cancelled(api: Api) -> None:
    post_jobs(api, 1)
    fail(api, "job-0")
    error = error_of(api.http.post("/train/job-0/cancel"), 409)
    assert error["code"] == "job_state_conflict"
    assert "failed" in error["message"]
