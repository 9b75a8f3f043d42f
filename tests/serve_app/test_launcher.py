"""Attempts as Ray Jobs: what is submitted, how Ray's answers are read, and which Python runs.

Ray itself is replaced by `FakeJobClient`, which answers as the job API does.
"""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from configs.names import locations
from configs.request import TrainRequest
from configs.settings import Settings
from serve_app.launcher import RayJobLauncher, RunState, RunStatus, last_line, python_of
from tests.serve_app.conftest import make_job
from train_loops.plan import Plan, resolve

CANARY = "canary-51c0"


class FakeJobClient:
    """Ray's job API in memory. It refuses an id that it knows, as Ray does."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self._jobs: dict[str, SimpleNamespace] = {}

    def submit_job(self, **given: Any) -> str:
        name: str = given["submission_id"]
        if name in self._jobs:
            raise RuntimeError(f"Request failed with status code 500: {name} already exists")
        self.submitted.append(given)
        self.becomes(name, "PENDING", metadata=given["metadata"])
        return name

    def get_job_info(self, name: str) -> SimpleNamespace:
        if name not in self._jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist")
        return self._jobs[name]

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        return True

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self._jobs.values())

    def becomes(
        self, name: str, status: str, message: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._jobs[name] = SimpleNamespace(
            submission_id=name,
            status=SimpleNamespace(value=status),
            message=message,
            metadata=metadata,
        )


class RacingJobClient(FakeJobClient):
    """Another tracker submits the same id between the look and the submission."""

    def submit_job(self, **given: Any) -> str:
        super().submit_job(**given)
        return super().submit_job(**given)


class FullJobClient(FakeJobClient):
    """Takes no job at all."""

    def submit_job(self, **given: Any) -> str:
        raise RuntimeError(f"Request failed with status code 500: no room for {given}")


class SilentJobClient(FakeJobClient):
    """The dashboard restarts: nothing can be known of the job `job-404-1` or any other."""

    def get_job_info(self, name: str) -> SimpleNamespace:
        raise RuntimeError(f"Request failed with status code 503: {name}")


def a_plan(job_id: str = "job-1", attempt: int = 1, **changes: Any) -> Plan:
    request = TrainRequest.model_validate(
        {
            "base_model": {
                "provider": "huggingface", "model_name": "o/m",
                "auth_token": CANARY, "huggingface_token": CANARY,
            },
            "datasets": [{"source": "s3://bucket/users/u/projects/p/a.jsonl", "format": "jsonl"}],
            "customization": {"method": "lora"},
            "metadata": {"note": "$(reboot)"},
        }
    )  # fmt: skip
    log_uri, output_uri = locations(request, job_id)
    job = make_job(job_id, request=request.public(), log_uri=log_uri, output_uri=output_uri)
    return resolve(job, attempt).model_copy(update=changes)


def a_launcher(client: FakeJobClient, **settings: Any) -> RayJobLauncher:
    return RayJobLauncher(Settings(**settings), client=client)


def submitted(plan: Plan, **settings: Any) -> dict[str, Any]:
    client = FakeJobClient()
    a_launcher(client, **settings).start(plan, "job-1-1")
    (given,) = client.submitted
    return given


def test_the_entrypoint_holds_the_ids_and_nothing_else_of_the_job() -> None:
    words = shlex.split(submitted(a_plan())["entrypoint"])
    assert words == [
        "exec", sys.executable, "-m", "train_loops.driver", "--job-id", "job-1", "--attempt", "1",
    ]  # fmt: skip


def test_no_secret_is_given_to_ray() -> None:
    given = submitted(
        a_plan(),
        api_token=SecretStr(CANARY),
        secret_key=SecretStr(CANARY),
        database_url=SecretStr(f"postgresql://me:{CANARY}@db/trainer"),
    )
    assert CANARY not in repr(given)
    assert set(given["runtime_env"]) == {"py_executable", "env_vars"}


def test_ray_interrupts_first_and_leaves_time_for_a_last_checkpoint() -> None:
    variables = submitted(a_plan())["runtime_env"]["env_vars"]
    assert variables == {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "90"}


def test_the_same_id_twice_is_submitted_once() -> None:
    client = FakeJobClient()
    launcher = a_launcher(client)
    launcher.start(a_plan(), "job-1-1")
    launcher.start(a_plan(), "job-1-1")
    assert len(client.submitted) == 1


def test_a_run_that_has_ended_is_not_started_again() -> None:
    client = FakeJobClient()
    client.becomes("job-1-1", "SUCCEEDED")
    a_launcher(client).start(a_plan(), "job-1-1")
    assert client.submitted == []


def test_another_tracker_that_was_faster_is_no_error() -> None:
    client = RacingJobClient()
    a_launcher(client).start(a_plan(), "job-1-1")
    assert len(client.submitted) == 1


def test_a_submission_that_ray_refuses_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no room"):
        a_launcher(FullJobClient()).start(a_plan(), "job-1-1")


@pytest.mark.parametrize(
    ("ray", "state"),
    [
        ("PENDING", RunState.ALIVE),
        ("RUNNING", RunState.ALIVE),
        ("SUCCEEDED", RunState.ENDED),
        ("STOPPED", RunState.FAILED),
        ("FAILED", RunState.FAILED),
    ],
)
def test_rays_words_are_mapped_to_ours(ray: str, state: RunState) -> None:
    client = FakeJobClient()
    client.becomes("job-1-1", ray)
    assert a_launcher(client).status("job-1-1").state is state


def test_every_word_that_ray_has_is_mapped() -> None:
    from ray.job_submission import JobStatus

    client = FakeJobClient()
    for status in JobStatus:
        client.becomes("job-1-1", status.value)
        assert a_launcher(client).status("job-1-1").state is not RunState.UNKNOWN


def test_the_reason_of_a_failure_is_rays_last_line() -> None:
    client = FakeJobClient()
    client.becomes("job-1-1", "FAILED", "Job failed\nTraceback …\n\nMemoryError: no more\n")
    expected = RunStatus(RunState.FAILED, "MemoryError: no more")
    assert a_launcher(client).status("job-1-1") == expected


def test_a_run_that_ray_does_not_know_is_unknown() -> None:
    assert a_launcher(FakeJobClient()).status("job-1-1") == RunStatus(RunState.UNKNOWN)


def test_no_answer_does_not_mean_that_there_is_no_run() -> None:
    with pytest.raises(RuntimeError):
        a_launcher(SilentJobClient()).status("job-404-1")


def test_a_running_attempt_is_stopped() -> None:
    client = FakeJobClient()
    client.becomes("job-1-1", "RUNNING")
    a_launcher(client).stop("job-1-1")
    assert client.stopped == ["job-1-1"]


def test_to_stop_an_unknown_or_ended_run_is_no_error() -> None:
    client = FakeJobClient()
    client.becomes("job-1-1", "SUCCEEDED")
    launcher = a_launcher(client)
    launcher.stop("job-1-1")
    launcher.stop("never-heard-of-1")
    assert client.stopped == []


def test_only_our_own_living_runs_are_listed() -> None:
    client = FakeJobClient()
    ours = {"trainer_job_id": "job-1", "trainer_attempt": "1"}
    client.becomes("job-1-1", "RUNNING", metadata=ours)
    client.becomes("job-2-1", "FAILED", metadata=ours)
    client.becomes("somebody-elses", "RUNNING", metadata={"team": "other"})
    client.becomes("nobody-s", "RUNNING")
    assert a_launcher(client).alive() == ["job-1-1"]


def test_a_started_run_is_listed_as_ours() -> None:
    client = FakeJobClient()
    launcher = a_launcher(client)
    launcher.start(a_plan(), "job-1-1")
    assert launcher.alive() == ["job-1-1"]


def test_the_last_line_that_says_something_is_taken_and_cut() -> None:
    assert last_line("") == ""
    assert last_line(" \n\n") == ""
    assert last_line("one\ntwo\n  \n") == "two"
    assert last_line("x" * 1000) == "x" * 300


def test_without_an_environment_the_services_own_python_runs() -> None:
    assert python_of(None, Settings(envs_root=Path("/envs"))) == sys.executable
    assert python_of("unsloth", Settings(envs_root=None)) == sys.executable


def test_an_environment_has_its_own_python() -> None:
    assert python_of("unsloth", Settings(envs_root=Path("/envs"))) == "/envs/unsloth/bin/python"


def test_a_path_with_a_space_survives_the_shell() -> None:
    given = submitted(a_plan(environment="unsloth"), envs_root=Path("/my envs"))
    assert shlex.split(given["entrypoint"])[1] == "/my envs/unsloth/bin/python"
    assert shlex.split(given["runtime_env"]["py_executable"]) == ["/my envs/unsloth/bin/python"]
