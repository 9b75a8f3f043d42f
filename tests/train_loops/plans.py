"""Plans, fakes and small files that several tests here share. No test of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs.job import Event, Job, Order, Progress, Progressed
from configs.request import TrainRequest
from train_loops.engines.base import Inputs, Metrics, Span
from train_loops.plan import Plan, resolve
from train_loops.report import now
from train_loops.stores.base import StoredObject


def request(root: str = "file:///data", **changes: dict[str, Any]) -> dict[str, Any]:
    """A request as JSON values; each section of `changes` is laid over the default one."""
    body: dict[str, Any] = {
        "base_model": {"provider": "local", "model_name": "tiny-llama"},
        "datasets": [{"source": f"{root}/users/u1/projects/p1/ingestion/rows.jsonl"}],
        "customization": {"method": "lora", "precision": "fp32"},
        "tuning_parameters": {"batch_size": 4, "max_steps": 3},
        "resources": {},
    }
    for section, values in changes.items():
        old = body.get(section, {})
        body[section] = values if isinstance(values, list) else {**old, **values}
    return body


def job(body: dict[str, Any], job_id: str = "job-1", engine: str = "simulated") -> Job:
    """A queued job with `body` as its request, as the service stores it."""
    return Job.model_validate(
        {
            "job_id": job_id,
            "backend": "hf-unsloth",
            "engine": engine,
            "engine_reason": "a test",
            "created_at": datetime.now(UTC),
            "log_uri": "file:///unused/",
            "output_uri": "file:///unused/",
            "request": TrainRequest.model_validate(body).public(),
        }
    )


def plan(
    root: str = "file:///data",
    *,
    attempt: int = 1,
    job_id: str = "job-1",
    engine: str = "simulated",
    **changes: Any,
) -> Plan:
    """The plan of a small CPU job whose files lie below `root`."""
    return resolve(job(request(root, **changes), job_id, engine), attempt)


@dataclass
class MemoryStore:
    """An `ObjectStore` in a dictionary, which notes the order of its writes."""

    objects: dict[str, bytes] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)

    def put(self, path: Path, uri: str) -> None:
        self.put_bytes(path.read_bytes(), uri)

    def put_bytes(self, data: bytes, uri: str) -> None:
        self.objects[uri] = data
        self.writes.append(uri)

    def get(self, uri: str, path: Path) -> None:
        path.write_bytes(self.get_bytes(uri))

    def get_bytes(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return self.objects[uri]

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for uri in sorted(self.objects):
            if uri.startswith(prefix):
                yield StoredObject(uri, len(self.objects[uri]))


@dataclass
class OrderingReporter:
    """A `Reporter` that orders a stop at one step or at one event, and keeps all it hears."""

    stop: str | None = None
    at_step: int | None = None
    at_event: str | None = None
    events: list[Event] = field(default_factory=list)

    def send(self, event: Event) -> Order:
        self.events.append(event)
        return self._order(event.type == self.at_event)

    def progress(self, attempt: int, progress: Progress) -> Order:
        self.events.append(Progressed(at=now(), attempt=attempt, progress=progress))
        return self._order(progress.step == self.at_step)

    def _order(self, now_is_the_time: bool) -> Order:
        return Order.model_validate({"stop": self.stop if now_is_the_time else None})

    @property
    def types(self) -> list[str]:
        """The kinds of events in the order in which they came."""
        return [event.type for event in self.events]


@dataclass
class GivenLosses:
    """A `TrainLoop` whose losses are given, and which writes one small file as its result."""

    losses: list[float]
    closed: int = 0

    def load(self, folder: Path) -> None: ...

    def begin(self) -> Span:
        return Span(0, len(self.losses))

    def steps(self) -> Iterator[Metrics]:
        for step, loss in enumerate(self.losses, start=1):
            yield Metrics(step, step / 10, loss, 1e-3, None, 100)

    def evaluate(self) -> float:
        return self.losses[-1]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights.txt").write_text("weights")

    def close(self) -> None:
        self.closed += 1


@dataclass
class EngineOf:
    """An `Engine` that gives out one ready loop."""

    loop: GivenLosses
    name: str = "fake"
    uses_torch: bool = False

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> GivenLosses:
        return self.loop
