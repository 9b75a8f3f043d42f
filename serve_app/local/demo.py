"""One fine-tuning job all the way, for a newcomer to watch: submit, train, callbacks, compare.

Runs on a stack of its own (own home folder, free port), so that it disturbs no running service.
"""

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from configs.errors import InternalError
from configs.job import Job, JobStatus
from configs.settings import Settings
from serve_app.client import TrainerClient
from serve_app.local import assets
from serve_app.local.compare import compare, download_adapter
from serve_app.local.processes import free_port
from serve_app.local.receiver import WebhookReceiver
from serve_app.local.stack import LocalStack, StackState

POLL_S = 0.3
CALLBACK_INTERVAL_S = 5.0
EXAMPLE = "02-lora-hf-unsloth.json"
PROMPTS_SHOWN = 4


def run(settings: Settings, console: Console) -> Job:
    """The whole demo; the finished job. What it started ends with it, on Ctrl-C too.

    Raises:
        InternalError: the job did not succeed.
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
            job = _train(own, state, receiver.url, console)
            _show_callbacks(receiver, console)
        _show_results(state, job, build.folder, own.home, console)
        return job
    finally:
        console.print("· stopping what was started")
        build.stop()
        stack.stop()


def example(name: str) -> dict[str, Any]:
    """A request of `configs/examples/`."""
    request: dict[str, Any] = json.loads((files("configs") / "examples" / name).read_text())
    return request


def _train(settings: Settings, state: StackState, webhook: str, console: Console) -> Job:
    token = settings.api_token.get_secret_value() if settings.api_token else None
    request = {**example(EXAMPLE), "callbacks": {"webhook_url": webhook}}
    with TrainerClient(state.base_url, token=token, backend="hf-unsloth") as client:
        job = client.submit(request)
        console.print(f"· submitted [bold]{job.job_id}[/bold] to {state.base_url}/hf-unsloth/train")
        job = _watch(client, job, console)
    if job.status is not JobStatus.SUCCEEDED:
        raise InternalError(f"the job ended as {job.status}: {job.detail}")
    return job


def _watch(client: TrainerClient, job: Job, console: Console) -> Job:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(job.status, total=100, numbers="")
        while not job.status.terminal:
            time.sleep(POLL_S)
            job = client.get(job.job_id)
            bar.update(
                task,
                completed=job.progress.percent,
                description=f"{job.status} ({job.phase.replace('_', ' ')})",
                numbers=numbers(job),
            )
    return job


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


def _show_callbacks(receiver: WebhookReceiver, console: Console) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not _told_of_the_end(receiver):
        time.sleep(0.1)
    events = [body["event"] for body in receiver.bodies]
    changes = " → ".join(event for event in events if event != "progress")
    console.print(
        f"· {len(events)} callbacks received: {changes}; progress × {events.count('progress')}"
    )


def _told_of_the_end(receiver: WebhookReceiver) -> bool:
    return any(body["status"] == JobStatus.SUCCEEDED for body in receiver.bodies)


def _show_results(state: StackState, job: Job, base: Path, home: Path, console: Console) -> None:
    losses = [line["train_loss"] for line in assets.metrics(state, job)]
    console.print(
        f"· loss {losses[0]:.3f} → {losses[-1]:.3f} over {len(losses)} steps "
        f"(first to last, nats per token)"
    )
    adapter = download_adapter(state, job, home / "adapters" / job.job_id)
    lies = next(a.uri for a in job.artifacts if a.name.endswith("adapter_model.safetensors"))
    console.print(f"· the adapter lies at {lies}\n  and, to keep, in {adapter}")
    console.print("· loading it back with PEFT\n")
    table = Table("question", "base model", "tuned model", show_lines=True)
    for answer in compare(base, adapter, _prompts()):
        table.add_row(*answer)
    console.print(table)


def _prompts() -> list[str]:
    rows = [json.loads(line) for line in assets.dataset_file().read_text().splitlines()]
    plain = [row["messages"] for row in rows if row["messages"][0]["role"] == "user"]
    return [m[0]["content"] for m in plain[:: max(1, len(plain) // PROMPTS_SHOWN)]][:PROMPTS_SHOWN]
