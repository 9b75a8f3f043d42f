"""Finished files: uploaded by the attempt, signed by a manifest, read back by the service.

The attempt writes `results/<job_id>/attempt-<n>/…` and, last, that folder's `manifest.json`. The
service checks it against what the store lists and then writes `results/<job_id>/manifest.json`. So
an attempt that was given up cannot touch what a later one published.
"""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from configs.errors import StorageFailed
from configs.job import Artifact, Record
from configs.names import DATA_FILE, MANIFEST_FILE, PLAN_FILE, VERSIONS_FILE, attempt_folder
from train_loops.data.prepare import REPORT_FILE
from train_loops.plan import Plan
from train_loops.stores.base import ObjectStore

_PACKAGES = (
    "trainer-apis", "ray", "torch", "transformers", "peft", "trl", "accelerate", "datasets",
    "bitsandbytes", "nemo-automodel", "deepspeed", "unsloth", "pyarrow",
)  # fmt: skip


class ManifestFile(Record):
    """One file of a result."""

    path: str
    """Below the job's results folder."""
    size_bytes: int
    sha256: str


class Manifest(Record):
    """All files of a finished attempt."""

    job_id: str
    attempt: int
    engine: str
    created_at: datetime
    files: list[ManifestFile]


def describe(plan: Plan, data_folder: Path, folder: Path) -> None:
    """Write the plan, the data's counts and the package versions beside the result in `folder`."""
    if (report := data_folder / REPORT_FILE).exists():
        shutil.copyfile(report, folder / DATA_FILE)
    (folder / PLAN_FILE).write_text(plan.model_dump_json(indent=2) + "\n")
    (folder / VERSIONS_FILE).write_text(json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """The versions of what can change a run's outcome."""
    return {name: found for name in _PACKAGES if (found := _version(name))}


def publish(plan: Plan, folder: Path, store: ObjectStore) -> Manifest:
    """Upload every file below `folder` to the attempt's results, then its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    prefix = attempt_folder(plan.attempt)
    files = [
        ManifestFile(
            path=prefix + path.relative_to(folder).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256(path),
        )
        for path in paths
    ]
    for path, file in zip(paths, files, strict=True):
        store.put(path, plan.output_uri + file.path)
    manifest = Manifest(
        job_id=plan.job_id,
        attempt=plan.attempt,
        engine=plan.engine,
        created_at=datetime.now(UTC),
        files=files,
    )
    store.put_bytes(_text(manifest), plan.results_uri + MANIFEST_FILE)
    return manifest


def accept(store: ObjectStore, output_uri: str, attempt: int) -> list[Artifact]:
    """Check an attempt's manifest against the store and make it the job's.

    Raises:
        FileNotFoundError: the attempt wrote no manifest.
        StorageFailed: a file is missing or has another size than the manifest says.
    """
    written = store.get_bytes(output_uri + attempt_folder(attempt) + MANIFEST_FILE)
    manifest = Manifest.model_validate_json(written)
    sizes = {o.uri: o.size_bytes for o in store.list(output_uri + attempt_folder(attempt))}
    for file in manifest.files:
        found = sizes.get(output_uri + file.path)
        if found != file.size_bytes:
            raise StorageFailed(
                f"{output_uri}{file.path}: the manifest says {file.size_bytes} bytes, "
                f"the store has {found}"
            )
    store.put_bytes(_text(manifest), output_uri + MANIFEST_FILE)
    return [
        Artifact(name=f.path, uri=output_uri + f.path, size_bytes=f.size_bytes, sha256=f.sha256)
        for f in manifest.files
    ]


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
