"""Each cell of the table objective × method of the `trl` engine, trained for two real steps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.capabilities import ENGINES
from tests.train_loops.trl_cells import Cells, finished, logits
from train_loops.engines.peft_methods import LOW_BIT_METHODS

TABLE = [(o, m) for o, methods in ENGINES["trl"].trains.items() for m in methods]


@pytest.fixture(scope="module")
def cells(model_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    return Cells(model_root / "tiny-llama", tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize(("objective", "method"), TABLE)
def test_every_cell_trains_and_its_result_loads_on_the_original_base(
    objective: str, method: str, cells: Cells, tmp_path: Path
) -> None:
    plan = cells.plan(objective, method)
    loop = cells.loop(plan)
    steps = finished(loop)
    assert [metrics.step for metrics in steps] == [1, 2]
    assert all(math.isfinite(metrics.loss) and metrics.tokens > 0 for metrics in steps)
    loop.export(tmp_path / "result")
    ours = logits(loop._trainer.model)
    theirs = logits(reloaded(objective, method, cells, tmp_path / "result"))
    assert torch.allclose(ours, theirs, atol=2e-4), (ours - theirs).abs().max()
    if objective != "reward":
        before = logits(base(objective, method, cells))
        # Prompt methods answer for their virtual tokens too, which come first.
        assert not torch.allclose(ours[:, -before.shape[1] :], before, atol=1e-3)


def base(objective: str, method: str, cells: Cells) -> Any:
    """The model as it was, in as many bits as the method adapts to."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from train_loops.engines.peft_methods import quantization

    reward = objective == "reward"
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    bits = quantization(cells.plan("sft", method)) if method in LOW_BIT_METHODS else {}
    labels = {"num_labels": 1} if reward else {}
    model = kind.from_pretrained(cells.model_folder, dtype=torch.float32, **labels, **bits)
    model.config.pad_token_id = 0
    return model


def reloaded(objective: str, method: str, cells: Cells, result: Path) -> Any:
    """The result as a stranger loads it: by PEFT on the base as it was, or by transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if method == "full":
        reward = objective == "reward"
        kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
        return kind.from_pretrained(result, dtype=torch.float32)
    return PeftModel.from_pretrained(base(objective, method, cells), result)


@pytest.mark.parametrize("objective", ["sft", "dpo", "grpo"])
def test_a_run_ends_with_its_epochs_whatever_step_limit_lies_beyond(
    objective: str, cells: Cells
) -> None:
    # Twelve rows in batches of five: two whole ones and a smaller one.
    tuning = {"max_steps": 99, "batch_size": 5, "micro_batch_size": 5}
    loop = cells.loop(cells.plan(objective, tuning=tuning), f"limited-{objective}")
    assert loop.begin().total_steps == 3
    loop.close()
