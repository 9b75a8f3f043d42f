"""A job's life as the supervisor turns it, without Ray: admitted, watched, ended, and once only.

`scene` is one service: a store (both databases), a launcher whose runs do what the test says, a
clock that the test moves. An attempt's own reports are given with `tell`.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import StorageFailed
from configs.job import (
    EVENT,
    Admitted,
    Event,
    Failed,
    Finalizing,
    Job,
    JobError,
    JobStatus,
    Order,
    PhaseChanged,
    Progress,
    Progressed,
    Started,
    StopRequested,
)
from configs.names import locations
from configs.request import TrainRequest
from configs.settings import Settings
from serve_app.capacity import Capacity, NodeCapacity
from serve_app.launcher import RunState
from serve_app.store import JobStore
from serve_app.supervisor import SWEEP_INTERVAL, Supervisor
from tests.serve_app.conftest import LATER, make_job, submit
from tests.serve_app.fake_launcher import (
    Clock,
    DyingLauncher,
    FailingStore,
    FakeLauncher,
    RefusingLauncher,
    Results,
)
from train_loops.plan import Plan
from train_loops.stores.file import FileStore

GRACE_S = 60.0
HUB_TOKEN = "canary-hub-token"
AUTH_TOKEN = "canary-auth-token"


class KilledAfterLaunch(FakeLauncher):
    """The tracker is killed when the run has begun, before it hears so."""

    def start(self, plan: Plan, submission_id: str) -> None:
        super().start(plan, submission_id)
        raise KeyboardInterrupt


class RestoredLauncher(RefusingLauncher):
    """Refuses one job until it is restored."""

    def restore(self) -> None:
        self._job_id = ""


Retryable = pytest.mark.parametrize("retryable", [True, False])


class Scene:
    """One service, its clock and the folder that stands for the object store."""

    def __init__(self, store: JobStore, root: Path) -> None:
        self.store, self.root = store, root
        self.clock, self.launcher = Clock(), FakeLauncher()
        self.clock.forward(minutes=1)
        self.cpus = 2.0
        self.settings = Settings(
            file_root=root, home=root / "home", max_attempts=3, cancel_grace_seconds=GRACE_S
        )
        self.supervisor = self.new_supervisor()

    def new_supervisor(self, launcher: FakeLauncher | None = None) -> Supervisor:
        """As after a restart: empty memory, the same store. The launcher stays, or is replaced."""
        self.launcher = launcher or self.launcher
        self.supervisor = Supervisor(
            self.store, self.launcher, self.capacity, self.settings, self.clock
        )
        return self.supervisor

    def capacity(self) -> Capacity:
        return Capacity(nodes=[NodeCapacity(node_id="n", cpus=self.cpus)])

    def submit(
        self, job_id: str = "job-1", *, secrets: dict[str, str] | None = None, age: int = 0,
        **changes: Any,
    ) -> Job:  # fmt: skip
        request = TrainRequest.model_validate(self.request() | changes)
        log_uri, output_uri = locations(request, job_id)
        job = make_job(
            job_id, age=age, request=request.public(), log_uri=log_uri, output_uri=output_uri
        )
        return submit(self.store, job, secrets=secrets or {}, digest=job_id)[0]

    def request(self) -> dict[str, Any]:
        source = f"file://{self.root}/users/u/projects/p/ingestion/rows.jsonl"
        return {
            "base_model": {"provider": "local", "model_name": "tiny"},
            "datasets": [{"source": source, "format": "jsonl"}],
            "customization": {"method": "lora", "engine": "simulated"},
        }

    def turn(self, seconds: float = 1.0) -> Job:
        """Let time pass, turn once; the job after it."""
        self.clock.forward(seconds=seconds)
        self.supervisor.turn()
        return self.job

    @property
    def job(self) -> Job:
        return self.store.get("job-1")

    def tell(self, event: Event) -> Order:
        """Report as an attempt of job-1 does, over the wire."""
        return self.supervisor.record("job-1", EVENT.dump_json(event).decode())

    def start(self, attempt: int = 1) -> Order:
        return self.tell(Started(at=self.clock(), attempt=attempt, total_steps=10))

    def progress(self, attempt: int = 1, step: int = 1) -> Order:
        progress = Progress(step=step, total_steps=10)
        return self.tell(Progressed(at=self.clock(), attempt=attempt, progress=progress))

    def fail(self, attempt: int = 1, *, retryable: bool) -> Order:
        error = JobError(
            code="dataset_invalid", message="line 3 is none", hint="Fix it.", retryable=retryable
        )
        return self.tell(Failed(at=self.clock(), attempt=attempt, error=error))

    def cancel(self) -> Job:
        return self.store.record("job-1", StopRequested(at=self.clock(), reason="cancel"))

    def becomes(self, state: RunState, message: str = "", attempt: int = 1) -> None:
        self.launcher.end(f"job-1-{attempt}", state, message)

    def publish(self, attempt: int = 1) -> Path:
        """Leave the attempt's results as it would; the file of its weights."""
        Results(self.settings).publish(self.launcher.plans[f"job-1-{attempt}"])
        folder = Results.path(self.job.output_uri) / f"attempt-{attempt}"
        return folder / "adapter" / "adapter_model.safetensors"

    def history(self, job_id: str = "job-1") -> list[str]:
        return [record.event.type for record in self.store.events(job_id)]

    def exported(self) -> list[str]:
        """The lines of the job's `events.jsonl`."""
        written = FileStore(self.root).get_bytes(self.job.log_uri + "events.jsonl")
        return written.decode().splitlines()


