"""The local stack: an S3 endpoint (moto), a Ray head and the three applications, on loopback.

State lies in `<home>/stack.json`, so that a later command finds and ends what this one started.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import yaml
from dotenv import dotenv_values

from configs.errors import ConfigInvalid, InternalError
from configs.job import Record
from configs.names import BACKENDS
from configs.settings import Settings
from serve_app.local import processes

START_TIMEOUT_S = 180.0
OBJECT_STORE_BYTES = 200 * 2**20
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "local-demo",
    "AWS_SECRET_ACCESS_KEY": "local-demo",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class StackState(Record):
    """What a stack needs to be found again."""

    stack_id: str
    base_url: str
    s3_endpoint: str
    dashboard_url: str
    ray_folder: str
    ray_token_file: str


class LocalStack:
    """Starts, finds and ends the service of one `home` folder."""

    def __init__(
        self, settings: Settings, extra_applications: Sequence[dict[str, Any]] = ()
    ) -> None:
        """`extra_applications`: entries of a Serve config, deployed beside the three APIs."""
        self.settings = settings
        self._extra_applications = list(extra_applications)
        self._home = settings.home.absolute()
        self._file = self._home / "stack.json"

    @property
    def state(self) -> StackState | None:
        """The running stack, or None."""
        if not self._file.exists():
            return None
        state = StackState.model_validate_json(self._file.read_text())
        return state if processes.owned(state.stack_id, state.ray_folder) else None

    def start(self, say: Callable[[str], None]) -> StackState:
        """Start everything and wait until all three APIs answer.

        Raises:
            ConfigInvalid: the port is taken, or a stack of this home runs already.
        """
        self.check_startable()
        # What is left of a stack that was killed: its Ray folder.
        self.stop()
        self._home.mkdir(parents=True, exist_ok=True)
        state = self._new_state()
        self._file.write_text(state.model_dump_json(indent=2))
        try:
            self._start_s3(state, say)
            self._start_ray(state, say)
            self._deploy(state, say)
        except BaseException:
            self.stop()
            raise
        return state

    def stop(self) -> None:
        """End all of the stack's processes and remove their files; the job store stays."""
        if not self._file.exists():
            return
        state = StackState.model_validate_json(self._file.read_text())
        processes.stop_all(state.stack_id, state.ray_folder)
        shutil.rmtree(state.ray_folder, ignore_errors=True)
        self._file.unlink(missing_ok=True)

    def environment(self, state: StackState) -> dict[str, str]:
        """The environment of every process of the stack: `.env` below the shell's own."""
        dotenv = {k: v for k, v in dotenv_values(".env").items() if v is not None}
        return {
            **S3_ENVIRONMENT,
            **dotenv,
            **os.environ,
            **_settings_environment(self.settings),
            "AWS_ENDPOINT_URL": state.s3_endpoint,
            "TRAINER_HOME": str(self._home),
            "TRAINER_MODEL_ROOT": str(self.settings.model_root or self._home / "models"),
            processes.MARK: state.stack_id,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": state.ray_token_file,
            "RAY_USAGE_STATS_ENABLED": "0",
            "TOKENIZERS_PARALLELISM": "false",
            # TRL's trainers and the hub client would otherwise phone home.
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def check_startable(self) -> None:
        """Look before anything is started: whoever stops the stack after a failed start must not
        stop one that was there before.

        Raises:
            ConfigInvalid: the port is taken, or a stack of this home runs already.
        """
        if self.state is not None:
            raise ConfigInvalid(f"a stack runs already from {self._home}; `make down` ends it")
        with httpx.Client(trust_env=False, timeout=1.0) as client:
            try:
                client.get(f"http://{self.settings.host}:{self.settings.port}/")
            except httpx.ConnectError:
                return
            except httpx.HTTPError:
                pass
        raise ConfigInvalid(f"port {self.settings.port} is taken; set TRAINER_PORT to a free one")

    def _new_state(self) -> StackState:
        token_file = self._home / "ray.token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        return StackState(
            stack_id=secrets.token_hex(8),
            base_url=f"http://{self.settings.host}:{self.settings.port}",
            s3_endpoint=f"http://127.0.0.1:{processes.free_port()}",
            dashboard_url=f"http://127.0.0.1:{processes.free_port()}",
            # Short: a path of a Unix socket has 107 characters at most.
            ray_folder=tempfile.mkdtemp(prefix="trainer-ray-"),
            ray_token_file=str(token_file),
        )

    def _start_s3(self, state: StackState, say: Callable[[str], None]) -> None:
        say("starting the S3 endpoint")
        port = state.s3_endpoint.rsplit(":", 1)[1]
        processes.start(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port],
            self._home / "logs" / "s3.log",
            self.environment(state),
        )
        _wait(lambda: _answers(state.s3_endpoint), "the S3 endpoint")

    def _start_ray(self, state: StackState, say: Callable[[str], None]) -> None:
        say("starting Ray")
        log = self._home / "logs" / "ray.log"
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head",
            "--node-ip-address=127.0.0.1", f"--port={processes.free_port()}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={state.dashboard_url.rsplit(':', 1)[1]}",
            f"--temp-dir={state.ray_folder}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("ab") as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=False,
                env=self.environment(state), start_new_session=True, timeout=START_TIMEOUT_S,
            )  # fmt: skip
        if done.returncode:
            raise InternalError(f"Ray did not start; see {log}")

    def _deploy(self, state: StackState, say: Callable[[str], None]) -> None:
        say("deploying /nemo, /meta and /hf-unsloth")
        with self._dashboard(state) as client:
            answer = client.put("/api/serve/applications/", json=self._serve_config())
            answer.raise_for_status()
            count = len(BACKENDS) + len(self._extra_applications)
            _wait(lambda: _all_running(client, count), "the applications")
        for backend in BACKENDS:
            _wait(partial(_answers, f"{state.base_url}/{backend}/readyz"), backend)

    def _dashboard(self, state: StackState) -> httpx.Client:
        token = Path(state.ray_token_file).read_text()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(
            base_url=state.dashboard_url, headers=headers, trust_env=False, timeout=60
        )

    def _serve_config(self) -> dict[str, Any]:
        text = (files("configs") / "serve" / "local.yaml").read_text()
        config: dict[str, Any] = yaml.safe_load(text)
        config["applications"] += self._extra_applications
        config["http_options"] = {"host": self.settings.host, "port": self.settings.port}
        return config


def _settings_environment(settings: Settings) -> dict[str, str]:
    """Settings given in code (tests, flags) reach the stack's processes by their names."""
    values = settings.model_dump(mode="python", exclude_unset=True)
    found = {}
    for name, value in values.items():
        text = value.get_secret_value() if hasattr(value, "get_secret_value") else value
        if text is not None:
            key = "DATABASE_URL" if name == "database_url" else f"TRAINER_{name.upper()}"
            found[key] = json.dumps(text) if isinstance(text, bool) else str(text)
    return found


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _all_running(client: httpx.Client, count: int) -> bool:
    try:
        applications = client.get("/api/serve/applications/").json()["applications"]
    except httpx.HTTPError:
        return False
    states = {name: app["status"] for name, app in applications.items()}
    if failed := [name for name, status in states.items() if status == "DEPLOY_FAILED"]:
        raise InternalError(f"{failed[0]} could not be deployed: {applications[failed[0]]}")
    return len(states) == count and set(states.values()) == {"RUNNING"}


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if time.monotonic() > deadline:
            raise InternalError(f"{what} did not answer within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.2)
