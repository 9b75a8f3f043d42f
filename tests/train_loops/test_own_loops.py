"""Real trainings by the engines whose loop is not TRL's: over checkpoints, and what they leave."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.capabilities import ENGINES
from configs.errors import ConfigInvalid
from tests.train_loops.bench import (
    Bench,
    furthest,
    logits,
    loss_of,
    results,
    second_attempt,
    weights,
)
from tests.train_loops.plans import OrderingReporter
from train_loops.data.prepare import load
from train_loops.plan import Plan

METHODS: dict[str, list[Any]] = {
    engine: ENGINES[engine].trains["sft"] for engine in ("fsdp2", "automodel")
}
CELLS = [(engine, method) for engine, methods in METHODS.items() for method in methods]
ADAPTERS = [cell for cell in CELLS if cell[1] != "full"]
# Two adapters that begin in different ways, and all weights.
SOME = [("fsdp2", "lora"), ("fsdp2", "pissa"), ("fsdp2", "full"),
        ("automodel", "lora"), ("automodel", "qlora"), ("automodel", "full")]  # fmt: skip
DROPOUT: dict[str, Any] = {"customization": {"lora": {"rank": 4, "dropout": 0.2}}}
HELD_BACK: dict[str, Any] = {"tuning": {"validation_share": 0.25}}
SAME = 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def benches(
    file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bench]:
    return {
        engine: Bench(file_root, model_root, tmp_path_factory.mktemp("home"), engine, max_steps=4)
        for engine in METHODS
    }


@pytest.fixture(params=METHODS)
def bench(request: Any, benches: dict[str, Bench]) -> Bench:
    return benches[request.param]


@pytest.fixture(scope="module")
def trained(benches: dict[str, Bench]) -> dict[tuple[str, str], Plan]:
    """One finished run of each method of each engine."""
    plans = {
        (engine, method): benches[engine].plan(f"all-{method}", method) for engine, method in CELLS
    }
    for (engine, _), plan in plans.items():
        assert benches[engine].run(plan).stop is None
    return plans


@pytest.mark.parametrize(("engine", "method"), CELLS)
def test_each_method_trains_with_a_falling_loss(
    engine: str, method: str, trained: dict[tuple[str, str], Plan], benches: dict[str, Bench]
) -> None:
    losses = benches[engine].losses(trained[engine, method])
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("engine", "method"), [("fsdp2", "lora"), ("fsdp2", "full"), ("automodel", "lora")]
)
def test_accumulation_does_not_change_the_loss(
    engine: str, method: str, benches: dict[str, Bench]
) -> None:
    bench = benches[engine]
    whole = bench.plan(f"whole-{method}", method, tuning={"micro_batch_size": 4})
    parts = bench.plan(f"parts-{method}", method, tuning={"micro_batch_size": 1})
    assert bench.trained(parts) == pytest.approx(bench.trained(whole), abs=1e-4)


def test_gradient_checkpointing_does_not_change_the_loss(
    trained: dict[tuple[str, str], Plan], bench: Bench
) -> None:
    plain = trained[bench.engine, "lora"]
    frugal = bench.plan("frugal", customization={"gradient_checkpointing": True})
    assert bench.trained(frugal) == pytest.approx(bench.losses(plain), abs=SAME)
    assert furthest(frugal, plain) <= SAME


def test_packing_begins_with_the_loss_of_the_rows(bench: Bench) -> None:
    apart = bench.plan("apart", tuning={"batch_size": 24, "max_steps": 1})
    packing = {"packing": True, "max_sequence_length": 4096, "batch_size": 1, "max_steps": 1}
    packed = bench.plan("packed", tuning={**packing, "micro_batch_size": 1})
    rows, _ = load(bench.inputs(packed).data_folder)
    assert len(rows) == 1
    assert bench.trained(packed) == pytest.approx(bench.trained(apart), abs=1e-4)


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        ("fsdp2", ["no_such_layer"]),
        ("automodel", ["no_such_layer"]),
        # PEFT, for `fsdp2`, takes those that it finds.
        ("automodel", ["q_proj", "no_such_layer"]),
    ],
)
def test_an_unknown_target_module_is_a_wrong_setting_and_leaves_no_group(
    engine: str, wanted: list[str], benches: dict[str, Bench]
) -> None:
    bench = benches[engine]
    plan = bench.plan("unknown", customization={"lora": {"target_modules": wanted}})
    with pytest.raises(ConfigInvalid, match="no_such_layer") as refusal:
        bench.run(plan)
    assert refusal.value.param == "customization.lora.target_modules"
    assert not dist.is_initialized()


@pytest.mark.parametrize(("engine", "method"), ADAPTERS)
def test_peft_loads_the_adapter_and_it_changes_the_model(
    engine: str, method: str, trained: dict[tuple[str, str], Plan], benches: dict[str, Bench]
) -> None:
    from peft import PeftModel

    base = benches[engine].base_model()
    before = logits(base)
    tuned = PeftModel.from_pretrained(base, results(trained[engine, method]) / "adapter")
    assert not torch.allclose(before, logits(tuned), atol=1e-3)


@pytest.mark.parametrize(("engine", "method"), CELLS)
def test_results_name_their_base_and_hold_neither_pickles_nor_paths(
    engine: str, method: str, trained: dict[tuple[str, str], Plan], benches: dict[str, Bench]
) -> None:
    folder = results(trained[engine, method]) / ("model" if method == "full" else "adapter")
    names = {found.name for found in folder.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} < names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    for found in folder.iterdir():
        assert str(benches[engine].model_root).encode() not in found.read_bytes(), found.name
    if method != "full":
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny-llama"


@pytest.mark.parametrize(
    ("engine", "method"), [cell for cell in CELLS if cell != ("automodel", "qlora")]
)
def test_what_is_exported_is_what_was_trained(
    engine: str, method: str, benches: dict[str, Bench], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bench = benches[engine]
    frugal = {"gradient_checkpointing": engine == "automodel"}
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


def test_tied_weights_are_written_once_and_read_back(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tied = AutoModelForCausalLM.from_pretrained(
        bench.model_root / "tiny-llama", tie_word_embeddings=True
    )
    folder = bench.model_root / f"tied-by-{bench.engine}"
    tied.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bench.model_root / "tiny-llama").save_pretrained(folder)
    plan = bench.plan("tied", "full", base_model={"model_name": folder.name})
    losses = bench.trained(plan)
    assert losses[-1] < losses[0]
    assert "lm_head.weight" not in weights(plan)
    tuned = AutoModelForCausalLM.from_pretrained(results(plan) / "model")
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    assert not torch.allclose(logits(tied), logits(tuned), atol=1e-3)


@pytest.mark.parametrize(("engine", "method"), SOME)
def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(
    engine: str, method: str, benches: dict[str, Bench]
) -> None:
    bench = benches[engine]
    how: dict[str, Any] = {
        "tuning": {"max_steps": 5, "lr_scheduler": "cosine", "warmup_ratio": 0.2},
        **(DROPOUT if method != "full" else {}),
    }
    straight = bench.plan(f"straight-{method}", method, **how)
    halted = bench.plan(f"halted-{method}", method, **how)
    bench.run(straight)
    assert bench.run(halted, OrderingReporter(stop="cancel", at_step=2)).stop == "cancel"
    reporter = OrderingReporter()
    assert bench.run(second_attempt(halted), reporter).stop is None

    started = next(event for event in reporter.events if event.type == "started")
    assert (started.resumed_from_step, started.total_steps) == (2, 5)
    assert bench.losses(halted) == pytest.approx(bench.losses(straight), abs=SAME)
    assert furthest(straight, second_attempt(halted)) <= SAME


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
    assert evaluated[0] == pytest.approx(expected, abs=SAME)
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
