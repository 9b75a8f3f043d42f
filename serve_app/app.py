"""The Serve applications: the only place that binds. `build` makes one API; three are deployed."""

import logging
import time
from typing import Any

from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayError

from configs.names import Backend
from configs.settings import Settings
from serve_app.api import create_app
from serve_app.secret_box import SecretBox
from serve_app.store.job_store import JobStore
from serve_app.tracker import ensure_tracker

logger = logging.getLogger(__name__)


class ApiArguments(BaseModel):
    """Arguments of one application in a Serve config."""

    backend: Backend


NUDGE_INTERVAL_S = 0.5


@serve.deployment
@serve.ingress()
class TrainingApi:
    """A replica of one API: the FastAPI application, the store, and the tracker's bell."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._settings = Settings()
        self._box = SecretBox.open(self._settings)
        self._store = JobStore.open(self._settings.store_url, self._box)
        self._tracker: Any = None
        self._nudged_at = -NUDGE_INTERVAL_S
        self.check_health()

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(
            self._backend,
            settings=self._settings,
            store=self._store,
            box=self._box,
            nudge=self.nudge,
        )

    def nudge(self) -> None:
        """Wake the tracker, fire and forget; a job waits in the store when it is down.

        Once in a while is enough: each wake makes it look at the whole queue, and it looks every
        second by itself.
        """
        now = time.monotonic()
        if self._tracker is None or now - self._nudged_at < NUDGE_INTERVAL_S:
            return
        self._nudged_at = now
        try:
            self._tracker.nudge.remote()
        except RayError as error:
            logger.warning("the tracker was not woken: %s", error)
            self._tracker = None

    def check_health(self) -> None:
        """Serve calls this every few seconds: also the moment to bring back a missing tracker.

        A tracker that cannot start makes no replica unhealthy: the API answers without it.
        """
        try:
            self._tracker = ensure_tracker()
        except (RayError, ValueError) as error:
            logger.warning("the tracker could not be started: %s", error)


def build(arguments: ApiArguments) -> Any:
    """The application of one API, for `import_path: serve_app.app:build` of a Serve config."""
    return TrainingApi.bind(arguments.backend)  # type: ignore[attr-defined]
