"""NeMo AutoModel's recipe against the trl engine, and what is its own. What it shares with other
loops of ours: `test_own_loops.py`; two ranks: `test_automodel_ranks.py`."""

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.errors import ModelAccess
from tests.train_loops.bench import Bench, results, weights
from train_loops.data.prepare import load
from train_loops.engines.automodel import for_recipe, rate_of_step
from train_loops.engines.automodel_cpu import without_gpu
from train_loops.engines.base import Metrics
from train_loops.plan import Plan

METHODS = ["lora", "qlora", "full"]


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
def trained(bench: Bench) -> dict[str, Plan]:
    """One finished run of each method."""
    plans = {method: bench.plan(f"all-{method}", method) for method in METHODS}
    for plan in plans.values():
        assert bench.run(plan).stop is None
    return plans


@pytest.mark.parametrize("method", METHODS)
def test_the_first_loss_is_that_of_the_trl_engine(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    theirs = bench.trained(bench.plan(f"first-{method}", method, "trl", tuning={"max_steps": 1}))
    assert bench.losses(trained[method])[0] == pytest.approx(theirs[0], abs=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "constant_with_warmup"])
def test_schedule_decay_and_clipping_are_those_of_the_trl_engine(
    schedule: str, bench: Bench
) -> None:
    tuning = {"weight_decay": 0.2, "warmup_ratio": 0.3, "max_grad_norm": 0.5, "max_steps": 4}
    plans = [
        bench.plan(
            f"schedule-{schedule}", "full", name, tuning={**tuning, "lr_scheduler": schedule}
        )
        for name in ("automodel", "trl")
    ]
    for plan in plans:
        bench.run(plan)
    ours, theirs = (bench.metrics(plan) for plan in plans)
    for name in ("learning_rate", "train_loss", "grad_norm"):
        expected = [line[name] for line in theirs]
        assert [line[name] for line in ours] == pytest.approx(expected, abs=1e-3), name


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_each_rate_is_that_of_transformers_own_schedule(schedule: str, bench: Bench) -> None:
    from transformers import get_scheduler

    warmup = 0.0 if schedule == "constant" else 0.3
    tuning = {"lr_scheduler": schedule, "warmup_ratio": warmup}
    rate = rate_of_step(bench.plan("rates", tuning=tuning), 7)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, math.ceil(7 * warmup), 7)
    expected = []
    for _ in range(7):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [rate(step) for step in range(7)] == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_begins_with_the_loss_of_the_trl_engine(method: str, bench: Bench) -> None:
    how: dict[str, Any] = {"customization": {"precision": "bf16"}, "tuning": {"max_steps": 1}}
    ours = bench.trained(bench.plan(f"bf16-{method}", method, **how))
    theirs = bench.trained(bench.plan(f"bf16-{method}", method, "trl", **how))
    assert ours == pytest.approx(theirs, abs=5e-3)


def test_no_label_reaches_from_one_packed_row_into_the_next() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5]]),
        "labels": torch.tensor([[1, 2, 3, 4, 5]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
    }
    assert for_recipe(batch)["labels"].tolist() == [[2, 3, -100, 5, -100]]


def test_the_adapter_is_the_one_that_was_asked_for(bench: Bench) -> None:
    lora = {"rank": 3, "alpha": 5, "dropout": 0.25, "target_modules": ["q_proj", "v_proj"]}
    plan = bench.plan("settings", customization={"lora": lora}, tuning={"max_steps": 1})
    bench.run(plan)
    written = json.loads((results(plan) / "adapter/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (3, 5, 0.25)
    assert sorted(written["target_modules"]) == ["q_proj", "v_proj"]
    layers = {name.split(".")[-3] for name in weights(plan)}
    assert layers == {"q_proj", "v_proj"}


def test_all_linear_leaves_the_head_alone(trained: dict[str, Plan]) -> None:
    layers = {name.split(".")[-3] for name in weights(trained["lora"])}
    assert layers == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_tokens_are_those_of_the_rows(bench: Bench) -> None:
    plan = bench.plan("tokens", tuning={"batch_size": 24, "max_steps": 1})
    rows, report = load(bench.inputs(plan).data_folder)
    loop = bench.loop(plan)
    loop.begin()
    steps = list(loop.steps())
    loop.close()
    assert len(rows) == 24
    assert [step.tokens for step in steps] == [report.tokens]


def test_a_model_without_weights_cannot_be_opened(bench: Bench) -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = bench.model_root / "no-weights"
    tiny = bench.model_root / "tiny-llama"
    AutoConfig.from_pretrained(tiny).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    with pytest.raises(ModelAccess):
        bench.run(bench.plan("no-weights", base_model={"model_name": folder.name}))
    assert not dist.is_initialized()


def test_it_trains_in_a_thread_where_signals_cannot_be_bound(bench: Bench) -> None:
    done: list[Metrics] = []

    def train() -> None:
        loop = bench.loop(bench.plan("threaded", tuning={"max_steps": 1}))
        loop.begin()
        done.extend(loop.steps())
        loop.close()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(timeout=120)
    assert [metrics.step for metrics in done] == [1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing is replaced")
def test_what_is_replaced_without_a_gpu_is_put_back(bench: Bench) -> None:
    import torch._dynamo

    before = (torch.cuda.current_device, torch.cuda.reset_peak_memory_stats)
    with without_gpu():
        assert torch.cuda.current_device() == 0
        assert torch._dynamo.config.disable
    assert (torch.cuda.current_device, torch.cuda.reset_peak_memory_stats) == before
    assert not torch._dynamo.config.disable