@pytest.fixture
def scene(store: JobStore, tmp_path: Path) -> Scene:
    return Scene(store, tmp_path)


@pytest.fixture
def training(scene: Scene) -> Scene:
    """A scene whose job-1 trains in its first attempt."""
    scene.submit()
    scene.turn()
    scene.start()
    return scene


# Admission and launch


def test_a_job_that_fits_is_launched_once_under_its_id_and_attempt(scene: Scene) -> None:
    scene.submit()
    job = scene.turn()
    assert (job.status, job.phase, job.attempt) == (JobStatus.PROVISIONING, "starting", 1)
    assert job.backend_job_id == "job-1-1"
    scene.turn()
    scene.turn()
    assert scene.launcher.starts == ["job-1-1"]
    assert scene.launcher.plans["job-1-1"].attempt == 1


def test_what_cannot_fit_is_told_what_it_waits_for(scene: Scene) -> None:
    scene.submit(resources={"cpus": 8})
    job = scene.turn()
    assert job.status is JobStatus.QUEUED
    assert "8" in job.detail and "2" in job.detail
    scene.turn()
    assert scene.history() == ["submitted", "waiting"], "the same detail is told once"
    assert scene.launcher.starts == []


def test_a_waiting_job_is_launched_when_the_cluster_has_grown(scene: Scene) -> None:
    scene.submit(resources={"cpus": 8})
    scene.turn()
    scene.cpus = 8
    job = scene.turn()
    assert (job.status, job.detail) == (JobStatus.PROVISIONING, "")
    assert scene.launcher.starts == ["job-1-1"]


def test_the_second_job_waits_until_the_first_has_ended(scene: Scene) -> None:
    scene.submit("job-1", age=2, resources={"cpus": 2})
    scene.submit("job-2", age=1, resources={"cpus": 2})
    scene.turn()
    assert scene.launcher.starts == ["job-1-1"]
    scene.fail(retryable=False)
    scene.turn()
    assert scene.launcher.starts == ["job-1-1", "job-2-1"]


def test_what_the_cluster_has_is_stored_for_the_replicas(scene: Scene) -> None:
    scene.supervisor.turn()
    scene.cpus = 16
    scene.supervisor.turn()
    stored = scene.store.capacity()
    assert stored is not None
    assert Capacity.model_validate_json(stored) == scene.capacity()


def test_killed_before_the_launch_the_same_attempt_is_launched(scene: Scene) -> None:
    scene.submit()
    dying = scene.new_supervisor(DyingLauncher())
    with pytest.raises(KeyboardInterrupt):
        dying.turn()
    assert (scene.job.attempt, scene.job.phase) == (1, "starting")
    scene.new_supervisor(FakeLauncher())
    scene.turn()
    scene.turn()
    assert scene.launcher.starts == ["job-1-1"]
    assert scene.job.attempt == 1


