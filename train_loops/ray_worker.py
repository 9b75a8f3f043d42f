"""One Ray Train worker: takes its seat, trains, and reports why it could not.

Ray Train calls `run` on every rank. It is the worker boundary: whatever ends a run is told to the
service here, and then raised so that Ray ends the other ranks too.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from configs.errors import StorageFailed
from configs.job import Failed, JobError, Order, PhaseChanged
from configs.settings import Settings
from train_loops.checkpoint import RayCheckpoints
from train_loops.engines.base import Inputs, find_engine
from train_loops.inputs import fetch
from train_loops.plan import Plan
from train_loops.report import Reporter, SilentReporter, TrackerReporter, as_run_error, now
from train_loops.run_log import RunLog
from train_loops.sinks.base import FanOut
from train_loops.stores.base import ObjectStore
from train_loops.stores.open import open_store
from train_loops.worker import Seat, train

logger = logging.getLogger(__name__)


def run(config: dict[str, Any]) -> None:
    """The `train_loop_per_worker` of every run. `config` holds the plan, and no secret."""
    import ray.train

    plan, settings = Plan.model_validate_json(config["plan"]), Settings()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    tracker = TrackerReporter(plan.job_id)
    reporter: Reporter = tracker if rank == 0 else SilentReporter()
    with failures_reported(tracker, plan):
        reporter.send(PhaseChanged(at=now(), attempt=plan.attempt, phase="loading_model"))
        token = tracker.call("secrets", plan.job_id, plan.attempt).get("hub_token")
        inputs = fetch(plan, settings, token, worker=f"rank-{rank}")
        store = open_store(plan.output_uri, settings)
        with _sinks(plan, inputs, store, rank) as sinks:
            seat = Seat(
                rank=rank,
                world_size=world_size,
                reporter=reporter,
                checkpoints=RayCheckpoints(plan.attempt, inputs.scratch),
                sinks=sinks,
                store=store,
                agree=agreement(rank, world_size, plan),
            )
            train(plan, find_engine(plan.engine), inputs, seat)


@contextlib.contextmanager
def failures_reported(reporter: TrackerReporter, plan: Plan) -> Iterator[None]:
    """The worker boundary: tell the service why the attempt ends, then let Ray see it too."""
    try:
        yield
    except Exception as error:
        cause = as_run_error(error)
        told = JobError(
            code=cause.code, message=cause.message, hint=cause.hint, retryable=cause.retryable
        )
        with contextlib.suppress(StorageFailed):
            reporter.send(Failed(at=now(), attempt=plan.attempt, error=told))
        raise


@contextlib.contextmanager
def _sinks(plan: Plan, inputs: Inputs, store: ObjectStore, rank: int) -> Iterator[FanOut]:
    """Rank 0's log and metrics; the other ranks keep theirs to themselves."""
    if rank:
        yield FanOut([])
        return
    with RunLog(plan, inputs.scratch / "logs", store) as log:
        yield log.sinks


def agreement(rank: int, world_size: int, plan: Plan) -> Callable[[Order], Order]:
    """How the ranks of a run come to the same order at the same step."""
    if world_size == 1:
        return lambda order: order
    return _torch_agreement(rank) if find_engine(plan.engine).uses_torch else _ray_agreement


_STOPS = (None, "cancel", "deadline", "stale")


def _torch_agreement(rank: int) -> Callable[[Order], Order]:
    """One integer broadcast a step over the group that trains."""
    import torch
    import torch.distributed as dist

    def agree(order: Order) -> Order:
        # Asked for here: outside Ray, the engine makes the group when it is built.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        code = torch.tensor([_STOPS.index(order.stop) if rank == 0 else 0], device=device)
        dist.broadcast(code, src=0)
        return Order(stop=_STOPS[int(code.item())])

    return agree


def _ray_agreement(order: Order) -> Order:
    from ray.train.collective import broadcast_from_rank_zero

    return Order(stop=broadcast_from_rank_zero(order.stop))
