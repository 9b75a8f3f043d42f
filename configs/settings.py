"""The operator's settings, from the environment or `.env`. Not for what a request may choose."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Each field is the environment variable of its name in capitals, after `TRAINER_`; the
    database's is plain `DATABASE_URL`. The line under a field is its documentation."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINER_",
        env_file=".env",
        # `TRAINER_API_TOKEN=` in a `.env` means none, not an empty one.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    host: str = "127.0.0.1"
    """Address that the local service listens on."""

    port: int = Field(8000, ge=1, le=65535)
    """Port of all three APIs."""

    api_token: SecretStr | None = None
    """Required in the header `X-TRAINER-TOKEN` on all but the health routes, when set."""

    home: Path = Path(".trainer")
    """Folder for the database, keys, scratch files and the local stack's state."""

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    """`postgresql://…`; a SQLite file under `home` when unset."""

    secret_key: SecretStr | None = None
    """Key material that request secrets are encrypted with; a key file under `home` when unset."""

    engine: Literal["simulated"] | None = None
    """`simulated` runs every job without a model, for development and CI."""

    callback_interval_seconds: float = Field(60, gt=0)
    """Time between progress callbacks of a job."""

    refuse_unschedulable: bool = False
    """Refuse at once (422) what the cluster can never hold, instead of letting it wait."""

    max_queued_jobs: int = Field(1000, ge=1)
    """Jobs that may wait; one more gets 429."""

    max_attempts: int = Field(3, ge=1)
    """Tries of one job when its processes are lost."""

    cancel_grace_seconds: float = Field(60, ge=0)
    """Time that a running attempt has to save and return before its processes are stopped."""

    file_root: Path | None = None
    """`file://` URIs must lie below it; they are refused when unset."""

    model_root: Path | None = None
    """Folder of the models with provider `local`."""

    allow_remote_code: bool = False
    """Let requests set `trust_remote_code`."""

    max_gpus: int = Field(0, ge=0)
    """GPUs that the cluster may scale up to; a job within it waits instead of never fitting."""

    max_cpus: int = Field(0, ge=0)
    """CPU cores that the cluster may scale up to."""

    envs_root: Path | None = None
    """Folder of further Python environments, `<envs_root>/<name>/bin/python`."""

    reward_functions: dict[str, str] = Field(default_factory=dict)
    """The operator's reward functions for objective `grpo`, as JSON: name to `package.module:name`,
    importable on the workers."""

    @property
    def environments(self) -> frozenset[str]:
        """Names of the further Python environments that are installed."""
        if self.envs_root is None:
            return frozenset()
        return frozenset(path.parents[1].name for path in self.envs_root.glob("*/bin/python"))

    @property
    def store_url(self) -> str:
        """SQLAlchemy's URL of the job store."""
        if self.database_url is None:
            return f"sqlite:///{(self.home / 'trainer.db').absolute()}"
        url = self.database_url.get_secret_value()
        scheme, _, rest = url.partition("://")
        return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url

    @property
    def scratch(self) -> Path:
        """Folder for downloads and checkpoints on their way."""
        return self.home.absolute() / "scratch"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