def test_killed_after_the_launch_nothing_is_launched_again(scene: Scene) -> None:
    scene.submit()
    dying = scene.new_supervisor(KilledAfterLaunch())
    with pytest.raises(KeyboardInterrupt):
        dying.turn()
    scene.new_supervisor()
    scene.turn()
    assert scene.launcher.starts == ["job-1-1"]
    assert (scene.job.status, scene.job.attempt) == (JobStatus.PROVISIONING, 1)


def test_a_launch_that_the_cluster_refuses_is_tried_again_and_holds_up_no_other(
    scene: Scene,
) -> None:
    scene.submit("job-1", age=2)
    scene.submit("job-2", age=1)
    launcher = RestoredLauncher("job-1")
    scene.new_supervisor(launcher)
    scene.turn()
    assert launcher.starts == ["job-2-1"]
    launcher.restore()
    scene.turn()
    assert launcher.starts == ["job-2-1", "job-1-1"]
    assert scene.job.attempt == 1


def test_a_stored_request_that_no_longer_is_valid_fails_with_a_hint(scene: Scene) -> None:
    job = make_job(request={"customization": {"method": "of an older version"}})
    submit(scene.store, job)
    ended = scene.turn()
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None and ended.error.hint
    assert scene.launcher.starts == []


# The end of an attempt


def test_a_run_that_left_a_manifest_has_succeeded(training: Scene) -> None:
    training.publish()
    training.tell(Finalizing(at=training.clock(), attempt=1))
    training.becomes(RunState.ENDED)
    job = training.turn()
    assert job.status is JobStatus.SUCCEEDED
    (weights,) = job.artifacts
    assert weights.name == "attempt-1/adapter/adapter_model.safetensors"
    assert weights.uri == job.output_uri + weights.name
    assert job.progress.percent == 100


def test_a_run_that_ended_unheard_has_succeeded_all_the_same(scene: Scene) -> None:
    scene.submit()
    scene.turn()
    scene.publish()
    scene.becomes(RunState.ENDED)
    assert scene.turn().status is JobStatus.SUCCEEDED


def test_the_manifest_of_the_job_is_that_of_the_attempt(training: Scene) -> None:
    training.publish()
    training.becomes(RunState.ENDED)
    job = training.turn()
    files = FileStore(training.root)
    own = files.get_bytes(job.output_uri + "attempt-1/manifest.json")
    assert files.get_bytes(job.output_uri + "manifest.json") == own


def test_a_run_that_ended_without_a_manifest_is_tried_again(training: Scene) -> None:
    training.becomes(RunState.ENDED)
    job = training.turn()
    assert (job.status, job.attempt) == (JobStatus.PROVISIONING, 2)
    assert training.launcher.starts == ["job-1-1", "job-1-2"]
    lost = [record.event for record in training.store.events("job-1")][-2]
    assert lost.type == "lost" and "manifest" in lost.detail


def test_a_manifest_of_an_earlier_attempt_counts_for_nothing(training: Scene) -> None:
    training.becomes(RunState.FAILED)
    training.turn()
    training.publish()
    training.becomes(RunState.ENDED, attempt=2)
    job = training.turn()
    assert (job.status, job.attempt) == (JobStatus.PROVISIONING, 3)


def test_a_missing_file_keeps_the_job_from_success_until_it_is_back(training: Scene) -> None:
    weights = training.publish()
    content = weights.read_bytes()
    weights.unlink()
    training.becomes(RunState.ENDED)
    job = training.turn()
    assert not job.status.terminal
    assert job.artifacts == []
    weights.write_bytes(content)
    assert training.turn().status is JobStatus.SUCCEEDED
    assert training.launcher.starts == ["job-1-1"]


def test_a_truncated_file_keeps_the_job_from_success(training: Scene) -> None:
    weights = training.publish()
    weights.write_bytes(b"")
    training.becomes(RunState.ENDED)
    assert not training.turn().status.terminal


