"""What a job needs of the cluster, and for how long."""

from typing import Annotated

from pydantic import Field, model_validator

from configs.base import Spec


class ResourcesSpec(Spec):
    """Totals over the whole job, not per worker."""

    gpus: Annotated[int, Field(ge=0, le=4096)] = 0
    """GPUs of the whole job, one worker on each. 0 trains on CPU."""

    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    """Accelerator as Ray names it: `A100`, `H100`, `L4`, …; any when left out."""

    cpus: Annotated[int, Field(ge=1, le=16384)] | None = None
    """CPU cores of the whole job; one a worker when left out."""

    memory_gb: Annotated[float, Field(gt=0, le=65536)] | None = None
    """Memory of the whole job in GiB; not reserved when left out."""

    workers: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Training processes. One a GPU; on CPU one, or as many as named here."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Machines to spread the workers over, evenly."""

    max_duration_minutes: Annotated[int, Field(ge=1, le=43200)] | None = None
    """Limit on one attempt's time, from its launch; then the job fails with code `deadline`."""

    @model_validator(mode="after")
    def _adds_up(self) -> "ResourcesSpec":
        if self.gpus == 0 and self.gpu_type is not None:
            raise ValueError("gpu_type has no meaning with gpus: 0; leave it out or ask for GPUs")
        if self.gpus and self.workers not in (None, self.gpus):
            raise ValueError(f"workers must equal gpus ({self.gpus}), or be left out")
        if self.worker_count % self.nodes:
            raise ValueError(
                f"{self.worker_count} workers cannot be spread evenly over {self.nodes} nodes"
            )
        if self.cpus is not None and self.cpus % self.worker_count:
            raise ValueError(
                f"cpus ({self.cpus}) must be a multiple of the workers ({self.worker_count})"
            )
        return self

    @property
    def worker_count(self) -> int:
        """Training processes of the job."""
        return self.gpus or self.workers or 1

    @property
    def cpus_per_worker(self) -> int:
        """CPU cores that each worker reserves."""
        return (self.cpus or self.worker_count) // self.worker_count
