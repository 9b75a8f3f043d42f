"""What this API can do: its rows of the table in `configs/capabilities.py`."""

from fastapi import APIRouter, Response

from configs.adapter import EngineName
from configs.base import Spec
from configs.capabilities import CANDIDATES, ENGINES, EngineCapability
from configs.names import Backend
from serve_app.deps import AuthorizedService
from serve_app.responses import ErrorBody


class Capabilities(Spec):
    """What this API can do."""

    backend: Backend
    """The API."""
    auto: list[EngineName]
    """What `customization.engine: auto` tries, best first."""
    forced_engine: EngineName | None
    """The engine that the operator runs every job on, if there is one."""
    environments: list[str]
    """The further Python environments that this service has."""
    engines: list[EngineCapability]
    """The engines of this API. What a request asks for must stand in one row."""


router = APIRouter(tags=["capabilities"])


@router.get("/capabilities", response_model=Capabilities, responses={401: {"model": ErrorBody}})
async def capabilities(service: AuthorizedService) -> Response:
    """The table of what each engine of this API accepts."""
    table = Capabilities(
        backend=service.backend,
        auto=list(CANDIDATES[service.backend]),
        forced_engine=service.settings.engine,
        environments=sorted(service.settings.environments),
        engines=[row for row in ENGINES.values() if service.backend in row.backends],
    )
    return Response(table.model_dump_json(), media_type="application/json")