def test_a_run_that_dies_again_and_again_fails_as_worker_lost(training: Scene) -> None:
    for attempt in (1, 2, 3):
        training.becomes(RunState.FAILED, "out of memory", attempt)
        training.turn()
    job = training.job
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "worker_lost"
    assert "out of memory" in job.error.message
    assert job.error.hint
    assert training.launcher.starts == ["job-1-1", "job-1-2", "job-1-3"]
    statuses = [record.status.value for record in training.store.events("job-1")]
    assert statuses == [
        "queued", "provisioning", "running",
        "recovering", "provisioning", "recovering", "provisioning", "failed",
    ]  # fmt: skip


def test_a_lost_job_waits_as_recovering_when_its_place_is_gone(training: Scene) -> None:
    training.becomes(RunState.FAILED)
    training.cpus = 0
    job = training.turn()
    assert (job.status, job.attempt) == (JobStatus.RECOVERING, 1)
    training.cpus = 2
    assert training.turn().attempt == 2


def test_a_run_that_the_cluster_forgot_after_it_started_is_a_new_attempt(training: Scene) -> None:
    training.launcher.replace_cluster()
    job = training.turn()
    assert (job.status, job.attempt) == (JobStatus.PROVISIONING, 2)
    assert training.launcher.starts == ["job-1-1", "job-1-2"]


def test_a_run_forgotten_while_it_prepared_is_a_new_attempt(scene: Scene) -> None:
    scene.submit()
    scene.turn()
    scene.tell(PhaseChanged(at=scene.clock(), attempt=1, phase="preparing_data"))
    scene.launcher.replace_cluster()
    assert scene.turn().attempt == 2


def test_a_cluster_that_does_not_answer_changes_nothing(training: Scene) -> None:
    def no_answer(submission_id: str) -> Any:
        raise RuntimeError("Request failed with status code 503")

    answering, training.launcher.status = training.launcher.status, no_answer  # type: ignore[method-assign]
    assert training.turn().status is JobStatus.RUNNING
    training.launcher.status = answering  # type: ignore[method-assign]
    assert training.turn().attempt == 1


# What an attempt tells


def test_a_failure_that_would_come_again_ends_the_job(training: Scene) -> None:
    assert training.fail(retryable=False).stop == "stale"
    job = training.turn()
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.hint) == ("dataset_invalid", "Fix it.")
    assert training.launcher.starts == ["job-1-1"]


def test_a_failure_that_may_pass_is_another_attempt_once_the_first_has_left(
    training: Scene,
) -> None:
    assert training.fail(retryable=True).stop == "stale"
    assert training.job.status is JobStatus.RECOVERING
    training.turn()
    assert training.launcher.starts == ["job-1-1"], "the first one still runs"
    training.becomes(RunState.FAILED)
    training.turn()
    assert training.launcher.starts == ["job-1-1", "job-1-2"]


def test_a_passing_failure_of_the_last_attempt_ends_the_job_with_its_own_code(
    training: Scene,
) -> None:
    for attempt in (1, 2, 3):
        training.fail(attempt, retryable=True)
        training.becomes(RunState.FAILED, attempt=attempt)
        training.turn()
    assert training.job.status is JobStatus.FAILED
    assert training.job.error is not None
    assert training.job.error.code == "dataset_invalid"


def test_progress_is_answered_with_go_on(training: Scene) -> None:
    assert training.progress(step=4).stop is None
    assert training.job.progress.step == 4


def test_an_event_told_twice_is_answered_as_the_first_time(training: Scene) -> None:
    before = training.job
    assert training.start().stop is None
    assert training.job == before


@Retryable
def test_a_stale_attempt_is_stopped_and_changes_nothing(training: Scene, retryable: bool) -> None:
    training.becomes(RunState.FAILED)
    training.turn()
    before = training.job
    assert before.attempt == 2
    assert training.progress(1).stop == "stale"
    assert training.start(1).stop == "stale"
    assert training.fail(1, retryable=retryable).stop == "stale"
    assert training.job == before


def test_a_report_after_the_end_is_stale(training: Scene) -> None:
    training.fail(retryable=False)
    before = training.job
    assert training.progress().stop == "stale"
    assert training.job == before


