"""The JobTracker: the detached actor that turns the supervisor and delivers the callbacks.

Thin on purpose: it restarts with empty memory at any moment, and everything lies in the store.
"""

import asyncio
import logging
from importlib.metadata import version
from typing import Any

import ray

from configs.names import RAY_NAMESPACE, TRACKER_PREFIX
from configs.settings import Settings
from serve_app.cluster import read_capacity
from serve_app.launcher import RayJobLauncher
from serve_app.secret_box import SecretBox
from serve_app.store.job_store import JobStore
from serve_app.supervisor import Supervisor
from serve_app.webhooks import Webhooks

logger = logging.getLogger(__name__)

TURN_INTERVAL_S = 1.0
MOST_CALLS = 1000


def tracker_name() -> str:
    """The actor's name carries the code's version: a detached actor outlives a code change."""
    return TRACKER_PREFIX + version("trainer-apis")


class JobTracker:
    """An async actor: two loops, and the calls of replicas and attempts."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.INFO)
        settings = Settings()
        self._store = JobStore.open(settings.store_url, SecretBox.open(settings))
        self._supervisor = Supervisor(
            self._store, RayJobLauncher(settings), lambda: read_capacity(settings), settings
        )
        self._webhooks = Webhooks(self._store, settings)
        self._bell = asyncio.Event()
        _retire_older(tracker_name())
        # Ray builds an async actor inside its event loop, so the loops can start here.
        self._loops = [
            asyncio.get_running_loop().create_task(self._turn_often()),
            asyncio.get_running_loop().create_task(self._deliver_often()),
        ]

    async def nudge(self) -> None:
        """A replica has written something: look now."""
        self._bell.set()

    async def plan(self, job_id: str, attempt: int) -> str | None:
        """See `Supervisor.plan`."""
        return await asyncio.to_thread(self._supervisor.plan, job_id, attempt)

    async def secrets(self, job_id: str, attempt: int) -> dict[str, str]:
        """See `Supervisor.secrets`."""
        return await asyncio.to_thread(self._supervisor.secrets, job_id, attempt)

    async def record(self, job_id: str, event_json: str) -> str:
        """See `Supervisor.record`; the order as JSON."""
        order = await asyncio.to_thread(self._supervisor.record, job_id, event_json)
        return order.model_dump_json()

    async def _turn_often(self) -> None:
        while True:
            await _logged("turn", asyncio.to_thread(self._supervisor.turn))
            await self._pause()

    async def _deliver_often(self) -> None:
        while True:
            await _logged("callbacks", self._webhooks.deliver_due())
            await asyncio.sleep(TURN_INTERVAL_S / 4)

    async def _pause(self) -> None:
        """Until the next turn is due, or somebody nudges."""
        try:
            await asyncio.wait_for(self._bell.wait(), TURN_INTERVAL_S)
        except TimeoutError:
            return
        self._bell.clear()


async def _logged(what: str, work: Any) -> None:
    """A turn that fails (the dashboard restarts, the database is busy) is tried again."""
    try:
        await work
    except Exception:
        logger.exception("%s failed", what)


def ensure_tracker() -> Any:
    """The tracker's handle; starts the actor when it is not there. Does not wait for it."""
    actor = ray.remote(JobTracker)
    return actor.options(
        name=tracker_name(),
        namespace=RAY_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=MOST_CALLS,
    ).remote()


def _retire_older(mine: str) -> None:
    """End the trackers of other versions; the store keeps two from doing harm meanwhile."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = actor["name"]
        if actor["namespace"] == RAY_NAMESPACE and name.startswith(TRACKER_PREFIX) and name != mine:
            ray.kill(ray.get_actor(name, namespace=RAY_NAMESPACE), no_restart=True)
