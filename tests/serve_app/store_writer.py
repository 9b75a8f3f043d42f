"""A process that writes to a store until it is done or killed, and says what was acknowledged.

`test_store_concurrency.py` runs it as `-m tests.serve_app.store_writer <url> <what> <prefix>`.
"""

import sys
from itertools import count

from serve_app.secret_box import SecretBox
from serve_app.store import JobStore
from tests.serve_app.conftest import KEY_MATERIAL, make_job


def post_for_ever(store: JobStore, prefix: str) -> None:
    for number in count():
        job_id = f"{prefix}-{number}"
        store.submit(
            make_job(job_id),
            digest=job_id,
            idempotency_key=job_id,
            secrets={"base_model.auth_token": f"token of {job_id}"},
            max_queued=1_000_000,
        )
        sys.stdout.write(f"{job_id}\n")
        sys.stdout.flush()


def post_each_key(store: JobStore, prefix: str) -> None:
    """One post for each of 100 keys, under ids of this process's own."""
    for number in range(100):
        job, created = store.submit(
            make_job(f"{prefix}-{number}"),
            digest=f"body {number}",
            idempotency_key=f"key {number}",
            secrets={},
            max_queued=1_000_000,
        )
        sys.stdout.write(f"{number} {job.job_id} {int(created)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    url, what, argument = sys.argv[1:]
    work = {"for-ever": post_for_ever, "each-key": post_each_key}[what]
    work(JobStore.open(url, SecretBox(KEY_MATERIAL)), argument)
