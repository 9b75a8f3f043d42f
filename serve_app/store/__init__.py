"""What the service remembers: jobs, their history, idempotency keys, sealed secrets."""

from serve_app.store.job_store import JobStore

__all__ = ["JobStore"]