def test_the_plan_is_given_to_the_owning_attempt_only(training: Scene) -> None:
    text = training.supervisor.plan("job-1", 1)
    assert text is not None
    assert Plan.model_validate_json(text) == training.launcher.plans["job-1-1"]
    assert training.supervisor.plan("job-1", 0) is None
    assert training.supervisor.plan("job-1", 2) is None
    training.fail(retryable=False)
    assert training.supervisor.plan("job-1", 1) is None


def test_secrets_are_given_to_the_owning_attempt_until_the_end(scene: Scene) -> None:
    scene.submit(secrets={"base_model.huggingface_token": HUB_TOKEN})
    assert scene.supervisor.secrets("job-1", 0) == {}
    scene.turn()
    assert scene.supervisor.secrets("job-1", 1) == {"hub_token": HUB_TOKEN}
    assert scene.supervisor.secrets("job-1", 2) == {}
    scene.fail(retryable=False)
    assert scene.supervisor.secrets("job-1", 1) == {}
    assert scene.store.secrets("job-1") == {}


def test_the_hub_token_wins_over_the_auth_token(scene: Scene) -> None:
    tokens = {"base_model.auth_token": AUTH_TOKEN, "base_model.huggingface_token": HUB_TOKEN}
    scene.submit(secrets=tokens)
    scene.turn()
    assert scene.supervisor.secrets("job-1", 1) == {"hub_token": HUB_TOKEN}


def test_the_auth_token_alone_is_the_hub_token(scene: Scene) -> None:
    scene.submit(secrets={"base_model.auth_token": AUTH_TOKEN})
    scene.turn()
    assert scene.supervisor.secrets("job-1", 1) == {"hub_token": AUTH_TOKEN}


def test_the_plan_holds_no_secret(scene: Scene) -> None:
    model = {"provider": "huggingface", "model_name": "o/m", "huggingface_token": HUB_TOKEN}
    scene.submit(base_model=model, secrets={"base_model.huggingface_token": HUB_TOKEN})
    scene.turn()
    assert HUB_TOKEN not in (scene.supervisor.plan("job-1", 1) or HUB_TOKEN)


# Cancel and deadline


def test_a_queued_job_is_cancelled_without_a_launch(scene: Scene) -> None:
    scene.submit()
    scene.cancel()
    assert scene.turn().status is JobStatus.CANCELLED
    assert scene.launcher.starts == []


def test_a_running_job_is_asked_to_stop_before_it_is_stopped(training: Scene) -> None:
    training.cancel()
    assert training.progress().stop == "cancel"
    training.turn(GRACE_S - 1)
    assert training.launcher.stops == []
    assert training.job.status is JobStatus.CANCELLING


def test_a_running_job_that_does_not_stop_is_stopped_after_the_grace(training: Scene) -> None:
    training.cancel()
    assert training.turn(GRACE_S).status is JobStatus.CANCELLING
    assert set(training.launcher.stops) == {"job-1-1"}
    training.becomes(RunState.FAILED)
    job = training.turn()
    assert job.status is JobStatus.CANCELLED
    assert job.error is None


def test_a_cancelled_attempt_that_leaves_by_itself_is_cancelled_at_once(training: Scene) -> None:
    training.cancel()
    training.becomes(RunState.ENDED)
    assert training.turn().status is JobStatus.CANCELLED
    assert training.launcher.stops == []
    assert training.launcher.starts == ["job-1-1"]


def test_a_job_cancelled_while_provisioning_is_stopped_at_once(scene: Scene) -> None:
    scene.submit()
    scene.turn()
    scene.cancel()
    scene.turn()
    assert set(scene.launcher.stops) == {"job-1-1"}
    scene.becomes(RunState.FAILED)
    assert scene.turn().status is JobStatus.CANCELLED


def test_a_job_cancelled_between_admission_and_launch_is_not_launched(scene: Scene) -> None:
    scene.submit()
    scene.store.record("job-1", Admitted(at=LATER, attempt=1, backend_job_id="job-1-1"))
    scene.cancel()
    assert scene.turn().status is JobStatus.CANCELLED
    assert scene.launcher.starts == []


def test_a_cancelled_attempt_that_fails_is_cancelled(training: Scene) -> None:
    training.cancel()
    training.fail(retryable=True)
    assert training.turn().status is JobStatus.CANCELLED
    assert training.launcher.starts == ["job-1-1"]


