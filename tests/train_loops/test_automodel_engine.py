"""Real trainings by NeMo AutoModel's recipe on CPU: against the trl engine, over checkpoints,
and what they leave behind. Two ranks: `test_automodel_ranks.py`."""

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.errors import ConfigInvalid, ModelAccess
from tests.train_loops.automodel_bench import (
    Bench,
    assert_same_weights,
    logits,
    loss_of,
    results,
    weights,
)
from tests.train_loops.plans import OrderingReporter
from train_loops.data.prepare import load
from train_loops.engines.automodel import for_recipe, rate_of_step
from train_loops.engines.automodel_cpu import without_gpu
from train_loops.engines.base import Metrics
from train_loops.plan import Plan

ADAPTERS = ["lora", "qlora"]
METHODS = [*ADAPTERS, "full"]
DROPOUT: dict[str, Any] = {"customization": {"lora": {"rank": 4, "dropout": 0.2}}}
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
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def trained(bench: Bench) -> dict[str, Plan]:
    """One finished run of each method."""
    plans = {method: bench.plan(f"all-{method}", method) for method in METHODS}
    for plan in plans.values():
        assert bench.run(plan).stop is None
    return plans


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_with_a_falling_loss(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    losses = bench.losses(trained[method])
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_first_loss_is_that_of_the_trl_engine(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    theirs = bench.trained(bench.plan(f"trl-{method}", method, "trl", tuning={"max_steps": 1}))
    assert bench.losses(trained[method])[0] == pytest.approx(theirs[0], abs=1e-3)


@pytest.mark.parametrize("schedule", ["cosine", "constant_with_warmup"])
def test_schedule_decay_and_clipping_are_those_of_the_trl_engine(
    schedule: str, bench: Bench
) -> None:
    tuning = {"weight_decay": 0.2, "warmup_ratio": 0.3, "max_grad_norm": 0.5, "max_steps": 4}
    plans = [
        bench.plan(f"{name}-{schedule}", "full", name, tuning={**tuning, "lr_scheduler": schedule})
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
    theirs = bench.trained(bench.plan(f"trl-bf16-{method}", method, "trl", **how))
    assert ours == pytest.approx(theirs, abs=5e-3)


def test_accumulation_does_not_change_the_loss(bench: Bench) -> None:
    whole = bench.plan("whole", tuning={"micro_batch_size": 4})
    parts = bench.plan("parts", tuning={"micro_batch_size": 1})
    assert bench.trained(parts) == pytest.approx(bench.trained(whole), abs=1e-4)


def test_gradient_checkpointing_does_not_change_the_loss(
    trained: dict[str, Plan], bench: Bench
) -> None:
    frugal = bench.plan("frugal", customization={"gradient_checkpointing": True})
    assert bench.trained(frugal) == pytest.approx(bench.losses(trained["lora"]), abs=1e-5)
    assert_same_weights(frugal, trained["lora"])


def test_a_run_ends_with_its_epochs_when_they_come_first(bench: Bench) -> None:
    plan = bench.plan("short", tuning={"max_steps": 100, "batch_size": 12})
    assert len(bench.trained(plan)) == 2


def test_packing_begins_with_the_loss_of_the_rows(bench: Bench) -> None:
    apart = bench.plan("apart", tuning={"batch_size": 24, "max_steps": 1})
    packing = {"packing": True, "max_sequence_length": 4096, "batch_size": 1, "max_steps": 1}
    packed = bench.plan("packed", tuning={**packing, "micro_batch_size": 1})
    rows, _ = load(bench.inputs(packed).data_folder)
    assert len(rows) == 1
    assert bench.trained(packed) == pytest.approx(bench.trained(apart), abs=1e-4)


def test_no_label_reaches_from_one_packed_row_into_the_next() -> None:
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5]]),
        "labels": torch.tensor([[1, 2, 3, 4, 5]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1]]),
    }
    assert for_recipe(batch)["labels"].tolist() == [[2, 3, -100, 5, -100]]


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_loads_the_adapter_and_it_changes_the_model(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    from peft import PeftModel

    base = bench.base_model()
    before = logits(base)
    tuned = PeftModel.from_pretrained(base, results(trained[method]) / "adapter")
    assert not torch.allclose(before, logits(tuned), atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_exported_is_what_was_trained(method: str, bench: Bench, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    frugal = {"gradient_checkpointing": True}
    plan = bench.plan(f"exported-{method}", method, customization=frugal, **HELD_BACK)
    loop = bench.loop(plan)
    loop.begin()
    list(loop.steps())
    evaluated = loop.evaluate()
    loop.export(tmp_path)
    loop.close()
    if method == "full":
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        tuned = PeftModel.from_pretrained(bench.base_model(), tmp_path)
    assert loss_of(tuned, bench.validation_batch(plan)) == pytest.approx(evaluated, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_results_name_their_base_and_hold_neither_pickles_nor_paths(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    folder = results(trained[method]) / ("model" if method == "full" else "adapter")
    names = {found.name for found in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} < names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    for found in folder.iterdir():
        assert str(bench.model_root).encode() not in found.read_bytes(), found.name
    if method != "full":
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny-llama"


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


def test_tied_weights_are_written_once_and_read_back(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = AutoModelForCausalLM.from_pretrained(
        bench.model_root / "tiny-llama", tie_word_embeddings=True
    )
    folder = bench.model_root / "tied-by-automodel"
    tied.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bench.model_root / "tiny-llama").save_pretrained(folder)
    plan = bench.plan("tied", "full", base_model={"model_name": folder.name})
    losses = bench.trained(plan)
    assert losses[-1] < losses[0]
    assert "lm_head.weight" not in weights(plan)
    tuned = AutoModelForCausalLM.from_pretrained(results(plan) / "model")
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(method: str, bench: Bench) -> None:
    how: dict[str, Any] = {
        "tuning": {"max_steps": 5, "lr_scheduler": "cosine", "warmup_ratio": 0.2},
        **(DROPOUT if method != "full" else {}),
    }
    straight = bench.plan(f"straight-{method}", method, **how)
    halted = bench.plan(f"halted-{method}", method, **how)
    bench.run(straight)
    assert bench.run(halted, OrderingReporter(stop="cancel", at_step=2)).stop == "cancel"
    second = halted.model_copy(update={"attempt": 2})
    reporter = OrderingReporter()
    assert bench.run(second, reporter).stop is None

    started = next(event for event in reporter.events if event.type == "started")
    assert (started.resumed_from_step, started.total_steps) == (2, 5)
    assert bench.losses(second) == pytest.approx(bench.losses(straight), abs=1e-5)
    assert_same_weights(straight, second)


def test_a_checkpoint_of_another_adapter_is_refused(bench: Bench, tmp_path: Path) -> None:
    first = bench.loop(bench.plan("rank-16"))
    first.begin()
    first.save(tmp_path / "checkpoint")
    first.close()
    other = bench.loop(bench.plan("rank-4", customization={"lora": {"rank": 4}}))
    other.load(tmp_path / "checkpoint")
    with pytest.raises(ConfigInvalid, match="does not fit"):
        other.begin()
    other.close()


def test_evaluation_is_the_mean_over_tokens_and_leaves_training_as_it_was(bench: Bench) -> None:
    how = {**DROPOUT, **HELD_BACK}
    undisturbed = bench.trained(bench.plan("undisturbed", **how))
    plan = bench.plan("evaluated", **how)
    loop = bench.loop(plan)
    loop.begin()
    evaluated, losses = [loop.evaluate()], []
    for metrics in loop.steps():
        losses.append(metrics.loss)
        evaluated.append(loop.evaluate())
    loop.close()
    expected = loss_of(bench.base_model(), bench.validation_batch(plan))
    assert evaluated[0] == pytest.approx(expected, abs=1e-5)
    assert evaluated[-1] < evaluated[0]
    assert losses == undisturbed


def test_tokens_are_those_of_the_rows(bench: Bench) -> None:
    plan = bench.plan("tokens", tuning={"batch_size": 24, "max_steps": 1})
    rows, report = load(bench.inputs(plan).data_folder)
    loop = bench.loop(plan)
    loop.begin()
    steps = list(loop.steps())
    loop.close()
    assert len(rows) == 24
    assert [step.tokens for step in steps] == [report.tokens]


@pytest.mark.parametrize("wanted", [["no_such_layer"], ["q_proj", "no_such_layer"]])
def test_an_unknown_target_module_is_a_wrong_setting_and_leaves_no_group(
    wanted: list[str], bench: Bench
) -> None:
    plan = bench.plan("unknown", customization={"lora": {"target_modules": wanted}})
    with pytest.raises(ConfigInvalid, match="no_such_layer") as refusal:
        bench.run(plan)
    assert refusal.value.param == "customization.lora.target_modules"
    assert not dist.is_initialized()


def test_a_model_without_weights_cannot_be_opened(bench: Bench) -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = bench.model_root / "no-weights"
    tiny = bench.model_root / "tiny-llama"
    AutoConfig.from_pretrained(tiny).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    with pytest.raises(ModelAccess):
        bench.run(bench.plan("no-weights", base_model={"model_name": folder.name}))
    assert not dist.is_initialized()


@pytest.fixture
def given_group() -> Iterator[None]:
    """A process group that somebody else made."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_made_elsewhere_is_used_and_left(bench: Bench, given_group: None) -> None:
    loop = bench.loop(bench.plan("guest"))
    loop.close()
    loop.close()
    assert dist.is_initialized()


def test_a_group_of_its_own_ends_with_the_loop(bench: Bench) -> None:
    loop = bench.loop(bench.plan("host"))
    assert dist.is_initialized()
    loop.close()
    loop.close()
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
