"""Is the process alive, and can it serve? For load balancers and probes: no token, no secrets."""

import logging
from typing import Literal

import sqlalchemy as sa
from fastapi import APIRouter, Response

from configs.base import Spec
from configs.names import Backend
from serve_app.deps import OpenService
from serve_app.responses import ErrorBody, error_response

logger = logging.getLogger(__name__)


class Health(Spec):
    """The process answers."""

    status: Literal["ok"] = "ok"
    """Always `ok`."""
    backend: Backend
    """The API that answers."""


class Readiness(Spec):
    """The API can take jobs."""

    status: Literal["ready"] = "ready"
    """Always `ready`; an API that is not answers 503."""
    backend: Backend
    """The API that answers."""
    capacity_known: bool
    """Whether the tracker has reported what the cluster has. Jobs are accepted without it, and
    wait."""


router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=Health)
async def healthz(service: OpenService) -> Response:
    """Liveness: the process answers, whatever else is broken."""
    return Response(Health(backend=service.backend).model_dump_json(), media_type=_JSON)


@router.get("/readyz", response_model=Readiness, responses={503: {"model": ErrorBody}})
async def readyz(service: OpenService) -> Response:
    """Readiness: the job store answers."""
    try:
        capacity = await service.read(service.store.capacity)
    except (sa.exc.SQLAlchemyError, OSError):
        logger.exception("the job store does not answer")
        return error_response(503, "internal_error", "not_ready", "the job store does not answer")
    ready = Readiness(backend=service.backend, capacity_known=capacity is not None)
    return Response(ready.model_dump_json(), media_type=_JSON)


_JSON = "application/json"
