"""Hugging Face: transformers, PEFT and TRL's trainers, on CPU or GPU, alone or DeepSpeed-sharded.

The data arrive as token rows or rendered texts (`train_loops.data`), so TRL renders and masks
nothing. What is trained is in `trl_objectives`, which weights move in `peft_methods`, the numbers
in `trl_arguments`.
"""

from pathlib import Path
from typing import Any

from configs.errors import ConfigInvalid, ModelAccess
from configs.settings import Settings
from train_loops.engines.base import Inputs
from train_loops.engines.peft_methods import (
    adapted,
    quantization,
    refuse,
    trainable_kept,
    weights_dtype,
)
from train_loops.engines.trl_arguments import arguments, limit_steps
from train_loops.engines.trl_loop import TrlLoop
from train_loops.engines.trl_objectives import rows
from train_loops.engines.trl_trainers import trainer
from train_loops.plan import Plan
from train_loops.rewards import Reward, find


class TrlEngine:
    """Builds loops around TRL's trainers."""

    name = "trl"
    uses_torch = True

    def build(self, plan: Plan, inputs: Inputs, *, rank: int, world_size: int) -> TrlLoop:
        from transformers import set_seed

        from train_loops.data.prepare import load

        refuse(plan)
        rewards = _rewards(plan)
        args = arguments(plan, inputs.scratch / "trainer", world_size=world_size)
        # Before new weights are drawn, which the Trainer's own seeding does not promise.
        set_seed(plan.tuning.seed)
        model, tokenizer = load_model(plan, inputs.model_folder)
        method = adapted(plan, model, inputs.model_folder)
        dataset, _ = load(inputs.data_folder)
        dataset = rows(plan, dataset, tokenizer, inputs.scratch / "rows")
        limit_steps(args, plan, len(dataset), world_size)
        try:
            with trainable_kept(method.model):
                built = trainer(plan, args, method, dataset, tokenizer, rewards)
        except ValueError as error:
            # TRL names the argument.
            raise ConfigInvalid(str(error), param="customization") from error
        return TrlLoop(plan, built, method, inputs)


def _rewards(plan: Plan) -> list[Reward]:
    grpo = plan.spec.customization.grpo
    return find(grpo.reward_functions, Settings()) if grpo else []


def load_model(plan: Plan, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of the run, on CPU or on this worker's GPU; a reward model for `reward`.

    Raises:
        ModelAccess: no safetensors, an unknown architecture, a broken file.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from train_loops.data.template import load_tokenizer

    reward = plan.spec.customization.objective == "reward"
    kind: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    remote_code = plan.spec.base_model.trust_remote_code
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=remote_code)
        model = kind.from_pretrained(
            folder,
            dtype=weights_dtype(plan),
            use_safetensors=True,
            trust_remote_code=remote_code,
            **({"num_labels": 1} if reward else {}),
            **quantization(plan),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelAccess(
            f"the base model could not be loaded: {str(error).splitlines()[0]}",
            param="base_model",
            hint="Weights must be safetensors of a causal language model that transformers knows.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if reward:
        # The score is read at the last token that is none of these.
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


ENGINE = TrlEngine()
