"""What must still be told: due callbacks, back-off, exports; and what is over costs nothing."""

from datetime import datetime, timedelta

import sqlalchemy as sa

from serve_app.store import JobStore
from serve_app.store.engine import parse_url
from tests.serve_app.conftest import LATER, T0, make_job, start, submit, succeed

WEBHOOK = {"callbacks": {"webhook_url": "https://studio.example/hook"}}


def due(store: JobStore, now: datetime = LATER) -> list[str]:
    return [job.job_id for job in store.callbacks_due(now)]


def test_a_job_without_webhook_owes_no_callback(store: JobStore) -> None:
    submit(store)
    assert due(store) == []


def test_a_callback_is_due_until_the_last_event_is_delivered(store: JobStore) -> None:
    submit(store, make_job(request=WEBHOOK))
    assert due(store) == ["job-1"]
    job = start(store)
    store.callback_delivered("job-1", 1, None)
    assert due(store) == ["job-1"]
    store.callback_delivered("job-1", job.seq, None)
    assert due(store) == []


def test_progress_is_told_at_its_time_while_the_job_lives(store: JobStore) -> None:
    submit(store, make_job(request=WEBHOOK))
    store.callback_delivered("job-1", 1, next_due=LATER)
    assert due(store, LATER - timedelta(microseconds=1)) == []
    assert due(store, LATER) == ["job-1"]
    store.callback_delivered("job-1", 1, next_due=LATER + timedelta(minutes=1))
    assert due(store, LATER) == []
    ended = succeed(store)
    store.callback_delivered("job-1", ended.seq, next_due=LATER)
    assert due(store, LATER + timedelta(days=1)) == []


def test_failures_are_counted_and_back_off(store: JobStore) -> None:
    submit(store, make_job(request=WEBHOOK))
    assert store.callback_failed("job-1", next_try=LATER) == 1
    assert due(store, T0) == []
    assert due(store, LATER) == ["job-1"]
    assert store.callback_failed("job-1", next_try=LATER) == 2
    store.callback_delivered("job-1", 1, None)
    assert store.callback_failed("job-1", next_try=LATER) == 1


def test_after_giving_up_only_a_new_event_is_due(store: JobStore) -> None:
    submit(store, make_job(request=WEBHOOK))
    store.callback_delivered("job-1", 1, next_due=LATER)
    store.callback_failed("job-1", next_try=LATER)
    store.callback_abandoned("job-1", 1)
    assert due(store, LATER + timedelta(days=1)) == []
    start(store)
    assert due(store, T0) == ["job-1"]


def test_a_late_delivery_does_not_turn_the_cursor_back(store: JobStore) -> None:
    submit(store, make_job(request=WEBHOOK))
    job = start(store)
    store.callback_delivered("job-1", job.seq, None)
    store.callback_delivered("job-1", 1, None)
    assert due(store) == []


def test_histories_are_exported_to_their_end(store: JobStore) -> None:
    submit(store)
    assert [job.job_id for job in store.exports_due()] == ["job-1"]
    store.exported("job-1", 1)
    assert store.exports_due() == []
    ended = succeed(store)
    assert [job.seq for job in store.exports_due()] == [ended.seq]
    store.exported("job-1", ended.seq)
    assert store.exports_due() == []


def test_what_is_over_is_in_no_index_of_work(store: JobStore, store_url: str) -> None:
    submit(store, make_job(request=WEBHOOK))
    ended = succeed(store)
    store.callback_delivered("job-1", ended.seq, None)
    store.exported("job-1", ended.seq)
    engine = sa.create_engine(parse_url(store_url))
    with engine.connect() as connection:
        flags = sa.text("SELECT active, callback_open, export_open FROM jobs")
        assert tuple(connection.execute(flags).one()) == (0, 0, 0)
    engine.dispose()
