"""A trainer that owns its loop, held at its hooks."""

import contextvars
import threading

import pytest

from train_loops.engines.hooked import HookedRun

PLACE: contextvars.ContextVar[str] = contextvars.ContextVar("PLACE", default="nowhere")


class Trainer:
    """Hands out 1, 2, 3 and notes what it does in between."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.run: HookedRun[int] = HookedRun(self._body)

    def _body(self) -> None:
        try:
            for number in (1, 2, 3):
                self.notes.append(f"step {number}")
                self.run.hand_out(number)
        finally:
            self.notes.append("tidied up")


def test_values_come_out_in_order_and_then_none() -> None:
    run = Trainer().run
    assert [run.advance() for _ in range(5)] == [1, 2, 3, None, None]


def test_the_body_does_nothing_until_it_is_advanced() -> None:
    trainer = Trainer()
    assert trainer.notes == []
    trainer.run.advance()
    assert trainer.notes == ["step 1"]
    trainer.run.advance()
    assert trainer.notes == ["step 1", "step 2"]


def test_it_is_finished_when_the_body_has_returned() -> None:
    run = Trainer().run
    for _ in range(3):
        run.advance()
        assert not run.finished
    run.advance()
    assert run.finished


def test_an_error_of_the_body_comes_out_where_it_was_advanced() -> None:
    def body() -> None:
        run.hand_out(1)
        raise ValueError("the trainer broke")

    run: HookedRun[int] = HookedRun(body)
    assert run.advance() == 1
    with pytest.raises(ValueError, match="the trainer broke"):
        run.advance()
    assert run.finished
    assert run.advance() is None


def test_the_body_runs_in_the_callers_thread() -> None:
    seen: list[int] = []
    run: HookedRun[int] = HookedRun(lambda: seen.append(threading.get_ident()))
    run.advance()
    assert seen == [threading.get_ident()]


def test_the_body_sees_the_callers_context_and_keeps_its_own_changes() -> None:
    def body() -> None:
        run.hand_out(PLACE.get())
        PLACE.set("inside")
        run.hand_out(PLACE.get())

    token = PLACE.set("outside")
    run: HookedRun[str] = HookedRun(body)
    assert [run.advance(), run.advance()] == ["outside", "inside"]
    assert PLACE.get() == "outside"
    PLACE.reset(token)


def test_an_ended_body_goes_no_further_and_tidies_up() -> None:
    trainer = Trainer()
    trainer.run.advance()
    trainer.run.end()
    assert trainer.notes == ["step 1", "tidied up"]
    assert trainer.run.finished
    assert trainer.run.advance() is None


def test_a_body_that_never_began_is_ended_without_beginning() -> None:
    trainer = Trainer()
    trainer.run.end()
    assert trainer.notes == []
    assert trainer.run.finished


def test_ending_twice_or_after_the_end_does_nothing() -> None:
    run = Trainer().run
    while run.advance() is not None:
        pass
    run.end()
    run.end()
    assert run.finished


def test_an_error_of_the_tidying_comes_out_of_the_ending() -> None:
    def body() -> None:
        try:
            run.hand_out(1)
        finally:
            raise OSError("the disk is full")

    run: HookedRun[int] = HookedRun(body)
    run.advance()
    with pytest.raises(OSError, match="the disk is full"):
        run.end()
