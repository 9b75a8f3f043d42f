"""Every error that the project raises on purpose.

    TrainerError                  code               retryable
    ├── RequestInvalid            request_invalid
    ├── Unsupported               unsupported              the engine or API cannot honour a field
    ├── JobNotFound               job_not_found
    ├── JobConflict               job_conflict             same id or key, another body
    ├── JobStateConflict          job_state_conflict       no such change from this status
    ├── StaleAttempt              stale_attempt            fenced: another attempt owns the job
    ├── QueueFull                 queue_full
    ├── Unschedulable             unschedulable            more than the cluster may ever have
    ├── Unauthorized              unauthorized
    ├── BodyTooLarge              body_too_large
    └── RunError                                           what ends an attempt
        ├── DatasetInvalid        dataset_invalid
        ├── ModelAccess           model_access
        ├── ConfigInvalid         config_invalid
        ├── OutOfMemory           out_of_memory
        ├── LossNotFinite         loss_not_finite
        ├── WorkerLost            worker_lost        yes
        ├── StorageFailed         storage            yes
        ├── DeadlineReached       deadline
        └── InternalError         internal

The domain knows no HTTP: `serve_app/responses.py` maps classes to status codes. A message gives
the value, the cause and the remedy, and never a secret. Errors survive pickling: all their state is
in `args`.
"""

from typing import Any, ClassVar


class TrainerError(Exception):
    """Base of the tree. `code` is stable and documented; `param` is the dotted request field."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        param: str | None = None,
        hint: str | None = None,
        details: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message, param, hint, details)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def param(self) -> str | None:
        return self.args[1]  # type: ignore[no-any-return]

    @property
    def hint(self) -> str | None:
        return self.args[2]  # type: ignore[no-any-return]

    @property
    def details(self) -> list[dict[str, Any]]:
        return self.args[3] or []

    def __str__(self) -> str:
        return self.message


class RequestInvalid(TrainerError):
    """A field is unknown, of the wrong type or out of range."""

    code = "request_invalid"


class Unsupported(TrainerError):
    """The request is well-formed, but this API or its engine cannot honour a field."""

    code = "unsupported"


class JobNotFound(TrainerError):
    """No such job on this API."""

    code = "job_not_found"


class JobConflict(TrainerError):
    """The job id or idempotency key was used with another body."""

    code = "job_conflict"


class JobStateConflict(TrainerError):
    """The job's status does not allow this change."""

    code = "job_state_conflict"


class StaleAttempt(TrainerError):
    """A write by an attempt that no longer owns the job. Its writer must stop."""

    code = "stale_attempt"


class QueueFull(TrainerError):
    """As many jobs wait as the operator allows."""

    code = "queue_full"


class Unschedulable(TrainerError):
    """The job asks for more than the cluster has or may ever have."""

    code = "unschedulable"


class Unauthorized(TrainerError):
    """The token is missing or wrong."""

    code = "unauthorized"


class BodyTooLarge(TrainerError):
    """The request body is over the limit."""

    code = "body_too_large"


class RunError(TrainerError):
    """What ends an attempt. Its code becomes the job's `error.code`."""

    code = "internal"


class DatasetInvalid(RunError):
    """A row cannot be used, or nothing is left to train on."""

    code = "dataset_invalid"


class ModelAccess(RunError):
    """The base model cannot be read: not found, gated, or not in safetensors."""

    code = "model_access"


class ConfigInvalid(RunError):
    """The settings do not fit the model or the machine."""

    code = "config_invalid"


class OutOfMemory(RunError):
    """A worker ran out of GPU or main memory."""

    code = "out_of_memory"


class LossNotFinite(RunError):
    """The loss became NaN or infinite."""

    code = "loss_not_finite"


class WorkerLost(RunError):
    """A worker or driver process ended without a word."""

    code = "worker_lost"
    retryable = True


class StorageFailed(RunError):
    """The object store did not answer, or refused."""

    code = "storage"
    retryable = True


class DeadlineReached(RunError):
    """`resources.max_duration_minutes` is over."""

    code = "deadline"


class InternalError(RunError):
    """A defect of ours; the traceback is in `train.log`."""

    code = "internal"