def test_a_job_whose_time_is_over_is_ordered_to_stop_and_fails_as_deadline(scene: Scene) -> None:
    scene.submit(resources={"max_duration_minutes": 5})
    scene.turn()
    scene.start()
    scene.turn(5 * 60 - 1)
    assert scene.progress(step=7).stop is None
    scene.turn(1)
    assert scene.progress(step=8).stop == "deadline"
    scene.becomes(RunState.ENDED)
    job = scene.turn()
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("deadline", False)
    assert "step 8 of 10" in job.error.message
    assert scene.launcher.starts == ["job-1-1"]


def test_a_job_that_ignores_its_deadline_is_stopped_after_the_grace(scene: Scene) -> None:
    scene.submit(resources={"max_duration_minutes": 5})
    scene.turn()
    scene.start()
    scene.turn(5 * 60)
    scene.turn(GRACE_S)
    assert set(scene.launcher.stops) == {"job-1-1"}


# More than one supervisor


def test_two_supervisors_on_one_store_launch_one_attempt_once(scene: Scene) -> None:
    names = [f"job-{n}" for n in range(1, 6)]
    scene.cpus = len(names)
    scene.supervisor.turn()
    for name in names:
        scene.submit(name)
    one, other = scene.new_supervisor(), scene.new_supervisor()
    in_turns(one.turn, other.turn, times=5)
    assert sorted(scene.launcher.starts) == [f"{name}-1" for name in names]
    for name in names:
        assert scene.store.get(name).attempt == 1
        assert scene.history(name) == ["submitted", "admitted"]


def test_two_supervisors_lose_an_attempt_once(training: Scene) -> None:
    training.becomes(RunState.FAILED)
    one, other = training.new_supervisor(), training.new_supervisor()
    in_turns(one.turn, other.turn, times=3)
    assert training.launcher.starts == ["job-1-1", "job-1-2"]
    assert training.history() == ["submitted", "admitted", "started", "lost", "admitted"]


def in_turns(*turns: Callable[[], None], times: int) -> None:
    """Each in a thread of its own, all at the same moment, `times` over."""
    together = threading.Barrier(len(turns))
    errors: list[BaseException] = []

    def run(turn: Callable[[], None]) -> None:
        try:
            for _ in range(times):
                together.wait(timeout=60)
                turn()
        except BaseException as error:
            errors.append(error)
            together.abort()

    threads = [threading.Thread(target=run, args=[turn]) for turn in turns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == []


# What is left behind


def test_the_history_is_exported_with_its_last_event(training: Scene) -> None:
    training.turn()
    assert len(training.exported()) == 3
    training.fail(retryable=False)
    training.turn()
    lines = training.exported()
    assert len(lines) == 4
    assert '"failed"' in lines[-1]
    assert training.store.exports_due() == []


def test_an_export_that_the_store_refuses_is_tried_again(
    training: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FailingStore(training.root, 1, StorageFailed("no space left"))
    training.fail(retryable=False)
    with monkeypatch.context() as patched:
        patched.setattr("serve_app.supervisor.open_store", lambda *_: failing)
        assert training.turn().status is JobStatus.FAILED
    assert failing.failures == 0
    assert training.store.exports_due() != []
    training.turn()
    assert '"failed"' in training.exported()[-1]


def test_logs_go_to_their_own_store_when_the_results_go_to_another(scene: Scene) -> None:
    artifacts = {"output_uri": "s3://bucket/results/", "log_uri": f"file://{scene.root}/logs/"}
    scene.submit(artifacts=artifacts)
    scene.turn()
    assert '"submitted"' in scene.exported()[0]


def test_a_run_that_nobody_owns_is_stopped_by_the_sweep(training: Scene) -> None:
    training.launcher.end("gone-1", RunState.ALIVE)
    training.turn()
    assert training.launcher.stops == []
    training.turn(SWEEP_INTERVAL.total_seconds())
    assert training.launcher.stops == ["gone-1"]


def test_the_sweep_stops_an_attempt_that_failed_and_stays(training: Scene) -> None:
    training.fail(retryable=True)
    training.turn(SWEEP_INTERVAL.total_seconds())
    assert training.launcher.stops == ["job-1-1"]
