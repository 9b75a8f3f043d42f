"""A job as it is stored and shown, and the events that change it. The table of allowed changes is
`serve_app/lifecycle.py`."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from configs.adapter import EngineName
from configs.base import Spec
from configs.names import Backend
from configs.resources import ResourcesSpec


class JobStatus(StrEnum):
    """`queued → provisioning → running → finalizing → succeeded | failed | cancelled`."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    RECOVERING = "recovering"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)

    @property
    def holds_resources(self) -> bool:
        """Whether an attempt of the job has, or is about to have, a place on the cluster."""
        return self in (
            JobStatus.PROVISIONING, JobStatus.RUNNING, JobStatus.FINALIZING, JobStatus.CANCELLING
        )  # fmt: skip


class Record(Spec):
    """A Spec that this project writes and reads back itself, so it need not be strict."""

    model_config = ConfigDict(strict=False)


class Progress(Record):
    """How far the running attempt is."""

    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""
    epoch: float = 0.0
    """Passes over the data done."""
    percent: float = 0.0
    """100 × step / total_steps."""
    loss: float | None = None
    """Training loss of the last step, nats per trainable token."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    grad_norm: float | None = None
    """Norm of the gradient before clipping."""
    tokens_per_second: float | None = None
    """Tokens (padding left out) per second over the last few steps, all workers."""
    eta_seconds: float | None = None
    """Time left at the present speed."""
    validation_loss: float | None = None
    """Loss on the rows held back, at the last evaluation; nats per trainable token."""


class DataCounts(Record):
    """What became of the datasets: the rows of one epoch, weights applied."""

    rows: int
    """Rows that an epoch trains on; for objective `cpt`, the pieces that texts were split into."""
    truncated_rows: int
    """Rows among them that were cut at `max_sequence_length`."""
    dropped_rows: int
    """Rows left out, since nothing of theirs can be learnt within `max_sequence_length`: no
    trainable token, no difference of two answers, or (`reward`) an answer that would be cut."""
    tokens: int
    """Tokens of all rows, after the template and the cut; of a pair, those of both texts."""
    trainable_tokens: int
    """Tokens among them that the loss counts; 0 for `grpo`, whose answers are yet to be written."""
    packs: int | None = None
    """Sequences that the rows were packed into; null without packing."""
    validation_rows: int = 0
    """Rows that the run is evaluated on."""


class JobError(Record):
    """Why a job failed."""

    code: str
    """One of the codes in `configs/errors.py`."""
    message: str
    """What happened, with the value and the cause."""
    hint: str | None = None
    """What to do about it."""
    retryable: bool = False
    """Whether the same request may succeed later as it is."""


class Artifact(Record):
    """A finished file."""

    name: str
    """Path below the job's results folder."""
    uri: str
    """Where it lies."""
    size_bytes: int
    """Its size."""
    sha256: str
    """Its SHA-256, hexadecimal."""


class Job(Record):
    """One job, as `GET /{api}/train/{job_id}` shows it."""

    job_id: str
    """The job's name."""
    backend: Backend
    """The API it was posted to."""
    backend_job_id: str | None = None
    """Ray's submission id of the present attempt, `<job_id>-<attempt>`."""
    status: JobStatus = JobStatus.QUEUED
    """Where the job stands."""
    phase: str = "waiting"
    """What it does within that status: `waiting`, `preparing_data`, `loading_model`, `training`."""
    detail: str = ""
    """A sentence for a person: what is waited for, what went wrong."""
    attempt: int = 0
    """Number of the present try; 0 before the first."""
    engine: EngineName
    """The stack that computes a step."""
    engine_reason: str
    """Why that one."""
    proxied_to: Backend | None = None
    """The API whose flow runs the job, when it is not the one that it was posted to."""
    data: DataCounts | None = None
    """What became of the datasets, once they were read."""
    progress: Progress = Progress()
    """How far the attempt is."""
    created_at: datetime
    """When the job was accepted (UTC)."""
    started_at: datetime | None = None
    """When the first attempt began to train."""
    finished_at: datetime | None = None
    """When the job reached a terminal status."""
    error: JobError | None = None
    """Why it failed."""
    artifacts: list[Artifact] = Field(default_factory=list)
    """Finished files, once succeeded."""
    log_uri: str
    """Folder of the job's logs."""
    output_uri: str
    """Folder of the job's results."""
    seq: int = 0
    """Number of the last event."""
    admitted_at: datetime | None = None
    """When the present attempt was launched."""
    attempt_started_at: datetime | None = None
    """When the present attempt began to train."""
    stop_reason: Literal["cancel", "deadline"] | None = None
    """Why the attempt was asked to stop."""
    stop_requested_at: datetime | None = None
    """When it was asked."""
    request: dict[str, Any]
    """The request, secrets masked."""

    @property
    def resources(self) -> ResourcesSpec:
        """What the job needs of the cluster."""
        return ResourcesSpec.model_validate(self.request.get("resources", {}))


