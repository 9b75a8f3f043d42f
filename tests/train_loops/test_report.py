"""Whatever ends a run, told as one of the project's own errors."""

import pickle

import pytest

from configs.errors import (
    DatasetInvalid,
    InternalError,
    OutOfMemory,
    QueueFull,
    RunError,
    WorkerLost,
)
from configs.job import Progress
from train_loops.report import SilentReporter, as_run_error


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = DatasetInvalid("line 3: no answer", param="datasets[0]")
    assert as_run_error(error) is error


class OutOfMemoryError(RuntimeError):
    """torch's, by its name."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_is_short_says_what_to_lower(error: Exception) -> None:
    told = as_run_error(error)
    assert isinstance(told, OutOfMemory)
    assert "micro_batch_size" in str(told.hint)


def test_torchs_own_error_for_gpu_memory_is_known() -> None:
    import torch

    assert isinstance(as_run_error(torch.OutOfMemoryError("CUDA out of memory")), OutOfMemory)


@pytest.mark.parametrize(
    "text",
    [
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
        "Read error: Connection reset by peer",
        "NCCL error: ncclRemoteError: A call failed possibly due to a network error",
    ],
)
def test_a_worker_that_lost_its_peer_may_be_tried_again(text: str) -> None:
    told = as_run_error(RuntimeError(text))
    assert isinstance(told, WorkerLost)
    assert told.retryable


def test_anything_else_is_a_defect_of_ours_and_points_to_the_log() -> None:
    told = as_run_error(KeyError("input_ids"))
    assert type(told) is InternalError
    assert told.message == "KeyError: 'input_ids'"
    assert "train.log" in str(told.hint)
    assert not told.retryable


def test_an_error_that_belongs_to_the_api_is_a_defect_here() -> None:
    told = as_run_error(QueueFull("full", hint="wait"))
    assert type(told) is InternalError
    assert (told.message, told.hint) == ("full", "wait")


def test_a_long_message_is_told_by_its_first_line() -> None:
    told = as_run_error(ValueError("first\nsecond" + "x" * 10_000))
    assert told.message == "ValueError: first"
    assert len(as_run_error(ValueError("x" * 10_000)).message) < 600


def test_an_error_without_words_has_its_name() -> None:
    assert "AssertionError" in as_run_error(AssertionError()).message


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Broken pipe"), ValueError("x")])
def test_what_is_told_survives_pickling(error: Exception) -> None:
    told = as_run_error(error)
    again = pickle.loads(pickle.dumps(told))
    assert isinstance(again, RunError)
    assert (again.message, again.hint) == (told.message, told.hint)


def test_with_nobody_listening_every_event_is_kept_and_the_run_goes_on() -> None:
    reporter = SilentReporter()
    assert reporter.progress(2, Progress(step=5)).stop is None
    (event,) = reporter.events
    assert event.type == "progress"
    assert (event.attempt, event.progress.step) == (2, 5)
