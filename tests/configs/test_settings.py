"""What an operator sets: by the environment, by `.env`, and what is left when nothing is set."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.settings import Settings

ROOT = Path(__file__).parents[2]
CANARY = "canary-8d1f"


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env` in sight, and none of our variables in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in environment_names():
        monkeypatch.delenv(name, raising=False)


def environment_names() -> set[str]:
    return {
        "DATABASE_URL" if field == "database_url" else f"TRAINER_{field.upper()}"
        for field in Settings.model_fields
    }


def test_a_setting_is_its_name_in_capitals_after_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_PORT", "8123")
    monkeypatch.setenv("TRAINER_ENGINE", "simulated")
    monkeypatch.setenv("TRAINER_REFUSE_UNSCHEDULABLE", "1")
    settings = Settings()
    assert settings.port == 8123
    assert settings.engine == "simulated"
    assert settings.refuse_unschedulable is True


def test_every_setting_is_documented() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_dot_env_is_read_below_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TRAINER_PORT=8001\nTRAINER_MAX_ATTEMPTS=7\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("TRAINER_PORT", "8002")
    assert (Settings().port, Settings().max_attempts) == (8002, 7)


def test_an_empty_token_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TRAINER_API_TOKEN=\n")
    assert Settings().api_token is None
    monkeypatch.setenv("TRAINER_API_TOKEN", "")
    assert Settings().api_token is None


def test_the_database_has_its_common_name_and_gets_its_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for scheme in ("postgres", "postgresql"):
        monkeypatch.setenv("DATABASE_URL", f"{scheme}://me:pw@db/trainer?sslmode=require")
        assert Settings().store_url == "postgresql+psycopg://me:pw@db/trainer?sslmode=require"


def test_a_database_url_that_names_a_driver_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:////var/lib/trainer.db")
    assert Settings().store_url == "sqlite:////var/lib/trainer.db"


def test_without_a_database_it_is_a_file_below_home(tmp_path: Path) -> None:
    assert Settings(home=tmp_path / "home").store_url == f"sqlite:///{tmp_path}/home/trainer.db"


def test_a_relative_home_gives_absolute_paths(tmp_path: Path) -> None:
    settings = Settings(home=Path("here"))
    assert settings.store_url == f"sqlite:///{tmp_path}/here/trainer.db"
    assert settings.scratch == tmp_path / "here" / "scratch"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAINER_API_TOKEN", "TRAINER_SECRET_KEY"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{CANARY}@db/trainer")
    settings = Settings()
    assert CANARY not in repr(settings)
    assert CANARY not in str(settings.model_dump())
    assert CANARY not in settings.model_dump_json()


def test_a_wrong_value_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_PORT", CANARY)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "port" in str(caught.value)
    assert CANARY not in str(caught.value)


def test_the_example_names_only_settings_that_exist() -> None:
    text = (ROOT / ".env.example").read_text()
    named = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", text, flags=re.MULTILINE)
    ours = {name for name in named if not name.startswith("AWS_")}
    assert "TRAINER_API_TOKEN" in ours
    assert ours <= environment_names()


def test_the_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    assert Settings().port == 8000
