"""What an import brings in: the schema and the client stay light, the API needs no ray."""

import pkgutil
import subprocess
import sys

import pytest

import configs

SCHEMA = [f"configs.{module.name}" for module in pkgutil.iter_modules(configs.__path__)]
HEAVY = {"ray", "torch", "transformers", "datasets", "peft", "trl"}


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter after importing `modules`."""
    code = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in ran.stdout.split()}


def test_the_schema_is_pydantic_and_the_standard_library() -> None:
    assert len(SCHEMA) > 8
    unwanted = HEAVY | {"fastapi", "starlette", "sqlalchemy", "boto3", "httpx", "serve_app"}
    assert loaded_by(*SCHEMA) & unwanted == set()


@pytest.mark.parametrize("module", ["serve_app.api", "serve_app.openapi_docs"])
def test_the_api_needs_no_ray(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


def test_the_client_needs_httpx_and_the_schema_only() -> None:
    unwanted = HEAVY | {"fastapi", "starlette", "sqlalchemy", "boto3", "cryptography"}
    assert loaded_by("serve_app.client") & unwanted == set()
