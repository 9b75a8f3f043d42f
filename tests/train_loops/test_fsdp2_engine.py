"""Real trainings on PyTorch's own tools: every method, against the trl engine, over checkpoints."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.errors import ConfigInvalid, ModelAccess
from tests.train_loops.fsdp2_bench import Bench, base_model, loss_of, results, validation_batch
from tests.train_loops.plans import OrderingReporter
from train_loops.data.batches import collate
from train_loops.data.prepare import load
from train_loops.engines.fsdp2_model import token_nll
from train_loops.plan import Plan

ADAPTERS = ["lora", "dora", "rslora", "pissa"]
METHODS = [*ADAPTERS, "full"]
DROPOUT = {"customization": {"lora": {"rank": 4, "dropout": 0.2}}}


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


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(input_ids=torch.arange(5, 25)[None]).logits
    return out


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_with_a_falling_loss(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    losses = bench.losses(trained[method])
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "full"])
def test_every_loss_is_that_of_the_trl_engine(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    theirs = bench.trained(bench.plan(f"trl-{method}", method, engine="trl"))
    assert bench.losses(trained[method]) == pytest.approx(theirs, abs=1e-3)


def test_schedule_decay_and_precision_are_those_of_the_trl_engine(bench: Bench) -> None:
    how: dict[str, Any] = {
        "customization": {"precision": "bf16"},
        "tuning": {"weight_decay": 0.2, "warmup_ratio": 0.3, "lr_scheduler": "cosine"},
    }
    plans = [bench.plan(f"{name}-schedule", engine=name, **how) for name in ("fsdp2", "trl")]
    for plan in plans:
        bench.run(plan)
    ours, theirs = (bench.metrics(plan) for plan in plans)
    for name in ("train_loss", "learning_rate", "grad_norm"):
        expected = [line[name] for line in theirs]
        assert [line[name] for line in ours] == pytest.approx(expected, abs=1e-3), name


def test_an_uneven_last_batch_and_a_second_epoch_are_those_of_the_trl_engine(bench: Bench) -> None:
    tuning = {"batch_size": 10, "micro_batch_size": 5, "num_epochs": 2, "max_steps": 6}
    ours, theirs = (
        bench.trained(bench.plan(f"{name}-epochs", engine=name, tuning=tuning))
        for name in ("fsdp2", "trl")
    )
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_accumulation_does_not_change_the_loss(method: str, bench: Bench) -> None:
    whole = bench.plan(f"whole-{method}", method, tuning={"micro_batch_size": 4})
    parts = bench.plan(f"parts-{method}", method, tuning={"micro_batch_size": 1})
    assert bench.trained(parts) == pytest.approx(bench.trained(whole), abs=1e-4)


def test_gradient_checkpointing_does_not_change_the_loss(
    trained: dict[str, Plan], bench: Bench
) -> None:
    frugal = bench.plan("frugal", customization={"gradient_checkpointing": True})
    assert bench.trained(frugal) == pytest.approx(bench.losses(trained["lora"]), abs=1e-5)


def test_a_run_ends_with_its_epochs_when_they_come_first(bench: Bench) -> None:
    plan = bench.plan("short", tuning={"max_steps": 100, "batch_size": 12})
    assert len(bench.trained(plan)) == 2


def test_an_unknown_target_module_is_a_wrong_setting_and_leaves_no_group(bench: Bench) -> None:
    plan = bench.plan("unknown", customization={"lora": {"target_modules": ["no_such_layer"]}})
    with pytest.raises(ConfigInvalid, match="no_such_layer"):
        bench.run(plan)
    assert not dist.is_initialized()


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00not json"])
def test_broken_weights_are_an_unreadable_model(content: bytes, bench: Bench) -> None:
    folder = bench.model_root / f"broken-llama-{len(content)}"
    shutil.copytree(bench.model_root / "tiny-llama", folder)
    (folder / "model.safetensors").write_bytes(content)
    plan = bench.plan(folder.name, base_model={"model_name": folder.name})
    with pytest.raises(ModelAccess, match="could not be loaded"):
        bench.run(plan)
    assert not dist.is_initialized()


def test_a_pack_has_the_loss_of_its_rows_alone(bench: Bench) -> None:
    rows, _ = load(bench.inputs(bench.plan("rows")).data_folder)
    some = [rows[number] for number in range(3)]
    pack = {name: [item for row in some for item in row[name]] for name in ("input_ids", "labels")}
    pack["position_ids"] = [place for row in some for place in range(len(row["input_ids"]))]
    model = base_model(bench).eval()
    with torch.no_grad():
        apart = sum(float(token_nll(model, collate([row]))) for row in some)
        together = float(token_nll(model, collate([pack])))
    assert together == pytest.approx(apart, rel=1e-5)


def test_packing_begins_with_the_loss_of_the_rows(bench: Bench) -> None:
    apart = bench.plan("apart", tuning={"batch_size": 24, "max_steps": 1})
    packing = {"packing": True, "max_sequence_length": 4096, "batch_size": 1, "max_steps": 1}
    packed = bench.plan("packed", tuning={**packing, "micro_batch_size": 1})
    assert bench.trained(packed) == pytest.approx(bench.trained(apart), abs=1e-3)


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_loads_the_adapter_and_it_changes_the_model(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    from peft import PeftModel

    base = base_model(bench)
    before = logits(base)
    tuned = PeftModel.from_pretrained(base, results(trained[method]) / "adapter")
    assert not torch.allclose(before, logits(tuned), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_results_name_their_base_and_hold_neither_pickles_nor_paths(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    folder = results(trained[method]) / ("model" if method == "full" else "adapter")
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} < names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    for path in folder.iterdir():
        assert str(bench.model_root).encode() not in path.read_bytes(), path.name
    if method != "full":
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny-llama"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_exported_is_what_was_trained(method: str, bench: Bench, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = bench.plan(f"exported-{method}", method, tuning={"validation_share": 0.25})
    loop = bench.loop(plan)
    loop.begin()
    list(loop.steps())
    evaluated = loop.evaluate()
    loop.export(tmp_path)
    loop.close()
    if method == "full":
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        tuned = PeftModel.from_pretrained(base_model(bench), tmp_path)
    assert loss_of(tuned, validation_batch(bench, plan)) == pytest.approx(evaluated, abs=1e-4)


def test_tied_weights_are_written_once_and_read_back(bench: Bench, tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = AutoModelForCausalLM.from_pretrained(
        bench.model_root / "tiny-llama", tie_word_embeddings=True
    )
    folder = bench.model_root / "tied-llama"
    tied.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bench.model_root / "tiny-llama").save_pretrained(folder)
    plan = bench.plan("tied", "full", base_model={"model_name": "tied-llama"})
    losses = bench.trained(plan)
    assert losses[-1] < losses[0]
    with safe_open(results(plan) / "model/model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    tuned = AutoModelForCausalLM.from_pretrained(results(plan) / "model")
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    assert not torch.allclose(logits(tied), logits(tuned), atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "pissa", "full"])
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
    how: dict[str, Any] = {**DROPOUT, "tuning": {"validation_share": 0.25}}
    plan = bench.plan("evaluated", **how)
    undisturbed = bench.trained(bench.plan("undisturbed", **how))
    loop = bench.loop(plan)
    loop.begin()
    evaluated, losses = [loop.evaluate()], []
    for metrics in loop.steps():
        losses.append(metrics.loss)
        evaluated.append(loop.evaluate())
    loop.close()
    expected = loss_of(base_model(bench), validation_batch(bench, plan))
    assert evaluated[0] == pytest.approx(expected, abs=1e-5)
    assert evaluated[-1] < evaluated[0]
    assert losses == undisturbed


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
