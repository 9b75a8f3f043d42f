"""One fine-tuning job on each API, all the way, for a newcomer to watch: submit, train, callbacks,
compare.

Runs on a stack of its own (own home folder, free port), so that it disturbs no running service.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from configs.errors import InternalError
from configs.job import Job, JobStatus
from configs.names import BACKENDS, Backend
from configs.settings import Settings
from serve_app.client import TrainerClient
from serve_app.local import assets
from serve_app.local.compare import Comparison, compare, download_adapter
from serve_app.local.processes import free_port
from serve_app.local.receiver import WebhookReceiver
from serve_app.local.stack import LocalStack, StackState

POLL_S = 0.3
CALLBACK_INTERVAL_S = 5.0
EXAMPLE = "01-lora-every-api.json"
WORKERS: Mapping[Backend, int] = {"nemo": 1, "meta": 2, "hf-unsloth": 1}
PROMPTS_SHOWN = 3


def run(settings: Settings, console: Console, apis: Sequence[Backend] = BACKENDS) -> list[Job]:
    """The whole demo; a finished job of each API. What it started ends with it, on Ctrl-C too.

    Raises:
        InternalError: a job did not succeed.
    """
    own = settings.model_copy(
        update={
            "home": settings.home.absolute() / "demo",
            "port": free_port(),
            "callback_interval_seconds": CALLBACK_INTERVAL_S,
        }
    )
    stack = LocalStack(own)
    stack.check_startable()
    build = assets.ModelBuild(own)
    try:
        state = stack.start(lambda what: console.print(f"· {what}"))
        console.print("· waiting for the base model (a small Llama, built from the demo's text)")
        build.wait()
        assets.upload(state, build.folder)
        with WebhookReceiver() as receiver:
            jobs = _train(own, state, receiver.url, apis, console)
            _show_callbacks(receiver, jobs, console)
        _show_results(state, jobs, build.folder, own.home, console)
        return jobs
    finally:
        console.print("· stopping what was started")
        build.stop()
        stack.stop()


def example(name: str) -> dict[str, Any]:
    """A request of `configs/examples/`."""
    request: dict[str, Any] = json.loads((files("configs") / "examples" / name).read_text())
    return request


def _train(
    settings: Settings, state: StackState, webhook: str, apis: Sequence[Backend], console: Console
) -> list[Job]:
    token = settings.api_token.get_secret_value() if settings.api_token else None
    with ExitStack() as stack:
        clients = {
            api: stack.enter_context(TrainerClient(state.base_url, token=token, backend=api))
            for api in apis
        }
        jobs = {}
        for api, client in clients.items():
            jobs[api] = client.submit(_request(webhook, WORKERS[api]))
            address = f"{state.base_url}/{api}/train"
            console.print(f"· submitted [bold]{jobs[api].job_id}[/bold] to {address}")
        jobs = _watch(clients, jobs, console)
    for job in jobs.values():
        if job.status is not JobStatus.SUCCEEDED:
            raise InternalError(f"{job.job_id} ended as {job.status}: {job.detail}")
    return list(jobs.values())


def _request(webhook: str, workers: int) -> dict[str, Any]:
    request = example(EXAMPLE)
    resources = {**request["resources"], "workers": workers}
    return {**request, "resources": resources, "callbacks": {"webhook_url": webhook}}


def _watch(
    clients: Mapping[Backend, TrainerClient], jobs: Mapping[Backend, Job], console: Console
) -> dict[Backend, Job]:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
        TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    now = dict(jobs)
    with Progress(*columns, console=console) as bars:
        tasks = {api: bars.add_task(api, total=100, numbers="") for api in now}
        while not all(job.status.terminal for job in now.values()):
            time.sleep(POLL_S)
            for api, job in now.items():
                if not job.status.terminal:
                    now[api] = clients[api].get(job.job_id)
                    _show_progress(bars, tasks[api], now[api])
    return now


def _show_progress(bars: Progress, task: TaskID, job: Job) -> None:
    bars.update(
        task,
        completed=job.progress.percent,
        description=f"{job.backend} · {job.engine} · {job.status} ({job.phase.replace('_', ' ')})",
        numbers=numbers(job),
    )


def numbers(job: Job) -> str:
    """Step, loss, speed and time left of a running job, as far as they are known."""
    progress = job.progress
    if progress.loss is None:
        return job.detail
    speed, left = progress.tokens_per_second or 0, progress.eta_seconds or 0
    return (
        f"step {progress.step}/{progress.total_steps}  loss {progress.loss:.3f}  "
        f"{speed:,.0f} tokens/s  {left:.0f} s left"
    )


def _show_callbacks(receiver: WebhookReceiver, jobs: Sequence[Job], console: Console) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not _told_of_the_ends(receiver, jobs):
        time.sleep(0.1)
    for job in jobs:
        events = [body["event"] for body in receiver.bodies if body["job_id"] == job.job_id]
        changes = " → ".join(event for event in events if event != "progress")
        console.print(
            f"· {len(events)} callbacks of {job.job_id}: {changes}; "
            f"progress × {events.count('progress')}"
        )


def _told_of_the_ends(receiver: WebhookReceiver, jobs: Sequence[Job]) -> bool:
    told = {b["job_id"] for b in receiver.bodies if b["status"] == JobStatus.SUCCEEDED}
    return told >= {job.job_id for job in jobs}


def _show_results(
    state: StackState, jobs: Sequence[Job], base: Path, home: Path, console: Console
) -> None:
    adapters = {}
    for job in jobs:
        losses = [line["train_loss"] for line in assets.metrics(state, job)]
        adapters[_name(job)] = download_adapter(state, job, home / "adapters" / job.job_id)
        lies = next(a.uri for a in job.artifacts if a.name.endswith("adapter_model.safetensors"))
        console.print(
            f"· {job.backend}: loss {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps "
            f"(nats per token)\n  the adapter lies at {lies}\n"
            f"  and, to keep, in {adapters[_name(job)]}"
        )
    console.print("· loading the adapters back with PEFT\n")
    held_out = [row["messages"] for row in assets.rows(assets.HELD_OUT)]
    prompts = _prompts()
    console.print(_table(compare(base, adapters, prompts, held_out), prompts))


def _name(job: Job) -> str:
    workers = job.resources.worker_count
    return f"{job.backend} ({job.engine}, {workers} worker{'s' if workers > 1 else ''})"


def _table(found: Sequence[Comparison], prompts: Sequence[str]) -> Table:
    table = Table("", *(one.model for one in found), show_lines=True)
    table.add_row("held-out loss", *(f"{one.held_out_loss:.3f}" for one in found))
    for index, prompt in enumerate(prompts):
        table.add_row(prompt, *(one.answers[index] for one in found))
    return table


def _prompts() -> list[str]:
    rows = assets.rows(assets.DATASET)
    plain = [row["messages"] for row in rows if row["messages"][0]["role"] == "user"]
    return [m[0]["content"] for m in plain[:: max(1, len(plain) // PROMPTS_SHOWN)]][:PROMPTS_SHOWN]
