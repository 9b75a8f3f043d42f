"""The fsdp2 engine on two ranks, against one rank, and checkpoints from either for the other."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.settings import Settings
from tests.train_loops import two_ranks
from tests.train_loops.bench import (
    Bench,
    assert_both_ranks_stopped_and_resumed,
    loss_of,
    second_attempt,
)
from train_loops.engines.base import find_engine
from train_loops.inputs import fetch, job_folder
from train_loops.plan import Plan

SEED = 2**32 - 1
"""The largest that a request may have; each rank's own is counted from it."""


@pytest.fixture(scope="module")
def bench(file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"), "fsdp2", max_steps=4)


@dataclass(frozen=True)
class Pair:
    """What two ranks did."""

    both: Plan
    resumed: Plan
    said: list[str]
    checkpoint: Path
    """The stopped run's, after its second step."""
    alone: list[float]
    """Losses of the same run on one rank, which wrote a checkpoint after its second step."""


@pytest.fixture(scope="module")
def pair(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("plans")
    both, halted = (
        bench.plan(name, resources={"workers": 2}, tuning={"validation_share": 0.25, "seed": SEED})
        for name in ("both", "both-halted")
    )
    for name, plan in (("both", both), ("halted", halted)):
        (folder / f"{name}.json").write_text(plan.model_dump_json())
    single = bench.loop(both.model_copy(update={"job_id": "single", "accumulation_steps": 2}))
    single.begin()
    steps = single.steps()
    alone = [next(steps).loss for _ in range(2)]
    single.save(folder / "of-one-rank")
    alone += [metrics.loss for metrics in steps]
    single.close()
    said = bench.torchrun("tests.train_loops.test_fsdp2_ranks", folder)
    checkpoint = job_folder(halted, bench.settings) / "checkpoints/step-2"
    return Pair(both, second_attempt(halted), said, checkpoint, alone)


def main(folder: Path) -> None:
    """On each of two ranks: the runs of `two_ranks`; a fresh model's validation loss; the rest of
    a run that one rank began."""
    two_ranks.main(folder)
    plan = Plan.model_validate_json((folder / "both.json").read_text())
    rank = int(os.environ["RANK"])
    inputs = fetch(plan, Settings(_env_file=None), None, worker=f"rank-{rank}")
    loop = find_engine("fsdp2").build(plan, inputs, rank=rank, world_size=2)
    loop.begin()
    sys.stdout.write(f"\nevaluated {rank}: {loop.evaluate()}\n")
    loop.close()
    loop = find_engine("fsdp2").build(plan, inputs, rank=rank, world_size=2)
    loop.load(folder / "of-one-rank")
    loop.begin()
    sys.stdout.write(f"\nlosses {rank}: {[metrics.loss for metrics in loop.steps()]}\n")
    loop.close()


def test_two_ranks_train_as_one(pair: Pair, bench: Bench) -> None:
    alone = bench.plan("alone", tuning={"validation_share": 0.25, "seed": SEED})
    assert bench.losses(pair.both) == pytest.approx(bench.trained(alone), abs=1e-3)
    for name in ("epoch", "learning_rate"):
        one, two = ([m.get(name) for m in bench.metrics(plan)] for plan in (alone, pair.both))
        assert one == two, name


def test_two_ranks_stop_and_resume_together(pair: Pair, bench: Bench) -> None:
    assert_both_ranks_stopped_and_resumed(pair.said)
    assert bench.losses(pair.resumed) == pytest.approx(bench.losses(pair.both), abs=1e-5)


def test_two_ranks_evaluate_as_one(pair: Pair, bench: Bench) -> None:
    found = [float(line.split(": ")[1]) for line in pair.said if line.startswith("evaluated")]
    expected = loss_of(bench.base_model(), bench.validation_batch(pair.both))
    assert found == pytest.approx([expected, expected], abs=1e-5)


def test_one_rank_goes_on_from_the_merged_files_of_two(pair: Pair, bench: Bench) -> None:
    names = {path.name for path in pair.checkpoint.iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} < names
    loop = bench.loop(bench.plan("one-of-two", tuning={"validation_share": 0.25, "seed": SEED}))
    loop.load(pair.checkpoint)
    assert loop.begin().first_step == 2
    losses = [metrics.loss for metrics in loop.steps()]
    loop.close()
    assert losses == pytest.approx(bench.losses(pair.both)[2:], abs=1e-3)


def test_two_ranks_go_on_from_the_files_of_one(pair: Pair, bench: Bench) -> None:
    said = [line.split(": ")[1] for line in pair.said if line.startswith("losses")]
    assert len(said) == 2
    for losses in said:
        assert json.loads(losses) == pytest.approx(pair.alone[2:], abs=1e-3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
