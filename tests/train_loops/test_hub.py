"""Models from a hub that refuses: whose token opens what, and where a token never goes."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from configs.base_model import BaseModelSpec
from configs.errors import ModelAccess
from configs.settings import Settings
from tests.train_loops.hub_server import COMMIT, HubServer, serving
from tests.train_loops.plans import plan as resolved
from train_loops import hub
from train_loops.inputs import fetch

RIGHT, STRANGER, UNKNOWN = "hf_right", "hf_stranger", "hf_unknown"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who is logged in to the hub with a token of their own."""
    monkeypatch.setenv("HF_TOKEN", "hf_of-the-operator")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def server(
    tmp_path: Path, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """A hub with one gated model, which also has pickled weights; the environment points to it."""
    folder = shutil.copytree(model_root / "tiny-llama", tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    with serving(HubServer(folder)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def spec(**changes: Any) -> BaseModelSpec:
    values = {"provider": "huggingface", "model_name": "meta-llama/Tiny", **changes}
    return BaseModelSpec.model_validate(values)


def snapshot(model: BaseModelSpec, cache: Path) -> Path:
    token = model.hub_token.get_secret_value() if model.hub_token else None
    return hub.snapshot(model, token, cache)


def test_the_right_token_opens_a_gated_model(server: HubServer, tmp_path: Path) -> None:
    folder = snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / name).read_bytes() == (server.folder / name).read_bytes()


def test_pickled_weights_and_code_are_never_asked_for(server: HubServer, tmp_path: Path) -> None:
    snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    assert "model.safetensors" in server.files
    assert not [name for name in server.files if name.endswith((".bin", ".py"))]


def test_code_is_asked_for_where_it_is_to_be_trusted(server: HubServer, tmp_path: Path) -> None:
    snapshot(spec(huggingface_token=RIGHT, trust_remote_code=True), tmp_path / "cache")
    assert "modeling_tiny.py" in server.files


def test_the_hugging_face_token_wins_over_the_auth_token(server: HubServer, tmp_path: Path) -> None:
    snapshot(spec(auth_token=STRANGER, huggingface_token=RIGHT), tmp_path / "cache")
    assert server.tokens == {RIGHT}


def test_the_auth_token_alone_opens_the_model_too(server: HubServer, tmp_path: Path) -> None:
    snapshot(spec(auth_token=RIGHT), tmp_path / "cache")
    assert server.tokens == {RIGHT}


def test_without_a_token_the_error_names_the_field_to_send(
    server: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(ModelAccess, match=r"meta-llama/Tiny is gated") as caught:
        snapshot(spec(), tmp_path / "cache")
    assert "base_model.huggingface_token" in str(caught.value.hint)
    assert server.files == []


@pytest.mark.parametrize(
    ("token", "said"), [(STRANGER, "has no access"), (UNKNOWN, "was refused by the hub")]
)
def test_a_wrong_token_is_refused_and_named_as_the_field(
    server: HubServer, tmp_path: Path, token: str, said: str
) -> None:
    with pytest.raises(ModelAccess, match=said) as caught:
        snapshot(spec(huggingface_token=token), tmp_path / "cache")
    assert caught.value.param == "base_model.huggingface_token"
    assert server.files == []


def test_the_operators_own_token_is_never_sent(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ModelAccess):
        snapshot(spec(), tmp_path / "cache")
    server.gated = False
    snapshot(spec(), tmp_path / "cache")
    assert server.tokens == {None}


@pytest.mark.parametrize("token", [None, STRANGER, UNKNOWN])
def test_a_cached_download_is_no_way_around_missing_access(
    server: HubServer, tmp_path: Path, token: str | None
) -> None:
    snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    with pytest.raises(ModelAccess):
        snapshot(spec(huggingface_token=token), tmp_path / "cache")


def test_a_commit_that_is_cached_is_no_way_around_it_either(
    server: HubServer, tmp_path: Path
) -> None:
    snapshot(spec(huggingface_token=RIGHT, revision=COMMIT), tmp_path / "cache")
    with pytest.raises(ModelAccess):
        snapshot(spec(revision=COMMIT), tmp_path / "cache")


def test_the_second_download_of_a_model_asks_for_no_file(server: HubServer, tmp_path: Path) -> None:
    first = snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    server.asked.clear()
    assert snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache") == first
    assert server.files == []


def test_a_token_is_in_no_log_record_and_no_file(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    assert RIGHT not in caplog.text
    for path in (tmp_path / "cache").rglob("*"):
        assert RIGHT not in path.name
        assert not path.is_file() or RIGHT.encode() not in path.read_bytes()


@pytest.mark.parametrize("token", [STRANGER, UNKNOWN])
def test_a_refused_token_is_in_no_error_and_no_log_record(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ModelAccess) as caught:
        snapshot(spec(huggingface_token=token), tmp_path / "cache")
    assert token not in f"{caught.value.args}"
    assert token not in caplog.text


def test_an_error_does_not_carry_the_request_along(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ModelAccess) as caught:
        snapshot(spec(huggingface_token=STRANGER), tmp_path / "cache")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_repository_without_safetensors_is_refused_and_nothing_is_read(
    server: HubServer, tmp_path: Path
) -> None:
    (server.folder / "model.safetensors").unlink()
    with pytest.raises(ModelAccess, match="has no safetensors weights"):
        snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    assert server.files == []


def test_an_unknown_repository_is_refused(server: HubServer, tmp_path: Path) -> None:
    model = spec(model_name="meta-llama/Unknown", huggingface_token=RIGHT)
    with pytest.raises(ModelAccess, match="is unknown, or private"):
        snapshot(model, tmp_path / "cache")


def test_an_unknown_revision_says_to_check_it(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ModelAccess) as caught:
        snapshot(spec(huggingface_token=RIGHT, revision="no-such-branch"), tmp_path / "cache")
    assert "Check the name and revision" in str(caught.value.hint)


def test_a_hub_that_does_not_answer_is_no_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelAccess, match="the hub could not be used") as caught:
        snapshot(spec(huggingface_token=RIGHT), tmp_path / "cache")
    assert RIGHT not in f"{caught.value.args}"


def test_a_run_fetches_its_model_with_the_token_it_was_given(
    server: HubServer, file_root: Path, tmp_path: Path
) -> None:
    plan = resolved(
        f"file://{file_root}",
        engine="trl",
        base_model={"provider": "huggingface", "model_name": "meta-llama/Tiny"},
    )
    settings = Settings(_env_file=None, home=tmp_path / "home", file_root=file_root)
    inputs = fetch(plan, settings, RIGHT, worker="driver")
    assert (inputs.model_folder / "model.safetensors").exists()
    assert (inputs.data_folder / "report.json").exists()
    assert server.tokens == {RIGHT}
