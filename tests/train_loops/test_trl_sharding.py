"""DeepSpeed's ZeRO stages on two ranks: the losses of plain data parallelism, a stop and a resume,
results that load. And what is refused, because it would silently be something else."""

from pathlib import Path
from typing import Any

import pytest

from configs.adapter import ShardingSpec
from configs.errors import ConfigInvalid
from tests.train_loops.bench import (
    Bench,
    assert_both_ranks_stopped_and_resumed,
    furthest,
    logits,
    results,
    second_attempt,
)
from tests.train_loops.trl_cells import Cells
from train_loops.engines.trl_arguments import deepspeed_config


@pytest.fixture(scope="module")
def bench(file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"), "trl")


def both_and_halted(bench: Bench, folder: Path, strategy: str, method: str) -> Any:
    """A run on two ranks to its end, the same with a stop after step 2 and a resume."""
    how: dict[str, Any] = {
        "customization": {"sharding": {"strategy": strategy}},
        "resources": {"workers": 2},
        "tuning": {"micro_batch_size": 2},
    }
    plans = {
        name: bench.plan(f"{strategy}-{method}-{name}", method, **how)
        for name in ("both", "halted")
    }
    for name, plan in plans.items():
        (folder / f"{name}.json").write_text(plan.model_dump_json())
    assert_both_ranks_stopped_and_resumed(bench.torchrun("tests.train_loops.two_ranks", folder))
    return plans["both"], plans["halted"]


@pytest.mark.parametrize(("strategy", "method"), [("zero2", "lora"), ("zero3", "lora")])
def test_a_sharded_run_learns_stops_and_resumes_as_a_plain_one(
    strategy: str, method: str, bench: Bench, tmp_path: Path
) -> None:
    alone = bench.plan(f"{strategy}-alone", method)
    bench.run(alone)
    both, halted = both_and_halted(bench, tmp_path, strategy, method)
    assert bench.losses(both) == pytest.approx(bench.losses(alone), abs=1e-3)
    assert bench.losses(halted) == bench.losses(both)
    assert furthest(both, second_attempt(halted)) == 0


def test_zero3_leaves_a_whole_model(bench: Bench, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    alone = bench.plan("whole-alone", "full")
    bench.run(alone)
    both, _ = both_and_halted(bench, tmp_path, "zero3", "full")
    ours, theirs = (
        logits(AutoModelForCausalLM.from_pretrained(results(plan) / "model"))
        for plan in (alone, both)
    )
    assert (ours - theirs).abs().max() < 0.05


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_offload_is_added_to_the_shipped_configuration(stage: Any) -> None:
    plain = deepspeed_config(ShardingSpec(strategy=stage))["zero_optimization"]
    frugal = deepspeed_config(ShardingSpec(strategy=stage, offload=True))["zero_optimization"]
    assert plain["stage"] == int(stage[-1])
    added = {"offload_optimizer"} | ({"offload_param"} if stage == "zero3" else set())
    assert frugal.keys() - plain.keys() == added


@pytest.mark.parametrize(
    ("strategy", "method", "said"),
    [
        ("fsdp2", "lora", "shards on GPUs only"),
        ("zero3", "qlora", "cannot split weights of 4 or 8 bits"),
        ("fsdp2", "loftq", "cannot split weights of 4 or 8 bits"),
    ],
)
def test_sharding_that_would_not_take_hold_is_refused(
    strategy: str, method: str, said: str, model_root: Path, tmp_path: Path
) -> None:
    cells = Cells(model_root / "tiny-llama", tmp_path)
    plan = cells.plan("sft", method, customization={"sharding": {"strategy": strategy}})
    with pytest.raises(ConfigInvalid, match=said) as refused:
        cells.loop(plan)
    assert refused.value.param == "customization.sharding.strategy"


def test_a_worker_without_a_compiler_says_so(
    model_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cells = Cells(model_root / "tiny-llama", tmp_path)
    plan = cells.plan("sft", "lora", customization={"sharding": {"strategy": "zero2"}})
    with pytest.raises(ConfigInvalid, match=r"g\+\+ and ninja"):
        cells.loop(plan)
