"""What runs on each rank: build, resume, train, checkpoint, export; with and without Ray."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from configs.errors import LossNotFinite
from configs.job import Finalizing, Order, PhaseChanged, Progress, Progressed, Started
from configs.request import TrainRequest
from train_loops import exports
from train_loops.artifact import describe, publish
from train_loops.checkpoint import Checkpoints
from train_loops.data.prepare import load_validation
from train_loops.engines.base import Engine, Inputs, Metrics, TrainLoop
from train_loops.plan import Plan, checkpoint_interval
from train_loops.report import Reporter, now
from train_loops.sinks.base import FanOut
from train_loops.speed import Speedometer, peak_memory_bytes
from train_loops.stores.base import ObjectStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker's place in the run and what it may touch."""

    rank: int
    world_size: int
    reporter: Reporter
    checkpoints: Checkpoints
    sinks: FanOut
    store: ObjectStore
    agree: Callable[[Order], Order]
    """Rank 0's order on every rank, so that all stop at the same step."""

    def with_sinks(self, sinks: FanOut) -> "Seat":
        """This seat, with metrics going to `sinks`."""
        return replace(self, sinks=sinks)


def train(plan: Plan, engine: Engine, inputs: Inputs, seat: Seat) -> Order:
    """Run `plan` on this rank to its end or to a stop; the order that ended it (none: finished).

    Raises:
        RunError: the run cannot go on.
    """
    loop = engine.build(plan, inputs, rank=seat.rank, world_size=seat.world_size)
    try:
        validates = engine.uses_torch and load_validation(inputs.data_folder) is not None
        order = _steps(plan, loop, seat, validates)
        if order.stop is None and (order := _finalizing(plan, seat)).stop is None:
            _finish(plan, engine, loop, inputs, seat)
        return order
    finally:
        loop.close()


def _steps(plan: Plan, loop: TrainLoop, seat: Seat, validates: bool) -> Order:
    if (checkpoint := seat.checkpoints.latest()) is not None:
        logger.info("resuming from checkpoint %s", checkpoint.name)
        loop.load(checkpoint)
    span = loop.begin()
    logger.info("training from step %d to %d", span.first_step, span.total_steps)
    seat.reporter.send(
        Started(
            at=now(),
            attempt=plan.attempt,
            total_steps=span.total_steps,
            resumed_from_step=span.first_step,
        )
    )
    every = checkpoint_interval(plan.tuning, span.total_steps)
    speedometer = Speedometer(span.total_steps)
    for metrics in loop.steps():
        progress = _told(plan, metrics, speedometer, seat)
        order = seat.agree(seat.reporter.progress(plan.attempt, progress))
        if order.stop == "stale":
            return order
        last, due = metrics.step == span.total_steps, metrics.step % every == 0
        if validates and not order.stop and (due or last):
            speedometer.validation_loss = _validated(plan, loop, metrics, seat)
        if order.stop or (due and not last):
            seat.checkpoints.save(loop, metrics)
        if order.stop:
            _say_saved(plan, metrics, order, seat)
            return order
        if last:
            # Surely, because progress in passing is sent once a second at most.
            progress = speedometer.now(progress)
            seat.reporter.send(Progressed(at=now(), attempt=plan.attempt, progress=progress))
    return Order()


def _validated(plan: Plan, loop: TrainLoop, metrics: Metrics, seat: Seat) -> float:
    loss = loop.evaluate()
    record = {"at": now().isoformat(), "attempt": plan.attempt, "step": metrics.step}
    seat.sinks.log({**record, "validation_loss": loss})
    return loss


def _say_saved(plan: Plan, metrics: Metrics, order: Order, seat: Seat) -> None:
    logger.info("stopped at step %d: %s", metrics.step, order.stop)
    seat.reporter.send(
        PhaseChanged(
            at=now(),
            attempt=plan.attempt,
            phase="checkpoint_saved",
            detail=f"a checkpoint was saved at step {metrics.step}",
        )
    )


def _told(plan: Plan, metrics: Metrics, speedometer: Speedometer, seat: Seat) -> Progress:
    """The progress that the step makes, once its metrics have gone to the sinks."""
    if not math.isfinite(metrics.loss):
        raise LossNotFinite(
            f"the loss is {metrics.loss} at step {metrics.step}",
            param="tuning_parameters.learning_rate",
            hint="Lower learning_rate, raise warmup_ratio, or use precision bf16 or fp32.",
        )
    progress = speedometer.progress(metrics)
    seat.sinks.log(
        {
            "at": now().isoformat(),
            "attempt": plan.attempt,
            "step": metrics.step,
            "epoch": progress.epoch,
            "train_loss": metrics.loss,
            "learning_rate": metrics.learning_rate,
            "grad_norm": metrics.grad_norm,
            "tokens": metrics.tokens,
            "tokens_per_second": progress.tokens_per_second,
            "peak_memory_bytes": peak_memory_bytes(plan.device),
        }
    )
    return progress


def _finalizing(plan: Plan, seat: Seat) -> Order:
    """Say that results come now: too late for a cancel, but an attempt that is fenced off stops."""
    order = seat.agree(seat.reporter.send(Finalizing(at=now(), attempt=plan.attempt)))
    return order if order.stop == "stale" else Order()


def _finish(plan: Plan, engine: Engine, loop: TrainLoop, inputs: Inputs, seat: Seat) -> None:
    folder = inputs.scratch / "result"
    weights = folder / result_folder(plan.spec)
    loop.export(weights)
    # Before anything is merged: that needs the memory.
    loop.close()
    if seat.rank == 0:
        if engine.uses_torch:
            exports.write(plan, inputs, weights)
        else:
            exports.simulate(plan, weights)
        describe(plan, inputs.data_folder, folder)
        manifest = publish(plan, folder, seat.store)
        logger.info("published %d files to %s", len(manifest.files), plan.results_uri)


def result_folder(request: TrainRequest) -> str:
    """Name of the folder that holds the weights."""
    return "model" if request.customization.method == "full" else "adapter"
