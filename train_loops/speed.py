"""Speed, time left and memory of a run. Called by `worker.py` after each step."""

import resource
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from configs.job import Progress
from train_loops.engines.base import Metrics

WINDOW_STEPS = 20


class Speedometer:
    """Turns steps into progress. The first steps weigh no more than the window is long."""

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total_steps = total_steps
        self._clock = clock
        self.validation_loss: float | None = None
        """The last one known; it goes into the progress of every step after it."""
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=WINDOW_STEPS + 1)

    def progress(self, metrics: Metrics) -> Progress:
        """The job's progress after the step of `metrics`."""
        self._marks.append((self._clock(), self._marks[-1][1] + metrics.tokens))
        seconds = self._marks[-1][0] - self._marks[0][0]
        tokens = self._marks[-1][1] - self._marks[0][1]
        left = max(0, self._total_steps - metrics.step)
        return Progress(
            step=metrics.step,
            total_steps=self._total_steps,
            epoch=round(metrics.epoch, 4),
            percent=round(100 * metrics.step / self._total_steps, 2),
            loss=metrics.loss,
            learning_rate=metrics.learning_rate,
            grad_norm=metrics.grad_norm,
            tokens_per_second=tokens / seconds if seconds > 0 else None,
            eta_seconds=left * seconds / (len(self._marks) - 1),
            validation_loss=self.validation_loss,
        )

    def now(self, progress: Progress) -> Progress:
        """`progress` with the validation loss that was found since."""
        return progress.model_copy(update={"validation_loss": self.validation_loss})


def peak_memory_bytes(device: Literal["cpu", "cuda"]) -> int:
    """The most that this worker has held so far: of its GPU's memory, or of main memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
