"""Checkpoints: in a folder that all ranks share, and handed to Ray Train."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from train_loops.checkpoint import FolderCheckpoints, RayCheckpoints
from train_loops.engines.base import Metrics


class RankLoop:
    """Saves one file of its own and one that every rank has."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def save(self, folder: Path) -> None:
        (folder / "shared").mkdir(parents=True)
        (folder / f"random-{self.rank}").write_text(str(self.rank))
        (folder / "shared/state").write_text("state")


def save(checkpoints: FolderCheckpoints, rank: int, step: int) -> None:
    metrics = Metrics(step, 0.0, 1.0, 1e-3, None, 1)
    checkpoints.save(RankLoop(rank), metrics)  # type: ignore[arg-type]


def ranks(folder: Path, count: int = 2, attempt: int = 1) -> list[FolderCheckpoints]:
    return [FolderCheckpoints(attempt, folder, rank, count) for rank in range(count)]


def test_a_fresh_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert FolderCheckpoints(1, tmp_path / "nowhere").latest() is None


def test_a_checkpoint_says_which_attempt_wrote_it_after_which_step(tmp_path: Path) -> None:
    (alone,) = ranks(tmp_path, 1, attempt=3)
    save(alone, 0, 20)
    newest = alone.latest()
    assert newest is not None
    assert json.loads((newest / "attempt.json").read_text()) == {"attempt": 3, "step": 20}


def test_every_rank_finds_the_parts_of_all(tmp_path: Path) -> None:
    one, other = ranks(tmp_path)
    save(one, 0, 10)
    save(other, 1, 10)
    newest = one.latest()
    assert newest is not None
    assert newest == other.latest()
    assert {path.name for path in newest.iterdir()} >= {"random-0", "random-1", "shared"}


def test_a_checkpoint_that_lacks_a_rank_is_passed_over(tmp_path: Path) -> None:
    one, other = ranks(tmp_path)
    for step in (10, 9):
        save(one, 0, step)
    save(other, 1, 9)
    newest = one.latest()
    assert newest is not None
    assert newest.name == "step-9"


def test_only_the_newest_whole_checkpoint_is_kept(tmp_path: Path) -> None:
    one, other = ranks(tmp_path)
    for step in (9, 10, 100):
        save(one, 0, step)
        save(other, 1, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-100"]


class BreakingLoop(RankLoop):
    """Breaks half-way through a checkpoint."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        raise OSError("the disk is full")


def newest(checkpoints: FolderCheckpoints | RayCheckpoints) -> Path:
    latest = checkpoints.latest()
    assert latest is not None
    return latest


def test_a_checkpoint_that_breaks_leaves_the_one_before_and_the_next(tmp_path: Path) -> None:
    (checkpoints,) = ranks(tmp_path, count=1)
    save(checkpoints, 0, step=1)
    with pytest.raises(OSError, match="the disk is full"):
        checkpoints.save(BreakingLoop(7), Metrics(2, 0.0, 1.0, 1e-3, None, 1))  # type: ignore[arg-type]
    assert json.loads((newest(checkpoints) / "attempt.json").read_text())["step"] == 1
    save(checkpoints, 0, step=3)
    assert not (newest(checkpoints) / "random-7").exists()


@dataclass
class FakeRayTrain:
    """Stands for Ray Train: one checkpoint to resume from, and what was reported."""

    resume_from: Path | None = None
    metrics: dict[str, Any] | None = None
    files: dict[str, str] | None = None

    def get_checkpoint(self) -> Any:
        from ray.train import Checkpoint

        return Checkpoint.from_directory(str(self.resume_from)) if self.resume_from else None

    def report(self, metrics: dict[str, Any], checkpoint: Any) -> None:
        paths = [path for path in Path(checkpoint.path).rglob("*") if path.is_file()]
        self.metrics = metrics
        self.files = {path.name: path.read_text() for path in paths}


@pytest.fixture
def ray_train(monkeypatch: pytest.MonkeyPatch) -> FakeRayTrain:
    import ray.train

    fake = FakeRayTrain()
    monkeypatch.setattr(ray.train, "get_checkpoint", fake.get_checkpoint)
    monkeypatch.setattr(ray.train, "report", fake.report)
    return fake


def save_to_ray(folder: Path, rank: int, step: int, attempt: int) -> None:
    metrics = Metrics(step, 0.0, 2.0, 1e-3, None, 1)
    RayCheckpoints(attempt, folder).save(RankLoop(rank), metrics)  # type: ignore[arg-type]


def test_ray_train_gets_the_checkpoint_and_the_step_it_is_of(
    ray_train: FakeRayTrain, tmp_path: Path
) -> None:
    save_to_ray(tmp_path, rank=1, step=5, attempt=3)
    assert ray_train.metrics == {"step": 5, "loss": 2.0, "attempt": 3}
    assert ray_train.files is not None
    assert ray_train.files["state"] == "state"
    assert json.loads(ray_train.files["attempt.json"]) == {"attempt": 3, "step": 5}


def test_a_checkpoint_that_ray_train_took_is_removed_from_the_worker(
    ray_train: FakeRayTrain, tmp_path: Path
) -> None:
    save_to_ray(tmp_path, rank=0, step=1, attempt=1)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_run_under_ray_train_has_no_checkpoint(
    ray_train: FakeRayTrain, tmp_path: Path
) -> None:
    assert RayCheckpoints(1, tmp_path).latest() is None


def test_a_resumed_worker_gets_a_copy_of_its_own(ray_train: FakeRayTrain, tmp_path: Path) -> None:
    ray_train.resume_from = tmp_path / "stored"
    RankLoop(0).save(ray_train.resume_from)
    latest = newest(RayCheckpoints(2, tmp_path / "scratch"))
    assert latest.is_relative_to(tmp_path / "scratch")
    assert (latest / "shared/state").read_text() == "state"
