"""The command line: `trainer up`, `down`, `demo`. Data on stdout, progress on stderr."""

import os
import signal
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from configs.errors import TrainerError
from configs.names import BACKENDS, Backend
from configs.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=True, help=__doc__)
_progress = Console(stderr=True)


@app.command()
def up() -> None:
    """Start the service on this machine, with an S3 endpoint, a base model and a dataset."""
    from serve_app.local import assets
    from serve_app.local.stack import LocalStack

    settings = Settings()
    stack = LocalStack(settings)
    stack.check_startable()
    build = assets.ModelBuild(settings)
    try:
        state = stack.start(lambda what: _progress.print(f"· {what}"))
        build.wait()
        assets.upload(state, build.folder)
    except BaseException:
        build.stop()
        stack.stop()
        raise
    token = "" if settings.api_token is None else ' -H "X-TRAINER-TOKEN: $TRAINER_API_TOKEN"'
    print(f"The service answers on {state.base_url} (/nemo, /meta, /hf-unsloth; docs at …/docs).")
    print(f"S3 endpoint: {state.s3_endpoint}, bucket {assets.BUCKET}. Try:\n")
    print(
        f"curl -s{token} -H 'Content-Type: application/json' "
        f"-d @configs/examples/01-lora-every-api.json {state.base_url}/hf-unsloth/train\n"
    )
    if token and "TRAINER_API_TOKEN" not in os.environ:
        print("The token is in .env; let the shell read it first: set -a; . ./.env; set +a")
    print("`make down` ends it.")


@app.command()
def down() -> None:
    """End the service and all that `up` started; jobs and their history stay."""
    from serve_app.local.stack import LocalStack

    stack = LocalStack(Settings())
    was_running = stack.state is not None
    stack.stop()
    print("The service has ended." if was_running else "No service was running here.")


@app.command()
def demo(
    api: Annotated[
        Backend | None, typer.Option(help="One API only; all three when left out.")
    ] = None,
) -> None:
    """Run a fine-tuning job on each API all the way; compare base and tuned models."""
    from serve_app.local import demo as show

    show.run(Settings(), _progress, BACKENDS if api is None else (api,))


def _as_interrupt(_number: int, _frame: Any) -> None:
    """SIGTERM ends a command as Ctrl-C does, so that it stops what it started."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: our own errors are a line for a person, not a traceback."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app()
    except TrainerError as error:
        _progress.print("error", style="red", end=" ")
        for line in filter(None, (error.message, error.hint)):
            # A message quotes what it was given: no markup, and no breaking of long lines.
            _progress.print(line, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
