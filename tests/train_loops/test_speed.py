"""Speed and time left, by a clock that the test sets."""

import pytest

from train_loops.engines.base import Metrics
from train_loops.speed import WINDOW_STEPS, Speedometer


class SteppedClock:
    """A clock that stands still between `tick`s."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def tick(self, seconds: float) -> None:
        self.seconds += seconds

    def __call__(self) -> float:
        return self.seconds


def step(number: int, tokens: int = 100) -> Metrics:
    return Metrics(number, number / 4, 2.0, 1e-3, 0.5, tokens)


def test_speed_is_tokens_over_seconds() -> None:
    clock = SteppedClock()
    speedometer = Speedometer(10, clock)
    clock.tick(2.0)
    assert speedometer.progress(step(1, 100)).tokens_per_second == pytest.approx(50)
    clock.tick(2.0)
    assert speedometer.progress(step(2, 300)).tokens_per_second == pytest.approx(100)


def test_time_left_is_the_steps_left_at_the_present_speed() -> None:
    clock = SteppedClock()
    speedometer = Speedometer(10, clock)
    for number in (1, 2, 3):
        clock.tick(2.0)
        progress = speedometer.progress(step(number))
    assert progress.eta_seconds == pytest.approx(7 * 2.0)


def test_a_slow_first_step_is_forgotten() -> None:
    clock = SteppedClock()
    speedometer = Speedometer(1000, clock)
    clock.tick(500.0)
    speedometer.progress(step(1))
    for number in range(2, WINDOW_STEPS + 2):
        clock.tick(1.0)
        progress = speedometer.progress(step(number))
    assert progress.tokens_per_second == pytest.approx(100)


def test_a_resumed_run_counts_only_the_steps_that_it_did() -> None:
    clock = SteppedClock()
    speedometer = Speedometer(100, clock)
    clock.tick(3.0)
    progress = speedometer.progress(step(91))
    assert progress.percent == 91
    assert progress.eta_seconds == pytest.approx(9 * 3.0)


def test_the_last_step_leaves_no_time() -> None:
    clock = SteppedClock()
    speedometer = Speedometer(1, clock)
    clock.tick(1.0)
    progress = speedometer.progress(step(1))
    assert (progress.percent, progress.eta_seconds) == (100, 0)


def test_a_clock_that_stands_still_gives_no_speed() -> None:
    assert Speedometer(10, SteppedClock()).progress(step(1)).tokens_per_second is None


def test_what_the_engine_measured_is_passed_on() -> None:
    progress = Speedometer(10, SteppedClock()).progress(step(2))
    assert (progress.step, progress.total_steps, progress.epoch) == (2, 10, 0.5)
    assert (progress.loss, progress.learning_rate, progress.grad_norm) == (2.0, 1e-3, 0.5)
