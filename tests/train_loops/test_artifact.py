"""Finished files: uploaded, signed last, and checked before they become the job's."""

import hashlib
import json
from pathlib import Path

import pytest

from configs.errors import StorageFailed
from configs.names import DATA_FILE
from tests.train_loops.plans import MemoryStore
from tests.train_loops.plans import plan as resolved
from train_loops.artifact import Manifest, accept, describe, publish, sha256
from train_loops.data.prepare import REPORT_FILE
from train_loops.plan import Plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A result of two files."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/weights").write_bytes(b"weights")
    (tmp_path / "note").write_bytes(b"note")
    return tmp_path


def rewritten(folder: Path, text: bytes) -> Path:
    (folder / "adapter/weights").write_bytes(text)
    return folder


def top_manifest(store: MemoryStore, plan: Plan) -> Manifest:
    return Manifest.model_validate_json(store.get_bytes(plan.output_uri + "manifest.json"))


def test_what_is_published_is_accepted_with_name_size_and_hash(folder: Path) -> None:
    plan, store = resolved(), MemoryStore()
    publish(plan, folder, store)
    weights, note = accept(store, plan.output_uri, plan.attempt)
    assert weights.name == "attempt-1/adapter/weights"
    assert weights.uri == plan.results_uri + "adapter/weights"
    assert weights.size_bytes == len(b"weights")
    assert weights.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert store.get_bytes(note.uri) == b"note"


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_manifest_is_written_last(folder: Path) -> None:
    plan, store = resolved(), MemoryStore()
    publish(plan, folder, store)
    assert store.writes[-1] == plan.results_uri + "manifest.json"
    assert store.writes.count(plan.results_uri + "manifest.json") == 1


def test_the_manifest_says_which_attempt_and_engine_wrote_it(folder: Path) -> None:
    manifest = publish(resolved(attempt=4), folder, MemoryStore())
    assert (manifest.job_id, manifest.attempt, manifest.engine) == ("job-1", 4, "simulated")


def test_the_job_has_a_manifest_only_once_it_is_accepted(folder: Path) -> None:
    plan, store = resolved(), MemoryStore()
    publish(plan, folder, store)
    assert plan.output_uri + "manifest.json" not in store.objects
    accept(store, plan.output_uri, plan.attempt)
    assert top_manifest(store, plan).attempt == 1


@pytest.mark.parametrize("left", [b"", b"weight", b"weights and more"])
def test_a_file_of_another_size_is_refused(folder: Path, left: bytes) -> None:
    plan, store = resolved(), MemoryStore()
    publish(plan, folder, store)
    store.objects[plan.results_uri + "adapter/weights"] = left
    with pytest.raises(StorageFailed, match=f"says 7 bytes, the store has {len(left)}"):
        accept(store, plan.output_uri, plan.attempt)
    assert plan.output_uri + "manifest.json" not in store.objects


def test_a_missing_file_is_refused(folder: Path) -> None:
    plan, store = resolved(), MemoryStore()
    publish(plan, folder, store)
    del store.objects[plan.results_uri + "adapter/weights"]
    with pytest.raises(StorageFailed, match="the store has None"):
        accept(store, plan.output_uri, plan.attempt)


def test_an_attempt_without_manifest_is_not_found(folder: Path) -> None:
    plan, store = resolved(), MemoryStore()
    publish(plan, folder, store)
    with pytest.raises(FileNotFoundError):
        accept(store, plan.output_uri, attempt=2)


def test_a_stale_attempt_cannot_change_what_a_later_one_published(folder: Path) -> None:
    stale, later, store = resolved(attempt=1), resolved(attempt=2), MemoryStore()
    publish(later, rewritten(folder, b"of the second"), store)
    accepted = accept(store, later.output_uri, 2)
    publish(stale, rewritten(folder, b"of the first, long after"), store)
    assert top_manifest(store, later).attempt == 2
    assert store.get_bytes(accepted[0].uri) == b"of the second"
    assert accept(store, later.output_uri, 2) == accepted


def test_attempt_ten_is_not_taken_for_attempt_one(folder: Path) -> None:
    store = MemoryStore()
    for attempt in (10, 1):
        publish(resolved(attempt=attempt), folder, store)
    artifacts = accept(store, resolved().output_uri, 1)
    assert {artifact.name.split("/")[0] for artifact in artifacts} == {"attempt-1"}


def test_the_plan_the_data_counts_and_the_package_versions_lie_beside_the_result(
    tmp_path: Path,
) -> None:
    plan, data, result = resolved(), tmp_path / "data", tmp_path / "result"
    data.mkdir()
    result.mkdir()
    (data / REPORT_FILE).write_text('{"rows": 3}')
    describe(plan, data, result)
    assert Plan.model_validate_json((result / "plan.json").read_text()) == plan
    assert json.loads((result / DATA_FILE).read_text()) == {"rows": 3}
    assert {"torch", "transformers", "peft"} <= set(
        json.loads((result / "versions.json").read_text())
    )


def test_a_run_without_prepared_data_is_described_too(tmp_path: Path) -> None:
    describe(resolved(), tmp_path / "nothing-here", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "versions.json"]
