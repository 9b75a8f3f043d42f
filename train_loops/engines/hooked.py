"""Drives a trainer that owns its loop (transformers' Trainer, a recipe) step by step.

The trainer runs in a greenlet of the caller's own thread: a hook hands a value out and the trainer
stands still until the caller comes back for the next. No second thread, so CUDA's current device,
autograd's mode and Ray Train's context stay what they are.
"""

import contextvars
from collections.abc import Callable
from typing import Generic, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class HookedRun(Generic[T]):
    """`body` runs between calls of `advance`; inside it, `hand_out(value)` answers the caller."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._greenlet = greenlet(body)
        self._greenlet.gr_context = contextvars.copy_context()

    def advance(self) -> T | None:
        """Let the body run to its next `hand_out`; None once it has returned. Errors come out."""
        if self._greenlet.dead:
            return None
        self._greenlet.parent = getcurrent()
        value: T | None = self._greenlet.switch()
        return None if self._greenlet.dead else value

    def hand_out(self, value: T) -> None:
        """Inside the body: give `value` to the caller and wait to be advanced."""
        parent = self._greenlet.parent
        assert parent is not None
        parent.switch(value)

    def end(self) -> None:
        """Let the body go no further: `GreenletExit` is raised in it. Safe to call twice."""
        if not self._greenlet.dead:
            self._greenlet.parent = getcurrent()
            self._greenlet.throw()

    @property
    def finished(self) -> bool:
        """Whether the body has returned, failed or been ended."""
        return bool(self._greenlet.dead)
