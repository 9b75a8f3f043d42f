"""What a receiver of callbacks can do to the service: nothing. Its answer is not read, and its
slowness makes no second delivery."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from serve_app.secret_box import SecretBox
from serve_app.store import JobStore
from serve_app.webhooks import Webhooks
from tests.serve_app.api_kit import GivenSettings
from tests.serve_app.conftest import KEY_MATERIAL
from tests.serve_app.test_webhooks import PATIENCE_S, BadReceiver, deliver, submit_to


class EndlessReceiver(BadReceiver):
    """Says yes, and promises a terabyte of answer that it never sends."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(2**40))
        request.end_headers()
        self.let_go.wait(PATIENCE_S)


class SlowReceiver(BadReceiver):
    """Says yes when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.let_go = threading.Event(), threading.Event()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.arrived.set()
        self.let_go.wait(PATIENCE_S)
        request.send_response(204)
        request.end_headers()


class LateStore(JobStore):
    """Its answer to what is due arrives only after the delivery under way has ended."""

    def __init__(self, store: JobStore, receiver: SlowReceiver) -> None:
        super().__init__(store._database, store._box)
        self.receiver, self.late = receiver, False

    def callbacks_due(self, now):  # type: ignore[no-untyped-def]
        due = super().callbacks_due(now)
        if self.late:
            self.receiver.let_go.set()
            pause = threading.Event()
            while self.callback_seq("job-1") == 0:
                pause.wait(0.01)
            pause.wait(0.1)
        return due


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore.open(f"sqlite:///{tmp_path / 'trainer.db'}", SecretBox(KEY_MATERIAL))
    yield store
    store.close()


def test_an_answer_without_end_counts_by_its_status_alone(opened: JobStore) -> None:
    with EndlessReceiver() as endless:
        submit_to(opened, endless.url)
        deliver(opened, lambda: opened.callback_seq("job-1") == 1)
        assert endless.posts == 1
        endless.let_go.set()


def test_a_delivery_that_ends_while_the_store_is_asked_is_not_made_again(
    opened: JobStore,
) -> None:
    async def ask_twice(store: LateStore) -> None:
        service = Webhooks(store, GivenSettings(callback_interval_seconds=3600.0))
        await service.deliver_due()
        assert await asyncio.to_thread(slow.arrived.wait, PATIENCE_S)
        store.late = True
        await service.deliver_due()
        await service.close()

    with SlowReceiver() as slow:
        submit_to(opened, slow.url)
        asyncio.run(ask_twice(LateStore(opened, slow)))
        assert slow.posts == 1
