"""The job routes of an API: submit, list, show, cancel. Thin: what is accepted is decided in
`serve_app/submission.py`, what may change in `serve_app/lifecycle.py`."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from configs.errors import JobStateConflict
from configs.job import Job, JobPage, JobStatus, StopRequested
from serve_app.deps import AuthorizedService, Service, read_json, refuse_large
from serve_app.responses import ErrorBody
from serve_app.submission import accept
from serve_app.validation import parse_request

REPLAYED_HEADER = "Idempotency-Replayed"

_REQUEST_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/TrainRequest"}}},
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


class ListQuery(BaseModel):
    """The query of `GET /train`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    status: Annotated[list[JobStatus], Field(max_length=len(JobStatus))] = []
    """Only jobs with this status; may be repeated."""
    cursor: Annotated[str, Field(max_length=256)] | None = None
    """`next_cursor` of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """Jobs on the page."""


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="1 to 255 printable ASCII characters. A repeated post with the same key and "
        "body answers with the same job; with another body, 409.",
    ),
]

router = APIRouter(prefix="/train", tags=["jobs"], responses=_errors(401, 422, 500))


@router.post(
    "",
    status_code=202,
    response_model=Job,
    responses=_errors(409, 413, 415, 429),
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def submit(
    service: AuthorizedService, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Submit a job. A repeat of the same request answers with the same job, and with the header
    `Idempotency-Replayed: true`."""
    body = await read_json(request)
    # A thread, because the commit waits for the disk.
    job, created = await run_in_threadpool(_submit, service, body, idempotency_key)
    path = f"{request.scope.get('root_path', '').rstrip('/')}/train/{job.job_id}"
    headers = {"Location": path} if created else {"Location": path, REPLAYED_HEADER: "true"}
    return _answer(job, service if created else None, headers)


@router.get("", response_model=JobPage)
async def list_jobs(service: AuthorizedService, query: Annotated[ListQuery, Query()]) -> Response:
    """The jobs of this API, newest first, a page at a time."""
    # A thread, because a page of 100 jobs takes milliseconds.
    page = await run_in_threadpool(_list, service, query)
    return Response(page, media_type="application/json")


@router.get("/{job_id}", response_model=Job, responses=_errors(404))
async def show(service: AuthorizedService, job_id: str) -> Response:
    """One job, as it is now."""
    # The text as it is stored: it was a valid job when it was written.
    document = await service.read(service.store.get_document, job_id, service.backend)
    return Response(document, media_type="application/json")


@router.post(
    "/{job_id}/cancel", status_code=202, response_model=Job, responses=_errors(404, 409, 413)
)
async def cancel(service: AuthorizedService, request: Request, job_id: str) -> Response:
    """Cancel a job. A running one saves a checkpoint and stops: its status is `cancelling` until
    it has. Cancelling twice does no harm; a job that has ended answers 409."""
    refuse_large(request)
    return _answer(await run_in_threadpool(_cancel, service, job_id), service)


def _answer(job: Job, nudged: Service | None, headers: dict[str, str] | None = None) -> Response:
    """The job, 202. The tracker is told after the answer has left, so that neither its absence nor
    its slowness can reach the client; it finds the job without being told, a little later."""
    nudge = BackgroundTask(nudged.nudge) if nudged else None
    return Response(job.model_dump_json(), 202, headers, "application/json", nudge)


def _submit(service: Service, body: bytes, idempotency_key: str | None) -> tuple[Job, bool]:
    settings = service.settings
    accepted = accept(
        parse_request(body, service.backend),
        service.backend,
        settings=settings,
        box=service.box,
        capacity=service.store.capacity() if settings.refuse_unschedulable else None,
        now=datetime.now(UTC),
    )
    return service.store.submit(
        accepted.job,
        digest=accepted.digest,
        idempotency_key=idempotency_key,
        secrets=accepted.secrets,
        max_queued=settings.max_queued_jobs,
    )


def _list(service: Service, query: ListQuery) -> str:
    page = service.store.list(
        service.backend, statuses=query.status, cursor=query.cursor, limit=query.limit
    )
    return page.model_dump_json()


def _cancel(service: Service, job_id: str) -> Job:
    job = service.store.get(job_id, service.backend)
    if job.status.terminal:
        raise JobStateConflict(
            f"job {job_id!r} has ended as {job.status.value}: there is nothing to cancel"
        )
    return service.store.record(job_id, StopRequested(at=datetime.now(UTC), reason="cancel"))
