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
    """In a local folder that all ranks share, the newest only: for runs without Ray.

    A step's checkpoint counts once every rank has put its part there. Ranks keep step, so by then
    none still writes to an older one.
    """

    def __init__(self, attempt: int, folder: Path, rank: int = 0, world_size: int = 1) -> None:
        self._attempt = attempt
        self._folder = folder
        self._rank = rank
        self._world_size = world_size

    def latest(self) -> Path | None:
        whole = [step for step in self._folder.glob("step-*") if self._is_whole(step)]
        return max(whole, key=_step, default=None)

    def save(self, loop: TrainLoop, metrics: Metrics) -> None:
        part = written(loop, self._folder / f"part-{self._rank}", metrics, self._attempt)
        step = self._folder / f"step-{metrics.step}"
        shutil.copytree(part, step, dirs_exist_ok=True)
        shutil.rmtree(part)
        (step / f"rank-{self._rank}.done").write_text(str(self._world_size))
        if self._is_whole(step):
            self._drop_before(metrics.step)

    def _is_whole(self, step: Path) -> bool:
        """By the number of ranks that wrote it: a later run may have another."""
        done = list(step.glob("rank-*.done"))
        return bool(done) and len(done) == int(done[0].read_text())

    def _drop_before(self, step: int) -> None:
        for older in self._folder.glob("step-*"):
            if _step(older) < step:
                shutil.rmtree(older, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def written(loop: TrainLoop, folder: Path, metrics: Metrics, attempt: int) -> Path:
    """Have `loop` save into a fresh `folder` and sign it with the attempt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    loop.save(folder)
    (folder / ATTEMPT_FILE).write_text(json.dumps({"attempt": attempt, "step": metrics.step}))
    return folder
