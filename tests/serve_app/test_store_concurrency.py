"""The job store under many threads, many processes, and processes that are killed."""

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import sqlalchemy as sa

from configs.errors import JobStateConflict, QueueFull
from configs.job import Admitted, JobStatus, Progress, Progressed, Started, StopRequested, Succeeded
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore
from serve_app.store.engine import parse_url
from tests.serve_app.conftest import T0, make_job

ROOT = Path(__file__).parents[2]


def writer(url: str, what: str, argument: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.serve_app.store_writer", url, what, argument]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_hundred_keys_by_ten_threads_make_a_hundred_jobs(store: JobStore) -> None:
    def post(number: int) -> tuple[int, str, bool]:
        key = number % 100
        job, created = store.submit(
            make_job(f"made-{number}"),
            digest=f"body {key}",
            idempotency_key=f"key {key}",
            secrets={},
            max_queued=1000,
        )
        return key, job.job_id, created

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(post, range(1000)))
    assert sum(created for _, _, created in answers) == 100
    assert len({(key, job_id) for key, job_id, _ in answers}) == 100
    assert len(store.active()) == 100


def test_a_hundred_keys_by_several_processes_make_a_hundred_jobs(
    store_url: str, box: SecretBox
) -> None:
    # None of them finds the tables: the migration is raced, too.
    writers = [writer(store_url, "each-key", f"p{number}") for number in range(3)]
    lines = [line for each in writers for line in each.communicate()[0].splitlines()]
    assert [each.returncode for each in writers] == [0] * 3
    answers = [line.split() for line in lines]
    assert len(answers) == 300
    assert Counter(created for _, _, created in answers)["1"] == 100
    assert len({(key, job_id) for key, job_id, _ in answers}) == 100
    store = JobStore.open(store_url, box)
    assert len(store.active()) == 100
    store.close()


def test_the_limit_of_the_queue_is_exact(store: JobStore) -> None:
    def post(number: int) -> bool:
        try:
            store.submit(
                make_job(f"job-{number}"),
                digest="",
                idempotency_key=None,
                secrets={},
                max_queued=10,
            )
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(post, range(40))) == 10


def test_of_two_endings_one_wins(store: JobStore) -> None:
    endings = (
        Succeeded(at=T0, attempt=1, artifacts=[]),
        StopRequested(at=T0, reason="cancel"),
        StopRequested(at=T0, reason="cancel"),
    )

    def end(number: int) -> str:
        try:
            return store.record("job-1", endings[number]).status.value
        except JobStateConflict:
            return "refused"

    store.submit(make_job(), digest="", idempotency_key=None, secrets={}, max_queued=1)
    store.record("job-1", Admitted(at=T0, attempt=1, backend_job_id="job-1-1"))
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(end, range(3)))
    final = store.get("job-1")
    assert final.status in (JobStatus.SUCCEEDED, JobStatus.CANCELLED)
    history = store.events("job-1")
    assert [record.seq for record in history] == list(range(1, final.seq + 1))
    assert [record.event.type for record in history].count("succeeded") == 1
    assert [record.event.type for record in history].count("stop_requested") <= 1
    assert answers[0] == final.status.value


def test_no_write_is_lost_among_writers_of_one_job(store: JobStore) -> None:
    store.submit(make_job(), digest="", idempotency_key=None, secrets={}, max_queued=1)
    store.record("job-1", Admitted(at=T0, attempt=1, backend_job_id="job-1-1"))
    store.record("job-1", Started(at=T0, attempt=1, total_steps=40))

    def progress(step: int) -> None:
        event = Progressed(at=T0, attempt=1, progress=Progress(step=step, total_steps=40))
        store.record("job-1", event)
        store.callback_failed("job-1", T0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(progress, range(40)))
    assert store.callback_failed("job-1", T0) == 41
    engine = sa.create_engine(store._database.url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version FROM jobs")).scalar() == 43
    engine.dispose()


def test_what_was_acknowledged_survives_sigkill(store_url: str, box: SecretBox) -> None:
    acknowledged: list[str] = []
    for round_number in range(3):
        process = writer(store_url, "for-ever", f"round{round_number}")
        assert process.stdout is not None
        acknowledged += [line.strip() for line in islice(process.stdout, 5 + 7 * round_number)]
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0]
        acknowledged += [line for line in rest.split("\n")[:-1] if line]
    store = JobStore.open(store_url, box)
    stored = {job.job_id for job in store.active()}
    assert len(acknowledged) >= 3 * 5
    assert set(acknowledged) <= stored
    # A job that was not acknowledged may be there, but then it is there whole.
    assert len(stored - set(acknowledged)) <= 3
    for job_id in stored:
        assert [record.seq for record in store.events(job_id)] == [1]
        assert store.secrets(job_id) == {"base_model.auth_token": f"token of {job_id}"}
    store.close()
    _check_integrity(store_url)


def _check_integrity(store_url: str) -> None:
    url = parse_url(store_url)
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(sa.text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []
        engine.dispose()
