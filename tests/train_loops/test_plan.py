"""A request resolved into a plan: the batch split, places, and nothing secret."""

import json

from hypothesis import given
from hypothesis import strategies as st

from configs.tuning import TuningParameters
from tests.train_loops.plans import plan
from train_loops.plan import Plan, batch_split, checkpoint_interval

TOKEN = "hf_very_secret_token"


@given(workers=st.integers(1, 64), share=st.integers(1, 200))
def test_the_global_batch_is_micro_times_accumulation_times_workers(
    workers: int, share: int
) -> None:
    tuning = TuningParameters(batch_size=workers * share)
    micro, accumulation = batch_split(tuning, workers)
    assert micro * accumulation * workers == tuning.batch_size
    assert 1 <= micro <= 8


@given(workers=st.integers(1, 16), micro=st.integers(1, 32), accumulation=st.integers(1, 16))
def test_a_micro_batch_that_was_asked_for_is_kept(
    workers: int, micro: int, accumulation: int
) -> None:
    tuning = TuningParameters(batch_size=workers * micro * accumulation, micro_batch_size=micro)
    assert batch_split(tuning, workers) == (micro, accumulation)


def test_the_micro_batch_is_the_largest_divisor_up_to_eight() -> None:
    shares = {1: 1, 6: 6, 9: 3, 12: 6, 13: 1, 16: 8, 64: 8}
    found = {share: batch_split(TuningParameters(batch_size=share), 1)[0] for share in shares}
    assert found == shares


def test_a_gpu_is_a_worker() -> None:
    resolved = plan(resources={"gpus": 4}, tuning_parameters={"batch_size": 64})
    assert (resolved.device, resolved.workers) == ("cuda", 4)
    assert (resolved.micro_batch_size, resolved.accumulation_steps) == (8, 2)


def test_cores_and_memory_are_shared_out_among_the_workers() -> None:
    resolved = plan(resources={"workers": 4, "cpus": 8, "memory_gb": 16})
    assert resolved.cpus_per_worker == 2
    assert resolved.memory_bytes_per_worker == 4 * 2**30


def test_memory_is_not_reserved_when_left_out() -> None:
    assert plan().memory_bytes_per_worker is None


def test_a_checkpoint_comes_as_often_as_asked_for() -> None:
    assert checkpoint_interval(TuningParameters(checkpoint_every_steps=7), 10_000) == 7


def test_a_checkpoint_comes_every_tenth_of_a_long_run() -> None:
    assert checkpoint_interval(TuningParameters(), 1001) == 101


def test_a_short_run_has_at_least_25_steps_between_checkpoints() -> None:
    assert checkpoint_interval(TuningParameters(), 30) == 25


def test_logs_and_results_follow_from_the_project_of_the_dataset() -> None:
    resolved = plan("s3://bucket")
    assert resolved.log_uri == "s3://bucket/users/u1/projects/p1/logs/job-1/"
    assert resolved.output_uri == "s3://bucket/users/u1/projects/p1/results/job-1/"


def test_the_results_of_each_attempt_have_a_folder_of_their_own() -> None:
    assert plan(attempt=1).results_uri != plan(attempt=2).results_uri
    assert plan(attempt=2).results_uri.endswith("/results/job-1/attempt-2/")


def test_every_attempt_finds_the_same_checkpoints() -> None:
    assert plan(attempt=1).checkpoint_uri == plan(attempt=2).checkpoint_uri


def test_a_given_output_folder_gets_the_job_id_once() -> None:
    for given_uri in ("file:///out", "file:///out/", "file:///out/job-1", "file:///out/job-1/"):
        assert plan(artifacts={"output_uri": given_uri}).output_uri == "file:///out/job-1/"


def test_a_plan_holds_no_token() -> None:
    resolved = plan(base_model={"auth_token": TOKEN + "1", "huggingface_token": TOKEN})
    assert TOKEN not in resolved.model_dump_json()
    assert TOKEN not in repr(resolved)
    assert resolved.spec.secrets() == {}


def test_a_plan_survives_json() -> None:
    resolved = plan(resources={"workers": 2, "memory_gb": 3}, attempt=3)
    assert Plan.model_validate_json(resolved.model_dump_json()) == resolved


def test_a_plan_gives_the_request_back() -> None:
    resolved = plan(tuning_parameters={"learning_rate": 1e-5}, metadata={"team": "a"})
    assert resolved.tuning.learning_rate == 1e-5
    assert resolved.spec.metadata == {"team": "a"}
    assert json.loads(resolved.model_dump_json())["request"]["metadata"] == {"team": "a"}
