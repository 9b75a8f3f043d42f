"""From a valid request to the job that it asks for: the pure part of `POST /train`.

Not for HTTP or storing: the route parses, calls `accept`, and gives the result to the job store.
"""

import json
import secrets
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from configs.capabilities import choose_engine
from configs.errors import RequestInvalid, TrainerError, Unschedulable, Unsupported
from configs.job import Job
from configs.names import Backend, locations
from configs.request import TrainRequest
from configs.settings import Settings
from serve_app.capacity import Capacity
from serve_app.scheduler import never_fits
from serve_app.secret_box import SecretBox
from train_loops.rewards import known as known_rewards

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, small: sorts like the numbers it writes, and no two letters look alike."""


class Accepted(NamedTuple):
    """A request that was found good, ready to be stored."""

    job: Job
    digest: str
    secrets: dict[str, str]


def accept(
    request: TrainRequest,
    backend: Backend,
    *,
    settings: Settings,
    box: SecretBox,
    capacity: str | None,
    now: datetime,
) -> Accepted:
    """The job that `request` makes on `backend`.

    `capacity` is the last snapshot of the cluster, if there is one and it matters.

    Raises:
        RequestInvalid: the log or output folder cannot be derived.
        Unsupported: the API, its engine or the operator does not allow a field.
        Unschedulable: the cluster can never hold the job, and the operator wants it refused.
    """
    job_id = request.job_id or new_job_id(backend, now)
    places = locations(request, job_id)
    choice = choose_engine(
        request, backend, forced=settings.engine, environments=settings.environments
    )
    for refusal in _refusals(request, settings):
        raise refusal
    if settings.refuse_unschedulable and capacity is not None:
        _refuse_unschedulable(request, capacity)
    job = Job(
        job_id=job_id,
        backend=backend,
        engine=choice.engine,
        engine_reason=choice.reason,
        proxied_to=choice.proxied_to,
        created_at=now,
        log_uri=places.log_uri,
        output_uri=places.output_uri,
        request=request.public(),
    )
    return Accepted(job, box.fingerprint(canonical(request)), request.secrets())


def new_job_id(backend: Backend, now: datetime) -> str:
    """A name that no other job has and that sorts by time, such as `nemo-01k2y3z4a5…`."""
    return (
        f"{backend}-{_base32(int(now.timestamp() * 1000), 10)}{_base32(secrets.randbits(50), 10)}"
    )


def canonical(request: TrainRequest) -> bytes:
    """The same bytes for the same request, however its JSON was written; secrets included.

    Defaults are left out, not filled in: a field that a later version adds, or `32` where the
    default is `32.0`, must not make another request of it.
    """
    fields = request.model_dump(mode="json", exclude_defaults=True)
    return json.dumps([fields, request.secrets()], sort_keys=True).encode()


def _refusals(request: TrainRequest, settings: Settings) -> Iterator[TrainerError]:
    """What the operator does not allow."""
    model = request.base_model
    if model.trust_remote_code and not settings.allow_remote_code:
        yield Unsupported(
            "base_model.trust_remote_code: code of model repositories is not run here",
            "base_model.trust_remote_code",
            "Leave it out; the operator can allow it with TRAINER_ALLOW_REMOTE_CODE=1.",
        )
    if model.provider == "local" and settings.model_root is None:
        yield Unsupported(
            "base_model.provider: this service has no folder of local models",
            "base_model.provider",
            "Use 'huggingface' or 's3'; the operator can name a folder with TRAINER_MODEL_ROOT.",
        )
    yield from _refused_rewards(request, settings)
    for param, uri in _uris(request):
        if uri.startswith("file://"):
            yield from _refused_file(param, uri, settings)


def _refused_rewards(request: TrainRequest, settings: Settings) -> Iterator[TrainerError]:
    if (grpo := request.customization.grpo) is None:
        return
    accepted = sorted(known_rewards(settings))
    for index, name in enumerate(grpo.reward_functions):
        if name not in accepted:
            yield Unsupported(
                f"customization.grpo.reward_functions[{index}]: there is no {name!r} here; "
                f"accepted: {', '.join(accepted)}",
                f"customization.grpo.reward_functions[{index}]",
                "The operator installs further ones by TRAINER_REWARD_FUNCTIONS.",
            )


def _uris(request: TrainRequest) -> Iterator[tuple[str, str]]:
    for index, dataset in enumerate(request.datasets):
        yield f"datasets[{index}].source", dataset.source
    yield "artifacts.log_uri", request.artifacts.log_uri or ""
    yield "artifacts.output_uri", request.artifacts.output_uri or ""


def _refused_file(param: str, uri: str, settings: Settings) -> Iterator[TrainerError]:
    root = settings.file_root
    if root is None:
        yield Unsupported(
            f"{param}: file:// is not served here",
            param,
            "Use s3://; the operator can name a folder with TRAINER_FILE_ROOT.",
        )
    # Written out only: links are followed, and judged again, where the file is opened.
    elif not uri.startswith(f"file://{root.absolute()}/"):
        yield RequestInvalid(
            f"{param}: the path is not below this service's file root",
            param,
            "Use a path below the folder that the operator named with TRAINER_FILE_ROOT, or s3://.",
        )


def _refuse_unschedulable(request: TrainRequest, capacity: str) -> None:
    why = never_fits(request.resources, Capacity.model_validate_json(capacity))
    if why is not None:
        raise Unschedulable(
            f"resources: the cluster can never hold this job: {why}",
            "resources",
            "Ask for less, or let the operator raise what the cluster may scale up to.",
        )


def _base32(number: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits = _ALPHABET[digit] + digits
    return digits
