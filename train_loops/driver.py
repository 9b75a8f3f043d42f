"""The Ray Job of one attempt: checks model and data, then drives the workers to the end.

Called as `python -m train_loops.driver --job-id … --attempt …` on a cluster; the command line
carries ids only, because Ray shows it to anyone who can reach its API.
"""

import argparse
import json
import logging
import sys
from typing import Any

from configs.capabilities import fallback
from configs.errors import ConfigInvalid, Unsupported
from configs.job import DataPrepared, EngineChanged, Order, PhaseChanged
from configs.names import RAY_NAMESPACE
from configs.settings import Settings
from train_loops import exports, ray_worker
from train_loops.engines.base import Inputs, find_engine
from train_loops.inputs import clean, fetch
from train_loops.plan import Plan
from train_loops.report import Reporter, TrackerReporter, now
from train_loops.run_log import RunLog
from train_loops.stores.open import arrow_filesystem, open_store

logger = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one attempt; 0 when it ended as it was asked to, 1 when it failed."""
    import ray

    parser = argparse.ArgumentParser(prog="train_loops.driver")
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--attempt", required=True, type=int)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    ray.init(namespace=RAY_NAMESPACE, log_to_driver=True)
    reporter, settings = TrackerReporter(asked.job_id), Settings()
    document = reporter.call("plan", asked.job_id, asked.attempt)
    if document is None:
        logger.warning("attempt %d no longer owns the job", asked.attempt)
        return 0
    return _attempt(Plan.model_validate_json(document), settings, reporter)


def _attempt(plan: Plan, settings: Settings, reporter: TrackerReporter) -> int:
    try:
        plan, order = _prepare(plan, settings, reporter)
        return 0 if order.stop else _fit(plan, settings)
    finally:
        clean(plan, settings)


def _prepare(plan: Plan, settings: Settings, reporter: TrackerReporter) -> tuple[Plan, Order]:
    """Read model and data here first: what is wrong with them ends the job before a GPU is held.

    The plan comes back with the engine that the model turned out to need.
    """
    store = open_store(plan.output_uri, settings)
    folder = settings.scratch / plan.job_id / f"attempt-{plan.attempt}" / "driver-logs"
    with ray_worker.failures_reported(reporter, plan), RunLog(plan, folder, store):
        _say(reporter, plan, "preparing_data")
        token = reporter.call("secrets", plan.job_id, plan.attempt).get("hub_token")
        inputs = fetch(plan, settings, token, worker="driver")
        _say_data(reporter, plan, inputs)
        exports.check(plan, inputs.model_folder)
        plan = _fitting(reporter, plan, inputs)
        return plan, _say(reporter, plan, "starting_workers")


def _say_data(reporter: TrackerReporter, plan: Plan, inputs: Inputs) -> None:
    if find_engine(plan.engine).uses_torch:
        from train_loops.data.prepare import load
        from train_loops.data.report import counts

        _, report = load(inputs.data_folder)
        logger.info("data: %s", report.model_dump_json())
        reporter.send(DataPrepared(at=now(), attempt=plan.attempt, data=counts(report)))


def _fitting(reporter: Reporter, plan: Plan, inputs: Inputs) -> Plan:
    """The plan, on another engine where this one does not know the model's architecture.

    Raises:
        ConfigInvalid: the request names the engine, or no other one can run the job.
    """
    config = inputs.model_folder / "config.json"
    if not config.exists():
        return plan
    model_type = json.loads(config.read_text()).get("model_type", "")
    try:
        choice = fallback(plan.spec, plan.backend, plan.engine, model_type)
    except Unsupported as error:
        raise ConfigInvalid(error.message, error.param, error.hint) from error
    if choice is None:
        return plan
    reporter.send(
        EngineChanged(
            at=now(),
            attempt=plan.attempt,
            engine=choice.engine,
            engine_reason=choice.reason,
            proxied_to=choice.proxied_to,
        )
    )
    return plan.model_copy(update={"engine": choice.engine})


def _say(reporter: TrackerReporter, plan: Plan, phase: str) -> Order:
    return reporter.send(PhaseChanged(at=now(), attempt=plan.attempt, phase=phase))


def _fit(plan: Plan, settings: Settings) -> int:
    """Train on the workers; the name is the same for every attempt, so a new one resumes.

    No failure is retried in here (`max_failures=0`): a lost worker ends the attempt, and the
    service starts the next one with a new fencing number. A worker tells its own errors; what is
    left is a lost process, and the exit status says that.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, TrainingFailedError

    filesystem, path = arrow_filesystem(plan.checkpoint_uri, settings)
    run_config = RunConfig(
        name=plan.job_id,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=0),
        checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
    )
    try:
        _trainer(plan, run_config).fit()
    except TrainingFailedError as error:
        logger.error("the workers failed: %s", error)
        return 1
    return 0


def _trainer(plan: Plan, run_config: Any) -> Any:
    config = {"plan": plan.model_dump_json()}
    if not find_engine(plan.engine).uses_torch:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        return DataParallelTrainer(
            ray_worker.run,
            train_loop_config=config,
            scaling_config=scaling_config(plan),
            run_config=run_config,
        )
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        ray_worker.run,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if plan.device == "cuda" else "gloo"),
        scaling_config=scaling_config(plan),
        run_config=run_config,
    )


def scaling_config(plan: Plan) -> Any:
    """The gang of workers as Ray Train asks for it."""
    from ray.train import ScalingConfig

    resources: dict[str, float] = {"CPU": plan.cpus_per_worker}
    if plan.device == "cuda":
        resources["GPU"] = 1
    if plan.memory_bytes_per_worker:
        resources["memory"] = plan.memory_bytes_per_worker
    return ScalingConfig(
        num_workers=plan.workers,
        use_gpu=plan.device == "cuda",
        resources_per_worker=resources,
        accelerator_type=plan.gpu_type,
        placement_strategy="SPREAD" if plan.nodes > 1 else "PACK",
    )


if __name__ == "__main__":
    sys.exit(main())
