"""Secrets at rest: opened only by the same key and context; a key file that races cannot split."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from configs.errors import InternalError
from configs.settings import Settings
from serve_app.secret_box import KEY_FILE, SecretBox


def settings(home: Path, secret_key: str | None = None) -> Settings:
    return Settings(home=home, secret_key=None if secret_key is None else SecretStr(secret_key))


def test_what_is_sealed_opens_again(box: SecretBox) -> None:
    assert box.unseal(box.seal("hf_tökén", "job-1/token"), "job-1/token") == "hf_tökén"


def test_ciphertext_neither_shows_nor_repeats_the_secret(box: SecretBox) -> None:
    first, second = box.seal("hf_token", "c"), box.seal("hf_token", "c")
    assert b"hf_token" not in first
    assert first != second


def test_another_context_does_not_open_it(box: SecretBox) -> None:
    with pytest.raises(InternalError, match="cannot be opened"):
        box.unseal(box.seal("hf_token", "job-1/token"), "job-2/token")


def test_another_key_does_not_open_it(box: SecretBox) -> None:
    with pytest.raises(InternalError, match="the key has changed"):
        SecretBox(b"another key").unseal(box.seal("hf_token", "c"), "c")


@pytest.mark.parametrize("kept", [0, 5, 12, 20, -1])
def test_cut_bytes_do_not_open(box: SecretBox, kept: int) -> None:
    with pytest.raises(InternalError):
        box.unseal(box.seal("hf_token", "c")[:kept], "c")


def test_fingerprints_are_stable_and_need_the_key(box: SecretBox) -> None:
    assert box.fingerprint(b"body") == box.fingerprint(b"body")
    assert box.fingerprint(b"body") != box.fingerprint(b"body2")
    assert box.fingerprint(b"body") != SecretBox(b"another key").fingerprint(b"body")
    assert len(box.fingerprint(b"")) == 64


def test_the_key_file_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    sealed = SecretBox.open(settings(tmp_path / "home")).seal("x", "c")
    assert SecretBox.open(settings(tmp_path / "home")).unseal(sealed, "c") == "x"
    key_file = tmp_path / "home" / KEY_FILE
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert [path.name for path in key_file.parent.iterdir()] == [KEY_FILE]


def test_openers_that_race_get_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        boxes = list(pool.map(lambda _: SecretBox.open(settings(tmp_path)), range(64)))
    assert len({box.fingerprint(b"x") for box in boxes}) == 1


def test_a_configured_key_needs_no_file(tmp_path: Path) -> None:
    sealed = SecretBox.open(settings(tmp_path, "operator's key")).seal("x", "c")
    assert SecretBox.open(settings(tmp_path, "operator's key")).unseal(sealed, "c") == "x"
    assert not list(tmp_path.iterdir())


def test_an_empty_configured_key_counts_as_none(tmp_path: Path) -> None:
    SecretBox.open(settings(tmp_path, ""))
    assert (tmp_path / KEY_FILE).exists()


def test_a_cut_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("abcd")
    with pytest.raises(InternalError, match="2 bytes of key"):
        SecretBox.open(settings(tmp_path))
