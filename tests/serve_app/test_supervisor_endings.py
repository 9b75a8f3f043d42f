"""Two ends at once: a run that finishes while it is told to stop, results that went missing, and
many jobs ended by two supervisors."""

import threading
import time
from pathlib import Path

import pytest

from configs.job import JobStatus
from configs.settings import Settings
from serve_app.capacity import Capacity
from serve_app.launcher import RunState
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore
from serve_app.supervisor import Supervisor
from tests.serve_app.fake_launcher import WEIGHTS, FailingStore, Results, RunsThrough
from tests.serve_app.test_supervisor import Scene

PATIENCE_S = 60.0


@pytest.fixture
def scene(store: JobStore, tmp_path: Path) -> Scene:
    return Scene(store, tmp_path)


@pytest.fixture
def finished(scene: Scene) -> Scene:
    """A scene whose job-1, limited to ten minutes, has just published; nobody has looked yet."""
    scene.submit(resources={"max_duration_minutes": 10})
    scene.turn()
    scene.start()
    scene.publish()
    return scene


def test_an_attempt_that_finished_at_its_deadline_has_succeeded(finished: Scene) -> None:
    finished.turn(600)
    assert finished.job.stop_reason == "deadline"
    finished.becomes(RunState.ENDED)
    assert finished.turn().status is JobStatus.SUCCEEDED


def test_a_cancel_after_the_last_step_still_names_the_finished_files(finished: Scene) -> None:
    finished.cancel()
    finished.becomes(RunState.ENDED)
    job = finished.turn()
    assert job.status is JobStatus.CANCELLED
    assert [artifact.size_bytes for artifact in job.artifacts] == [len(WEIGHTS)]


def test_a_cancel_does_not_wait_for_results_that_are_missing(finished: Scene) -> None:
    next(Results.path(finished.job.output_uri).rglob("*.safetensors")).unlink()
    finished.becomes(RunState.ENDED)
    assert not finished.turn().status.terminal
    finished.cancel()
    assert finished.turn().status is JobStatus.CANCELLED


def test_a_log_bucket_that_does_not_exist_holds_up_no_other_history(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.submit("job-0", age=1)
    failing = FailingStore(scene.root, 1, FileNotFoundError("no such bucket"))
    monkeypatch.setattr("serve_app.supervisor.open_store", lambda *_: failing)
    scene.submit("job-1")
    scene.turn()
    assert failing.failures == 0
    assert scene.exported() != []


def test_a_capacity_that_has_not_changed_is_not_written_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(scene.store, "set_capacity", written.append)
    scene.submit()
    scene.turn()
    scene.turn()
    assert written == [scene.capacity().model_dump_json()]


def test_two_supervisors_bring_every_job_to_its_end_once(
    scene: Scene, store_url: str, box: SecretBox
) -> None:
    names = [f"job-{number}" for number in range(8)]
    attempts = {name: 2 if name in names[::3] else 1 for name in names}
    for name in names:
        scene.submit(name)
    launcher = RunsThrough(Results(scene.settings), set(names[::3]))
    stores = [JobStore.open(store_url, box) for _ in range(2)]
    threads = [
        threading.Thread(
            target=turn_to_the_end, args=(store, launcher, scene.capacity(), scene.settings)
        )
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    jobs = [scene.store.get(name) for name in names]
    assert {job.status for job in jobs} == {JobStatus.SUCCEEDED}
    assert {job.job_id: job.attempt for job in jobs} == attempts
    started = [f"{name}-{n}" for name in names for n in range(1, attempts[name] + 1)]
    assert sorted(launcher.starts) == sorted(started)
    for store in stores:
        store.close()


def turn_to_the_end(
    store: JobStore, launcher: RunsThrough, capacity: Capacity, settings: Settings
) -> None:
    """What one of two trackers does, on a connection of its own."""
    supervisor = Supervisor(store, launcher, lambda: capacity, settings)
    deadline = time.monotonic() + PATIENCE_S
    while store.active() and time.monotonic() < deadline:
        supervisor.turn()
