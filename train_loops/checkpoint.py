"""Where a run's checkpoints go and come from. What is in one is the engine's business.

Every checkpoint records the attempt that wrote it (`attempt.json`).
"""

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from train_loops.engines.base import Metrics, TrainLoop

ATTEMPT_FILE = "attempt.json"


class Checkpoints(Protocol):
    """Checkpoints of one run, seen from one rank."""

    def latest(self) -> Path | None:
        """The newest whole checkpoint on local disk, or None on a fresh run."""

    def save(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Write a checkpoint after the step of `metrics`. Every rank calls it at the same step."""


class RayCheckpoints:
    """Through Ray Train, into the run's storage path; a resumed run finds them by its name.

    `ray.train.report` is a barrier: every rank must come, the same number of times.
    """

    def __init__(self, attempt: int, scratch: Path) -> None:
        self._attempt = attempt
        self._scratch = scratch

    def latest(self) -> Path | None:
        import ray.train

        checkpoint: Any = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        # Not `as_directory`: the engine may read from it until its first step.
        return Path(checkpoint.to_directory(str(self._scratch / "resume")))

    def save(self, loop: TrainLoop, metrics: Metrics) -> None:
        import ray.train
        from ray.train import Checkpoint

        folder = written(loop, self._scratch / "checkpoint", metrics, self._attempt)
        ray.train.report(
            {"step": metrics.step, "loss": metrics.loss, "attempt": self._attempt},
            checkpoint=Checkpoint.from_directory(str(folder)),
        )
        shutil.rmtree(folder, ignore_errors=True)


class FolderCheckpoints:
    """In a local folder, the newest only: for runs without Ray."""

    def __init__(self, attempt: int, folder: Path) -> None:
        self._attempt = attempt
        self._folder = folder

    def latest(self) -> Path | None:
        newest = self._folder / "checkpoint"
        return newest if newest.exists() else None

    def save(self, loop: TrainLoop, metrics: Metrics) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = written(loop, self._folder / "checkpoint.part", metrics, self._attempt)
        shutil.rmtree(self._folder / "checkpoint", ignore_errors=True)
        fresh.rename(self._folder / "checkpoint")


def written(loop: TrainLoop, folder: Path, metrics: Metrics, attempt: int) -> Path:
    """Have `loop` save into a fresh `folder` and sign it with the attempt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    loop.save(folder)
    (folder / ATTEMPT_FILE).write_text(json.dumps({"attempt": attempt, "step": metrics.step}))
    return folder
