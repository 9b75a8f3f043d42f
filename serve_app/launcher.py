"""Starts, watches and stops attempts as Ray Jobs, one each. Decides nothing; called by the
supervisor in the tracker's process, from a thread (the client is synchronous)."""

import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from configs.settings import Settings
from train_loops.plan import Plan

# Time between SIGINT and SIGKILL when Ray stops a job: room for a last checkpoint.
STOP_WAIT_S = 90


class RunState(StrEnum):
    """What Ray knows of an attempt."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    ENDED = "ended"
    FAILED = "failed"


class RunStatus(NamedTuple):
    """State of an attempt, and Ray's words for a failure."""

    state: RunState
    message: str = ""


class Launcher(Protocol):
    """Where attempts run. Ray Jobs now; a RayJob resource per run could be a second."""

    def start(self, plan: Plan, submission_id: str) -> None:
        """Start the attempt. The same id twice starts it once."""

    def status(self, submission_id: str) -> RunStatus:
        """What became of it."""

    def stop(self, submission_id: str) -> None:
        """Ask it to end, then end it. An unknown or ended one is no error."""

    def alive(self) -> list[str]:
        """Ids of all attempts that have not ended."""


class RayJobLauncher:
    """One Ray Job per attempt, through the cluster's own job API."""

    def __init__(self, settings: Settings, client: Any = None) -> None:
        self._client = client or _cluster_client()
        self._settings = settings

    def start(self, plan: Plan, submission_id: str) -> None:
        if self.status(submission_id).state is not RunState.UNKNOWN:
            return
        try:
            self._submit(plan, submission_id)
        except RuntimeError:
            # Another tracker (an upgrade) was faster: the run is there, and once.
            if self.status(submission_id).state is RunState.UNKNOWN:
                raise

    def _submit(self, plan: Plan, submission_id: str) -> None:
        # Ray gives both the entrypoint and the executable to a shell.
        python = shlex.quote(python_of(plan.environment, self._settings))
        self._client.submit_job(
            submission_id=submission_id,
            # Shown to anyone who can reach Ray: ids only, both of safe characters.
            entrypoint=f"exec {python} -m train_loops.driver "
            f"--job-id {plan.job_id} --attempt {plan.attempt}",
            runtime_env={
                "py_executable": python,
                "env_vars": {
                    "RAY_JOB_STOP_SIGNAL": "SIGINT",
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
                },
            },
            metadata={"trainer_job_id": plan.job_id, "trainer_attempt": str(plan.attempt)},
        )

    def status(self, submission_id: str) -> RunStatus:
        try:
            info = self._client.get_job_info(submission_id)
        except RuntimeError as error:
            # The whole phrase: a job's id may hold "404", and any other error means "ask again".
            if "status code 404" in str(error):
                return RunStatus(RunState.UNKNOWN)
            raise
        return RunStatus(_STATES[info.status.value], last_line(info.message or ""))

    def stop(self, submission_id: str) -> None:
        if self.status(submission_id).state is RunState.ALIVE:
            self._client.stop_job(submission_id)

    def alive(self) -> list[str]:
        return [
            job.submission_id
            for job in self._client.list_jobs()
            if "trainer_job_id" in (job.metadata or {})
            and _STATES[job.status.value] is RunState.ALIVE
        ]


def _cluster_client() -> Any:
    """The job API of the cluster that this process runs on."""
    from ray.job_submission import JobSubmissionClient

    # RAY_ADDRESS (a GCS address here) would win over the running cluster's dashboard.
    os.environ.pop("RAY_ADDRESS", None)
    return JobSubmissionClient()


_STATES = {
    "PENDING": RunState.ALIVE,
    "RUNNING": RunState.ALIVE,
    "SUCCEEDED": RunState.ENDED,
    "STOPPED": RunState.FAILED,
    "FAILED": RunState.FAILED,
}


def python_of(environment: str | None, settings: Settings) -> str:
    """The interpreter of an environment: this process's own, or `<envs_root>/<name>/bin/python`."""
    if environment is None or settings.envs_root is None:
        return sys.executable
    return str(Path(settings.envs_root) / environment / "bin" / "python")


def last_line(message: str) -> str:
    """The last line of Ray's message, which quotes the driver's log; 300 characters at most."""
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
