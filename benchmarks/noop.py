"""A Serve application that does nothing: what is left of a request when the service is taken out.

Made as `serve_app/app.py` makes an API, with the same replica; deployed by the local stack.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve

from benchmarks.load import ROOT

_ANSWER = b'{"status": "ok"}'


@serve.deployment
@serve.ingress()
class Noop:
    """A replica that answers, and that is all."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        return noop_app()


def noop_app() -> FastAPI:
    """`GET /noop`, and `POST /noop` that reads a JSON body."""
    app = FastAPI()

    @app.get("/noop")
    async def read() -> Response:
        return Response(_ANSWER, media_type="application/json")

    @app.post("/noop", status_code=202)
    async def write(request: Request) -> Response:
        await request.json()
        return Response(_ANSWER, 202, media_type="application/json")

    return app


def build(_: dict[str, Any]) -> Any:
    """For `import_path: benchmarks.noop:build` of a Serve config."""
    return Noop.bind()  # type: ignore[attr-defined]


def application(replica: dict[str, Any]) -> dict[str, Any]:
    """The entry of a Serve config, with the options of an API's `replica`."""
    return {
        "name": "bench",
        "route_prefix": "/bench",
        "import_path": "benchmarks.noop:build",
        # The benchmarks are not installed: workers find them in the checkout.
        "runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}},
        "deployments": [{**replica, "name": "Noop"}],
    }
