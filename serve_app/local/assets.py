"""The demo's base model and dataset, and their place on the local S3 endpoint.

The base model is built once per home folder, from the text of the dataset; building needs torch and
takes some seconds, so it runs in a process of its own beside the start of Ray.
"""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from configs.errors import InternalError
from configs.job import Job
from configs.names import METRICS_FILE
from configs.settings import Settings
from serve_app.local.stack import S3_ENVIRONMENT, StackState
from train_loops.stores.s3 import split

BUCKET = "trainer-demo"
PROJECT = "users/demo/projects/faq/"
MODEL_PREFIX = "models/demo-llama/"
DATASET = "finetuning_faq.jsonl"
HELD_OUT = "finetuning_faq.heldout.jsonl"
DATASET_URI = f"s3://{BUCKET}/{PROJECT}ingestion/{DATASET}"
MODEL_URI = f"s3://{BUCKET}/{MODEL_PREFIX.rstrip('/')}"


def model_folder(settings: Settings) -> Path:
    """Where the demo's base model lies on this machine."""
    return settings.home.absolute() / "models" / "demo-llama"


def dataset_file(name: str = DATASET) -> Path:
    """A dataset that ships with the project."""
    return Path(str(files("configs") / "examples" / "data" / name))


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a dataset that ships with the project."""
    return [json.loads(line) for line in dataset_file(name).read_text().splitlines()]


class ModelBuild:
    """The base model's building in the background; `wait` before it is used."""

    def __init__(self, settings: Settings) -> None:
        self.folder = model_folder(settings)
        self._process: subprocess.Popen[bytes] | None = None
        if not (self.folder / "config.json").exists():
            command = [sys.executable, "-m", "train_loops.tiny_llama", str(dataset_file())]
            log = settings.home.absolute() / "logs" / "base-model.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [*command, str(self.folder)], stdout=output, stderr=output
                )

    def wait(self) -> None:
        """Until the model lies in its folder."""
        if self._process is not None and self._process.wait():
            raise InternalError("the demo's base model could not be built; see logs/base-model.log")

    def stop(self) -> None:
        """End a build that is still running."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def upload(state: StackState, folder: Path) -> None:
    """Create the bucket and put model and dataset in it."""
    client = s3_client(state)
    client.create_bucket(Bucket=BUCKET)
    client.upload_file(str(dataset_file()), BUCKET, f"{PROJECT}ingestion/{DATASET}")
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), BUCKET, MODEL_PREFIX + path.name)


def metrics(state: StackState, job: Job) -> list[dict[str, Any]]:
    """The lines of the job's `metrics.jsonl`."""
    bucket, key = split(job.log_uri + METRICS_FILE)
    body = s3_client(state).get_object(Bucket=bucket, Key=key)["Body"].read()
    return [json.loads(line) for line in body.splitlines()]


def s3_client(state: StackState) -> Any:
    """A client of the local S3 endpoint, whatever the environment says."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=state.s3_endpoint,
        region_name=S3_ENVIRONMENT["AWS_REGION"],
        aws_access_key_id=S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
    )
