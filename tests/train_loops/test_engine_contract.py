"""What every engine promises, checked on each that a machine without a GPU can run."""

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.adapter import Method, Objective
from configs.capabilities import ENGINES, HOME, choose_engine
from configs.errors import Unsupported
from configs.request import TrainRequest
from tests.train_loops.bench import Bench, furthest, results, second_attempt
from tests.train_loops.plans import OrderingReporter, request
from train_loops.engines import simulated

ON_CPU = [name for name, row in ENGINES.items() if row.cpu]
REAL = [name for name in ON_CPU if name != "simulated"]
STEPS = 4
SAME = 1e-5


@pytest.fixture(params=ON_CPU, scope="module")
def bench(
    request: Any, file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"), request.param, STEPS)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "STEP_SECONDS", 0)


def steps(reporter: OrderingReporter) -> list[int]:
    seen = [event.progress.step for event in reporter.events if event.type == "progress"]
    return seen[:-1] if seen[-2:-1] == seen[-1:] else seen


def test_every_step_is_reported_once_with_its_numbers(bench: Bench) -> None:
    reporter = OrderingReporter()
    plan = bench.plan("whole")
    assert bench.run(plan, reporter).stop is None
    assert steps(reporter) == list(range(1, STEPS + 1))
    for line in bench.metrics(plan):
        assert math.isfinite(line["train_loss"])
        assert line["train_loss"] > 0
        assert 0 <= line["learning_rate"] <= plan.tuning.learning_rate


def test_a_run_ends_with_its_epochs_or_with_its_step_limit_whichever_comes_first(
    bench: Bench,
) -> None:
    plan = bench.plan("short", tuning={"max_steps": 1000, "batch_size": 12})
    # Twenty-four rows; a simulated epoch has ten steps.
    assert len(bench.trained(plan)) == (10 if bench.engine == "simulated" else 2)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(bench: Bench) -> None:
    tuning = {"max_steps": STEPS, "seed": 7, "warmup_ratio": 0.3, "lr_scheduler": "cosine"}
    whole = bench.plan("never-stopped", tuning=tuning)
    expected = bench.trained(whole)
    stopped = bench.plan("stopped", tuning=tuning)
    assert bench.run(stopped, OrderingReporter(stop="cancel", at_step=2)).stop == "cancel"
    assert not results(stopped).exists(), "a run that was stopped publishes nothing"
    resumed = second_attempt(stopped)
    reporter = OrderingReporter()
    assert bench.run(resumed, reporter).stop is None
    assert steps(reporter) == [3, 4]
    assert bench.losses(resumed) == pytest.approx(expected, abs=SAME)
    if bench.engine != "simulated":
        assert furthest(whole, resumed) < SAME


def test_closing_twice_or_before_the_first_step_does_no_harm(bench: Bench) -> None:
    loop = bench.loop(bench.plan("closed"))
    loop.begin()
    loop.close()
    loop.close()


def test_a_closed_loop_leaves_no_weights_behind(bench: Bench) -> None:
    before = weights_alive()
    loop = bench.loop(bench.plan("released"))
    loop.begin()
    next(iter(loop.steps()))
    loop.close()
    del loop
    assert weights_alive() <= before


def weights_alive() -> int:
    """Numbers in all parameters that this process holds."""
    gc.collect()
    held = (thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Parameter))
    return sum(parameter.numel() for parameter in held)


def test_the_result_says_which_engine_made_it(bench: Bench) -> None:
    plan = bench.plan("signed", tuning={"max_steps": 1})
    bench.run(plan)
    assert json.loads((results(plan) / "plan.json").read_text())["engine"] == bench.engine


CELLS = [
    (engine, objective, method)
    for engine in REAL
    for objective in ("sft", "cpt", "dpo", "orpo", "kto", "reward", "grpo")
    for method in ENGINES["simulated"].trains["sft"]
    if method not in ENGINES[engine].trains.get(objective, [])  # type: ignore[call-overload]
]


@pytest.mark.parametrize(("engine", "objective", "method"), CELLS)
def test_what_an_engine_cannot_do_is_refused_with_who_can(
    engine: Any, objective: Objective, method: Method
) -> None:
    custom: dict[str, Any] = {"method": method, "objective": objective, "engine": engine}
    if objective == "grpo":
        custom["grpo"] = {"reward_functions": ["exact_reference"]}
    body = request(customization=custom)
    with pytest.raises(Unsupported) as caught:
        choose_engine(TrainRequest.model_validate(body), HOME[engine])
    able = [
        row
        for row in ENGINES.values()
        if row.engine != "simulated" and method in row.trains.get(objective, [])
    ]
    hints = " ".join(str(detail["hint"]) for detail in caught.value.details)
    for backend in {backend for row in able for backend in row.backends}:
        assert f"/{backend}/train" in hints
    if not able:
        assert "No API can do" in hints
