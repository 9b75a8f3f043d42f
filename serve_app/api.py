"""The one factory behind all three APIs. No ray in here: the same application runs under Ray
Serve (`serve_app/app.py` mounts it at `/nemo`, `/meta`, `/hf-unsloth`), uvicorn and a test client.

`/docs` and `/openapi.json` need no token: they describe the schema, which is public, and hold
nothing of any job.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from configs.names import Backend
from configs.request import TrainRequest
from configs.settings import Settings
from serve_app.deps import Service
from serve_app.last_resort import LastResort
from serve_app.responses import install
from serve_app.routes import capabilities, health, train
from serve_app.secret_box import SecretBox
from serve_app.store import JobStore

_TITLES: dict[Backend, str] = {
    "nemo": "Trainer API: NVIDIA NeMo",
    "meta": "Trainer API: Meta's native PyTorch",
    "hf-unsloth": "Trainer API: Hugging Face and Unsloth",
}
_DESCRIPTION = (
    "Fine-tuning jobs for large language models. All three APIs take the same request; what each "
    "can honour of it is at `/capabilities`, and what it cannot is refused, never dropped."
)


class TrainerApi(FastAPI):
    """FastAPI whose document also describes the request: the routes read it themselves."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        request = TrainRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = request.pop("$defs")
        document["components"]["schemas"].update(parts, TrainRequest=request)
        return document


def create_app(
    backend: Backend,
    *,
    settings: Settings,
    store: JobStore,
    box: SecretBox,
    nudge: Callable[[], None],
) -> FastAPI:
    """The application of one API. `nudge` tells the tracker that there is something to do: it must
    return at once, and may fail."""
    app = bare_app(backend)
    app.state.service = Service(backend, settings, store, box, nudge)
    return app


def bare_app(backend: Backend) -> FastAPI:
    """The routes without a service behind them: enough for the OpenAPI document."""
    app = TrainerApi(
        title=_TITLES[backend],
        description=_DESCRIPTION,
        version="0.1.0",
        middleware=[Middleware(LastResort)],
        # `/train/` is another path than `/train`; a redirect would lose the shape of errors.
        redirect_slashes=False,
    )
    for router in (train.router, capabilities.router, health.router):
        app.include_router(router)
    install(app)
    return app
