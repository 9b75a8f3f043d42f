"""One local stack for all tests of this folder: the service as a user starts it, on free ports."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.job import Job, JobStatus
from configs.names import Backend
from configs.settings import Settings
from serve_app.client import TrainerClient
from serve_app.local import assets, processes
from serve_app.local.stack import LocalStack, StackState
from train_loops.tiny_llama import TinyLlamaShape, build_tiny_llama, read_plain_text

TOKEN = "stack-test-token"
PATIENCE_S = 240.0
SMALL = TinyLlamaShape(vocabulary_size=600, hidden_size=64, intermediate_size=128)


class Service:
    """The running stack as a test sees it."""

    def __init__(self, state: StackState, home: Path) -> None:
        self.state, self.home = state, home
        self.s3 = assets.s3_client(state)

    def client(self, backend: Backend = "hf-unsloth", token: str | None = TOKEN) -> TrainerClient:
        """A client of one API."""
        return TrainerClient(self.state.base_url, token=token, backend=backend)

    def submit(self, request: dict[str, Any], backend: Backend = "hf-unsloth") -> Job:
        """Post a job."""
        with self.client(backend) as client:
            return client.submit(request)

    def until(self, job: Job, reached: Callable[[Job], bool]) -> Job:
        """Poll the job until `reached`, over outages of the API."""
        deadline = time.monotonic() + PATIENCE_S
        with self.client(job.backend) as client:
            while time.monotonic() < deadline:
                try:
                    job = client.get(job.job_id)
                except (OSError, RuntimeError, Exception):
                    time.sleep(0.2)
                    continue
                if reached(job):
                    return job
                time.sleep(0.1)
        raise AssertionError(f"not reached within {PATIENCE_S} s: {job.status} {job.detail}")

    def ended(self, job: Job) -> Job:
        """Wait for the job's end."""
        return self.until(job, lambda now: now.status.terminal)

    def training(self, job: Job, step: int) -> Job:
        """Wait until the job has done `step` steps."""
        return self.until(
            job, lambda now: now.status.terminal or (trains(now) and now.progress.step >= step)
        )

    def processes(self, title: str) -> list[psutil.Process]:
        """The stack's processes with `title` in their command line."""
        found = processes.owned(self.state.stack_id, self.state.ray_folder)
        return [process for process in found if title in _command(process)]

    def kill(self, title: str) -> None:
        """SIGKILL the processes with this title; there must be one."""
        victims = self.processes(title)
        assert victims, f"no process {title!r}"
        for process in victims:
            process.kill()

    def text(self, uri: str) -> str:
        """An object of the S3 endpoint as text."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return str(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode())

    def keys(self, uri: str) -> set[str]:
        """Names below a folder of the S3 endpoint."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {o["Key"].removeprefix(prefix) for page in pages for o in page.get("Contents", [])}


def trains(job: Job) -> bool:
    """Whether steps are being done."""
    return job.status is JobStatus.RUNNING


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The stack, with a small base model and the demo's dataset on its S3 endpoint."""
    with tempfile.TemporaryDirectory(prefix="trainer-test-") as folder:
        home = Path(folder)
        settings = Settings(
            home=home,
            port=processes.free_port(),
            api_token=TOKEN,
            callback_interval_seconds=2,
            cancel_grace_seconds=30,
        )
        model = home / "models" / "demo-llama"
        corpus = read_plain_text(assets.dataset_file())
        build_tiny_llama(model, corpus, steps=5, shape=SMALL)
        stack = LocalStack(settings)
        try:
            state = stack.start(lambda _: None)
            assets.upload(state, model)
            yield Service(state, home)
        finally:
            stack.stop()
        assert processes.owned(state.stack_id, state.ray_folder) == []


def request(**changes: Any) -> dict[str, Any]:
    """A short LoRA job on the demo's model and data; nested fields by section."""
    body: dict[str, Any] = {
        "base_model": {"provider": "s3", "model_name": assets.MODEL_URI},
        "datasets": [{"source": assets.DATASET_URI}],
        "customization": {"method": "lora", "precision": "fp32"},
        "resources": {"cpus": 1},
        "tuning_parameters": {"max_steps": 12, "batch_size": 8, "max_sequence_length": 256},
    }
    return body | changes


def simulated(epochs: int = 1, every: int = 20, **changes: Any) -> dict[str, Any]:
    """A simulated job of ten steps an epoch."""
    return request(
        customization={"method": "lora", "engine": "simulated"},
        tuning_parameters={"num_epochs": epochs, "checkpoint_every_steps": every},
        **changes,
    )
