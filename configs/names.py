"""The names that several places must agree on: APIs, actors, folders in the object store."""

import re
from typing import Literal, NamedTuple

from configs.errors import RequestInvalid
from configs.request import TrainRequest

Backend = Literal["nemo", "meta", "hf-unsloth"]
BACKENDS: tuple[Backend, ...] = ("nemo", "meta", "hf-unsloth")

RAY_NAMESPACE = "trainer"
TRACKER_PREFIX = "JobTracker-"

PLAN_FILE = "plan.json"
DATA_FILE = "data.json"
VERSIONS_FILE = "versions.json"
MANIFEST_FILE = "manifest.json"
TRAIN_LOG = "train.log"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"

_PROJECT = re.compile(r"^(?P<root>.*/users/[^/]+/projects/[^/]+/)")


class Locations(NamedTuple):
    """Where one job's files go; both URIs end with `<job_id>/`."""

    log_uri: str
    output_uri: str


def submission_id(job_id: str, attempt: int) -> str:
    """The Ray Job of one attempt; Ray refuses the same id twice, so a launch is idempotent."""
    return f"{job_id}-{attempt}"


def attempt_folder(attempt: int) -> str:
    """Folder of one attempt's results below `output_uri`."""
    return f"attempt-{attempt}/"


def locations(request: TrainRequest, job_id: str) -> Locations:
    """Resolve the log and output folders of a job.

    Raises:
        RequestInvalid: a URI is left out and the first dataset is not under
            `users/<userId>/projects/<projectId>/`.
    """
    return Locations(
        _folder(request, request.artifacts.log_uri, "log_uri", "logs", job_id),
        _folder(request, request.artifacts.output_uri, "output_uri", "results", job_id),
    )


def _folder(request: TrainRequest, given: str | None, field: str, kind: str, job_id: str) -> str:
    parent = given if given is not None else _project(request, field) + f"{kind}/"
    parent = parent.rstrip("/")
    return f"{parent}/" if parent.rsplit("/", 1)[-1] == job_id else f"{parent}/{job_id}/"


def _project(request: TrainRequest, field: str) -> str:
    source = request.datasets[0].source
    match = _PROJECT.match(source)
    if match is None:
        raise RequestInvalid(
            f"artifacts.{field} is left out and cannot be derived: datasets[0].source has no "
            f"'users/<userId>/projects/<projectId>/' in it",
            param=f"artifacts.{field}",
            hint=f"Set artifacts.{field}, or store the dataset under that layout.",
        )
    return match["root"]
