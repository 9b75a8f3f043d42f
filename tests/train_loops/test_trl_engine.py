"""Real trainings of a very small model on CPU: every method, a stop and a resume, two ranks."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigInvalid
from tests.train_loops.bench import (
    Bench,
    assert_both_ranks_stopped_and_resumed,
    furthest,
    logits,
    results,
    second_attempt,
)
from tests.train_loops.plans import OrderingReporter
from train_loops.plan import Plan
from train_loops.run import main

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ADAPTERS = ["lora", "dora", "rslora", "qlora"]


@pytest.fixture(scope="module")
def bench(file_root: Path, model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(file_root, model_root, tmp_path_factory.mktemp("home"), "trl")


@pytest.fixture(scope="module")
def trained(bench: Bench) -> dict[str, Plan]:
    """One finished run of each method."""
    plans = {method: bench.plan(f"all-{method}", method) for method in [*ADAPTERS, "full"]}
    for plan in plans.values():
        assert bench.run(plan).stop is None
    return plans


@pytest.mark.parametrize("method", [*ADAPTERS, "full"])
def test_each_method_trains_with_a_finite_loss(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    losses = bench.losses(trained[method])
    assert len(losses) == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_loads_the_adapter_and_it_changes_the_model(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    from peft import PeftModel

    base = bench.base_model()
    before = logits(base)
    tuned = PeftModel.from_pretrained(base, results(trained[method]) / "adapter")
    assert not torch.equal(before, logits(tuned))


def test_a_full_run_leaves_a_model_with_its_tokenizer(
    trained: dict[str, Plan], bench: Bench
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = results(trained["full"]) / "model"
    tuned = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(logits(bench.base_model()), logits(tuned))
    assert AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize("method", [*ADAPTERS, "full"])
def test_no_result_is_a_pickle(method: str, trained: dict[str, Plan]) -> None:
    names = [path.name for path in results(trained[method]).rglob("*") if path.is_file()]
    assert any(name.endswith(".safetensors") for name in names)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_names_its_base_as_the_user_did(method: str, trained: dict[str, Plan]) -> None:
    text = (results(trained[method]) / "adapter/adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "tiny-llama"


@pytest.mark.parametrize("method", [*ADAPTERS, "full"])
def test_no_weight_file_names_a_path_of_this_machine(
    method: str, trained: dict[str, Plan], bench: Bench
) -> None:
    folder = results(trained[method]) / ("model" if method == "full" else "adapter")
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert str(bench.model_root).encode() not in content, path.name
        assert str(bench.home).encode() not in content, path.name


def test_the_adapter_config_says_what_the_request_asked_for(bench: Bench) -> None:
    lora = {"rank": 3, "alpha": 5, "dropout": 0.25, "target_modules": ["q_proj", "v_proj"]}
    plan = bench.plan("settings", customization={"lora": lora}, tuning={"max_steps": 1})
    bench.run(plan)
    written = json.loads((results(plan) / "adapter/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["lora_dropout"]) == (3, 5, 0.25)
    assert sorted(written["target_modules"]) == ["q_proj", "v_proj"]


@pytest.mark.parametrize(("method", "flag"), [("dora", "use_dora"), ("rslora", "use_rslora")])
def test_a_variant_of_lora_is_marked_as_one(
    method: str, flag: str, trained: dict[str, Plan]
) -> None:
    text = (results(trained[method]) / "adapter/adapter_config.json").read_text()
    assert json.loads(text)[flag] is True


def test_packing_begins_with_a_finite_loss(bench: Bench) -> None:
    plan = bench.plan("packed", tuning={"packing": True, "max_sequence_length": 128})
    bench.run(plan)
    losses = bench.losses(plan)
    assert losses and all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_bf16_trains_on_cpu(bench: Bench) -> None:
    plan = bench.plan("bf16", customization={"precision": "bf16"}, tuning={"max_steps": 1})
    bench.run(plan)
    assert math.isfinite(bench.losses(plan)[0])


def test_gradient_checkpointing_does_not_change_the_loss(bench: Bench) -> None:
    plain = bench.plan("plain", tuning={"max_steps": 2})
    frugal = bench.plan(
        "frugal", customization={"gradient_checkpointing": True}, tuning={"max_steps": 2}
    )
    bench.run(plain)
    bench.run(frugal)
    assert bench.losses(frugal) == pytest.approx(bench.losses(plain), abs=1e-5)


def test_accumulation_does_not_change_the_loss(bench: Bench) -> None:
    whole = bench.plan("whole", tuning={"micro_batch_size": 4})
    parts = bench.plan("parts", tuning={"micro_batch_size": 1})
    bench.run(whole)
    bench.run(parts)
    assert bench.losses(parts) == pytest.approx(bench.losses(whole), abs=1e-4)


def test_an_unknown_target_module_is_a_wrong_setting(bench: Bench) -> None:
    plan = bench.plan("unknown", customization={"lora": {"target_modules": ["no_such_layer"]}})
    with pytest.raises(ConfigInvalid, match="no_such_layer"):
        bench.run(plan)


def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(bench: Bench) -> None:
    how: dict[str, Any] = {
        "customization": {"lora": {"rank": 4, "dropout": 0.2}},
        "tuning": {"max_steps": 5, "lr_scheduler": "cosine", "warmup_ratio": 0.2},
    }
    straight, halted = bench.plan("straight", **how), bench.plan("halted", **how)
    bench.run(straight)
    assert bench.run(halted, OrderingReporter(stop="cancel", at_step=2)).stop == "cancel"
    reporter = OrderingReporter()
    second = second_attempt(halted)
    assert bench.run(second, reporter).stop is None

    started = next(event for event in reporter.events if event.type == "started")
    assert (started.resumed_from_step, started.total_steps) == (2, 5)
    assert bench.losses(second) == bench.losses(straight)
    assert furthest(straight, second) == 0


def test_a_resumed_run_has_a_speed_at_every_step(bench: Bench) -> None:
    plan = bench.plan("speeds", tuning={"max_steps": 4})
    bench.run(plan, OrderingReporter(stop="cancel", at_step=2))
    bench.run(second_attempt(plan))
    speeds = [line["tokens_per_second"] for line in bench.metrics(plan)]
    assert len(speeds) == 4
    assert all(speed > 0 for speed in speeds)


def test_two_ranks_train_as_one_and_stop_and_resume_together(bench: Bench, tmp_path: Path) -> None:
    alone = bench.plan("alone")
    bench.run(alone)
    both, halted = (
        bench.plan(name, resources={"workers": 2}, tuning={"micro_batch_size": 2})
        for name in ("both", "both-halted")
    )
    for name, plan in (("both", both), ("halted", halted)):
        (tmp_path / f"{name}.json").write_text(plan.model_dump_json())
    said = bench.torchrun("tests.train_loops.two_ranks", tmp_path)

    assert_both_ranks_stopped_and_resumed(said)
    assert bench.losses(both)[0] == pytest.approx(bench.losses(alone)[0], abs=1e-3)
    assert bench.losses(halted) == bench.losses(both)
    resumed = second_attempt(halted)
    assert furthest(both, resumed) == 0
    assert (results(resumed) / "manifest.json").exists()


def test_the_command_line_runs_a_plan(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    plan = bench.plan("by-hand", tuning={"max_steps": 1})
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    for name, value in bench.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train_loops.run", str(tmp_path / "plan.json")])
    assert main() == 0
    outcome = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert outcome == {"stopped": None, "results": plan.results_uri}


needs_gsm8k = pytest.mark.skipif(
    not (SHARED_DATA / "gsm8k_test.jsonl").exists(),
    reason=f"the public data set gsm8k is not at {SHARED_DATA}",
)


@needs_gsm8k
def test_it_trains_on_questions_and_answers_from_elsewhere(bench: Bench) -> None:
    name = "users/u1/projects/p1/ingestion/gsm8k.jsonl"
    lines = (SHARED_DATA / "gsm8k_test.jsonl").read_text("utf-8").splitlines(keepends=True)
    (bench.file_root / name).write_text("".join(lines[:64]), "utf-8")
    mapping = {"prompt": "question", "completion": "answer"}
    plan = bench.plan(
        "gsm8k",
        datasets=[{"source": f"file://{bench.file_root}/{name}", "column_mapping": mapping}],
        tuning={"max_steps": 4, "max_sequence_length": 200, "learning_rate": 2e-3},
    )
    bench.run(plan)
    losses = bench.losses(plan)
    assert len(losses) == 4
    assert losses[-1] < losses[0]
