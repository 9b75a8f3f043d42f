"""`python -m benchmarks`: start a stack, measure, print, write `<home>/bench.json`, stop the stack.

The stack has a home, a port and an SQLite store of its own, and its store is thrown away.
"""

import argparse
import json
import shutil
import signal
import sys
from contextlib import ExitStack
from importlib.resources import files
from typing import Any, Literal, get_args

import yaml
from pydantic import SecretStr
from rich.console import Console

from benchmarks import api, noop, packing, training
from benchmarks.report import Report
from configs.errors import ConfigInvalid, TrainerError
from configs.names import BACKENDS
from configs.settings import Settings
from serve_app.client import TrainerClient
from serve_app.local import assets, processes
from serve_app.local.stack import LocalStack, StackState

ROUNDS = 2
Part = Literal["api", "training", "packing"]


def main() -> int:
    """Measure what the command line asks for."""
    arguments = _arguments()
    console = Console()
    # SIGTERM, like Ctrl-C, ends the stack on its way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = measure(Settings(), console, quick=arguments.quick, only=arguments.only)
    except TrainerError as error:
        console.print(f"[bold red]{error.message}[/bold red]")
        return 1
    except KeyboardInterrupt:
        return 130
    report.show(console)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny counts: does it work at all?")
    parser.add_argument(
        "--only", choices=["api", "training", "packing"], help="measure this part alone"
    )
    return parser.parse_args()


def measure(settings: Settings, console: Console, *, quick: bool, only: Part | None) -> Report:
    """Run the benchmarks on a stack of their own, which ends with them, on Ctrl-C too."""
    own = _own(settings)
    stack = LocalStack(own, [noop.application(_replica())])
    stack.check_startable()
    _forget(own)
    build = assets.ModelBuild(own)
    try:
        # Before the stack starts, so that neither disturbs the other.
        build.wait()
        state = stack.start(lambda what: console.print(f"· {what}"))
        report = _measure(own, state, build, console, quick=quick, only=only)
        (own.home / "bench.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
        return report
    finally:
        console.print("· stopping what was started")
        build.stop()
        stack.stop()


def _measure(
    settings: Settings, state: StackState, build: assets.ModelBuild, console: Console, *,
    quick: bool, only: Part | None,
) -> Report:  # fmt: skip
    """Training first: the API's part leaves a long queue behind."""
    resident = processes.resident_bytes(state.stack_id, state.ray_folder)
    assets.upload(state, build.folder)
    token = settings.api_token.get_secret_value() if settings.api_token else ""

    def say(what: str) -> None:
        console.print(f"· {what}")

    parts = {only} if only else set(get_args(Part))
    trained: list[training.TrainingResult] = []
    packed = pressed = None
    if "packing" in parts:
        packed = packing.measure(build.folder, quick=quick, say=say)
    with ExitStack() as stack:
        clients = {
            api_name: stack.enter_context(
                TrainerClient(state.base_url, token=token or None, backend=api_name)
            )
            for api_name in BACKENDS
        }
        if "training" in parts:
            rounds = 1 if quick else ROUNDS
            trained = training.measure(
                clients, state, build.folder, rounds=rounds, quick=quick, say=say
            )
        if "api" in parts:
            rounds, seconds = (1, 1.0) if quick else (5, 3.0)
            pressed = api.measure(
                clients["hf-unsloth"], state, settings.home, token,
                rounds=rounds, seconds=seconds, say=say,
            )  # fmt: skip
    return Report(resident, pressed, trained, packed)


def _own(settings: Settings) -> Settings:
    """Nothing that the operator set may be filled with thousands of jobs."""
    if settings.engine is not None:
        raise ConfigInvalid("TRAINER_ENGINE is set: without a model there is nothing to measure")
    home = settings.home.absolute() / "bench"
    own: dict[str, Any] = {
        "home": home,
        "port": processes.free_port(),
        "database_url": SecretStr(f"sqlite:///{home / 'trainer.db'}"),
        "max_queued_jobs": 10**6,
        "refuse_unschedulable": False,
        "max_gpus": 0,
    }
    return settings.model_copy(update=own)


def _forget(settings: Settings) -> None:
    """Remove the store and the scratch files of the run before."""
    for path in settings.home.glob("trainer.db*"):
        path.unlink()
    shutil.rmtree(settings.scratch, ignore_errors=True)


def _replica() -> dict[str, Any]:
    """The replica options of an API, as the local stack deploys it."""
    config = yaml.safe_load((files("configs") / "serve" / "local.yaml").read_text())
    replica: dict[str, Any] = config["applications"][0]["deployments"][0]
    return replica


if __name__ == "__main__":
    sys.exit(main())
