"""The plan of a run: the request with every default resolved, before any data or model is read.

Made by the service when an attempt starts, read by driver and workers, and written beside the
results. It holds no secret, so that Ray may show it.
"""

from typing import Any, Literal

from configs.adapter import EngineName
from configs.capabilities import ENGINES, refuse
from configs.errors import ConfigInvalid
from configs.job import Job, Record
from configs.names import Backend, attempt_folder, locations
from configs.request import TrainRequest
from configs.resources import ResourcesSpec
from configs.tuning import TuningParameters

MICRO_BATCH_LIMIT = 8
CHECKPOINTS_PER_RUN = 10
SHORTEST_INTERVAL_STEPS = 25


class Plan(Record):
    """One attempt of one job, fully resolved."""

    job_id: str
    attempt: int
    """Fencing token: every file and event of the attempt carries it."""
    backend: Backend
    engine: EngineName
    environment: str | None = None
    """Python environment of driver and workers; None is the service's own."""
    device: Literal["cpu", "cuda"]
    workers: int
    nodes: int
    cpus_per_worker: int
    memory_bytes_per_worker: int | None
    gpu_type: str | None
    micro_batch_size: int
    """Rows per forward pass of one worker."""
    accumulation_steps: int
    """Forward passes per optimizer step; batch_size = micro × accumulation × workers (those that
    compute one layer together count as one)."""
    log_uri: str
    output_uri: str
    request: dict[str, Any]
    """The request, secrets masked."""

    @property
    def spec(self) -> TrainRequest:
        """The request as a schema object, without its secrets."""
        return TrainRequest.model_validate(self.request).with_secrets({})

    @property
    def tuning(self) -> TuningParameters:
        """The numbers of the run."""
        return self.spec.tuning_parameters

    @property
    def checkpoint_uri(self) -> str:
        """Where Ray Train keeps the run's checkpoints, the same for every attempt."""
        return f"{self.output_uri}checkpoints"

    @property
    def results_uri(self) -> str:
        """Folder of this attempt's results."""
        return self.output_uri + attempt_folder(self.attempt)


def resolve(job: Job, attempt: int) -> Plan:
    """Resolve `job`'s request into the plan of its `attempt`-th try."""
    request = TrainRequest.model_validate(job.request)
    resources, where = request.resources, locations(request, job.job_id)
    micro, accumulation = batch_split(request.tuning_parameters, request.data_parallel_workers)
    return Plan(
        job_id=job.job_id,
        attempt=attempt,
        backend=job.backend,
        engine=job.engine,
        environment=ENGINES[job.engine].environment,
        device="cuda" if resources.gpus else "cpu",
        workers=resources.worker_count,
        nodes=resources.nodes,
        cpus_per_worker=resources.cpus_per_worker,
        memory_bytes_per_worker=_memory_per_worker(resources),
        gpu_type=resources.gpu_type,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        log_uri=where.log_uri,
        output_uri=where.output_uri,
        request=job.request,
    )


def require_supported(plan: Plan) -> None:
    """Ask the capability table once more, for runs that came by no API.

    Raises:
        ConfigInvalid: the engine cannot honour a setting; it names the field.
    """
    row = ENGINES[plan.engine]
    for refusal in refuse(plan.spec, row, environments={plan.environment or ""}):
        raise ConfigInvalid(
            f"engine {plan.engine!r} cannot honour the plan: {refusal.message}",
            refusal.param,
            refusal.hint,
        )


def batch_split(tuning: TuningParameters, workers: int) -> tuple[int, int]:
    """(micro-batch, accumulation steps) of each worker; their product is its share of the batch.

    The micro-batch is the one asked for, else the largest divisor of the share up to 8: larger ones
    rarely run faster and cost memory in proportion.
    """
    share = tuning.batch_size // workers
    micro = tuning.micro_batch_size or max(
        size for size in range(1, min(share, MICRO_BATCH_LIMIT) + 1) if share % size == 0
    )
    return micro, share // micro


def checkpoint_interval(tuning: TuningParameters, total_steps: int) -> int:
    """Steps between checkpoints: as asked for, else a tenth of the run, but 25 at least."""
    tenth = -(-total_steps // CHECKPOINTS_PER_RUN)
    return tuning.checkpoint_every_steps or max(SHORTEST_INTERVAL_STEPS, tenth)


def _memory_per_worker(resources: ResourcesSpec) -> int | None:
    if resources.memory_gb is None:
        return None
    return int(resources.memory_gb * 2**30) // resources.worker_count
