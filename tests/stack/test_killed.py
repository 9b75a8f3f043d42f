"""Processes killed with SIGKILL in mid-run: the job still ends right, and once."""

import json

import pytest

from configs.job import Job, JobStatus
from tests.stack.conftest import Service, request, simulated

pytestmark = pytest.mark.stack


def assert_succeeded_once(service: Service, job: Job, attempts: int) -> None:
    """The end, the number of tries, and exactly one terminal event in the history."""
    assert job.status is JobStatus.SUCCEEDED, (job.error, job.detail)
    assert job.attempt == attempts
    service.until(job, lambda now: "succeeded" in service.text(now.log_uri + "events.jsonl"))
    history = [json.loads(x) for x in service.text(job.log_uri + "events.jsonl").splitlines()]
    assert [line["event"]["type"] for line in history].count("succeeded") == 1
    assert [line["event"]["type"] for line in history].count("admitted") == attempts


def test_a_killed_tracker_comes_back_and_the_run_is_not_disturbed(service: Service) -> None:
    job = service.training(service.submit(simulated(epochs=20)), step=3)
    service.kill("ray::JobTracker")
    assert_succeeded_once(service, service.ended(job), attempts=1)


def test_a_killed_replica_comes_back_and_the_run_is_not_disturbed(service: Service) -> None:
    job = service.training(service.submit(simulated(epochs=20)), step=3)
    service.kill("ray::ServeReplica:hf-unsloth")
    assert_succeeded_once(service, service.ended(job), attempts=1)


def test_a_killed_worker_is_replaced_and_training_goes_on_from_its_checkpoint(
    service: Service,
) -> None:
    tuning = {"max_steps": 60, "num_epochs": 99, "batch_size": 8, "checkpoint_every_steps": 5}
    job = service.training(service.submit(request(tuning_parameters=tuning)), step=12)
    service.kill("ray::RayTrainWorker")
    job = service.ended(job)
    assert_succeeded_once(service, job, attempts=2)
    lines = [json.loads(x) for x in service.text(job.log_uri + "metrics.jsonl").splitlines()]
    second = [line["step"] for line in lines if line["attempt"] == 2]
    assert second[0] > 1 and second == list(range(second[0], 61))
    assert all(artifact.name.startswith("attempt-2/") for artifact in job.artifacts)


def test_a_killed_driver_is_replaced_too(service: Service) -> None:
    job = service.training(service.submit(simulated(epochs=20, every=10)), step=12)
    service.kill(f"train_loops.driver --job-id {job.job_id}")
    assert_succeeded_once(service, service.ended(job), attempts=2)
