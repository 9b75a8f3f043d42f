"""`docs/API_SPEC.md` says what the code does."""

import pytest

from configs.errors import TrainerError
from configs.names import BACKENDS
from serve_app import openapi_docs
from serve_app.api import bare_app
from serve_app.responses import KINDS


def test_the_committed_text_is_the_generated_one() -> None:
    assert openapi_docs.main(["--check"]) == 0, "run: python -m serve_app.openapi_docs"


def test_a_stale_text_is_shown_as_a_diff(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stale = tmp_path_factory.mktemp("docs") / "API_SPEC.md"
    stale.write_text(openapi_docs.render().replace("`batch_size`", "`batch`"))
    monkeypatch.setattr(openapi_docs, "SPEC_FILE", stale)
    assert openapi_docs.main(["--check"]) == 1
    assert "+| `batch_size`" in capsys.readouterr().out
    assert openapi_docs.main([]) == 0
    assert openapi_docs.main(["--check"]) == 0


def test_the_three_apis_share_one_schema() -> None:
    documents = [bare_app(backend).openapi() for backend in BACKENDS]
    assert all(document["paths"] == documents[0]["paths"] for document in documents)
    assert all(document["components"] == documents[0]["components"] for document in documents)


def test_every_field_of_the_request_is_described() -> None:
    schemas = bare_app("nemo").openapi()["components"]["schemas"]
    bare = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, described in schema.get("properties", {}).items()
        if not described.get("description")
    ]
    assert bare == []


def test_every_error_of_a_request_has_a_status() -> None:
    internal = {"StaleAttempt", "RunError", "TrainerApiError"}
    classes = {cls for cls in TrainerError.__subclasses__() if cls.__name__ not in internal}
    assert set(KINDS) == classes
