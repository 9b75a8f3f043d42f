"""The request of all three APIs: one training job, whole. What an engine can honour of it is in
`capabilities.py`."""

from typing import Annotated, Any, Literal

from pydantic import Field, HttpUrl, SecretStr, field_validator, model_validator

from configs.adapter import CustomizationSpec
from configs.base import Spec
from configs.base_model import BaseModelSpec
from configs.dataset import DatasetSpec, StoreUri
from configs.resources import ResourcesSpec
from configs.tuning import TuningParameters

JOB_ID_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

JobId = Annotated[str, Field(pattern=JOB_ID_PATTERN)]
ExportFormat = Literal["adapter", "merged_16bit", "meta"]
SinkType = Literal["jsonl", "tensorboard", "wandb", "mlflow"]


class ArtifactsSpec(Spec):
    """Where logs and results go. A URI whose last segment is not the job id gets it appended."""

    log_uri: StoreUri | None = None
    """Folder for `train.log`, `metrics.jsonl`, `events.jsonl`. Left out: `…/logs/<job_id>/` of the
    first dataset's `users/<userId>/projects/<projectId>/`."""

    output_uri: StoreUri | None = None
    """Folder for the results. Left out: `…/results/<job_id>/`, likewise."""

    export: Annotated[list[ExportFormat], Field(min_length=1, max_length=3)] | None = None
    """What is written beside what the method trains itself; the adapter (or, for `full`, the model)
    when left out."""


class LoggingSpec(Spec):
    """One place that metrics go to, beside the job's own `metrics.jsonl`."""

    type: SinkType
    """`jsonl` is always written; naming it is allowed."""


class CallbacksSpec(Spec):
    """Whom to tell about the job."""

    webhook_url: HttpUrl
    """Gets a POST at every change of status and at a steady interval until the job has ended."""

    @field_validator("webhook_url")
    @classmethod
    def _no_credentials(cls, url: HttpUrl) -> HttpUrl:
        if url.username or url.password:
            raise ValueError("a URL with a user name or password would be shown: leave them out")
        return url


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=32),
]


class TrainRequest(Spec):
    """One fine-tuning job, as it is posted to `/{api}/train`."""

    job_id: JobId | None = None
    """The job's name, unique in the service; made when left out. It also makes a repeated post
    safe: the same body answers with the same job, another body with 409."""

    base_model: BaseModelSpec
    """The model to start from."""

    datasets: Annotated[list[DatasetSpec], Field(min_length=1, max_length=64)]
    """What to learn from."""

    customization: CustomizationSpec
    """Method, objective, precision, engine."""

    resources: ResourcesSpec = ResourcesSpec()
    """What the job needs of the cluster."""

    artifacts: ArtifactsSpec = ArtifactsSpec()
    """Where logs and results go."""

    tuning_parameters: TuningParameters = TuningParameters()
    """Learning rate, batch, length, schedule."""

    logging: Annotated[list[LoggingSpec], Field(max_length=8, default_factory=list)]
    """Further metric sinks."""

    callbacks: CallbacksSpec | None = None
    """Webhook."""

    metadata: Metadata = Field(default_factory=dict)
    """Free labels, given back as they are."""

    @model_validator(mode="after")
    def _adds_up(self) -> "TrainRequest":
        if not any(dataset.split == "train" for dataset in self.datasets):
            raise ValueError("datasets: at least one must have split 'train'")
        self._sharding_fits_workers()
        share, rest = divmod(self.tuning_parameters.batch_size, self.data_parallel_workers)
        if rest:
            raise ValueError(
                f"tuning_parameters.batch_size ({self.tuning_parameters.batch_size}) must be a "
                f"multiple of the workers ({self.data_parallel_workers})"
            )
        micro = self.tuning_parameters.micro_batch_size
        if micro is not None and share % micro:
            raise ValueError(
                f"tuning_parameters.micro_batch_size ({micro}) must divide each worker's "
                f"share of the batch ({share})"
            )
        if self.tuning_parameters.validation_share and any(
            dataset.split == "validation" for dataset in self.datasets
        ):
            raise ValueError(
                "tuning_parameters.validation_share has no meaning beside a dataset with split "
                "'validation': leave one of them out"
            )
        return self

    def _sharding_fits_workers(self) -> None:
        sharding, workers = self.customization.sharding, self.resources.worker_count
        if sharding is not None and workers % sharding.tensor_parallel:
            raise ValueError(
                f"customization.sharding.tensor_parallel ({sharding.tensor_parallel}) must divide "
                f"the workers ({workers})"
            )

    @property
    def data_parallel_workers(self) -> int:
        """Workers that see different rows: those that compute one layer together count as one."""
        sharding = self.customization.sharding
        return self.resources.worker_count // (sharding.tensor_parallel if sharding else 1)

    def secrets(self) -> dict[str, str]:
        """The secrets of the request in clear, by the dotted path of their field."""
        found = {
            "base_model.auth_token": self.base_model.auth_token,
            "base_model.huggingface_token": self.base_model.huggingface_token,
        }
        return {path: value.get_secret_value() for path, value in found.items() if value}

    def public(self) -> dict[str, Any]:
        """The request as JSON values, each secret replaced by asterisks."""
        return self.model_dump(mode="json", exclude_none=True)

    def with_secrets(self, secrets: dict[str, str]) -> "TrainRequest":
        """This request with its masked tokens replaced by `secrets`; one not given becomes None."""
        tokens = {
            field: SecretStr(secrets[path]) if (path := f"base_model.{field}") in secrets else None
            for field in ("auth_token", "huggingface_token")
        }
        model = self.base_model.model_copy(update=tokens)
        return self.model_copy(update={"base_model": model})
