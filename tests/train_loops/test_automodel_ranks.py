"""NeMo AutoModel's recipe on two ranks that share the model in every way, against one rank."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.settings import Settings
from tests.train_loops import two_ranks
from tests.train_loops.bench import (
    Bench,
    assert_both_ranks_stopped_and_resumed,
    furthest,
    loss_of,
    second_attempt,
)
from tests.train_loops.plans import OrderingReporter
from train_loops.inputs import job_folder
from train_loops.plan import Plan
from train_loops.run import run

SAME = 1e-5
HELD_BACK: dict[str, Any] = {"tuning": {"validation_share": 0.25}}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"), "automodel")


@pytest.fixture(scope="module")
def alone(bench: Bench) -> dict[str, Plan]:
    """One finished run of each method on one rank."""
    plans = {method: bench.plan(f"one-{method}", method) for method in ("lora", "qlora", "full")}
    for plan in plans.values():
        assert bench.run(plan).stop is None
    return plans


@dataclass(frozen=True)
class Pair:
    """What two ranks did: a run to its end, one that was stopped and resumed, and others."""

    plans: dict[str, Plan]
    said: list[str]
    checkpoint: Path
    """The stopped run's, after its second step."""


SHARED: dict[str, dict[str, Any]] = {
    "ddp": {"customization": {"sharding": {"strategy": "ddp"}}},
    "tensor": {"customization": {"sharding": {"strategy": "fsdp2", "tensor_parallel": 2}}},
    "full": {"method": "full"},
    "qlora": {"method": "qlora"},
    "bf16": {"customization": {"precision": "bf16"}},
}
"""Further ways in which two ranks share a run."""


@pytest.fixture(scope="module")
def pair(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("plans")
    ways = {"both": HELD_BACK, "halted": HELD_BACK, **SHARED}
    plans = {
        name: bench.plan(f"two-{name}", resources={"workers": 2}, **how)
        for name, how in ways.items()
    }
    for name, plan in plans.items():
        (folder / f"{name}.json").write_text(plan.model_dump_json())
    said = bench.torchrun("tests.train_loops.test_automodel_ranks", folder)
    checkpoint = job_folder(plans["halted"], bench.settings) / "checkpoints/step-2"
    return Pair(plans, said, checkpoint)


def main(folder: Path) -> None:
    """On each of two ranks: the runs of `two_ranks`, those of `SHARED`, a validation loss."""
    two_ranks.main(folder)
    settings = Settings(_env_file=None)
    for name in SHARED:
        shared = Plan.model_validate_json((folder / f"{name}.json").read_text())
        run(shared, settings, OrderingReporter())
    rank = int(os.environ["RANK"])
    assert settings.file_root is not None and settings.model_root is not None
    bench = Bench(settings.file_root, settings.model_root, settings.home, "automodel")
    plan = Plan.model_validate_json((folder / "both.json").read_text())
    loop = bench.loop(plan, rank, world_size=2)
    loop.begin()
    sys.stdout.write(f"\nevaluated {rank}: {loop.evaluate()}\n")
    loop.close()


def test_two_ranks_train_as_one(pair: Pair, bench: Bench) -> None:
    one = bench.plan("one", **HELD_BACK)
    assert bench.losses(pair.plans["both"]) == pytest.approx(bench.trained(one), abs=1e-3)
    assert furthest(one, pair.plans["both"]) <= SAME


@pytest.mark.parametrize("way", ["ddp", "tensor", "full", "qlora"])
def test_however_two_ranks_share_the_model_they_train_as_one(
    way: str, pair: Pair, alone: dict[str, Plan], bench: Bench
) -> None:
    one = alone[SHARED[way].get("method", "lora")]
    assert bench.losses(pair.plans[way]) == pytest.approx(bench.losses(one), abs=1e-3)
    assert furthest(one, pair.plans[way]) <= SAME


def test_two_ranks_train_in_bf16(pair: Pair, alone: dict[str, Plan], bench: Bench) -> None:
    losses = bench.losses(pair.plans["bf16"])
    assert losses == pytest.approx(bench.losses(alone["lora"]), abs=2e-2)


def test_two_ranks_stop_and_resume_together(pair: Pair, bench: Bench) -> None:
    assert_both_ranks_stopped_and_resumed(pair.said)
    both, halted = pair.plans["both"], pair.plans["halted"]
    resumed = second_attempt(halted)
    assert bench.losses(resumed) == pytest.approx(bench.losses(both), abs=1e-5)
    assert furthest(both, resumed) <= SAME


def test_two_ranks_evaluate_as_one(pair: Pair, bench: Bench) -> None:
    found = [float(line.split(": ")[1]) for line in pair.said if line.startswith("evaluated")]
    expected = loss_of(bench.base_model(), bench.validation_batch(pair.plans["both"]))
    assert found == pytest.approx([expected, expected], abs=1e-5)


def test_one_rank_goes_on_from_the_merged_files_of_two(pair: Pair, bench: Bench) -> None:
    names = {found.name for found in pair.checkpoint.iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} < names
    loop = bench.loop(bench.plan("one-of-two", **HELD_BACK))
    loop.load(pair.checkpoint)
    assert loop.begin().first_step == 2
    losses = [metrics.loss for metrics in loop.steps()]
    loop.close()
    assert losses == pytest.approx(bench.losses(pair.plans["both"])[2:], abs=1e-3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
