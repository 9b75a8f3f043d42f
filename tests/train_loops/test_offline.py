"""A run whose model and data are at hand asks no other machine for anything."""

import socket
import warnings
from pathlib import Path
from typing import Any

import pytest

from configs.settings import Settings
from tests.train_loops.plans import plan as resolved
from train_loops.report import SilentReporter
from train_loops.run import run

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture
def calls_abroad(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts that somebody looked up or called; every one of them fails."""
    hosts: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def watched_look_up(host: Any, *args: Any, **named: Any) -> Any:
        if host in LOOPBACK:
            return look_up(host, *args, **named)
        hosts.append(str(host))
        raise socket.gaierror("there is no network in this test")

    def watched_connect(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or address[0] in LOOPBACK:
            return connect(self, address)
        hosts.append(str(address))
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", watched_look_up)
    monkeypatch.setattr(socket.socket, "connect", watched_connect)
    for name in ("HF_HUB_OFFLINE", "CI"):  # Both would keep the libraries quiet.
        monkeypatch.delenv(name, raising=False)
    return hosts


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_on_a_local_model_calls_nobody(
    method: str, calls_abroad: list[str], tmp_path: Path, file_root: Path, model_root: Path
) -> None:
    plan = resolved(
        f"file://{file_root}",
        job_id=f"offline-{method}",
        engine="trl",
        customization={"method": method},
        tuning_parameters={"max_steps": 2, "checkpoint_every_steps": 1},
    )
    settings = Settings(_env_file=None, home=tmp_path, file_root=file_root, model_root=model_root)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run(plan, settings, SilentReporter())
    assert calls_abroad == []
    assert not [w for w in warned if "Unable to fetch remote file" in str(w.message)]