class JobPage(Record):
    """One page of jobs, newest first."""

    jobs: list[Job]
    """The jobs."""
    next_cursor: str | None = None
    """Give it as `cursor` for the next page; null on the last."""


class _Event(Record):
    at: datetime
    """When it happened (UTC)."""


class _AttemptEvent(_Event):
    attempt: int
    """The attempt that speaks; an older one is refused."""


class Submitted(_Event):
    """The job was accepted."""

    type: Literal["submitted"] = "submitted"


class Waiting(_Event):
    """The scheduler could not place the job, and why."""

    type: Literal["waiting"] = "waiting"
    detail: str


class Admitted(_AttemptEvent):
    """The gang fits; an attempt is launched."""

    type: Literal["admitted"] = "admitted"
    backend_job_id: str


class PhaseChanged(_AttemptEvent):
    """The attempt does something else now, still before training."""

    type: Literal["phase"] = "phase"
    phase: str
    detail: str = ""


class DataPrepared(_AttemptEvent):
    """The datasets were read and tokenised."""

    type: Literal["data_prepared"] = "data_prepared"
    data: DataCounts


class EngineChanged(_AttemptEvent):
    """The model turned out to be none of the engine's, and another one runs the job."""

    type: Literal["engine_changed"] = "engine_changed"
    engine: EngineName
    engine_reason: str
    proxied_to: Backend | None = None


class Started(_AttemptEvent):
    """The first optimizer step is about to run."""

    type: Literal["started"] = "started"
    total_steps: int
    resumed_from_step: int = 0


class Progressed(_AttemptEvent):
    """Steps were done. Updates the job; is not kept in its history."""

    type: Literal["progress"] = "progress"
    progress: Progress


class Finalizing(_AttemptEvent):
    """Training is over; results are being written."""

    type: Literal["finalizing"] = "finalizing"


class Succeeded(_AttemptEvent):
    """The manifest was read back and holds."""

    type: Literal["succeeded"] = "succeeded"
    artifacts: list[Artifact]


class Failed(_AttemptEvent):
    """The attempt ended for a reason that another attempt would meet too."""

    type: Literal["failed"] = "failed"
    error: JobError


class Lost(_AttemptEvent):
    """The attempt's process is gone; another attempt follows."""

    type: Literal["lost"] = "lost"
    detail: str


class StopRequested(_Event):
    """Somebody cancelled, or the time is over."""

    type: Literal["stop_requested"] = "stop_requested"
    reason: Literal["cancel", "deadline"]


class Stopped(_AttemptEvent):
    """The attempt has ended after a stop request."""

    type: Literal["stopped"] = "stopped"


Event = Annotated[
    Submitted | Waiting | Admitted | PhaseChanged | DataPrepared | EngineChanged | Started
    | Progressed | Finalizing | Succeeded | Failed | Lost | StopRequested | Stopped,
    Field(discriminator="type"),
]  # fmt: skip
EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class EventRecord(Record):
    """An event with its place in the job's history."""

    seq: int
    """1, 2, 3, … within the job."""
    status: JobStatus
    """The job's status after the event."""
    event: Event
    """What happened."""


class Order(Record):
    """The service's answer to an attempt that reports: go on, or stop and why."""

    stop: Literal["cancel", "deadline", "stale"] | None = None
    """None: go on. `stale`: another attempt owns the job, write nothing more."""
