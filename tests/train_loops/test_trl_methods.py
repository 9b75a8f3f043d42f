"""What a method and an objective of the `trl` engine promise beyond training: combinations that are
refused, the settings that reach PEFT and TRL, the reference model, the validation loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigInvalid
from tests.train_loops.trl_cells import Cells, finished, logits
from train_loops.data.batches import StepBatches
from train_loops.data.prepare import load, load_validation
from train_loops.engines.trl_objectives import GroupOrder


@pytest.fixture(scope="module")
def cells(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    return Cells(model_root / "tiny-llama", tmp_path_factory.mktemp("methods"))


@pytest.mark.parametrize(
    ("method", "changes", "param"),
    [
        (
            "prefix_tuning",
            {"customization": {"gradient_checkpointing": True}},
            "customization.gradient_checkpointing",
        ),
        *[
            (method, {"tuning": {"packing": True}}, "tuning_parameters.packing")
            for method in ("prefix_tuning", "prompt_tuning", "p_tuning")
        ],
    ],
)
def test_settings_that_would_train_something_else_are_refused(
    method: str, changes: dict[str, Any], param: str, cells: Cells
) -> None:
    plan = cells.plan("sft", method, **changes)
    with pytest.raises(ConfigInvalid) as refused:
        cells.loop(plan)
    assert refused.value.param == param


@pytest.mark.parametrize("method", ["lora", "qlora", "ia3", "prompt_tuning", "p_tuning", "full"])
def test_gradient_checkpointing_changes_no_loss(method: str, cells: Cells) -> None:
    plain = finished(cells.loop(cells.plan("sft", method)))
    how = {"customization": {"gradient_checkpointing": True}}
    frugal = finished(cells.loop(cells.plan("sft", method, **how)))
    assert [m.loss for m in frugal] == pytest.approx([m.loss for m in plain], abs=1e-4)


def test_int8_trains(cells: Cells) -> None:
    plan = cells.plan("sft", "qlora", customization={"quantization": "int8"})
    loop = cells.loop(plan)
    assert all(math.isfinite(metrics.loss) for metrics in finished(loop))
    kinds = {type(weight).__name__ for weight in loop._trainer.model.parameters()}
    assert "Int8Params" in kinds


def test_virtual_tokens_reach_peft(cells: Cells) -> None:
    plan = cells.plan("sft", "prompt_tuning", customization={"prompt": {"virtual_tokens": 7}})
    loop = cells.loop(plan)
    assert loop._trainer.model.peft_config["default"].num_virtual_tokens == 7


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto"])
def test_beta_reaches_the_trainer(objective: str, cells: Cells) -> None:
    plan = cells.plan(objective, customization={"preference": {"beta": 0.7}})
    assert cells.loop(plan)._trainer.beta == 0.7


@pytest.mark.parametrize(
    "method", ["lora", "qlora", "dora", "rslora", "loftq", "pissa", "ia3", "full"]
)
def test_dpo_begins_at_its_reference(method: str, cells: Cells) -> None:
    """At the first step model and reference are one, so the loss is ln 2 (DPO, equation 7)."""
    first = finished(cells.loop(cells.plan("dpo", method)))[0]
    assert first.loss == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize(("method", "adapters"), [("lora", 1), ("pissa", 2)])
def test_an_adapter_that_starts_at_nothing_needs_no_copy_as_reference(
    method: str, adapters: int, cells: Cells
) -> None:
    assert len(cells.loop(cells.plan("dpo", method))._trainer.model.peft_config) == adapters


@pytest.mark.parametrize("method", ["pissa", "loftq"])
def test_a_start_from_the_weights_says_what_the_base_says(method: str, cells: Cells) -> None:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(cells.model_folder, dtype=torch.float32)
    plan = cells.plan("sft", method)
    gap = (logits(cells.loop(plan)._trainer.model) - logits(base)).abs().max()
    rounded = (logits(cells.loop(cells.plan("sft", "qlora"))._trainer.model) - logits(base)).abs()
    assert gap < (1e-4 if method == "pissa" else rounded.max())


def test_grpo_samples_what_it_was_asked_for(cells: Cells) -> None:
    grpo = {
        "reward_functions": ["short_answer", "exact_reference"],
        "generations": 4,
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "beta": 0.1,
    }
    loop = cells.loop(cells.plan("grpo", customization={"grpo": grpo}))
    args = loop._trainer.args
    assert (args.num_generations, args.max_completion_length) == (4, 5)
    assert (args.temperature, args.beta) == (0.5, 0.1)
    first = finished(loop)[0]
    # Four prompts, four answers of at most five tokens to each.
    assert first.tokens > 16 * 5


def test_a_reward_function_that_nobody_installed_ends_the_run(cells: Cells) -> None:
    grpo = {"reward_functions": ["magic"]}
    with pytest.raises(ConfigInvalid, match="no reward function 'magic'"):
        cells.loop(cells.plan("grpo", customization={"grpo": grpo}))


def test_a_group_has_each_prompt_once_for_each_answer() -> None:
    order = list(GroupOrder(5, seed=1, prompts=2, generations=3, parts=2))
    assert len(order) == len(GroupOrder(5, seed=1, prompts=2, generations=3, parts=2)) == 36
    first = order[:6]
    assert order[6:12] == first
    assert sorted(first.count(number) for number in set(first)) == [3, 3]
    assert set(order) == set(range(5))


def test_preferences_are_tokenised_without_a_second_begin_or_end(cells: Cells) -> None:
    loop = cells.loop(cells.plan("dpo"))
    tokenizer = loop._trainer.processing_class
    row = loop._trainer.train_dataset[0]
    ids = row["prompt_ids"] + row["chosen_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    texts, _ = load(cells.inputs(cells.plan("dpo")).data_folder)
    assert tokenizer.decode(ids) == texts[0]["prompt"] + texts[0]["chosen"]


def test_the_first_step_trains_on_the_rows_that_every_engine_trains_on(cells: Cells) -> None:
    plan = cells.plan("sft")
    loop = cells.loop(plan)
    rows, _ = load(cells.inputs(plan).data_folder)
    batches = StepBatches(rows, micro_batch_size=2, accumulation_steps=2, seed=plan.tuning.seed)
    _, ours = next(iter(batches.after(0, 1)))
    theirs = list(loop._trainer.get_train_dataloader())[:2]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize("packing", [False, True])
def test_evaluation_is_the_loss_per_token_and_leaves_the_run_as_it_was(
    packing: bool, cells: Cells
) -> None:
    how: dict[str, Any] = {
        "customization": {"lora": {"rank": 4, "dropout": 0.3}},
        "tuning": {"validation_share": 0.4, "packing": packing, "num_epochs": 2},
    }
    plain = [metrics.loss for metrics in finished(cells.loop(cells.plan("sft", **how)))]
    loop = cells.loop(cells.plan("sft", **how))
    loop.begin()
    losses, evaluated = [], []
    for metrics in loop.steps():
        losses.append(metrics.loss)
        evaluated.append(loop.evaluate())
        assert loop._trainer.model.training
    assert losses == plain
    rows = load_validation(cells.inputs(cells.plan("sft", **how)).data_folder)
    assert rows is not None
    assert evaluated[-1] == pytest.approx(_by_hand(loop._trainer.model, rows), abs=1e-5)
    assert evaluated[-1] < evaluated[0]


def _by_hand(model: Any, rows: Any) -> float:
    """Each row alone, through the model's own loss."""
    nats, tokens = 0.0, 0
    model.eval()
    for row in rows:
        batch = {name: torch.tensor([values]) for name, values in row.items()}
        count = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            nats += float(model(**batch, use_cache=False).loss) * count
        tokens += count
    return nats / tokens


def test_packs_teach_as_their_rows_do(cells: Cells) -> None:
    """The mean over a whole epoch in one step: packing changes where rows lie, not what is lost."""
    tuning = {"batch_size": 12, "micro_batch_size": 12, "max_steps": 1}
    apart = finished(cells.loop(cells.plan("sft", tuning=tuning)))[0]
    packed = finished(cells.loop(cells.plan("sft", tuning={**tuning, "packing": True})))[0]
    assert packed.loss == pytest.approx(apart.loss, abs=1e-3)


@pytest.mark.parametrize("objective", ["dpo", "orpo", "kto", "reward", "grpo"])
def test_a_resumed_run_equals_one_that_never_stopped(
    objective: str, cells: Cells, tmp_path: Path
) -> None:
    plan = cells.plan(objective, tuning={"max_steps": 3})
    straight = [metrics.loss for metrics in finished(cells.loop(plan, "straight"))]
    halted = cells.loop(plan, "halted")
    halted.begin()
    next(halted.steps())
    halted.save(tmp_path / "checkpoint")
    halted.close()
    resumed = cells.loop(plan, "resumed")
    resumed.load(tmp_path / "checkpoint")
    assert [metrics.loss for metrics in finished(resumed)] == straight[1:]
